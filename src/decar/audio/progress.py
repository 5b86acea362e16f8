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
