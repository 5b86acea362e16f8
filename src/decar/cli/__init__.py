"""The command line: the only place that knows Hydra. Everything below takes typed keyword arguments."""

import os
import sys


def open_closed_streams() -> None:
    """Put the null device in the place of standard streams that the caller has closed, as `2>&-` does.

    Python has None for them, which nobody expects, and the next file that is opened gets their number: what a library
    in C writes to number 2 would end up in it.
    """
    for number, name, mode in ((0, "stdin", "r"), (1, "stdout", "w"), (2, "stderr", "w")):
        try:
            os.fstat(number)
        except OSError:
            opened = os.open(os.devnull, os.O_RDWR)
            if opened != number:
                os.dup2(opened, number)
                os.close(opened)
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, mode))  # noqa: SIM115 - it stays open as long as the process


open_closed_streams()  # at import: before anything looks whether stderr is a terminal
