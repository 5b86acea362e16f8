"""What is done is not done again: `resume=auto` in a folder that holds the result of the very same job."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from decar.files import whole

if TYPE_CHECKING:
    from omegaconf import DictConfig

FINISHED = "finished.json"  # of a pre-training run that came to its end
PICKED = ("k", "sampler.every_n_steps", "trainer.max_epochs")  # by the run itself, where they were left open
# do not change what comes out of a run that came to its end
ASIDE = ("resume", "progress", "report", "objective", "trainer.enable_progress_bar", "trainer.max_time")


def same_job(cfg: DictConfig, output: Path) -> bool:
    """Whether `output/config.yaml` is of a job that was asked for the same as this one."""
    from omegaconf import OmegaConf

    try:
        before = dict(_flat(OmegaConf.to_container(OmegaConf.load(output / "config.yaml"))))
    except Exception:  # none there, or not one of ours: then it is not the same
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
