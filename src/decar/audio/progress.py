"""Progress of a long pass over the clips: a bar on a terminal, a plain line every ten seconds in a log file."""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from tqdm import tqdm

from decar.errors import printable

LINE_SECONDS = 10.0

Advance = Callable[[int], object]


@contextmanager
def progress_bar(title: str, total: int, *, enabled: bool = True) -> Iterator[Advance]:
    """Show on stderr how much of `total` is done, while the block runs.

    Args:
        title: What is being done, a few words.
        total: Number of steps.
        enabled: False shows nothing.

    Yields:
        A function to call with the number of steps just done.
    """
    if not enabled:
        yield lambda _: None
    elif sys.stderr is None or not sys.stderr.isatty():  # None: it was closed before the start
        yield _plain_lines(title, total)
    else:
        with tqdm(desc=title, total=total, file=sys.stderr, dynamic_ncols=True) as bar:
            yield bar.update


def _plain_lines(title: str, total: int) -> Advance:
    """A bar as lines: tqdm would write its carriage returns into the log file."""
    printed = time.monotonic()
    first, warm, done = printed, 0, 0  # after the first steps, which have loaded networks and opened files

    def advance(steps: int) -> None:
        nonlocal done, printed, first, warm
        done, now = done + steps, time.monotonic()
        if not warm:
            first, warm = now, done
        if now - printed >= LINE_SECONDS and done < total:
            printed = now
            left = f", about {(now - first) / (done - warm) * (total - done):.0f} s left" if done > warm else ""
            print(printable(f"{title}: {done} of {total} ({done / total:.0%}){left}"), file=sys.stderr, flush=True)

    return advance
