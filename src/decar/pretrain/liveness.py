"""Whether the processes of a job are alive and get on; where one does not, the job ends with a line and status 3.

torch ends a collective operation after one time limit, which has to be a day: rank 0 may cluster for hours. So a
thread of each process writes a heartbeat to a store, the one of torchrun or of rank 0, and reads those of the others.
Three faults end the job when they last for `stall_timeout` seconds:

- a process writes no heartbeat: it is stopped, its machine is gone, or C code holds Python's lock;
- during training no process uses the processor: one waits for something that does not come, the others wait for it;
- a training step does not end, for example because a GPU hangs.

The second is watched in a job of one process too: it may wait for a batch of a frozen loader worker, which torch's own
timeout misses for example where the batch is half read.

Clustering keeps a processor of rank 0 busy, so it may take as long as it likes. Not found: a GPU that hangs, or a
process that waits on a GPU job's NCCL operation, outside of training steps, because a process that waits for NCCL looks
busy. There torch's own limit holds.
"""

from __future__ import annotations

import json
import os
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING

from decar import signals
from decar.errors import LostProcessError

if TYPE_CHECKING:
    from torch._C._distributed_c10d import Store  # the name that torch.distributed exports, but not to type checkers

STORE_SECONDS = 2.0  # to wait for the store
START_SECONDS = 120.0  # that a process may take until its first heartbeat: imports are slow on a busy machine
WHO = f"pid {os.getpid()} on {socket.gethostname()}"
DONE, ENDED = b"done", b"ended"  # last heartbeats: this process has done its part; it has ended the job
BUSY = 0.01  # share of one core that counts as work; a process that waits uses a tenth of this

_training = False  # whether this process is within `training`


@contextmanager
def training() -> Iterator[None]:
    """Within the block, a job in which no process uses the processor, or no step ends, is taken to hang."""
    global _training
    _training = True
    try:
        yield
    finally:
        _training = False


@contextmanager
def heartbeat(rank: int, size: int, stall_timeout: float, job: int = 0) -> Iterator[None]:
    """Write this process's heartbeat within the block, and end the process when the job hangs.

    Args:
        rank: Number of this process.
        size: How many there are. All must be in the block, of which rank 0 may be the last to leave.
        stall_timeout: Seconds.
        job: Its number among those that use the same store, equal in all processes.
    """
    over = threading.Event()
    watch = Watch(rank, size, stall_timeout, f"{os.environ.get('TORCHELASTIC_RESTART_COUNT', 0)}/{job}")
    thread = threading.Thread(target=watch.run, args=(over,), daemon=True, name="heartbeat")
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join(watch.tick)


class Watch:
    """The heartbeats of one job, seen from one of its processes.

    Time is added up in ticks of bounded length: a job that is stopped as a whole (Ctrl-Z, a laptop's lid) may go on.
    """

    def __init__(self, rank: int, size: int, limit: float, job: str, store: Store | None = None) -> None:
        self.rank, self.limit, self.tick, self.store = rank, limit, min(5.0, limit / 5), store
        self.keys = [f"decar/{job}/{other}" for other in range(size)]
        self.beats = [b""] * size  # the last of each process
        self.silent = [0.0] * size  # seconds without a new one
        self.idle = self.stuck = 0.0  # seconds without work, and within one step, of this process
        self.cpu, self.step, self.number = 0.0, 0.0, 0
        self.request: threading.Thread | None = None  # the last one to the store

    def run(self, over: threading.Event) -> None:
        """Beat until the job is over or hangs."""
        before = time.monotonic()
        while not over.wait(self.tick):
            now = time.monotonic()
            passed, before = min(now - before, 3 * self.tick), now
            self.look_at_myself(passed)
            self.exchange(passed)
            if ENDED in self.beats:  # by a process that has printed why
                signals.end_now(LostProcessError.status)
                return
            if line := self.verdict():
                self.leave(ENDED)
                signals.end_now(LostProcessError.status, f"error: {line}. To go on: {signals.how_to_go_on()}")
                return
        self.leave(DONE)

    def look_at_myself(self, passed: float) -> None:
        """Add to the seconds in which this process did no work, or ended no step."""
        cpu, step = time.process_time(), signals.step_began()
        worked = cpu - self.cpu > BUSY * passed or not _training
        self.idle = 0.0 if worked else self.idle + passed
        self.stuck = self.stuck + passed if _training and step and step == self.step else 0.0
        self.cpu, self.step, self.number = cpu, step, self.number + 1

    def exchange(self, passed: float) -> None:
        """Write the own heartbeat, read the others'; without a store there is nothing new of anyone."""
        at = main_thread_is_at()
        mine = {"number": self.number, "who": WHO, "at": at, "idle": self.idle, "stuck": self.stuck}
        news = list(self.beats)

        def write_and_read() -> None:
            if len(self.keys) == 1:  # there is no store
                news[0] = json.dumps(mine).encode()
                return
            try:
                store = self.store = self.store or connect(self.tick)
                store.set(self.keys[self.rank], json.dumps(mine))
                news[:] = [store.get(key) if store.check([key]) else b"" for key in self.keys]
            except RuntimeError:
                self.store = None

        self.ask_store(write_and_read)
        for other, (new, old) in enumerate(zip(news, self.beats, strict=True)):
            self.silent[other] = self.silent[other] + passed if new == old != DONE else 0.0
        self.beats = list(news)

    def leave(self, last: bytes) -> None:
        """Write the last heartbeat of this process: DONE or ENDED."""

        def write() -> None:
            try:
                if self.store:
                    self.store.set(self.keys[self.rank], last.decode())
            except RuntimeError:
                pass

        self.ask_store(write)

    def ask_store(self, request: Callable[[], None]) -> None:
        """Run a request in a thread of its own, after the last one, and wait for both for a bounded time.

        While the process that holds the store is frozen, no request returns, whatever its timeout. Then no new one is
        made.
        """
        if self.request:
            self.request.join(STORE_SECONDS)
            if self.request.is_alive():
                return
        self.request = threading.Thread(target=request, daemon=True, name="store")
        self.request.start()
        self.request.join(STORE_SECONDS)

    def verdict(self) -> str:
        """What is wrong with the job; empty where all is well."""
        late = 0.0 if self.rank == 0 else 3 * self.tick  # one process speaks: rank 0, unless it is the one that hangs
        for other, (silent, beat) in enumerate(zip(self.silent, self.beats, strict=True)):
            limit = self.limit if beat else max(self.limit, START_SECONDS)
            if other != self.rank and silent >= limit + late:
                who = f" ({json.loads(beat)['who']})" if beat else ""
                return f"process {other}{who} of this job has not answered for {limit:g} s: it is stopped or gone"
        if not all(self.beats) or DONE in self.beats:
            return ""
        states = [json.loads(beat) for beat in self.beats]
        where = "; ".join(f"process {number} is at {state['at']}" for number, state in enumerate(states))
        if all(state["idle"] >= self.limit + late for state in states):
            return f"no process of this job has done any work for {self.limit:g} s, so one hangs ({where})"
        if len(states) > 1 and all(state["stuck"] >= self.limit + late for state in states):
            return f"a training step has not ended for {self.limit:g} s, a process or a GPU hangs ({where})"
        return ""


def connect(seconds: float) -> Store:
    """The store that the processes of a job found each other by.

    Raises:
        RuntimeError: It cannot be reached, or is not there yet.
    """
    from torch._C._distributed_c10d import TCPStore

    if "MASTER_PORT" not in os.environ:
        raise RuntimeError("there is no store")
    address, port = os.environ.get("MASTER_ADDR", "127.0.0.1"), int(os.environ["MASTER_PORT"])
    return TCPStore(address, port, is_master=False, timeout=timedelta(seconds=seconds), wait_for_workers=False)


@contextmanager
def peers_named() -> Iterator[None]:
    """Raise LostProcessError in place of the error of a collective operation whose other side is gone.

    A process that NCCL's watchdog aborts never comes here.
    """
    try:
        yield
    except RuntimeError as error:
        from torch.distributed import DistError

        if not isinstance(error, DistError) and "gloo/transport" not in str(error):
            raise
        raise LostProcessError(
            f"another process of this job has ended or does not answer; to go on: {signals.how_to_go_on()}"
        ) from error


def main_thread_is_at() -> str:
    """The line of decar that the main thread is in, and where that called other code, the line of it."""
    frame = innermost = sys._current_frames().get(threading.main_thread().ident or 0)
    here = f"{Path(innermost.f_code.co_filename).name}:{innermost.f_lineno}" if innermost else "its end"
    while frame is not None:
        name = frame.f_globals.get("__name__", "")
        if name.startswith("decar."):
            return f"{name}:{frame.f_lineno}" + (f", in {here}" if frame is not innermost else "")
        frame = frame.f_back
    return here
