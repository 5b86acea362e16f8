"""`decar report RUN`, and the page that a run makes of itself at its end."""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from decar.cli.config import add_network, cache_home, own_network
from decar.cli.found import cache_of, frontend_of, manifest_of, read_config
from decar.cli.limits import add_limits
from decar.cli.terminal import say, start_log
from decar.errors import ConfigError, DecarError

if TYPE_CHECKING:
    from decar.audio import LogMelStore
    from decar.report import RunFiles

log = logging.getLogger(__name__)


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """`decar report`."""
    parser = commands.add_parser("report", help="one HTML page of a run, self-contained, to be opened offline")
    parser.add_argument("folder", type=Path, metavar="RUN", help="the folder of a run of decar-train")
    parser.add_argument("--out", type=Path, metavar="FILE", help="RUN/report.html when not given")
    parser.add_argument(
        "--downstream",
        type=Path,
        nargs="+",
        default=[],
        metavar="DIR",
        help="folders with result.json files: those of this run's encoder are shown, beside RUN's own",
    )
    add_network(parser)
    add_limits(parser)
    parser.set_defaults(run=_report)


def _report(args: argparse.Namespace) -> None:
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
