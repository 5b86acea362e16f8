"""What is done is not done again: `resume=auto` in a folder that holds the result of the very same job."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from decar.cli.found import read_config
from decar.digests import DamagedError, check_parquet, read_json, read_parquet, unreadable, write_json
from decar.errors import ConfigError, TrainingError
from decar.files import whole

if TYPE_CHECKING:
    from omegaconf import DictConfig

log = logging.getLogger(__name__)

FINISHED = "finished.json"  # of a pre-training run that came to its end
# by the run itself, where they were left open
PICKED = ("k", "sampler.every_n_steps", "trainer.max_epochs", "labels.network_from")
# do not change what comes out of a run that came to its end
ASIDE = ("resume", "progress", "report", "objective", "cache_dir", "stall_timeout", "trainer.enable_progress_bar",
         "trainer.max_time")  # fmt: skip
OF_DATA = ("${data.", "${oc.select:data.")  # an option that follows `data`
OF_FOLDER = ("${cache_dir}", "${hydra:runtime.output_dir}")  # or only says where a file lies

OLD_ENCODER = "decar.models.Encoder"  # named before networks had names; `DecarModule` compares what was built
# May change when a run goes on. Of the trainer, only TRAINING may not. `data` is compared by the sounds themselves.
FREE = ("resume", "progress", "report", "objective", "cache_dir", "stall_timeout", "budget", "data", "limits", "logger",
        "callbacks", "trainer", "loader.num_workers", "loader.persistent_workers", "loader.pin_memory",
        "loader.timeout")  # fmt: skip
TRAINING = ("callbacks.stop", "trainer.precision", "trainer.accumulate_grad_batches", "trainer.gradient_clip_val",
            "trainer.gradient_clip_algorithm", "trainer.limit_train_batches")  # fmt: skip


@dataclass(frozen=True)
class Before:
    """What a checkpoint says of its run.

    Attributes:
        options: All of them by dotted key, plain values; empty where they are unknown.
        content: `Identity.content` of its sounds; empty where it is unknown.
        n_clips: `N`.
        version: Of decar; empty where the checkpoint keeps no record of its run, as in earlier versions.
        processes: How many trained; 0 where it is unknown.
        epochs: Begun, and all but the last of them whole.
    """

    options: dict[str, Any]
    content: str
    n_clips: int
    version: str
    processes: int
    epochs: int


def read_before(checkpoint: Path) -> Before:
    """Read what a checkpoint says of its run; without a record, the options in the `config.yaml` of its run folder."""
    import torch

    found = torch.load(checkpoint, map_location="cpu", weights_only=True, mmap=True)
    loop = found.get("loops", {}).get("fit_loop", {})
    whole_epochs = loop.get("epoch_progress", {}).get("current", {}).get("processed", 0)
    within = loop and not loop.get("epoch_loop.batch_progress", {}).get("is_last_batch", True)
    run = found.get("run") or {"options": _options_in(checkpoint.parents[1])}
    return Before(
        options=run["options"], content=run.get("content", ""), n_clips=run.get("n_clips", 0),
        version=run.get("version", ""), processes=run.get("processes", 0), epochs=whole_epochs + bool(within),
    )  # fmt: skip


def _options_in(folder: Path) -> dict[str, Any]:
    """The options in a folder's `config.yaml`; none where it is missing or, with a line in the log, damaged."""
    file = folder / "config.yaml"
    try:
        return dict(_flat(read_config(file))) if file.exists() else {}
    except ConfigError as error:
        log.warning("%s", error)
        return {}


def refuse_other_run(cfg: DictConfig, checkpoint: Path, content: str, n_clips: int, processes: int = 1) -> None:
    """Refuse to go on from a checkpoint of other options or sounds; one of an earlier version costs a log line.

    Args:
        cfg: What is asked for now.
        checkpoint: To go on from.
        content: `Identity.content` of the sounds now.
        n_clips: `N` now.
        processes: That would train now.

    Raises:
        TrainingError: Names each option with its value there and here, or says that the sounds differ.
    """
    import decar

    before = read_before(checkpoint)
    if not before.version:
        log.warning(
            "%s does not say which options and sounds it was made with: make sure they are the same", checkpoint
        )
        return
    other = changed_options(before.options, cfg, same_version=before.version == decar.__version__)
    joint = _joint_batchnorm(before.options, before.processes), _joint_batchnorm(flat_options(cfg), processes)
    if before.processes and joint[0] != joint[1]:
        other["trainer.sync_batchnorm (one process: always)"] = joint
    if other:
        found = "; ".join(f"{key}: {was} there, {now} here" for key, (was, now) in other.items())
        raise TrainingError(
            f"cannot go on from {checkpoint}, it was made otherwise ({found}): give the options it was made with, or "
            "start anew in another hydra.run.dir"
        )
    if before.content and before.content != content:
        here = f"here {n_clips}" if n_clips != before.n_clips else "as many here, with other content or order"
        raise TrainingError(
            f"cannot go on from {checkpoint}, it belongs to other sounds ({before.n_clips} clips, {here}): give the "
            "sounds it was made with, or start anew in another hydra.run.dir"
        )


def changed_options(
    before: dict[str, Any], cfg: DictConfig, *, same_version: bool = True
) -> dict[str, tuple[object, object]]:
    """Options that may not change and did: value before and now. One that follows another is not named beside it."""
    from omegaconf import OmegaConf

    now = flat_options(cfg)
    if before.get("encoder._target_") == OLD_ENCODER:
        before = {**before, **{key: now.get(key) for key in ("encoder._target_", "encoder.n_mels")}}
    raw = dict(_flat(OmegaConf.to_container(cfg)))
    picked = set(left_open(now))
    if "k" in picked:
        picked |= {key for key in now if key.endswith(".k")}
    other = {}
    for key in sorted((before.keys() | now.keys()) - picked):
        free = _below(key, FREE) and not _below(key, TRAINING)
        unknown = key not in before and not same_version  # an option that a later version has brought
        if not free and not unknown and not key.endswith(".gpu") and _unset(before.get(key)) != _unset(now.get(key)):
            other[key] = (before.get(key), now.get(key))
    named = {key: pair for key, pair in other.items() if not str(raw.get(key)).startswith("${")}
    return named or other


def _joint_batchnorm(options: dict[str, Any], processes: int) -> bool:
    """Whether BatchNorm is computed over the whole batch."""
    return processes == 1 or bool(options.get("trainer.sync_batchnorm"))


def flat_options(cfg: DictConfig) -> dict[str, Any]:
    """All options, resolved, by dotted key."""
    from omegaconf import OmegaConf

    return dict(_flat(OmegaConf.to_container(cfg, resolve=True)))


def _below(key: str, prefixes: tuple[str, ...]) -> bool:
    return any(key == prefix or key.startswith(f"{prefix}.") for prefix in prefixes)


def _unset(value: object) -> object:
    """False and a missing option mean the same as null."""
    return None if value is False else value


def left_open(options: dict[str, Any]) -> list[str]:
    """Options of `PICKED` that are there and null."""
    return [key for key in PICKED if key in options and options[key] is None]


def same_job(cfg: DictConfig, output: Path) -> bool:
    """Whether `output/config.yaml` is of a job that was asked for the same as this one."""
    return _same(cfg, _options_in(output))


def _same(cfg: DictConfig, before: dict[str, Any], *, same_sounds: bool = False) -> bool:
    """Whether these options ask for what a job with the options `before` has made.

    An option that was picked is the same where it is left open now, and `budget` only serves to pick. Where the sounds
    are known to be the same, it does not count where they lie.
    """
    from omegaconf import OmegaConf

    now, raw = flat_options(cfg), dict(_flat(OmegaConf.to_container(cfg)))
    aside = [*ASIDE, *left_open(now), *(["data"] if same_sounds else [])]
    if "trainer.max_epochs" in now and now["trainer.max_epochs"] is not None:
        aside.append("budget")
    follows = OF_FOLDER + (OF_DATA if same_sounds else ())
    keys = {key for key in before.keys() | now.keys() if not str(raw.get(key)).startswith(follows)}
    if "k" in aside:  # what refers to it was picked with it
        keys = {key for key in keys if not key.endswith(".k")}
    keys = {key for key in keys if not _below(key, tuple(aside))}
    return bool(before) and all(key in before and key in now and before[key] == now[key] for key in keys)


def write_finished(output: Path, metrics: dict[str, float], epochs: int, steps: int, run: dict[str, Any]) -> None:
    """Say that the run in this folder came to its end: its last figures, and `run`, the record in its checkpoints."""
    with whole(output / FINISHED) as part:
        write_json(part, {"metrics": metrics, "epochs": epochs, "steps": steps, "run": run})


def read_finished(cfg: DictConfig, output: Path, content: str) -> dict[str, Any] | None:
    """The last figures of the run in this folder; None when it was another one, or did not come to its end.

    A damaged file costs a line in the log.

    Args:
        cfg: What is asked for now.
        output: The folder.
        content: `Identity.content` of the sounds now.
    """
    file = output / FINISHED
    try:
        found = read_json(file) if file.is_file() else {}
    except (OSError, DamagedError) as error:
        log.warning("%s is damaged (%s): going on from the last checkpoint", file, error)
        return None
    if not {"metrics", "epochs", "run"} <= found.keys():  # earlier versions kept less
        return None
    run = found["run"]
    if run["content"] and run["content"] != content:
        return None
    return found if _same(cfg, run["options"], same_sounds=bool(run["content"])) else None


def lost_outputs(cfg: DictConfig, output: Path, epochs: int) -> dict[Path, str]:
    """What a finished run should have and has not, and the reason, as far as its last checkpoint can give it again.

    Earlier epochs of `clusters.parquet` are in no checkpoint; the log names those that are lost.

    Args:
        cfg: What is asked for now.
        output: The folder.
        epochs: That the run has trained.
    """
    from decar.models import read_facts
    from decar.pretrain.callbacks import part_of

    callbacks, lost = cfg.get("callbacks") or {}, {}
    if callbacks.get("bundle"):
        lost[output / "encoder.safetensors"] = unreadable(output / "encoder.safetensors", read_facts)
    if callbacks.get("clusters") and epochs:
        *earlier, last = (part_of(output / "clusters.parquet", epoch) for epoch in range(epochs))
        lost[last] = unreadable(last, read_parquet)
        for part in earlier:
            if reason := unreadable(part, check_parquet):
                log.warning("%s: %s, and no checkpoint holds this epoch", part, reason)
    if cfg.get("report"):
        lost[output / "report.html"] = unreadable(output / "report.html", lambda path: None)
    return {path: reason for path, reason in lost.items() if reason}


def _flat(tree: Any, prefix: str = "") -> list[tuple[str, object]]:
    """All values of a configuration by their dotted keys; a list counts as one value, but for the tables in it."""
    if isinstance(tree, dict):
        return [pair for key, value in tree.items() for pair in _flat(value, f"{prefix}{key}.")]
    if isinstance(tree, list) and any(isinstance(entry, dict) for entry in tree):
        return [pair for i, entry in enumerate(tree) for pair in _flat(entry, f"{prefix}{i}.")]
    return [(prefix.removesuffix("."), tree)]
