"""The figures of a run as they lie on disk: `metrics.csv`, and its hidden copy with a digest before each line."""

import csv
import logging
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import xxhash

log = logging.getLogger(__name__)

COPY = ".metrics.sealed"  # beside metrics.csv; written before it
JOURNAL = "wandb.jsonl"  # beside it: the run of wandb that it belongs to, and what that was given


def read_rows(path: Path) -> list[dict[str, Any]]:
    """The rows of a metrics file, without empty cells; damage costs a line in the log.

    Raises:
        OSError: The file cannot be read.
    """
    lines, problem = read_lines(path)
    if problem:
        log.warning("%s: %s", path, problem)
    kept = [{name: value for name, value in row.items() if name and value} for row in csv.DictReader(lines)]
    return [row for row in kept if str(row.get("step", "")).isdigit()]


def last_figures(rows: Iterable[Mapping[str, Any]]) -> dict[str, float]:
    """The last value of each metric in the rows of a metrics file."""
    return {name: float(value) for row in rows for name, value in row.items() if name not in ("epoch", "step")}


def epochs_of(rows: Iterable[Mapping[str, Any]]) -> int:
    """How many epochs have ended, by the rows of a metrics file."""
    return max((int(float(row.get("epoch", 0))) + 1 for row in rows if "loss_epoch" in row), default=0)


def read_lines(path: Path) -> tuple[list[str], str]:
    """The lines of a metrics file and what is wrong with it, "" for nothing.

    The copy counts where its lines fit their digests. Earlier versions wrote none. A kill or a full disk leaves half a
    line, or a line that only the copy has.
    """
    found, copies = _lines(path), [_checked(line) for line in _lines(path.with_name(COPY))]
    if copies and copies[-1] is None:  # half a line
        copies.pop()
    if None in copies:
        lines, problem = found, f"its copy {COPY} is damaged"
    else:
        lines = copies + found[len(copies) :]
        problem = "" if lines == found else f"differs from its copy {COPY}, which counts (delete that to use the file)"
    if None in lines:
        problem = f"{lines.count(None)} of {len(lines)} lines are damaged or cut short, and left out"
    return [line for line in lines if line is not None], problem


def _lines(path: Path) -> list[str | None]:
    """The lines of a file; None for one that is no text or has no end."""
    if not path.is_file():
        return []
    *whole_lines, rest = path.read_bytes().split(b"\n")
    lines: list[str | None] = []
    for line in whole_lines:
        try:
            lines.append(None if b"\0" in line else line.decode().removesuffix("\r"))
        except UnicodeDecodeError:
            lines.append(None)
    return [*lines, None] if rest else lines


def sealed_line(line: str) -> str:
    """A line of the copy: the digest, the line, its end."""
    return f"{xxhash.xxh3_64_hexdigest(line.encode())} {line}\n"


def read_sealed(path: Path) -> tuple[list[str], str]:
    """What was written with `sealed_line`, up to the first line that is damaged, and what is wrong, "" for nothing.

    Half a line at the end is left by a kill and is not damage.
    """
    found = _lines(path)
    lines = [_checked(line) for line in found]
    if found and found[-1] is None:
        lines.pop()
    if None not in lines:
        return [line for line in lines if line is not None], ""
    first = lines.index(None)
    return [line for line in lines[:first] if line is not None], f"damaged from line {first + 1} on, which is left out"


def _checked(line: str | None) -> str | None:
    """What `sealed_line` made a line of; None where it does not fit its digest."""
    text = (line or "").partition(" ")[2]
    return text if line and sealed_line(text) == f"{line}\n" else None
