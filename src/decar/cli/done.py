"""What is done is not done again: `resume=auto` in a folder that holds the result of the very same job."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

from decar.cli.found import read_config
from decar.errors import ConfigError, TrainingError
from decar.files import whole

if TYPE_CHECKING:
    from omegaconf import DictConfig

log = logging.getLogger(__name__)

FINISHED = "finished.json"  # of a pre-training run that came to its end
# by the run itself, where they were left open
PICKED = ("k", "sampler.every_n_steps", "trainer.max_epochs", "labels.network_from")
# do not change what comes out of a run that came to its end
ASIDE = ("resume", "progress", "report", "objective", "trainer.enable_progress_bar", "trainer.max_time")

# May change when a run goes on. Of the trainer, only TRAINING may not. `data` is compared by the sounds themselves.
FREE = ("resume", "progress", "report", "objective", "cache_dir", "budget", "data", "logger", "callbacks", "trainer",
        "loader.num_workers", "loader.persistent_workers", "loader.pin_memory")  # fmt: skip
TRAINING = ("callbacks.stop", "trainer.precision", "trainer.accumulate_grad_batches", "trainer.gradient_clip_val",
            "trainer.gradient_clip_algorithm", "trainer.limit_train_batches")  # fmt: skip


def refuse_other_run(cfg: DictConfig, checkpoint: Path, content: str, n_clips: int) -> None:
    """Refuse to go on from a checkpoint of other options or sounds; one of an earlier version costs a log line.

    Raises:
        TrainingError: Names each option with its value there and here, or says that the sounds differ.
    """
    import torch

    import decar

    run = torch.load(checkpoint, map_location="cpu", weights_only=True).get("run")
    if run is None:
        log.warning(
            "%s does not say which options and sounds it was made with: make sure they are the same", checkpoint
        )
        return
    other = changed_options(run["options"], cfg, same_version=run["version"] == decar.__version__)
    if other:
        found = "; ".join(f"{key}: {was} there, {now} here" for key, (was, now) in other.items())
        raise TrainingError(
            f"cannot go on from {checkpoint}, it was made otherwise ({found}): give the options it was made with, or "
            "start anew in another hydra.run.dir"
        )
    if run["content"] and run["content"] != content:
        here = f"here {n_clips}" if n_clips != run["n_clips"] else "as many here, with other content or order"
        raise TrainingError(
            f"cannot go on from {checkpoint}, it belongs to other sounds ({run['n_clips']} clips, {here}): give the "
            "sounds it was made with, or start anew in another hydra.run.dir"
        )


def changed_options(
    before: dict[str, Any], cfg: DictConfig, *, same_version: bool = True
) -> dict[str, tuple[object, object]]:
    """Options that may not change and did: value before and now. One that follows another is not named beside it."""
    from omegaconf import OmegaConf

    now = flat_options(cfg)
    raw = dict(_flat(OmegaConf.to_container(cfg)))
    left_open = {key for key in PICKED if now.get(key) is None}
    if "k" in left_open:
        left_open |= {key for key in now if key.endswith(".k")}
    other = {}
    for key in sorted((before.keys() | now.keys()) - left_open):
        free = _below(key, FREE) and not _below(key, TRAINING)
        unknown = key not in before and not same_version  # an option that a later version has brought
        if not free and not unknown and not key.endswith(".gpu") and _unset(before.get(key)) != _unset(now.get(key)):
            other[key] = (before.get(key), now.get(key))
    named = {key: pair for key, pair in other.items() if not str(raw.get(key)).startswith("${")}
    return named or other


def flat_options(cfg: DictConfig) -> dict[str, Any]:
    """All options, resolved, by dotted key."""
    from omegaconf import OmegaConf

    return dict(_flat(OmegaConf.to_container(cfg, resolve=True)))


def _below(key: str, prefixes: tuple[str, ...]) -> bool:
    return any(key == prefix or key.startswith(f"{prefix}.") for prefix in prefixes)


def _unset(value: object) -> object:
    """False and a missing option mean the same as null."""
    return None if value is False else value


def same_job(cfg: DictConfig, output: Path) -> bool:
    """Whether `output/config.yaml` is of a job that was asked for the same as this one."""
    from omegaconf import OmegaConf

    try:
        before = dict(_flat(read_config(output / "config.yaml")))
    except ConfigError:  # none there, or not one of ours: then it is not the same
        return False
    now = dict(_flat(OmegaConf.to_container(cfg, resolve=True)))
    keys = {key for key in before.keys() | now.keys() if not key.startswith(ASIDE)}
    left_open = {key for key in PICKED if now.get(key) is None}
    if "k" in left_open:  # what refers to it was picked with it
        left_open |= {key for key in keys if key.endswith(".k")}
    return all(key in before and key in now and before[key] == now[key] for key in keys - left_open)


def write_finished(output: Path, metrics: dict[str, float], epochs: int, steps: int) -> None:
    """Say that the run in this folder came to its end, with its last figures."""
    with whole(output / FINISHED) as part:
        part.write_text(json.dumps({"metrics": metrics, "epochs": epochs, "steps": steps}))


def read_finished(cfg: DictConfig, output: Path) -> dict[str, Any] | None:
    """The last figures of the run in this folder; None when it was another one, or did not come to its end."""
    try:
        found = json.loads((output / FINISHED).read_text())
    except (OSError, ValueError):
        return None
    whole_run = isinstance(found, dict) and "metrics" in found and (output / "encoder.safetensors").is_file()
    return found if whole_run and same_job(cfg, output) else None


def _flat(tree: Any, prefix: str = "") -> list[tuple[str, object]]:
    """All values of a configuration by their dotted keys; a list counts as one value, but for the tables in it."""
    if isinstance(tree, dict):
        return [pair for key, value in tree.items() for pair in _flat(value, f"{prefix}{key}.")]
    if isinstance(tree, list) and any(isinstance(entry, dict) for entry in tree):
        return [pair for i, entry in enumerate(tree) for pair in _flat(entry, f"{prefix}{i}.")]
    return [(prefix.removesuffix("."), tree)]
