"""Work in threads whose results come in the order of the jobs, with a bounded number of bytes waiting.

Threads, not processes: libsndfile, soxr and torch work outside Python's lock, and no result needs to be sent.
"""

from __future__ import annotations

import threading
from collections import defaultdict, deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from typing import Generic, TypeVar

LOOK_AHEAD = 8  # jobs begun or waiting, a worker
ROOM = 2**27  # bytes of results that wait while an earlier job is not over: three hours of log-mel

Source = TypeVar("Source")
Result = TypeVar("Result")


def in_order(
    work: Callable[[Source], Iterable[Result]],
    jobs: Iterable[Source],
    num_workers: int,
    *,
    size: Callable[[Result], int] = lambda _: 0,
    room: int = ROOM,
) -> Generator[Result, None, None]:
    """All results of all jobs, in the order of the jobs; what a job yields can be taken before the job is over.

    Args:
        work: Runs in a thread; an exception that it raises is raised here in the job's turn.
        jobs: What it is called with.
        num_workers: Threads.
        size: Bytes of a result.
        room: Bytes that may wait. A job that finds no room waits; the one whose results are being taken can always add
            one.
    """
    pool = ThreadPoolExecutor(num_workers, thread_name_prefix="decode")
    line, waiting, begun, turn = _Line(size, room), iter(jobs), 0, 0
    try:
        while True:
            for job in islice(waiting, LOOK_AHEAD * num_workers - (begun - turn)):
                pool.submit(line.fill, begun, work, job)
                begun += 1
            if turn == begun:
                return
            yield from line.take(turn)
            turn += 1
    finally:  # also after Ctrl-C: what has not begun is dropped, what waits for room ends
        line.close()
        pool.shutdown(cancel_futures=True)


class _ClosedError(Exception):
    """Nobody takes results any more."""


class _Line(Generic[Result]):
    """Results by the number of their job. The threads fill it, one consumer empties it."""

    def __init__(self, size: Callable[[Result], int], room: int) -> None:
        self._size, self._room = size, room
        self._changed = threading.Condition()
        self._ready: dict[int, deque[Result]] = defaultdict(deque)
        self._over: dict[int, BaseException | None] = {}
        self._turn, self._held, self._closed = 0, 0, False

    def fill(self, number: int, work: Callable[[Source], Iterable[Result]], job: Source) -> None:
        """Run one job and put its results in line."""
        failure: BaseException | None = None
        try:
            for result in work(job):
                self._put(number, result)
        except BaseException as error:  # raised again where the results are taken
            failure = error
        with self._changed:
            self._over[number] = failure
            self._changed.notify_all()

    def _put(self, number: int, result: Result) -> None:
        size = self._size(result)

        def free() -> bool:
            next_one = self._turn == number and not self._ready[number]
            return self._closed or next_one or self._held + size <= self._room

        with self._changed:
            self._changed.wait_for(free)
            if self._closed:
                raise _ClosedError
            self._ready[number].append(result)
            self._held += size
            self._changed.notify_all()

    def take(self, number: int) -> Iterator[Result]:
        """The results of the job whose turn it is, as they come."""
        with self._changed:
            self._turn = number
            self._changed.notify_all()
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._ready[number] or number in self._over)
                if not self._ready[number]:
                    break
                result = self._ready[number].popleft()
                self._held -= self._size(result)
                self._changed.notify_all()
            yield result
        del self._ready[number]
        if failure := self._over.pop(number):
            raise failure

    def close(self) -> None:
        """Let all threads end."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
