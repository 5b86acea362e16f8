"""Options left open in the configuration (null) are picked from the number of clips and the time there is."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

from decar.cli.checks import require
from decar.cli.found import read_config, select
from decar.cli.launch import threads

if TYPE_CHECKING:
    from omegaconf import DictConfig

log = logging.getLogger(__name__)

OPEN = ("k", "sampler.every_n_steps", "trainer.max_epochs", "labels.network_from")


def settle(cfg: DictConfig, n_clips: int, checkpoint: str | None, processes: int = 1) -> None:
    """Fill in the options of `OPEN` where they are null; log what was picked, and whether own clusters are reached.

    A resumed run takes what was picked when it began: the machine may be faster or slower today.
    """
    from omegaconf import OmegaConf

    steps_open = cfg.trainer.max_epochs is None
    require(
        steps_open or cfg.budget is None,
        f"budget={cfg.budget} and trainer.max_epochs={cfg.trainer.max_epochs} both say how long: leave out one",
    )
    before = _picked_before(checkpoint)
    picked, why = _pick(cfg, n_clips, processes, measure=steps_open and not before)
    opened = [key for key in picked if OmegaConf.select(cfg, key) is None]
    for key in opened:
        OmegaConf.update(cfg, key, before.get(key, picked[key]))
    if opened:
        values = ", ".join(f"{key}={OmegaConf.select(cfg, key)}" for key in opened)
        log.info("picked %s (%s)", values, "as when this run began" if before else why)
    _warn_if_never_joined(cfg)


def _pick(cfg: DictConfig, n_clips: int, processes: int, *, measure: bool) -> tuple[dict[str, Any], str]:
    """A value for each option that may be open, and the reason; where `measure`, within what `budget` affords."""
    from decar.pretrain.plan import join_epoch, plan

    joins, epochs = "network_from" in cfg.labels, cfg.trainer.max_epochs
    network_from = cfg.labels.network_from if joins else 0  # other labels need no stage before their clusters
    limit = _time(cfg, processes) if measure else {}
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


def _time(cfg: DictConfig, processes: int) -> dict[str, float]:
    """What the budget allows and what a step costs each of the processes; nothing without a budget."""
    import torch
    from hydra.utils import instantiate

    from decar.pretrain.datamodule import share_of_batch
    from decar.pretrain.plan import measure_step, parse_budget

    if cfg.budget is None:
        return {}
    seconds = parse_budget(cfg.budget)
    on_gpu = torch.cuda.is_available() and cfg.trainer.accelerator in ("auto", "gpu")
    encoder = instantiate(cfg.encoder, _partial_=True)(frontend=instantiate(cfg.frontend))
    share = share_of_batch(cfg.loader.batch_size, processes)
    with threads(max(1, torch.get_num_threads() // processes)):  # each process of several takes its share of the cores
        cost = measure_step(encoder, share, cfg.loader.crop_frames, "cuda" if on_gpu else "cpu")
    return {"seconds": seconds, "step_seconds": cost}


def _picked_before(checkpoint: str | None) -> dict[str, Any]:
    """What the run of a checkpoint trains with; nothing when it is not known."""
    config = Path(checkpoint).parents[1] / "config.yaml" if checkpoint else None
    if config is None or not config.is_file():
        return {}
    found = {key: select(read_config(config), key) for key in OPEN}
    return {key: value for key, value in found.items() if isinstance(value, int)}
