"""Several processes for one job: those of torchrun or SLURM, or children that are started here."""

from __future__ import annotations

import logging
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from decar.cli.checks import require
from decar.cores import cpu_count

if TYPE_CHECKING:
    from omegaconf import DictConfig
    from pytorch_lightning import Trainer

log = logging.getLogger(__name__)

NOTICE_SECONDS = 20  # that this process has to see by itself that another one is gone
PARENT = "DECAR_PARENT"  # environment variable of a child: the process that it ends with


def bare_trainer(cfg: DictConfig) -> Trainer:
    """The configured trainer without loggers and callbacks: it knows how many processes there are, and whose.

    Raises:
        ConfigError: It is a kind of training in which heads cannot be renewed.
    """
    from hydra.utils import instantiate
    from pytorch_lightning.strategies import DDPStrategy

    trainer: Trainer = instantiate(trainer_options(cfg), logger=False, callbacks=[], enable_checkpointing=False)
    require(
        trainer.world_size == 1 or isinstance(trainer.strategy, DDPStrategy),
        f"trainer.strategy={type(trainer.strategy).__name__}: with several devices only DDP; pass trainer=ddp",
    )
    return trainer


def trainer_options(cfg: DictConfig) -> DictConfig:
    """`cfg.trainer` with `sync_batchnorm` turned into the plugin that also works on CPUs."""
    from omegaconf import DictConfig, OmegaConf

    options = OmegaConf.create(OmegaConf.to_container(cfg.trainer, resolve=True))
    assert isinstance(options, DictConfig)
    if options.pop("sync_batchnorm", False):
        options.plugins = [*options.get("plugins", []), {"_target_": "decar.pretrain.sync.SyncLayers"}]
    return options


@contextmanager
def joined(cfg: DictConfig) -> Iterator[Trainer]:
    """Join the processes that torchrun, SLURM and the like have started, if they did; gives a bare trainer."""
    from torch import distributed

    trainer = bare_trainer(cfg)
    started = _started_elsewhere(trainer)
    require(
        started or trainer.num_nodes == 1,
        f"trainer.num_nodes={trainer.num_nodes}: start it with torchrun or srun on every node",
    )
    if started and trainer.world_size > 1:
        _require_named_folder()
        trainer.strategy.setup_environment()
        if trainer.global_rank:
            logging.getLogger().setLevel(logging.ERROR)
    try:
        yield trainer
    finally:
        if distributed.is_available() and distributed.is_initialized():
            distributed.destroy_process_group()


def _started_elsewhere(trainer: Trainer) -> bool:
    environment = getattr(trainer.strategy, "cluster_environment", None)
    return environment is not None and bool(environment.creates_processes_externally)


def leads() -> bool:
    """Whether this is the process that writes logs: the only one, or the first of several."""
    from pytorch_lightning.utilities import rank_zero_only

    return not (int(os.environ.get("LOCAL_RANK", "0")) or getattr(rank_zero_only, "rank", 0))


def _require_named_folder() -> None:
    from hydra.core.hydra_config import HydraConfig
    from hydra.types import RunMode

    conf = HydraConfig.get()  # a sweep's folders were named before its jobs were sent off
    named = conf.mode == RunMode.MULTIRUN or any(word.startswith("hydra.run.dir=") for word in conf.overrides.hydra)
    require(named, "under torchrun or srun pass hydra.run.dir=RUN: else each process would choose a folder of its own")


@contextmanager
def others(trainer: Trainer, config: Path, checkpoint: str | None) -> Iterator[None]:
    """Start the other processes of a job, unless they are there; see that all end together.

    Args:
        trainer: Says how many there are.
        config: `config.yaml` of the run, nothing left open: what they train with.
        checkpoint: To go on from.
    """
    if trainer.world_size == 1 or _started_elsewhere(trainer):
        yield
        return
    settings = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(_free_port()), "NODE_RANK": "0"}
    if trainer.strategy.root_device.type == "cpu":  # each would take all cores
        share = str(max(1, cpu_count() // trainer.world_size))
        settings["OMP_NUM_THREADS"] = os.environ.get("OMP_NUM_THREADS", share)
    command = [sys.executable, "-m", "decar.cli.rank", str(config), checkpoint or ""]
    with _environment({**settings, "LOCAL_RANK": "0"}), _threads(settings.get("OMP_NUM_THREADS")):
        children = [
            subprocess.Popen(command, env={**os.environ, "LOCAL_RANK": str(rank), PARENT: str(os.getpid())})
            for rank in range(1, trainer.world_size)
        ]
        over = threading.Event()
        threading.Thread(target=_watch, args=(children, over), daemon=True).start()
        try:
            yield
            _wait(children)
        finally:
            over.set()
            for child in children:
                child.kill()
                child.wait()


def _wait(children: list[subprocess.Popen[bytes]], seconds: float = 60) -> None:
    """Let them come to their end."""
    ends = time.monotonic() + seconds
    for child in children:
        try:
            child.wait(max(0.1, ends - time.monotonic()))
        except subprocess.TimeoutExpired:
            log.warning("process %d did not end by itself and is killed", child.pid)


def _watch(children: list[subprocess.Popen[bytes]], over: threading.Event) -> None:
    """When a child fails, this process mostly fails too, at their next exchange; where it waits for ever, end it."""
    while not over.wait(1):
        if any(child.poll() for child in children):
            if not over.wait(NOTICE_SECONDS):
                log.error("another process of this job has ended with an error; see the lines above")
                for child in children:
                    child.kill()
                os._exit(1)
            return


def end_with_parent() -> None:
    """In a child: end when the process that started it is gone, which `kill -9` leaves no time to say."""
    parent = int(os.environ[PARENT])

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(0.5)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


@contextmanager
def _environment(values: dict[str, str]) -> Iterator[None]:
    """Environment variables for a while: the next job of a sweep starts its own processes."""
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


@contextmanager
def _threads(number: str | None) -> Iterator[None]:
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(int(number) if number else before)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])
