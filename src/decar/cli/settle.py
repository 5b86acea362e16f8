"""Options left open in the configuration (null) are picked from the number of clips and the time there is."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

from decar.cli.checks import require
from decar.cli.config import build_encoder
from decar.cli.done import flat_options, left_open, read_before
from decar.cli.launch import threads

if TYPE_CHECKING:
    from omegaconf import DictConfig

    from decar.cli.done import Before

log = logging.getLogger(__name__)


def settle(cfg: DictConfig, n_clips: int, checkpoint: str | None, processes: int = 1) -> None:
    """Fill in the options of `PICKED` where they are null; log what was picked, and whether own clusters are reached.

    A resumed run takes what was picked when it began: the machine may be faster or slower today. Its number of epochs
    is picked anew where another `budget` is given.

    Raises:
        ConfigError: Both `budget` and `trainer.max_epochs` are given, or more epochs than these are begun.
    """
    from omegaconf import OmegaConf

    steps_open = cfg.trainer.max_epochs is None
    require(
        steps_open or cfg.budget is None,
        f"budget={cfg.budget} and trainer.max_epochs={cfg.trainer.max_epochs} both say how long: leave out one",
    )
    before = read_before(Path(checkpoint)) if checkpoint else None
    opened = left_open(flat_options(cfg))
    kept = _kept(before, opened) if before else {}
    picked, why = _pick(cfg, n_clips, processes, measure=steps_open and "trainer.max_epochs" not in kept)
    values = {key: value for key, value in (picked | kept).items() if key in opened and value is not None}
    for key, value in values.items():
        OmegaConf.update(cfg, key, value)
    if values:
        said = ", ".join(f"{key}={value}" for key, value in values.items())
        log.info("picked %s (%s)", said, "as when this run began" if kept else why)
    if before:
        if "trainer.max_epochs" in kept and _seconds(before.options.get("budget")) != _seconds(cfg.budget):
            _pick_epochs_anew(cfg, n_clips, before, processes)
        _tell_of_more_epochs(cfg, before)
    _warn_if_never_joined(cfg)


def _kept(before: Before, opened: list[str]) -> dict[str, Any]:
    """What an earlier run of the same options has picked; its file may come from anybody: numbers or nothing."""
    found = {key: before.options[key] for key in opened if key in before.options}
    return {key: value for key, value in found.items() if value is None or isinstance(value, int)}


def _pick_epochs_anew(cfg: DictConfig, n_clips: int, before: Before, processes: int) -> None:
    """Set `trainer.max_epochs` to what the budget affords in all, counted from the run's first step.

    An epoch stays as long as it is, and a step that is done counts as much as one costs today. Epochs that are begun
    are finished.
    """
    from decar.pretrain.datamodule import steps_for
    from decar.pretrain.plan import plan

    size = cfg.loader.batch_size
    length = cfg.sampler.every_n_steps or steps_for(n_clips, cfg.sampler.draws_per_clip, size)
    joins = cfg.labels.get("network_from", 0)
    made = plan(n_clips, size, network_from=joins, every_n_steps=length, **_time(cfg, processes))
    cfg.trainer.max_epochs = max(made.max_epochs, before.epochs)
    log.info(
        "budget=%s, %s before: %d epochs of %d steps in all (%s), %d of them begun%s",
        cfg.budget, before.options.get("budget"), cfg.trainer.max_epochs, length, made.reason, before.epochs,
        "" if cfg.trainer.max_epochs > before.epochs else "; for more pass budget=null trainer.max_epochs=N",
    )  # fmt: skip


def _tell_of_more_epochs(cfg: DictConfig, before: Before) -> None:
    """Log that a run goes on beyond the end that it had; refuse an end that is behind it."""
    epochs, end = cfg.trainer.max_epochs, before.options.get("trainer.max_epochs")
    require(
        epochs >= before.epochs,
        f"trainer.max_epochs={epochs}: {before.epochs} epochs of this run are begun; give at least as many",
    )
    if isinstance(end, int) and epochs > end:
        log.info("training on: trainer.max_epochs=%d, %d before; %d epochs are begun", epochs, end, before.epochs)


def _seconds(budget: object) -> float | None:
    from decar.pretrain.plan import parse_budget

    return None if budget is None else parse_budget(str(budget))


def _pick(cfg: DictConfig, n_clips: int, processes: int, *, measure: bool) -> tuple[dict[str, Any], str]:
    """A value for each option that may be open, and the reason; where `measure`, within what `budget` affords."""
    from decar.pretrain.plan import join_epoch, plan

    joins, epochs = "network_from" in cfg.labels, cfg.trainer.max_epochs
    network_from = cfg.labels.network_from if joins else 0  # other labels need no stage before their clusters
    limit: dict[str, Any] = _time(cfg, processes) if measure else {}
    made = plan(n_clips, cfg.loader.batch_size, network_from=network_from, **limit)
    picked: dict[str, Any] = {"k": made.k}
    if epochs is None:
        picked |= {"sampler.every_n_steps": made.every_n_steps, "trainer.max_epochs": made.max_epochs}
    if joins:
        picked["labels.network_from"] = made.network_from if epochs is None else join_epoch(epochs)
    return picked, made.reason if epochs is None else f"{n_clips} clips"


def _warn_if_never_joined(cfg: DictConfig) -> None:
    """Log that the run ends before the network's own vectors are clustered."""
    joins, epochs = cfg.labels.get("network_from"), cfg.trainer.max_epochs
    if joins is None or not 0 <= epochs <= joins:  # -1: no end
        return
    longer = f"raise budget={cfg.budget}" if cfg.budget else f"pass trainer.max_epochs={joins + 1} or more"
    log.warning(
        "the network's own clusters are never made, only those of the descriptors: they join in epoch %d and the run "
        "has %d; %s, or lower labels.network_from=%d",
        *(joins + 1, epochs, longer, joins),
    )


def _time(cfg: DictConfig, processes: int) -> dict[str, Any]:
    """What the budget allows and what a step costs each of the processes; nothing without a budget."""
    import torch

    from decar.pretrain.datamodule import share_of_batch
    from decar.pretrain.plan import measure_step, parse_budget

    if cfg.budget is None:
        return {}
    seconds = parse_budget(cfg.budget)
    on_gpu = torch.cuda.is_available() and cfg.trainer.accelerator in ("auto", "gpu")
    encoder = build_encoder(cfg)
    share = share_of_batch(cfg.loader.batch_size, processes)
    with threads(max(1, torch.get_num_threads() // processes)):  # each process of several takes its share of the cores
        cost = measure_step(encoder, share, cfg.loader.crop_frames, "cuda" if on_gpu else "cpu")
    return {"seconds": seconds, "step_seconds": cost}
