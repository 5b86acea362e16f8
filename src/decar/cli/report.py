"""`decar report RUN`, and the page that a run makes of itself at its end.

A run folder may come from anybody, so what its `config.yaml` names is not instantiated. The clips and the front-end are
built here from a fixed table of decar's own functions with plain values. See docs/security.md.
"""

from __future__ import annotations

import argparse
import inspect
import logging
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from decar.cli.config import cache_home, own_network
from decar.cli.runs import read_config
from decar.cli.terminal import say, start_log
from decar.errors import ConfigError, DecarError

if TYPE_CHECKING:
    from decar.audio import FrontEnd, LogMelStore, Manifest
    from decar.report import RunFiles

log = logging.getLogger(__name__)

FRONT_END = "decar.audio.FrontEnd"
Plain = str | int | float | bool | None


def report(args: argparse.Namespace) -> None:
    """Make the page of a run."""
    from decar.cli.eval import device_of
    from decar.report import write_report

    start_log(logging.WARNING)
    source = run_files(args.folder, args.downstream, args.network)
    page = write_report(source, args.out, device=device_of("auto"), progress=sys.stderr.isatty())
    say(f"{page}: {page.stat().st_size / 1e6:.1f} MB; open it in a browser")


def run_files(run: Path, downstream: Sequence[Path] = (), network: Callable[..., Any] | None = None) -> RunFiles:
    """What a finished run's page is made from; clips that cannot be found again are a note on it.

    Raises:
        DecarError: It is no folder of a run, or one of `downstream` does not exist.
    """
    from decar.downstream.results import FILE_NAME
    from decar.report import RunFiles

    if not (run / "config.yaml").is_file():
        raise DecarError(f"{run}: no config.yaml in there; give the folder of a run of decar-train")
    for folder in downstream:
        if not folder.exists():
            raise DecarError(f"--downstream {folder}: no such folder; give the one with the {FILE_NAME} files")
    config = read_config(run / "config.yaml")
    data, seed = config.get("data"), config.get("seed")
    if not isinstance(data, dict):
        raise DecarError(f"{run / 'config.yaml'}: not of a pre-training run; give the folder of a run of decar-train")
    label = data.get("label")
    return RunFiles(
        run, config, clips_of(config), label=label if isinstance(label, str) else None,
        seed=seed if isinstance(seed, int) else 0, downstream=tuple(downstream), network=network,
    )  # fmt: skip


def clips_of(config: Mapping[str, Any]) -> LogMelStore | str:
    """The usable clips of a found run, or why they cannot be loaded.

    Raises:
        ConfigError: The configuration names something that is not decar's own.
    """
    from decar.audio import LogMelStore

    frontend = frontend_of(config)
    try:
        clips = manifest_of(config)
        log.warning("reading the sounds of %s", clips.root)
        return LogMelStore.open_or_build(clips, frontend, cache_of(config, cache_home())).usable()
    except ConfigError:
        raise
    except Exception as error:  # the files have moved, the table has changed, the cache is read-only
        return f"cannot load the run's clips: {' '.join(str(error).split())[:300]}"


def manifest_of(config: Mapping[str, Any]) -> Manifest:
    """The clips of a found run: `data.manifest` must name one of decar's own readers, with plain values.

    Raises:
        ConfigError: It names something else, an unknown argument, or a value that is not plain.
        ManifestError: The folder or table is not there any more, or has changed.
    """
    from decar.audio import Manifest
    from decar.corpora import prepared_manifest

    known: dict[str, Callable[..., Manifest]] = {
        "decar.audio.Manifest.from_folder": Manifest.from_folder,
        "decar.audio.Manifest.from_csv": Manifest.from_csv,
        "decar.audio.Manifest.from_parquet": Manifest.from_parquet,
        "decar.corpora.prepared_manifest": prepared_manifest,
    }
    data = config.get("data")
    made: Manifest = _call(known, data.get("manifest") if isinstance(data, Mapping) else None, "data.manifest")
    return made


def frontend_of(config: Mapping[str, Any]) -> FrontEnd:
    """The front-end of a found run, from its numbers.

    Raises:
        ConfigError: As `manifest_of`, or the numbers contradict one another.
    """
    from decar.audio import FrontEnd

    numbers = config.get("frontend")
    made: FrontEnd = _call({FRONT_END: FrontEnd}, numbers, "frontend")
    for key, value in made.as_dict().items():
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise ConfigError(f"config.yaml: frontend.{key}={value!r} is not a number; correct it")
    return made


def cache_of(config: Mapping[str, Any], own: str) -> str:
    """Where the log-mels of a found run are looked for: its `cache_dir` if decar has kept log-mels there, else `own`.

    A folder that the reader never used as a cache is not written to.
    """
    theirs = config.get("cache_dir")
    return theirs if isinstance(theirs, str) and (Path(theirs).expanduser() / "logmel").is_dir() else own


def _call(known: Mapping[str, Callable[..., Any]], node: Any, key: str) -> Any:
    """Call the function that a node's `_target_` names in `known`, with the node's other entries."""
    target = node.get("_target_") if isinstance(node, Mapping) else None
    if not isinstance(target, str) or target not in known:
        raise ConfigError(
            f"config.yaml: {key}._target_={target!r}: a found configuration is never run; only {', '.join(known)} "
            "can be loaded from one; correct it"
        )
    arguments = {str(name): value for name, value in node.items() if name != "_target_"}
    unknown = set(arguments) - set(inspect.signature(known[target]).parameters)
    if unknown:
        raise ConfigError(f"config.yaml: {key}.{min(unknown)} is no option of {target}; remove it")
    for name, value in arguments.items():
        if not isinstance(value, Plain):
            raise ConfigError(f"config.yaml: {key}.{name} is a {type(value).__name__}, not a plain value; correct it")
    try:
        return known[target](**arguments)
    except TypeError as error:  # text where a number belongs
        raise ConfigError(f"config.yaml: {key}: {error}") from error


def report_run(cfg: Any, output: Path, store: LogMelStore) -> None:
    """Make the page of the run that has just ended; whatever fails is one line in the log and fails nothing."""
    from omegaconf import OmegaConf

    try:
        from decar.cli.eval import device_of
        from decar.report import RunFiles, write_environment, write_report

        device = device_of("cpu" if cfg.trainer.accelerator == "cpu" else "auto")
        write_environment(output)
        config: Any = OmegaConf.to_container(cfg, resolve=True)
        label = OmegaConf.select(cfg, "data.label")
        source = RunFiles(output, config, store, label=label, seed=cfg.seed, network=own_network(cfg))
        log.info("look at it:  %s", write_report(source, device=device, progress=False))
    except Exception as error:
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        log.warning("no report.html (%s); the run is whole: try `decar report %s`", reason, output)
