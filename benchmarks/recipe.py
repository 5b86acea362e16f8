"""The ablation of docs/recipe.md: arms (lists of options) x seeds, pre-trained, judged frozen, in one table.

    python benchmarks/recipe.py --set mini --arms demo paper_small --seeds 0 1 2
    python benchmarks/recipe.py --set bench --root DIR --jobs 2 -- budget=20min      # options for all arms after --

An arm is a line of benchmarks/recipe_arms.yaml: options of train.py, behind the module that runs in its place if there
is one. Beside each stand untrained weights of its own network; log-mel statistics once. What is finished is not run
again. Arms are compared by validation, the test column is for the end; `more` is over the first arm, paired by seed.
"""

import argparse
import csv
import hashlib
import math
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from omegaconf import OmegaConf
from scipy import stats

from decar.audio import FrontEnd
from decar.downstream.results import Result, collect

ROOT = Path(__file__).resolve().parents[1]
# by name: glob(*) would also take the public corpora that are prepared on this machine
BUNDLED = "task=event,instrument_family,instrument_seen,kind,language,mandarin_tone,percussion,speaker"
ARMS = Path(__file__).with_name("recipe_arms.yaml")
NOT_THE_NETWORK = ("_target_", "seed", "min_frames", "max_frames")  # of a config's encoder node
FIGURES = ("validation", "validation_interval", "test", "test_interval")  # of the CSV


@dataclass(frozen=True)
class Row:
    """A line of the table: the figures of one arm, an entry a seed."""

    name: str
    options: str
    steps: float
    seconds: float
    valid: list[float]
    test: list[float]
    tasks: dict[str, float]


def read_arms(path: Path, wanted: Sequence[str]) -> dict[str, list[str]]:
    """The arms asked for, in the order asked; all of the file when none is named."""
    arms = OmegaConf.to_container(OmegaConf.load(path))
    if not isinstance(arms, dict) or not all(isinstance(options, list) for options in arms.values()):
        raise SystemExit(f"{path}: a table `name: [option, …]` is expected")
    unknown = [name for name in wanted if name not in arms]
    if unknown:
        raise SystemExit(f"no arm {unknown[0]} in {path}; there are {', '.join(map(str, arms))}")
    return {name: [str(option) for option in arms[name]] for name in wanted or map(str, arms)}


def interval(values: Sequence[float]) -> float:
    """Half the width of the 95 % interval of the mean (Student's t); nan for one value."""
    n = len(values)
    return float(stats.t.ppf(0.975, n - 1) * np.std(values, ddof=1) / math.sqrt(n)) if n > 1 else math.nan


def over_clips(results: Sequence[Result]) -> tuple[float, float]:
    """Half the width that the number of clips gives the mean over tasks, of validation and of test (95 %, binomial)."""
    variances = [(r.valid_value * (1 - r.valid_value) / r.n_valid, r.value * (1 - r.value) / r.n_test) for r in results]
    valid, test = 1.96 * np.sqrt(np.sum(variances, axis=0)) / len(variances)
    return float(valid), float(test)


def run(words: Sequence[str], log: Path, threads: int) -> None:
    """Run a command of this repository; what it prints goes to a file."""
    log.parent.mkdir(parents=True, exist_ok=True)
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
    with log.open("w") as file:
        command = [sys.executable, *words]
        code = subprocess.run(command, cwd=ROOT, stdout=file, stderr=file, env=environment, check=False).returncode
    if code:
        raise SystemExit(f"{' '.join(words)} failed with {code}; its last words are in {log}")


def train(folder: Path, options: Sequence[str], threads: int) -> None:
    """Pre-train unless that is done; the time it took is written beside it."""
    if (folder / "seconds.txt").is_file():
        return
    began = time.monotonic()
    module = options[0] if options and re.fullmatch(r"[a-z.]+", options[0]) else None
    words = ["train.py", *options] if module is None else ["-m", *options]
    run([*words, f"hydra.run.dir={folder}", "resume=auto"], Path(f"{folder}.log"), threads)
    (folder / "seconds.txt").write_text(f"{time.monotonic() - began:.0f}")


def judge(cells: Path, bundle: str, tasks: Sequence[str], seed: int, threads: int, more: Sequence[str] = ()) -> None:
    """Judge a bundle on all tasks, unless that is done."""
    if (cells / "done").is_file():
        return
    words = ["eval.py", "-m", *tasks, "protocol=search", f"bundle={bundle}", f"seed={seed}", *more]
    run([*words, f"hydra.sweep.dir={cells}"], Path(f"{cells}.log"), threads)
    (cells / "done").touch()


def network_of(folder: Path) -> list[str]:
    """The options of eval.py that name a run's network, and its front-end."""
    encoder = OmegaConf.to_container(OmegaConf.load(folder / "config.yaml").encoder)
    assert isinstance(encoder, dict)
    network = [f"encoder.{key!s}={_typed(value)}" for key, value in encoder.items() if key not in NOT_THE_NETWORK]
    return [*network, *frontend_of(folder)]


def frontend_of(folder: Path) -> list[str]:
    """The options of eval.py that name a run's front-end; none for the usual one."""
    config, usual = OmegaConf.to_container(OmegaConf.load(folder / "config.yaml")), asdict(FrontEnd())
    assert isinstance(config, dict)
    node = config.get("frontend", {})
    return [f"frontend.{key}={_typed(node[key])}" for key, value in usual.items() if node.get(key, value) != value]


def untrained(out: Path, network: Sequence[str], seed: int) -> Path:
    """Where the results of untrained weights of a network are; arms of one network share them."""
    return out / f"untrained-{hashlib.sha256(' '.join(network).encode()).hexdigest()[:8]}-seed{seed}"


def _typed(value: object) -> str:
    return str(value).replace(" ", "") if value is not None else "null"


def row(name: str, options: Sequence[str], folders: Iterable[Path], results: Mapping[Path, list[Result]]) -> Row:
    """An arm's line from its runs, one a seed."""
    runs = list(folders)
    configs = [OmegaConf.load(folder / "config.yaml") for folder in runs if (folder / "config.yaml").is_file()]
    steps = [c.trainer.max_epochs * c.sampler.every_n_steps for c in configs if c.sampler.every_n_steps]
    seconds = [float((f / "seconds.txt").read_text()) for f in runs if (f / "seconds.txt").is_file()]
    by_task: dict[str, list[float]] = {}
    for folder in runs:
        for result in results[folder]:
            by_task.setdefault(result.task, []).append(result.value)
    return Row(
        name, " ".join(options), float(np.mean(steps)) if steps else math.nan, float(np.mean(seconds or [math.nan])),
        [float(np.mean([r.valid_value for r in results[f]])) for f in runs],
        [float(np.mean([r.value for r in results[f]])) for f in runs],
        {task: float(np.mean(values)) for task, values in sorted(by_task.items())},
    )  # fmt: skip


def markdown(rows: Sequence[Row], base: Row | None = None) -> str:
    """The table, figures in %; with `base` also what an arm has more than that one, paired by seed."""
    tasks = list(rows[0].tasks)
    lines = [["arm", "options", "steps", "s", "validation", "test", *(("more", "more") if base else ()), *tasks]]
    lines.append(["---", "---", *["---:"] * (len(lines[0]) - 2)])
    for r in rows:
        cost = [f"{x:.0f}" if math.isfinite(x) else "" for x in (r.steps, r.seconds)]
        means = [_mean(r.valid), _mean(r.test), *(_more(r, base) if base else ())]
        lines.append([r.name, r.options, *cost, *means, *(f"{100 * r.tasks.get(t, math.nan):.0f}" for t in tasks)])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _mean(values: Sequence[float], sign: str = "") -> str:
    mean = round(100 * float(np.mean(values)), 1) + 0.0  # no -0.0
    return f"{mean:{sign}.1f} ± {100 * interval(values):.1f}".replace(" ± nan", "")


def _more(row: Row, base: Row) -> list[str]:
    """On validation and on test."""
    if row is base or len(row.valid) != len(base.valid):
        return ["", ""]
    pairs = ((row.valid, base.valid), (row.test, base.test))
    return [_mean([a - b for a, b in zip(mine, theirs, strict=True)], "+") for mine, theirs in pairs]


def write(rows: Sequence[Row], out: Path, base: Row | None = None) -> None:
    """The table as Markdown and, a line an arm, as CSV."""
    (out / "recipe.md").write_text(markdown(rows, base) + "\n")
    with (out / "recipe.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["arm", "options", "steps", "seconds", *FIGURES, *rows[0].tasks])
        for r in rows:
            figures = [np.mean(r.valid), interval(r.valid), np.mean(r.test), interval(r.test), *r.tasks.values()]
            writer.writerow([r.name, r.options, r.steps, r.seconds, *(f"{x:.5f}" for x in figures)])


def main() -> None:
    """Train, judge, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--set", choices=["mini", "bench"], default="mini", help="bundled sounds, or a folder of tasks")
    parser.add_argument("--root", type=Path, help="that folder: index.csv and tasks/*.csv")
    parser.add_argument("--tasks", type=Path, help="another folder that has the tasks and their index.csv")
    parser.add_argument("--file", type=Path, default=ARMS, help="where arms are described (default: %(default)s)")
    parser.add_argument("--arms", nargs="+", default=[], help="default: all")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--jobs", type=int, default=1, help="arms at once; the cores are shared out")
    parser.add_argument("--out", type=Path, default=ROOT / "runs" / "recipe")
    parser.add_argument("options", nargs="*", help="for train.py, all arms; after --")
    args = parser.parse_args()
    if args.set == "bench" and args.root is None:
        parser.error("--set bench needs --root DIR")
    data = [] if args.set == "mini" else ["data=bench", f"data.root={args.root}"]
    tasks = [BUNDLED] if args.set == "mini" else ["task=table", f"task.root={args.tasks or args.root}", "task.name=*"]
    arms = read_arms(args.file, args.arms)
    out, threads = (args.out / args.set).resolve(), max(1, (os.cpu_count() or 1) // args.jobs)

    def cell(job: tuple[str, int]) -> None:
        name, seed = job
        folder = out / f"{name}-seed{seed}"
        train(folder, [*arms[name], *data, *args.options, f"seed={seed}"], threads)
        judge(folder / "cells", str(folder), tasks, seed, threads, frontend_of(folder))
        print(f"{folder.name}: done", flush=True)

    def beside(job: tuple[Path, tuple[int, list[str]]]) -> None:
        cells, (seed, network) = job
        judge(cells, "random", tasks, seed, threads, network)

    jobs = [(name, seed) for seed in args.seeds for name in arms]
    with ThreadPoolExecutor(args.jobs) as pool:
        list(pool.map(cell, jobs))
        networks = {job: network_of(out / "{}-seed{}".format(*job)) for job in jobs}
        random = {job: untrained(out, network, job[1]) for job, network in networks.items()}
        list(pool.map(beside, {random[job]: (job[1], networks[job]) for job in jobs}.items()))
    judge(out / "logmel", "logmel", tasks, 0, threads)
    rows = [row("log-mel statistics", [], [out / "logmel"], {out / "logmel": collect([out / "logmel"])})]
    for name, options in arms.items():
        runs = [out / f"{name}-seed{seed}" for seed in args.seeds]
        plain = {folder: collect([random[name, seed]]) for folder, seed in zip(runs, args.seeds, strict=True)}
        rows.append(row(f"{name}, untrained", [], runs, plain))
        rows.append(row(name, options, runs, {folder: collect([folder / "cells"]) for folder in runs}))
    base = next(r for r in rows if r.name in arms)
    write(rows, out, base)
    valid, test = over_clips(collect([out / "{}-seed{}".format(*jobs[0]) / "cells"]))
    print(markdown(rows, base))
    print(f"\nThe clips alone leave a mean ± {100 * valid:.1f} on validation, ± {100 * test:.1f} on test.")
    print(f"written to {out / 'recipe.md'} and recipe.csv")


if __name__ == "__main__":
    main()
