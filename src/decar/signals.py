"""Signals that ask a job to stop: Ctrl-C, hang-up, and what schedulers send before they kill.

Signals belong to a process, so their state is the module's. The handler raises PreemptedError, or leaves the signal to
the end of a training step. A thread reads the signals too, since no handler runs while the main thread waits in C, say
for a process that is frozen: it ends a job that makes no step for `GRACE` seconds after the signal, and at once on a
second Ctrl-C. A signal that was ignored before, as SIGHUP under `nohup`, stays ignored.
"""

from __future__ import annotations

import atexit
import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import FrameType
from typing import Any

from decar import errors
from decar.errors import PreemptedError, exit_status, printable

_NAMES = ("SIGINT", "SIGHUP", "SIGTERM", "SIGUSR1")
SIGNALS = tuple(signal.Signals[name] for name in _NAMES if hasattr(signal, name))
AGAIN = 1.0  # seconds between two Ctrl-C of a user: torchrun passes on the one that the terminal has sent already


@dataclass
class _State:
    """Of the job in this process.

    Attributes:
        go_on: What to do to go on, for the message.
        leads: Whether this process decides that the job stops; the others wait until it does.
        number: The first signal that came; 0 for none.
        deferred: Whether signals wait for the end of a step.
        hurry: Whether a signal that waits ends the job after `GRACE` seconds; not while a checkpoint is written.
        moved: When the last step ended, on the monotonic clock.
        last: Called before the process is ended.
    """

    go_on: str
    leads: bool
    number: int = 0
    deferred: bool = False
    hurry: bool = True
    moved: float = 0.0
    last: list[Callable[[], object]] = field(default_factory=list)


_state: _State | None = None


@contextmanager
def stoppable(go_on: str = "run the same command with resume=auto", *, leads: bool = True) -> Iterator[None]:
    """Within the block the signals raise PreemptedError in the main thread; in a nested block it is the outer's.

    Args:
        go_on: What to do to go on, for the message.
        leads: Whether this process decides that the job stops; in another one the signals only wait, see `asked`.
    """
    global _state
    if _state is not None or threading.current_thread() is not threading.main_thread():
        yield
        return
    _state = state = _State(go_on, leads)
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    handlers, wakeup = install(), signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    threading.Thread(target=_watch, args=(state, reader), daemon=True, name="signals").start()
    try:
        yield
    finally:
        signal.set_wakeup_fd(wakeup)
        restore(handlers)
        os.close(writer)  # ends the thread
        _state = None
        atexit.unregister(_shut_down)
        atexit.register(_shut_down)  # runs before what others have registered


def install() -> dict[int, Any]:
    """Set the handlers; those of before, for `restore`. Signals that are ignored stay so."""
    if threading.current_thread() is not threading.main_thread():
        return {}
    wanted = [number for number in SIGNALS if signal.getsignal(number) != signal.SIG_IGN]
    return {number: signal.signal(number, _receive) for number in wanted}


def restore(handlers: dict[int, Any]) -> None:
    """Give back what `install` has replaced."""
    for number, handler in handlers.items():
        signal.signal(number, handler)


def _shut_down() -> None:
    """While Python shuts down, keep the exit status: by default a signal would end the process with its own.

    Worker processes are killed. Python waits for them at exit, for a frozen one for ever.
    """
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    if hasattr(signal, "SIGCHLD"):
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # torch's handler raises an error for each worker
    _kill_workers()


def active() -> bool:
    """Whether a `stoppable` block is running."""
    return _state is not None


def asked() -> int:
    """The signal that waits for the end of a step; 0 for none."""
    return _state.number if _state else 0


def defer(wait: bool, *, hurry: bool = True) -> None:
    """From here on signals wait until they are asked for, or raise at once again.

    Args:
        wait: Which of the two.
        hurry: Whether the next `GRACE` seconds have to bring another call, once a signal waits.
    """
    if _state:
        _state.deferred, _state.hurry, _state.moved = wait, hurry, time.monotonic()


def stop(number: int) -> PreemptedError:
    """The error to raise where a signal has waited."""
    return PreemptedError(number, _state.go_on) if _state else PreemptedError(number)


def step_began() -> float:
    """When the step that is under way began, on the monotonic clock; 0 outside of steps and while saving."""
    return _state.moved if _state and _state.deferred and _state.hurry else 0.0


@contextmanager
def saving() -> Iterator[None]:
    """Within the block, a checkpoint is being written, however long that takes."""
    defer(True, hurry=False)
    try:
        yield
    finally:
        defer(True)


def go_on_by(text: str) -> None:
    """What to do to go on, once that is known."""
    if _state:
        _state.go_on = text


def follow(leads: bool) -> None:
    """Whether this process decides that the job stops, once that is known."""
    if _state:
        _state.leads = leads


def how_to_go_on() -> str:
    """What to do to go on."""
    return _state.go_on if _state else "run the same command with resume=auto"


@contextmanager
def at_end(call: Callable[[], object]) -> Iterator[None]:
    """Within the block, `call` runs before this process is ended by `end_now`."""
    calls = _state.last if _state else []
    calls.append(call)
    try:
        yield
    finally:
        calls.remove(call)


def end_now(status: int, line: str = "") -> None:
    """End the process without unwinding, from any thread: the main thread may wait in C for ever."""
    for call in _state.last if _state else []:
        call()
    _kill_workers()
    if line:
        print(printable(f"decar: {line}"), file=sys.stderr, flush=True)
    os._exit(status)


def _kill_workers() -> None:
    for child in multiprocessing.active_children():
        child.kill()


def leave_to_parent(worker: int = 0) -> None:
    """In a worker process of a loader: signals that a terminal or scheduler sends to all processes are the parent's.

    The parent itself ends workers by SIGTERM.
    """
    signal.set_wakeup_fd(-1)
    for number in set(SIGNALS) - {signal.SIGTERM}:
        signal.signal(number, signal.SIG_IGN)
    if hasattr(signal, "sigwaitinfo"):
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        threading.Thread(target=_end_with_parent, args=(os.getppid(),), daemon=True).start()


def _end_with_parent(parent: int) -> None:
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != parent:
        pass
    os._exit(0)


def _receive(number: int, frame: FrameType | None) -> None:
    if _state is None:
        raise PreemptedError(number)
    first, _state.number = not _state.number, _state.number or number
    if first and _state.leads and not _state.deferred:
        raise PreemptedError(number, _state.go_on)


def _watch(state: _State, reader: int) -> None:
    """Read the signals as they come; end the job where it does not end by itself."""
    came = 0.0
    while received := os.read(reader, 1):
        number = received[0]
        if number not in SIGNALS or not state.leads:
            continue
        now = time.monotonic()
        if not came:
            came, state.moved = now, now
            threading.Thread(target=_end_when_stuck, args=(state, number), daemon=True).start()
        elif number == signal.SIGINT and now - came >= AGAIN:
            end_now(exit_status(number), "stopped by a second SIGINT")
    os.close(reader)


def _end_when_stuck(state: _State, number: int) -> None:
    while _state is state:
        time.sleep(0.2)
        if state.hurry and time.monotonic() - state.moved > errors.GRACE and _state is state:
            end_now(exit_status(number), str(PreemptedError(number, state.go_on, saved=False)))
