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

OPEN = ("k", "sampler.every_n_steps", "trainer.max_epochs")


def settle(cfg: DictConfig, n_clips: int, checkpoint: str | None, processes: int = 1) -> None:
    """Fill in `k`, `sampler.every_n_steps` and `trainer.max_epochs` where they are null; say what was picked.

    A resumed run takes what was picked when it began: the machine may be faster or slower today.
    """
    from omegaconf import OmegaConf

    from decar.pretrain.plan import plan

    steps_open = cfg.trainer.max_epochs is None
    require(
        steps_open or cfg.budget is None,
        f"budget={cfg.budget} and trainer.max_epochs={cfg.trainer.max_epochs} both say how long: leave out one",
    )
    if not steps_open and cfg.k is not None:
        return
    before = _picked_before(checkpoint)
    made = plan(n_clips, cfg.loader.batch_size, **(_time(cfg, processes) if steps_open and not before else {}))
    picked: dict[str, Any] = {"k": made.k}
    if steps_open:
        picked |= {"sampler.every_n_steps": made.every_n_steps, "trainer.max_epochs": made.max_epochs}
    for key, value in (picked | before).items():
        if OmegaConf.select(cfg, key) is None:
            OmegaConf.update(cfg, key, value)
    why = "as when this run began" if before else made.reason if steps_open else f"{n_clips} clips"
    told = ", ".join(f"{key}={OmegaConf.select(cfg, key)}" for key in OPEN if key in picked)
    log.info("picked %s (%s)", told, why)


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
