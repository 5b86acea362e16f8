"""Results in the order of the jobs, while the threads are ahead by a bounded number of bytes."""

import threading
import time
from collections.abc import Iterator

import pytest

from decar.audio.parallel import in_order


def test_results_come_in_order_whatever_takes_how_long() -> None:
    def work(job: int) -> Iterator[tuple[int, int]]:
        for part in range(job % 4):
            time.sleep(0.002 * (job % 3))
            yield job, part

    found = list(in_order(work, range(50), 4, size=lambda _: 1, room=3))
    assert found == [(job, part) for job in range(50) for part in range(job % 4)]


@pytest.mark.parametrize("room", [0, 5, 100])
def test_what_waits_is_bounded(room: int) -> None:
    """Jobs of 40 results, slowly taken: never more lie ready than there is room for, and one of the job at its turn."""
    lock, made, taken, most = threading.Lock(), 0, 0, 0

    def work(job: int) -> Iterator[int]:
        nonlocal made
        for _ in range(40):
            with lock:
                made += 1
            yield job

    for _ in in_order(work, range(6), 3, size=lambda _: 1, room=room):
        time.sleep(0.0005)
        with lock:
            taken += 1
            most = max(most, made - taken)
    assert taken == 240
    assert most <= room + 1 + 3  # each thread holds one that is not in line yet
    assert most >= min(room, 80)  # and the room is used


def test_an_error_comes_in_its_turn() -> None:
    def work(job: int) -> Iterator[int]:
        yield job
        if job == 2:
            raise ValueError("of job 2")

    found: list[int] = []
    with pytest.raises(ValueError, match="of job 2"):
        found.extend(in_order(work, range(9), 3))
    assert found == [0, 1, 2]


def test_threads_that_wait_for_room_end_when_nobody_takes() -> None:
    before = threading.active_count()

    def work(job: int) -> Iterator[int]:
        while True:
            yield job

    results = in_order(work, range(9), 3, size=lambda _: 1, room=10)
    assert next(results) == 0
    results.close()  # as after Ctrl-C; returns when all threads have ended
    assert threading.active_count() == before
