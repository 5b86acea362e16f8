"""`make chaos`: kill small real runs at random moments, go on, and compare with runs that were never killed.

    python benchmarks/chaos.py --kills 32 --seed 0

Both clusterers, one process and two. What is killed with SIGKILL is the run, all of its processes, or its second one,
while log-mels are computed, clips embedded or clustered, within an epoch, or the moment a checkpoint is being written.
At the end of each run its weights, optimizer, assignments and metrics must be those of the unbroken run, to the bit.
"""

import argparse
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pandas as pd
import torch
from omegaconf import OmegaConf

from decar.models import load_encoder

ROOT = Path(__file__).resolve().parents[1]
SMALL = [
    "debug=fast", "trainer.max_epochs=4", "sampler.every_n_steps=20", "callbacks.inside.minutes=0.01",
    "trainer.accelerator=cpu", "resume=auto",
]  # fmt: skip
PIC = ["clusterer=pic", "clusterer.n_neighbors=5", "clusterer.n_iter=20"]
ARMS = {  # clusterer and number of processes
    "kmeans-1": [],
    "pic-1": PIC,
    "kmeans-2": ["trainer=ddp", "trainer.devices=2"],
    "pic-2": [*PIC, "trainer=ddp", "trainer.devices=2"],
    "bank-1": ["pretrain.features=bank"],
    "bank-2": ["pretrain.features=bank", "trainer=ddp", "trainer.devices=2"],
}


@dataclass
class Count:
    """What is reported in the end."""

    kills: int = 0
    runs: int = 0
    identical: int = 0
    broken: list[str] = field(default_factory=list)
    resumes: list[float] = field(default_factory=list)
    moments: dict[str, int] = field(default_factory=dict)


def start(folder: Path, options: Sequence[str]) -> "subprocess.Popen[bytes]":
    """Begin, or go on with, a run; its log-mels lie in a cache of its own."""
    words = [*SMALL, *options, f"hydra.run.dir={folder}/run", f"cache_dir={folder}/cache"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "log.txt").open("ab") as log:
        return subprocess.Popen(
            [sys.executable, "train.py", *words], cwd=ROOT, stdout=log, stderr=log, env=environment,
            start_new_session=True,
        )  # fmt: skip


def finish(folder: Path, options: Sequence[str]) -> float:
    """Let a run come to its end; seconds until it trained."""
    began, lines = time.monotonic(), _epochs_told(folder)
    process, trained = start(folder, options), 0.0
    while process.poll() is None:
        time.sleep(0.05)
        if not trained and _epochs_told(folder) > lines:
            trained = time.monotonic() - began
    if process.returncode:
        raise SystemExit(f"a resumed run failed with {process.returncode}: see {folder / 'log.txt'}")
    return trained or time.monotonic() - began


def _epochs_told(folder: Path) -> int:
    log = folder / "log.txt"
    return log.read_text(errors="replace").count(" steps in ") if log.is_file() else 0


def kill(folder: Path, options: Sequence[str], duration: float, rng: random.Random) -> str:
    """Run until a random moment, then SIGKILL; what was killed and when, or nothing if it was at its end before."""
    process, writing = start(folder, options), rng.random() < 0.25
    ends = time.monotonic() + rng.uniform(0.1, 0.95) * duration
    while process.poll() is None and time.monotonic() < ends:
        if writing and any((folder / "run" / "checkpoints").glob(".*.part")):
            break
        time.sleep(0.0005 if writing else 0.01)
    if process.poll() is not None:
        return ""
    whom = rng.choice(["run", "all", "second"] if "trainer=ddp" in options else ["run", "all"])
    second = _children(process.pid) if whom == "second" else []
    if whom == "all" or (whom == "second" and not second):
        os.killpg(process.pid, signal.SIGKILL)
    else:
        os.kill(second[0] if second else process.pid, signal.SIGKILL)
    process.wait()
    time.sleep(1)  # the second process sees that the first is gone
    return f"{whom}{', a checkpoint being written' if writing and time.monotonic() < ends else ''}"


def _children(pid: int) -> list[int]:
    found = subprocess.run(["pgrep", "-P", str(pid)], capture_output=True, text=True, check=False).stdout
    return [int(line) for line in found.split()]


def broken_files(folder: Path) -> list[str]:
    """Files of a run that are there but cannot be read; hidden ones are unfinished by name."""
    run, bad = folder / "run", []
    readers: dict[str, Callable[[Path], object]] = {
        "checkpoints/*.ckpt": lambda p: torch.load(p, weights_only=True),
        "encoder.safetensors": load_encoder,
        "clusters.parquet/*.parquet": pd.read_parquet,
        "config.yaml": OmegaConf.load,
        "metrics.csv": pd.read_csv,
    }
    for pattern, read in readers.items():
        for path in run.glob(pattern):
            if path.name.startswith("."):
                continue
            try:
                read(path)
            except Exception as error:  # whatever it is, it is broken
                bad.append(f"{path}: {error}")
    return bad


def difference(a: Path, b: Path) -> str:
    """The first thing in which two finished runs differ; nothing if they are the same to the bit."""
    ours, theirs = (torch.load(x / "run/checkpoints/last.ckpt", weights_only=True) for x in (a, b))
    for key in ("state_dict", "optimizer_states", "lr_schedulers", "PretrainData", "means", "epoch_row", "bank"):
        if not same(ours.get(key), theirs.get(key)):
            return f"{key} of the checkpoint"
    for name in ("encoder.safetensors", "metrics.csv"):
        if (a / "run" / name).read_bytes() != (b / "run" / name).read_bytes():
            return name
    parts = [sorted(p.name for p in (x / "run/clusters.parquet").glob("[!.]*.parquet")) for x in (a, b)]
    tables = [pd.read_parquet(x / "run/clusters.parquet") for x in (a, b)]
    return "" if parts[0] == parts[1] and tables[0].equals(tables[1]) else "clusters.parquet"


def same(a: object, b: object) -> bool:
    """Equal to the bit, at any depth."""
    if isinstance(a, torch.Tensor) and isinstance(b, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict) and isinstance(b, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple) and isinstance(b, list | tuple):
        return len(a) == len(b) and all(map(same, a, b))
    return a == b


def ordeal(folder: Path, whole: Path, options: Sequence[str], duration: float, kills: int, rng: random.Random,
           count: Count) -> None:  # fmt: skip
    """One run, killed several times, then compared."""
    for _ in range(kills):
        moment = kill(folder, options, duration, rng)
        if not moment:
            break
        count.kills += 1
        count.moments[moment] = count.moments.get(moment, 0) + 1
        count.broken += broken_files(folder)
    count.resumes.append(finish(folder, options))
    found = difference(folder, whole)
    count.runs += 1
    count.identical += not found
    print(f"  {folder.name}: {found + ' differs' if found else 'identical'}", flush=True)


def main() -> None:
    """Kill, resume, compare, report; exit status 1 unless all ended the same and nothing was broken."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=32, help="at least this many")
    parser.add_argument("--per-run", type=int, default=2, help="kills of one run before it may end")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=list(ARMS), help="clusterer or bank, and processes")
    parser.add_argument("--keep", type=Path, help="a folder for the runs (default: a temporary one)")
    args = parser.parse_args()
    rng, count = random.Random(args.seed), Count()
    root = (args.keep or Path(tempfile.mkdtemp(prefix="decar-chaos-"))).resolve()
    wholes = {}
    for i, (name, options) in enumerate((name, ARMS[name]) for name in args.arms):
        began = time.monotonic()
        finish(root / f"whole{i}", options)
        wholes[name] = (root / f"whole{i}", time.monotonic() - began)
        print(f"{name}: {wholes[name][1]:.0f} s unbroken", flush=True)
    turn = 0
    while count.kills < args.kills:
        name = args.arms[turn % len(args.arms)]
        whole, duration = wholes[name]
        ordeal(root / f"{turn:02d}-{name}", whole, ARMS[name], duration, args.per_run, rng, count)
        turn += 1
    print(
        f"{count.kills} kills in {count.runs} runs: {count.identical} ended bit-identical to an unbroken run, "
        f"{len(count.broken)} files left broken, slowest resume {max(count.resumes):.0f} s (median "
        f"{sorted(count.resumes)[len(count.resumes) // 2]:.0f} s)"
    )
    print("killed: " + "; ".join(f"{moment} {n} times" for moment, n in sorted(count.moments.items())))
    print(*count.broken, sep="\n", end="\n" if count.broken else "")
    if not args.keep:
        shutil.rmtree(root)
    sys.exit(int(count.identical < count.runs or bool(count.broken)))


if __name__ == "__main__":
    main()
