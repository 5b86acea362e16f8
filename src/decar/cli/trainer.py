"""The trainer of a run: its options as Lightning takes them, and how long it trains where that is left open."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from hydra.utils import instantiate
from omegaconf import DictConfig, ListConfig, OmegaConf

from decar.cli.config import build_encoder
from decar.cli.runs import flat_options, left_open, read_before
from decar.errors import require

if TYPE_CHECKING:
    from pytorch_lightning import Trainer

    from decar.pretrain.checkpoint import Record

log = logging.getLogger(__name__)

DDP = {  # whichever option asks for several processes; Lightning's own defaults would end a run that clusters for long
    "_target_": "pytorch_lightning.strategies.DDPStrategy",
    "find_unused_parameters": True,  # else sums change their order after the first step, and a resume is not exact
    "timeout": {"_target_": "datetime.timedelta", "hours": 24},  # the other ranks wait while rank 0 clusters
}
INEXACT = {  # with exact=false
    "find_unused_parameters": False,  # no search of the graph in each step
    "broadcast_buffers": False,  # none before each step: `share_buffers` gives all rank 0's at the end of an epoch
}
TURN = "DECAR_TURN"  # environment variable of a child: `turn` of the job
STRATEGIES = {  # values of trainer.strategy, and what they set
    "auto": {},
    "ddp": {},
    "ddp_find_unused_parameters_true": {"find_unused_parameters": True},
    "ddp_find_unused_parameters_false": {"find_unused_parameters": False},
}
PRECISIONS = ("32-true", "16-mixed", "bf16-mixed")
SHORT = {"None": "32-true", "32": "32-true", "16": "16-mixed", "bf16": "bf16-mixed"}  # as Lightning reads them


def bare_trainer(cfg: DictConfig) -> Trainer:
    """The configured trainer without loggers and callbacks: it knows the number of processes and who starts them.

    Raises:
        ConfigError: Its strategy, precision or number of processes is one that training here cannot have.
    """
    from decar.pretrain.datamodule import share_of_batch

    trainer = _bare(trainer_options(cfg))
    _require_precision(trainer.precision)
    share_of_batch(cfg.loader.batch_size, trainer.world_size)
    return trainer


def _bare(options: DictConfig) -> Trainer:
    trainer: Trainer = instantiate(options, logger=False, callbacks=[], enable_checkpointing=False)
    return trainer


def trainer_options(cfg: DictConfig) -> DictConfig:
    """`cfg.trainer` as Lightning takes it: the settings of DDP complete, `sync_batchnorm` as a plugin.

    Raises:
        ConfigError: The strategy is another than DDP, or weights would not be float32.
    """
    from pytorch_lightning.strategies import ParallelStrategy

    options = OmegaConf.create(OmegaConf.to_container(cfg.trainer, resolve=True))
    assert isinstance(options, DictConfig)
    _require_precision(options.get("precision"))
    asked = options.get("strategy") or "auto"
    given = dict(asked) if isinstance(asked, DictConfig) else STRATEGIES.get(asked)
    require(
        given is not None and given.get("_target_", DDP["_target_"]) == DDP["_target_"]
        and given.get("start_method", "popen") == "popen",
        f"trainer.strategy={asked}: heads are renewed every epoch, which only DDP in processes of its own can follow; "
        f"choose one of {', '.join(STRATEGIES)}, and the number of processes with trainer.devices",
    )  # fmt: skip
    if options.pop("sync_batchnorm", False):
        options.plugins = [*options.get("plugins", []), {"_target_": "decar.pretrain.sync.SyncLayers"}]
    if asked != "auto" or isinstance(_bare(options).strategy, ParallelStrategy):  # of several processes
        options.strategy = {**DDP, **({} if cfg.get("exact", True) else INEXACT), **(given or {})}
    own = gpus_in_turn(options.get("devices"), options.get("accelerator"))
    if own is not None:
        options.devices = own
    return options


def turn() -> int | None:
    """The number of this job among those that run side by side on this machine; None: it runs alone, as far as known.

    Of `hydra/launcher=joblib` alone: what starts jobs of SLURM gives each its own GPUs.
    """
    if TURN in os.environ:
        return int(os.environ[TURN])
    if not HydraConfig.initialized():
        return None
    conf: Any = HydraConfig.get()
    beside = conf.mode == RunMode.MULTIRUN and conf.runtime.choices.get("hydra/launcher") == "joblib"
    return int(conf.job.num) if beside else None


def gpus_in_turn(wanted: object, accelerator: object) -> list[int] | None:
    """The GPUs of this job of a parallel sweep; None: it takes those that its options say.

    Args:
        wanted: `trainer.devices`. A list names GPUs itself.
        accelerator: `trainer.accelerator`.
    """
    import torch

    number = turn()
    if number is None or accelerator not in ("auto", "gpu", "cuda") or not isinstance(wanted, int) or wanted < 1:
        return None
    return gpus_of_job(number, wanted, torch.cuda.device_count())


def gpus_of_job(number: int, wanted: int, visible: int) -> list[int] | None:
    """GPUs of the job of this number, `wanted` of those `visible`: jobs take turns. None: there are not so many.

    >>> [gpus_of_job(number, 1, 2) for number in range(3)], gpus_of_job(1, 2, 5), gpus_of_job(0, 2, 1)
    ([[0], [1], [0]], [2, 3], None)
    """
    if visible < wanted:
        return None
    first = number % (visible // wanted) * wanted
    return list(range(first, first + wanted))


def _require_precision(asked: object) -> None:
    """Refuse weights in another type than float32: BatchNorm's statistics and whitening need its digits."""
    name = SHORT.get(str(asked), str(asked))
    require(
        name in PRECISIONS,
        f"trainer.precision={asked}: weights are trained in float32 only; choose one of {', '.join(PRECISIONS)}",
    )


def pick_open_options(cfg: DictConfig, n_clips: int, checkpoint: str | None, processes: int = 1) -> None:
    """Pick a value for each option of `PICKED` that is null, from the number of clips and the `budget`.

    A resumed run keeps what was picked when it began, because the machine may be faster or slower today. Its number of
    epochs is picked again where another `budget` is given.

    Raises:
        ConfigError: Both `budget` and `trainer.max_epochs` are given, or more epochs than these are begun.
    """
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
        _check_epochs(cfg, before)
    _warn_if_never_joined(cfg)
    _warn_without_nmi(cfg)


def check_k(cfg: DictConfig, n_clips: int) -> None:
    """Refuse more clusters than clips."""
    require(n_clips > 1, f"{n_clips} usable clip: nothing can be clustered, give more sounds")
    for clusterer in instantiate(cfg.labels, _convert_="all").clusterers:
        k = getattr(clusterer, "k", None)
        require(
            k is None or k <= n_clips,
            f"k={k} is larger than the number of usable clips ({n_clips}): "
            f"pass a smaller k, such as k={max(2, n_clips // 30)}",
        )


def _kept(before: Record, opened: list[str]) -> dict[str, Any]:
    """What an earlier run of the same options has picked. Only integers: its file may come from anybody."""
    found = {key: before.options[key] for key in opened if key in before.options}
    return {key: value for key, value in found.items() if value is None or isinstance(value, int)}


def _pick_epochs_anew(cfg: DictConfig, n_clips: int, before: Record, processes: int) -> None:
    """Set `trainer.max_epochs` to what the budget affords from the run's first step on.

    Epochs keep their length, each step done counts with today's time of a step, and begun epochs are finished.
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


def _check_epochs(cfg: DictConfig, before: Record) -> None:
    """Log that a run goes on beyond its earlier end; refuse fewer epochs than are begun."""
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
    every = cfg.sampler.every_n_steps if epochs is None else None
    made = plan(n_clips, cfg.loader.batch_size, network_from=network_from, every_n_steps=every, **limit)
    picked: dict[str, Any] = {"k": made.k}
    if epochs is None:
        picked |= {"sampler.every_n_steps": made.every_n_steps, "trainer.max_epochs": made.max_epochs}
    if joins:
        picked["labels.network_from"] = made.network_from if epochs is None else join_epoch(epochs)
    return picked, made.reason if epochs is None else f"{n_clips} clips"


def _warn_if_never_joined(cfg: DictConfig) -> None:
    """Warn if the run ends before the network's own vectors are clustered."""
    joins, epochs = cfg.labels.get("network_from"), cfg.trainer.max_epochs
    if joins is None or not 0 <= epochs <= joins:  # -1: no end
        return
    longer = f"raise budget={cfg.budget}" if cfg.budget else f"pass trainer.max_epochs={joins + 1} or more"
    log.warning(
        "the network's own clusters are never made, only those of the descriptors: they join in epoch %d and the run "
        "has %d; %s, or lower labels.network_from=%d",
        *(joins + 1, epochs, longer, joins),
    )


def _warn_without_nmi(cfg: DictConfig) -> None:
    """Warn if the run is to stop on the NMI of clusterings, and makes only one."""
    once = str(cfg.labels.get("_target_")).endswith(".DescriptorLabels")
    if once and OmegaConf.select(cfg, "callbacks.stop"):
        log.warning(
            "callbacks.stop never ends this run, and there is no best checkpoint or bundle: labels=descriptors are "
            "clustered once, and have no NMI; pass labels=network or labels=both, or callbacks=default"
        )


def _time(cfg: DictConfig, processes: int) -> dict[str, Any]:
    """The budget and the time of a step, in seconds, as arguments of `plan`; empty without a budget."""
    import torch

    from decar.pretrain.datamodule import share_of_batch
    from decar.pretrain.plan import measure_step, parse_budget

    if cfg.budget is None:
        return {}
    seconds = parse_budget(cfg.budget)
    on_gpu = torch.cuda.is_available() and cfg.trainer.accelerator in ("auto", "gpu")
    device = f"cuda:{_first_gpu(cfg)}" if on_gpu else "cpu"
    encoder = build_encoder(cfg)
    share = share_of_batch(cfg.loader.batch_size, processes)
    with threads(max(1, torch.get_num_threads() // processes)):  # each process of several takes its share of the cores
        frames = cfg.loader.crop_frames or encoder.max_frames  # whole clips: at most these
        cost = measure_step(encoder, share, frames, device)
    return {"seconds": seconds, "step_seconds": cost}


def _first_gpu(cfg: DictConfig) -> int:
    """That of this job on which a step is measured."""
    devices = trainer_options(cfg).get("devices")
    return int(devices[0]) if isinstance(devices, ListConfig) and devices else 0


@contextmanager
def threads(number: str | int | None) -> Iterator[None]:
    """As many threads for torch, for a while; None: no change."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(int(number) if number else before)
    try:
        yield
    finally:
        torch.set_num_threads(before)
