"""How speed is measured here: two things timed in turn in one process, and their ratio pair by pair.

Seconds of one machine say little on another, and drift with what else it does; a ratio of neighbours in time holds.
"""

import os
import platform
import re
import statistics
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

from decar.cores import cpu_count

PACKAGES = ("torch", "pytorch-lightning", "timm", "faiss-cpu", "faiss-gpu", "numpy", "scipy")


@dataclass(frozen=True)
class Line:
    """One line of the results.

    Attributes:
        name: What was measured.
        ours: Median seconds of it.
        reference: Median seconds of what it is held against; None where a time, not a ratio, is asked for.
        ratio: Median of the ratios pair by pair, or `ours`.
        low: The least of them.
        high: The largest.
        target: As `>= 0.95` or `<= 1.1`; empty where a figure is only reported.
        note: What the two are.
    """

    name: str
    ours: float
    reference: float | None
    ratio: float
    low: float
    high: float
    target: str = ""
    note: str = ""

    @property
    def holds(self) -> bool | None:
        """Whether the median meets the target; None where there is none."""
        found = re.fullmatch(r"(>=|<=)\s*([\d.]+).*", self.target)
        if found is None:
            return None
        bound = float(found[2])
        return self.ratio >= bound if found[1] == ">=" else self.ratio <= bound

    def as_dict(self) -> dict[str, object]:
        """For JSON."""
        return asdict(self)


def seconds(work: Callable[[], object]) -> float:
    """How long it takes once."""
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def alternate(ours: Callable[[], object], reference: Callable[[], object], runs: int = 5) -> list[tuple[float, float]]:
    """Time both in turn, after a warm-up of each; seconds (ours, reference) of each pair."""
    ours(), reference()
    return [(seconds(ours), seconds(reference)) for _ in range(runs)]


def line(
    name: str, pairs: Sequence[tuple[float, float]], *, speed: bool = True, target: str = "", note: str = ""
) -> Line:
    """A line of pairs of seconds (ours, reference).

    Args:
        name: What was measured.
        pairs: At least one.
        speed: The ratio is our speed in units of the reference's (higher is better), else our cost in its units.
        target: What the median ratio should be.
        note: What the two are.
    """
    ratios = [b / a if speed else a / b for a, b in pairs]
    ours, reference = (statistics.median(column) for column in zip(*pairs, strict=True))
    return Line(name, ours, reference, statistics.median(ratios), min(ratios), max(ratios), target, note)


def times(name: str, values: Sequence[float], *, target: str = "", note: str = "") -> Line:
    """A line of plain seconds."""
    middle = statistics.median(values)
    return Line(name, middle, None, middle, min(values), max(values), target, note)


def machine() -> str:
    """What it ran on, in a line."""
    model = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.is_file():
        found = re.search(r"model name\s*:\s*(.+)", info.read_text())
        model = found[1] if found else model
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    cards = "".join(f"{torch.cuda.get_device_name(i)}, " for i in range(torch.cuda.device_count()))
    system = f"{platform.system()}, Python {platform.python_version()}"
    return f"{cards}{model}, {cpu_count()} cores, {memory:.0f} GiB, {system}"


def versions() -> str:
    """Of the packages that do the work, where they are installed: of the two faiss wheels one is."""
    found = []
    for name in PACKAGES:
        with suppress(PackageNotFoundError):
            found.append(f"{name} {version(name)}")
    return ", ".join(found)
