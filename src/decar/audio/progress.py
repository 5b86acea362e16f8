"""How far a long pass over the clips is: a bar on a terminal, a plain line every ten seconds in a log file."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from decar.errors import printable

LINE_SECONDS = 10.0

Advance = Callable[[int], None]


@contextmanager
def progress_bar(title: str, total: int, *, enabled: bool = True) -> Iterator[Advance]:
    """Shows on stderr how much of `total` is done, while the block runs.

    Args:
        title: what is being done, a few words.
        total: how many steps there are.
        enabled: False shows nothing.

    Yields:
        A function to call with the number of steps just done.
    """
    console = Console(stderr=True)
    if not enabled:
        yield lambda _: None
    elif not console.is_terminal:
        yield _plain_lines(title, total)
    else:
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
        with Progress(*columns, TimeElapsedColumn(), TimeRemainingColumn(), console=console) as bar:
            task = bar.add_task(title, total=total)
            yield lambda steps: bar.advance(task, steps)


def _plain_lines(title: str, total: int) -> Advance:
    begin = printed = time.monotonic()
    done = 0

    def advance(steps: int) -> None:
        nonlocal done, printed
        done += steps
        now = time.monotonic()
        if now - printed >= LINE_SECONDS and done < total:
            printed = now
            left = (now - begin) / done * (total - done) if done else float("nan")
            line = f"{title}: {done} of {total} ({done / total:.0%}), about {left:.0f} s left"
            print(printable(line), file=sys.stderr, flush=True)

    return advance
