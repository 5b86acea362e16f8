"""Configurations that lie in run folders.

A run folder may come from anybody, so its `config.yaml` is data: it is parsed without resolving `${…}`, and nothing in
it is instantiated. What `decar report` needs from it, the clips and the front-end, is built here from a fixed table of
decar's own functions with plain values. See docs/security.md.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from decar.digests import check_lines
from decar.errors import ConfigError

if TYPE_CHECKING:
    from decar.audio import FrontEnd, Manifest

MAX_BYTES = 1_000_000  # a config.yaml of ours has some 5 kB
MAX_DEPTH = 50
FRONT_END = "decar.audio.FrontEnd"

Plain = str | int | float | bool | None


def read_config(file: Path) -> dict[str, Any]:
    """Parse a found `config.yaml` into plain dictionaries, lists and scalars; `${…}` stays as text.

    Raises:
        ConfigError: It is missing, damaged, larger than `MAX_BYTES`, not YAML, no mapping, deeper than `MAX_DEPTH`, or
            uses aliases.
    """
    import yaml
    from omegaconf import OmegaConf

    try:
        with file.open("rb") as opened:
            text = opened.read(MAX_BYTES + 1)
        if len(text) > MAX_BYTES:
            raise ConfigError(f"{file}: larger than {MAX_BYTES:,} bytes, not the config.yaml of a run")
        check_lines(text)
        depth = 0
        for event in yaml.parse(text, Loader=yaml.SafeLoader):
            depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
            if isinstance(event, yaml.AliasEvent) or depth > MAX_DEPTH:  # both cost without bound when they are loaded
                what = "YAML aliases" if depth <= MAX_DEPTH else f"more than {MAX_DEPTH} levels"
                raise ConfigError(f"{file}: has {what}, which decar never writes; not the config.yaml of a run")
        found = OmegaConf.to_container(OmegaConf.create(text.decode("utf-8")), resolve=False)
    except ConfigError:
        raise
    except Exception as error:  # yaml and omegaconf each have kinds of their own
        raise ConfigError(f"{file}: cannot be read ({' '.join(str(error).split())[:200]})") from error
    if not isinstance(found, dict):
        raise ConfigError(f"{file}: not a mapping; give the folder of a run of decar-train")
    if not found:
        raise ConfigError(f"{file}: cut short, it holds no options; copy it from a whole folder")
    return {str(key): value for key, value in found.items()}


def select(config: Mapping[str, Any], key: str) -> Any:
    """The value of a dotted key; None where there is none.

    >>> select({"trainer": {"max_epochs": 4}}, "trainer.max_epochs")
    4
    """
    value: Any = config
    for part in key.split("."):
        value = value.get(part) if isinstance(value, Mapping) else None
    return value


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
    made: Manifest = _call(known, select(config, "data.manifest"), "data.manifest")
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
