"""Is it better to train on from the encoder that comes with decar than from nothing? On sounds that it has not heard.

    python benchmarks/adapt.py --root DIR --out RUNS [--budgets 5min 20min] [--seeds 1] [--arms …] [--jobs 2]

DIR holds index.csv, with `pretrain` and `source_package`, and tasks/*.csv. Each source is one that `small` was not
trained on. Its clips are trained on for the budget, each job with one thread, and the encoder is judged frozen
(`protocol=search`) on a task of that source. What is printed are test accuracies in %, validation in parentheses.
Stopped, the same command goes on.
"""

import argparse
import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import mean

import decar

HOME = Path(decar.__file__).parents[2]
SOURCES = {  # task: the packages that its clips are trained on
    "spoken_letter": ["klettres-data"],
    "speaker_id_5shot": ["tuxpaint-stamps-default"],
    "language_id_xspk": ["fillets-ng-data-cs", "fillets-ng-data-nl", "ktuberling-data"],
}
ARMS = {  # options of train.py
    "scratch": [],
    "adapted": ["init=small"],
    "adapted, rate 3e-4": ["init=small", "optimizer.lr=3e-4"],
    "adapted, own clusters": ["init=small", "labels=network"],
    "adapted, own clusters, rate 3e-4": ["init=small", "labels=network", "optimizer.lr=3e-4"],
}
UNTRAINED = ("logmel", "random", "small")


def call(program: str, *options: str) -> None:
    """Run a program of this checkout with one thread.

    Raises:
        subprocess.CalledProcessError: It failed; its log lies in its folder.
    """
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    subprocess.run(
        [sys.executable, HOME / program, *options], env=environment, check=True, stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )  # fmt: skip


def trained(root: Path, out: Path, task: str, arm: str, budget: str, seed: int) -> tuple[float, float]:
    """Train an arm, if that is not done, and judge it."""
    run = out / f"{task}-{arm.replace(', ', '-').replace(' ', '')}-{budget}-{seed}"
    packages = ", ".join(f'"{name}"' for name in SOURCES[task])
    where = f"data.where='pretrain and source_package in [{packages}]'"
    call(
        "train.py", "data=csv", f"data.path={root / 'index.csv'}", where, "trainer=cpu", f"budget={budget}",
        f"seed={seed}", f"hydra.run.dir={run}", "report=false", "resume=auto", *ARMS[arm],
    )  # fmt: skip
    return judged(root, run / "judged", task, str(run), seed)


def judged(root: Path, out: Path, task: str, bundle: str, seed: int = 0) -> tuple[float, float]:
    """Accuracy on test and on validation."""
    table = root / "tasks" / f"{task}.csv"  # task=table would embed all clips of index.csv
    call(
        "eval.py", "task=csv", f"task.name={task}", f"task.path={table}", f"task.root={root}", "mode=frozen",
        "protocol=search", f"bundle={bundle}", f"seed={seed}", f"hydra.run.dir={out}", "resume=auto",
    )  # fmt: skip
    found = json.loads((out / "result.json").read_text())
    return found["value"], found["valid_value"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--budgets", nargs="+", default=["5min", "20min"])
    parser.add_argument("--arms", nargs="+", default=list(ARMS), choices=list(ARMS))
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--jobs", type=int, default=2)
    args = parser.parse_args()
    root, out = args.root.resolve(), args.out.resolve()
    print("| | " + " | ".join(SOURCES) + " | mean |\n|---|" + "---:|" * (len(SOURCES) + 1))
    for bundle in UNTRAINED:
        report(bundle, [[judged(root, out / f"{task}-{bundle}", task, bundle)] for task in SOURCES])
    with ThreadPoolExecutor(args.jobs) as pool:
        for budget in args.budgets:
            jobs = {
                (arm, task): [pool.submit(trained, root, out, task, arm, budget, seed) for seed in range(args.seeds)]
                for arm in args.arms
                for task in SOURCES
            }
            for arm in args.arms:
                report(f"{arm}, {budget}", [[job.result() for job in jobs[arm, task]] for task in SOURCES])


def report(name: str, found: list[list[tuple[float, float]]]) -> None:
    """Print a row: of each task the means over the seeds, and the mean of these."""
    means = [tuple(100 * mean(one[i] for one in seeds) for i in (0, 1)) for seeds in found]
    overall = tuple(mean(one[i] for one in means) for i in (0, 1))
    cells = [f"{test:.1f} ({valid:.1f})" for test, valid in [*means, overall]]
    print(f"| {name} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
