"""`scale.py` as lines of `make bench`: up to 200,000 clips, and what needs no vectors at two million.

Two million vectors take some twenty minutes and 5 GB of disk: `make bench-scale`, whose figures lie in scale.json.
"""

import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from rig import Line, times

HERE = Path(__file__).parent
SHORT = ["--sizes", "20000", "200000"]
KEPT = HERE / "scale.json"


def measure(runs: int = 1) -> list[Line]:
    """One run of each: they are long, and each is a process of its own."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "scale.json"
        subprocess.run([sys.executable, str(HERE / "scale.py"), "--out", str(out), *SHORT], check=True)
        figures = json.loads(out.read_text())
    rows = figures["rows"]
    lines = [line for row in rows for line in lines_of(row)]
    large = json.loads(KEPT.read_text())["rows"] if KEPT.is_file() else []
    lines += [line for row in large for line in lines_of(row, note="`make bench-scale`; ")]
    for arm in ("kmeans", "pic"):
        points = [(row["n"], row["total_s"]) for row in [*rows, *large] if row["arm"] == arm]
        lines.append(exponent(arm, points))
    return lines


def lines_of(row: dict[str, Any], note: str = "") -> list[Line]:
    """The lines of one arm."""
    n, seconds = f"{row['n']:,}", row["seconds"]
    if row["arm"] == "sampler":
        return [
            times(f"sampler epoch, {n} clips (s)", [seconds["sampler epoch"]], target="<= 1"),
            times(f"label swap, {n} clips (s)", [seconds["label swap"]], target="<= 0.1"),
        ]
    if row["arm"] == "store":
        index = f"index {row['index_gb']:.2f} GB; 100,000 random clips in {seconds['100,000 random clips']:.0f} s"
        return [times(f"opening a store of {n} clips (s)", [seconds["open"]], note=index)]
    stages = ", ".join(f"{name} {value:.1f}" for name, value in seconds.items() if value >= 0.05)
    share = row["peak_rss_gb"] / row["file_gb"]
    agreement = f"NMI to the known kinds {row['nmi']:.3f}; {row['n_clusters']} clusters; "
    memory = f"{note}{agreement}own memory {row['peak_anonymous_gb']:.1f} GB; {stages}"
    name = f"whiten + {row['arm']}, {n} x 512"
    lines = [times(f"{name} (s)", [row["total_s"]], note=memory)]
    if row["n"] >= 1_000_000:
        peak = f"{note}{row['peak_rss_gb']:.1f} GB of a file of {row['file_gb']:.1f} GB"
        lines.append(times(f"{name}: peak memory in sizes of the file", [share], target="<= 2.5", note=peak))
    return lines


def exponent(arm: str, points: list[tuple[int, float]]) -> Line:
    """Slope of log seconds over log N."""
    sizes, seconds = np.log(np.array(sorted(points), float)).T
    slope = float(np.polyfit(sizes, seconds, 1)[0])
    note = ", ".join(f"{n:,}" for n, _ in sorted(points))
    return times(f"cost exponent of {arm} in N", [slope], target="<= 1.15", note=note)
