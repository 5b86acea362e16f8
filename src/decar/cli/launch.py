"""Several processes for one job: those of torchrun or SLURM, or children that are started here."""

from __future__ import annotations

import itertools
import json
import logging
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING

from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from decar import signals
from decar.cli.trainer import TURN, bare_trainer, threads, turn
from decar.cores import cpu_count
from decar.errors import ConfigError, LostProcessError, require
from decar.files import locked

if TYPE_CHECKING:
    from pytorch_lightning import Trainer

    from decar.audio.manifest import Identity

log = logging.getLogger(__name__)

NOTICE_SECONDS = 20  # that this process has to see by itself that another one is gone
PARENT = "DECAR_PARENT"  # environment variable of a child: the process that it ends with
_jobs = itertools.count()  # of a sweep under torchrun, whose jobs share a store


@contextmanager
def process_group(cfg: DictConfig) -> Iterator[Trainer]:
    """Join the process group of torchrun or SLURM, if one of them started this process; yields a bare trainer.

    The group lasts until the process ends: a second one would read the addresses of the first from torchrun's store.
    """
    from torch import distributed

    from decar.pretrain.liveness import heartbeat, peers_named

    trainer = bare_trainer(cfg)
    started = _started_elsewhere(trainer)
    alive: AbstractContextManager[None] = nullcontext()
    require(
        started or trainer.num_nodes == 1,
        f"trainer.num_nodes={trainer.num_nodes}: start it with torchrun or srun on every node",
    )
    if started and trainer.world_size > 1:
        _require_named_folder()
        _require_same_group(trainer)
        trainer.strategy.setup_environment()
        if trainer.global_rank:
            logging.getLogger().setLevel(logging.ERROR)
        alive = heartbeat(trainer.global_rank, trainer.world_size, cfg.stall_timeout, next(_jobs))
    try:
        with peers_named(), alive:
            yield trainer
    finally:
        if not started and distributed.is_available() and distributed.is_initialized():
            distributed.destroy_process_group()


@contextmanager
def folder_lock(output: Path, option: str) -> Iterator[None]:
    """Lock the folder that a job writes into.

    Raises:
        ConfigError: Another job writes into it.
    """
    with ExitStack() as stack:
        try:
            stack.enter_context(locked(output / ".lock"))
        except BlockingIOError as error:
            raise ConfigError(
                f"{output}: {error.strerror}, which writes into this folder; wait until it has ended, or pass another "
                f"{option}"
            ) from None
        yield


def _started_elsewhere(trainer: Trainer) -> bool:
    environment = getattr(trainer.strategy, "cluster_environment", None)
    return environment is not None and bool(environment.creates_processes_externally)


def leads() -> bool:
    """Whether this is the process that writes logs: the only one, or the first of several."""
    from pytorch_lightning.utilities import rank_zero_only

    return not (int(os.environ.get("LOCAL_RANK", "0")) or getattr(rank_zero_only, "rank", 0))


def _require_named_folder() -> None:
    conf = HydraConfig.get()
    if "SUBMITIT_EXECUTOR" in os.environ:  # the folders of its jobs were named before they were sent off
        return
    key = "hydra.sweep.dir" if conf.mode == RunMode.MULTIRUN else "hydra.run.dir"
    named = any(word.startswith(f"{key}=") for word in conf.overrides.hydra)
    require(named, f"under torchrun or srun pass {key}=RUN: else each process would choose a folder of its own")


def _require_same_group(trainer: Trainer) -> None:
    """In a later job of a sweep: it has the processes of the first, which exchange tensors in one way."""
    from pytorch_lightning.strategies import DDPStrategy
    from torch import distributed

    if not distributed.is_initialized():
        return
    assert isinstance(trainer.strategy, DDPStrategy)
    backend = "nccl" if trainer.strategy.root_device.type == "cuda" else "gloo"
    backend = trainer.strategy.process_group_backend or backend
    there = (distributed.get_world_size(), distributed.get_backend())
    require(
        there == (trainer.world_size, backend),
        f"under torchrun or srun all jobs of a sweep share {there[0]} processes and {there[1]}: leave "
        "trainer.accelerator and trainer.devices out of the sweep, or run it without torchrun",
    )


@contextmanager
def child_processes(
    trainer: Trainer, config: Path, checkpoint: str | None, sounds: Identity, stall_timeout: float
) -> Iterator[None]:
    """Start the other ranks of a job, unless torchrun or SLURM did, and make sure that all end together.

    Args:
        trainer: Knows their number.
        config: `config.yaml` of the run, no option left open.
        checkpoint: To resume from.
        sounds: Which they are: the others do not look at every file again.
        stall_timeout: Seconds that one of them may hang before the job ends.
    """
    from lightning_fabric.plugins.environments.lightning import find_free_network_port

    from decar.pretrain.liveness import heartbeat

    if trainer.world_size == 1:
        with heartbeat(0, 1, stall_timeout):
            yield
        return
    if _started_elsewhere(trainer):
        yield
        return
    settings = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(find_free_network_port()), "NODE_RANK": "0"}
    if trainer.strategy.root_device.type == "cpu":  # each would take all cores
        share = str(max(1, cpu_count() // trainer.world_size))
        settings["OMP_NUM_THREADS"] = os.environ.get("OMP_NUM_THREADS", share)
    if (number := turn()) is not None:
        settings[TURN] = str(number)
    known = json.dumps(sounds)
    command = [sys.executable, "-m", "decar.cli.train", str(config), checkpoint or "", str(trainer.world_size), known]
    with _environment({**settings, "LOCAL_RANK": "0"}), threads(settings.get("OMP_NUM_THREADS")):
        children = [
            subprocess.Popen(command, env={**os.environ, "LOCAL_RANK": str(rank), PARENT: str(os.getpid())})
            for rank in range(1, trainer.world_size)
        ]
        over = threading.Event()
        threading.Thread(target=_watch, args=(children, over), daemon=True).start()
        try:
            alive = heartbeat(0, trainer.world_size, stall_timeout)
            with signals.at_end(lambda: _kill(children)), _lost_child_named(children), alive:
                yield
            _wait(children)
        finally:
            over.set()
            for child in children:
                child.kill()
                child.wait()


def _kill(children: list[subprocess.Popen[bytes]]) -> None:
    for child in children:
        child.kill()


def _wait(children: list[subprocess.Popen[bytes]], seconds: float = 60) -> None:
    """Wait until the children exit; log which ones do not in time."""
    ends = time.monotonic() + seconds
    for child in children:
        try:
            child.wait(max(0.1, ends - time.monotonic()))
        except subprocess.TimeoutExpired:
            log.warning("process %d did not end by itself and is killed", child.pid)


def _watch(children: list[subprocess.Popen[bytes]], over: threading.Event) -> None:
    """End the job if a child has died and this process does not notice."""
    while not over.wait(1):
        if any(child.poll() for child in children):
            if not over.wait(NOTICE_SECONDS):
                signals.end_now(LostProcessError.status, f"error: {_lost_child(children)}")
            return


def _lost_child(children: list[subprocess.Popen[bytes]]) -> str:
    """A line that names a child that died and how to go on; empty while all run."""
    for rank, child in enumerate(children, 1):
        if code := child.poll():
            how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with status {code}, see above"
            return f"process {rank} (pid {child.pid}) of this job {how}. To go on: {signals.how_to_go_on()}"
    return ""


@contextmanager
def _lost_child_named(children: list[subprocess.Popen[bytes]]) -> Iterator[None]:
    """Raise LostProcessError in place of the error of an exchange with a process that is gone."""
    try:
        yield
    except RuntimeError as error:
        ends = time.monotonic() + 2  # the exchange may fail before the system has reaped the child
        while not (line := _lost_child(children)) and time.monotonic() < ends:
            time.sleep(0.1)
        if not line:
            raise
        raise LostProcessError(line) from error


def given_to_child() -> tuple[DictConfig, Path, str | None, int, Identity]:
    """In a child: options, folder of the run, checkpoint, number of processes, identity of the sounds."""
    from decar.audio.manifest import Identity

    config, checkpoint, size, sounds = sys.argv[1:]
    cfg = OmegaConf.load(config)
    assert isinstance(cfg, DictConfig)
    return cfg, Path(config).parent, checkpoint or None, int(size), Identity(*json.loads(sounds))


def end_with_parent() -> None:
    """In a child: end when the process that started it is gone, which `kill -9` leaves no time to say."""
    parent = int(os.environ[PARENT])

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(0.5)
        os._exit(LostProcessError.status)

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
