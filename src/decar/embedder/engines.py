"""Workers on other machines: a Ray cluster, or an array of SLURM jobs.

Ray's tasks, not its actors or Ray Data. Ray keeps the process of a task for the next one, so torch is imported once
there, and the encoder comes from the object store of the machine in milliseconds where a shard takes half a minute. An
actor would add a state that has to be made anew when it dies. Ray Data would add a second order of rows, a second kind
of part file and pyarrow blocks in the object store, to a loop of ten lines that SLURM needs as well.
"""

from __future__ import annotations

import logging
import os
import signal
import socket
import threading
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from copy import copy
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from decar.embedder.shards import Embeds, Pool, Task, work
from decar.errors import REASON_LENGTH, ConfigError, DecarError, one_line, reason_of

if TYPE_CHECKING:
    from decar.embedder import Embedder

log = logging.getLogger(__name__)

ANSWERS = 10.0  # seconds that a cluster has to answer; Ray itself waits for two minutes, then ends the process
POLL = 2.0  # seconds between two looks at what has come
GPU_CORES = 4  # that decode for a GPU, where nothing else is said
MINUTES = 240  # of a SLURM job; what it has not done by then goes to another one


class RayEngine:
    """Workers of a Ray cluster: one for each GPU, or for each `cores` cores.

    Args:
        address: `HOST:PORT`, `ray://HOST:PORT` or `auto`; None: what RAY_ADDRESS names, else the cluster that this
            machine belongs to, else one of this machine alone, which ends with the process.
        cores: Cores of a worker, which decode; None: one, or the cores that there are for each GPU.

    Raises:
        ConfigError: Ray is not installed, the cluster does not answer, or this process is connected to another one.
    """

    connected: ClassVar[tuple[str | None, str]] = None, ""  # with which address, and to which head

    def __init__(self, address: str | None = None, cores: int | None = None) -> None:
        try:
            import ray
        except ImportError as error:
            raise ConfigError("Ray is not installed: pip install 'decar[ray]', on all machines") from error
        self.ray = ray
        if ray.is_initialized():
            self._require_connected(address)
        else:
            self._connect(address or os.environ.get("RAY_ADDRESS") or None)
        found = ray.cluster_resources()
        self.device: str | None = "cuda" if found.get("GPU") else None
        self.cores = cores or (max(1, int(found.get("CPU", 0) // found["GPU"])) if self.device else 1)

    def _require_connected(self, address: str | None) -> None:
        """Refuse an address when Ray, which has one connection a process, is connected to another cluster."""
        there = self._there()
        same = address in (None, "auto") or (address, there) == RayEngine.connected
        if not same and self._resolved(str(address)) != self._resolved(there):
            raise ConfigError(
                f"--address {address}: this process is connected to the Ray cluster at {there} already; leave the "
                "address out, or call ray.shutdown() first"
            )

    def _there(self) -> str:
        """HOST:PORT of the head of the cluster that this process is connected to."""
        return str(self.ray.get_runtime_context().gcs_address)

    def _resolved(self, address: str) -> tuple[str, str]:
        """Host and port; the host by the number that Ray has for it, where it has one."""
        host, _, port = address.rpartition(":")
        with suppress(OSError, UnicodeError):
            host = socket.gethostbyname(host)
        return self.ray.util.get_node_ip_address() if host.startswith("127.") else host, port

    def _connect(self, address: str | None) -> None:
        _require_answer(address)
        before = signal.getsignal(signal.SIGTERM)
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # nothing is reported to Ray's makers
        try:
            self.ray.init(address=address, log_to_driver=False, logging_level="ERROR")
            RayEngine.connected = address, self._there()
        except Exception as error:  # a wrong address, another version, no token: each is of another kind
            where = f"--address {address}: no Ray cluster there" if address else "Ray cannot be started here"
            raise ConfigError(f"{where} ({one_line(error)})") from error
        finally:
            if threading.current_thread() is threading.main_thread():
                signal.signal(signal.SIGTERM, before)  # Ray's own handler would end the process without a word

    @contextmanager
    def pool(self, embedder: Embedder, folder: Path) -> Iterator[Pool]:
        """Workers with a copy of this embedder."""
        own = copy(embedder)
        own.num_workers = self.cores
        pool = _RayPool(self.ray, own, self.cores, 1 if embedder.device.startswith("cuda") else 0)
        try:
            yield pool
        finally:
            pool.cancel()


def _require_answer(address: str | None) -> None:
    """Refuse an address at which nothing listens; what is no HOST:PORT is for Ray to judge."""
    host, _, port = (address or "").removeprefix("ray://").rpartition(":")
    if not (host and port.isdecimal()):
        return
    try:
        socket.create_connection((host, int(port)), ANSWERS).close()
    except (OSError, OverflowError) as error:
        raise ConfigError(
            f"--address {address}: no answer ({one_line(error)}); is the cluster up, and its port open to this machine?"
        ) from error


class _RayPool:
    tasks: int | None = None

    def __init__(self, ray: Any, embedder: Embeds, cores: int, gpus: int) -> None:
        self.ray, self.wants = ray, {"CPU": cores, "GPU": gpus}
        self.embedder = ray.put(embedder)
        # a task that lost its worker is begun again by `Crew`, which counts: Ray repeats one that ran out of memory
        # without end. `max_calls=0`: the process of a GPU's task is kept too.
        self.remote = ray.remote(
            num_cpus=cores, num_gpus=gpus, max_retries=0, max_calls=0, scheduling_strategy="SPREAD"
        )(work)
        self.begun: set[Any] = set()

    def room(self) -> int:
        """Two tasks for each worker, so that none waits for the next one."""
        patience = time.monotonic() + ANSWERS  # a machine that has just joined says a moment later what it has
        while not (workers := self._workers()):
            if time.monotonic() > patience:
                raise DecarError(
                    f"no machine of the Ray cluster has {self.wants['CPU']} cores and {self.wants['GPU']} GPUs, which "
                    "a worker needs; what is done is kept"
                )
            time.sleep(POLL)
        return 2 * workers

    def _workers(self) -> int:
        alive = [node["Resources"] for node in self.ray.nodes() if node["Alive"]]
        return sum(min(int(has.get(name, 0) // n) for name, n in self.wants.items() if n) for has in alive)

    def submit(self, tasks: Sequence[Task]) -> Sequence[Any]:
        new = [self.remote.remote(self.embedder, task) for task in tasks]
        self.begun.update(new)
        return new

    def ended(self, handles: Collection[Any]) -> list[Any]:
        return list(self.ray.wait([*handles], num_returns=1, timeout=POLL)[0])

    def outcome(self, handle: Any) -> DecarError | OSError | str | None:
        self.begun.discard(handle)
        try:
            found: DecarError | OSError | None = self.ray.get(handle)
        except self.ray.exceptions.RayError as error:  # the worker or its machine is gone, or cannot import decar
            log.debug("a task has failed", exc_info=True)
            return reason_of(getattr(error, "cause", None) or error)
        return found

    def cancel(self) -> None:
        """End what still runs."""
        for handle in self.begun:
            self.ray.cancel(handle, force=True)


class SlurmEngine:
    """Workers as the jobs of a SLURM array, by submitit.

    Args:
        jobs: Jobs of the array, each with its share of the shards.
        cores: Cores of a job; None: one, or four beside a GPU.
        options: Parameters of `sbatch`, such as `partition`, or those that submitit has for all clusters
            (`timeout_min`, `mem_gb`, …). `cluster=local`: jobs on this machine, to try it.

    Raises:
        ConfigError: submitit or SLURM is not installed, or an option is unknown.
    """

    device: str | None = None

    def __init__(self, jobs: int = 8, cores: int | None = None, options: Mapping[str, str] | None = None) -> None:
        try:
            import submitit
        except ImportError as error:
            raise ConfigError("submitit is not installed: pip install 'decar[sweep]'") from error
        self.submitit, self.jobs, self.cores, self.options = submitit, jobs, cores, dict(options or {})
        self.cluster = self.options.pop("cluster", "slurm")

    @contextmanager
    def pool(self, embedder: Embedder, folder: Path) -> Iterator[Pool]:
        """Workers with a copy of this embedder."""
        gpus = 1 if embedder.device.startswith("cuda") else 0
        own = copy(embedder)
        own.num_workers = self.cores or (GPU_CORES if gpus else 1)
        pool = _SlurmPool(self._executor(folder, own.num_workers, gpus), own, self.jobs)
        try:
            yield pool
        finally:
            pool.cancel()

    def _executor(self, folder: Path, cores: int, gpus: int) -> Any:
        """An executor whose logs and pickles lie in `folder`."""
        try:
            executor = self.submitit.AutoExecutor(folder / "jobs", cluster=self.cluster)
            shared = executor._typed_parameters()
            given = {
                key if key in shared else f"{self.cluster}_{key}": shared.get(key, str)(value)
                for key, value in self.options.items()
            }
            usual = {"name": "decar", "cpus_per_task": cores, "gpus_per_node": gpus, "timeout_min": MINUTES}
            executor.update_parameters(**{**usual, **given})
        except Exception as error:  # submitit raises half a dozen kinds for what it does not know
            raise ConfigError(f"SLURM cannot be used: {one_line(error)}") from error
        return executor


class _SlurmPool:
    def __init__(self, executor: Any, embedder: Embeds, jobs: int) -> None:
        self.executor, self.embedder, self.jobs = executor, embedder, jobs
        self.tasks: int | None = jobs
        self.begun: set[Any] = set()

    def room(self) -> int:
        return self.jobs

    def submit(self, tasks: Sequence[Task]) -> Sequence[Any]:
        try:
            new = self.executor.map_array(work, [self.embedder] * len(tasks), tasks) if tasks else []
        except Exception as error:  # what sbatch says comes as a RuntimeError, or as one of submitit's own
            raise DecarError(f"SLURM refuses the jobs: {one_line(error)}") from error
        self.begun.update(new)
        return list(new)

    def ended(self, handles: Collection[Any]) -> list[Any]:
        found = [job for job in handles if job.done()]
        if not found:
            time.sleep(POLL)
        return found

    def outcome(self, handle: Any) -> DecarError | OSError | str | None:
        from submitit.core.utils import UncompletedJobError

        self.begun.discard(handle)
        try:
            found: DecarError | OSError | None = handle.result()
        except UncompletedJobError as error:  # lost, stopped, out of time, or it raised what the last line says
            log.debug("a job has failed", exc_info=True)
            return str(error).strip("\n -").splitlines()[-1][:REASON_LENGTH]
        return found

    def cancel(self) -> None:
        """End what still runs."""
        for job in self.begun:
            job.cancel()
