"""`make bench`: how fast decar is, as ratios of two things timed in turn in one process; writes benchmarks/RESULTS.md.

    python benchmarks/bench.py                      # everything, under 20 minutes on two cores
    python benchmarks/bench.py --only train epoch   # some of it; the other lines stay as they were
    python benchmarks/bench.py --device cuda        # the GPU's figures, in benchmarks/RESULTS-cuda.md

Leave the machine alone meanwhile.
"""

import argparse
import importlib
import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from rig import Line, machine, versions

from decar.files import whole

HERE = Path(__file__).parent
PARTS = {  # module of this folder: what its lines are about
    "train": ("speed_train", "Pass and step"),
    "read": ("speed_read", "Reading and loading"),
    "epoch": ("speed_epoch", "An epoch"),
    "clusterers": ("clusterers", "Clusterers"),
    "store": ("speed_store", "Log-mels, probes, start-up"),
    "open": ("speed_open", "Opening files that have checksums"),
    "scale": ("speed_scale", "Up to two million clips"),
    "paper": ("speed_paper", "Steps on a GPU"),
}
ON_CPU = ("train", "read", "epoch", "clusterers", "store", "open", "scale")  # parts that have figures of each
ON_GPU = ("train", "epoch", "clusterers", "paper")
Parts = dict[str, dict[str, object]]
INTRODUCTION = (
    "# Speed",
    "",
    "`make bench` writes this page (`python benchmarks/bench.py --device cuda` RESULTS-cuda.md). A ratio is the median",
    "of pairs timed in turn in one process, least and largest beside it. Seconds mean little elsewhere.",
    "What is asked is asked of two CPU cores.",
    "",
)
HEADINGS = (
    "| what | ours, s | reference, s | ratio | spread | asked | holds | |",
    "|---|---:|---:|---:|---|---|---|---|",
)


def measure(name: str, runs: int, device: str) -> dict[str, object]:
    """The lines of a part, and where and when they were taken."""
    began = time.monotonic()
    module = importlib.import_module(PARTS[name][0])
    lines = module.measure(runs, device) if name in ON_GPU else module.measure(runs)
    return {
        "machine": machine(),
        "versions": versions(),
        "when": time.strftime("%Y-%m-%d"),
        "minutes": (time.monotonic() - began) / 60,
        "runs": runs,
        "lines": [x.as_dict() if isinstance(x, Line) else x for x in lines],
    }


def markdown(parts: Mapping[str, Mapping[str, object]]) -> str:
    """The tables, part by part, each under the machine that it was taken on."""
    text = [*INTRODUCTION]
    for name, (_, title) in PARTS.items():
        part = parts.get(name)
        if part is None:
            continue
        text += [f"## {title}", "", f"{part['machine']}; {part['versions']}; {part['when']}; {part['runs']} runs.", ""]
        text += [
            "| what | ours, s | reference, s | ratio | spread | asked | holds | |",
            "|---|---:|---:|---:|---|---|---|---|",
        ]
        lines = part["lines"]
        assert isinstance(lines, list)
        text += [row(Line(**entry)) for entry in lines]
        text.append("")
    return "\n".join(text)


def row(x: Line) -> str:
    """A line of the table."""
    verdict = {True: "yes", False: "**no**", None: ""}[x.holds]
    reference = "" if x.reference is None else f"{x.reference:.3g}"
    return (
        f"| {x.name} | {x.ours:.3g} | {reference} | {x.ratio:.3g} | {x.low:.3g} to {x.high:.3g} | {x.target} | "
        f"{verdict} | {x.note} |"
    )


def draw(parts: Mapping[str, Mapping[str, object]], file: Path) -> None:
    """All ratios that have a target, with their spread, as they lie to it."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    lines = [Line(**x) for name in PARTS if name in parts for x in parts[name]["lines"]]  # type: ignore[attr-defined]
    lines = [x for x in lines if x.holds is not None and x.reference is not None][::-1]
    if not lines:
        return
    figure, axes = plt.subplots(figsize=(8, 0.6 + 0.36 * len(lines)), layout="constrained")
    for y, x in enumerate(lines):
        axes.errorbar(
            x.ratio,
            y,
            xerr=[[x.ratio - x.low], [x.high - x.ratio]],
            fmt="o",
            color="C0" if x.holds else "C3",
            capsize=3,
        )
        axes.plot(float(x.target.split()[1]), y, "|", color="black", markersize=14)
    axes.set_yticks(range(len(lines)), [f"{x.name}  ({x.target})" for x in lines], fontsize=8)
    axes.set_xscale("log")
    axes.set_xticks([1, 2, 5, 10], ["1", "2", "5", "10"])
    axes.minorticks_off()
    axes.set_xlabel("ratio; bar: what was asked")
    figure.savefig(file, dpi=110)
    plt.close(figure)


def main(words: Sequence[str] | None = None) -> None:
    """Measure what was asked for, keep the rest, write page and plot."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=PARTS, metavar="PART", help=", ".join(PARTS))
    parser.add_argument("--runs", type=int, default=5, help="pairs of each line (default: 5)")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--out", type=Path, default=HERE, help="folder of RESULTS.md, results.json, results.png")
    args = parser.parse_args(words)
    name = "results" if args.device == "cpu" else f"results-{args.device}"
    kept = args.out / f"{name}.json"
    parts: Parts = json.loads(kept.read_text()) if kept.is_file() else {}
    for part in args.only or (ON_GPU if args.device == "cuda" else ON_CPU):
        print(f"== {part}", flush=True)
        parts[part] = measure(part, args.runs, args.device)
        print(f"   {parts[part]['minutes']:.1f} minutes", flush=True)
        with whole(kept) as file:
            file.write_text(json.dumps(parts, indent=1))
    page = markdown(parts)
    with whole(args.out / f"{name.upper().replace('CUDA', 'cuda')}.md") as file:
        file.write_text(page)
    draw(parts, args.out / f"{name}.png")
    print(page)


if __name__ == "__main__":
    main()
