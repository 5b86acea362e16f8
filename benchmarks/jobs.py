"""Small real runs, as processes that can be killed or as calls, and whether two of them ended the same."""

import contextlib
import io
import logging
import os
import re
import shlex
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path

import pandas as pd
import torch
from omegaconf import OmegaConf

from decar.models import load_encoder

ROOT = Path(__file__).resolve().parents[1]
SMALL = [
    "debug=fast", "trainer.max_epochs=4", "sampler.every_n_steps=20", "callbacks.inside.minutes=0.01",
    "trainer.accelerator=cpu",
]  # fmt: skip
ASSIGNMENTS = "clusters.parquet"
HANGS = 240.0  # seconds after which a process is taken to hang
HUNG = 124  # status of a process that was killed because of that
TO_GO_ON = re.compile("to go on: ", re.IGNORECASE)  # what comes before the command in the last line of a job


def training(folder: Path, options: Sequence[str] = ()) -> list[str]:
    """Options of `train.py` for a run below a folder, which also holds its cache."""
    return [*SMALL, f"cache_dir={folder}/cache", *options, f"hydra.run.dir={folder}/run", "resume=auto"]


class Job:
    """A command as a process in a session of its own; its output goes to a new file in `folder`."""

    def __init__(self, folder: Path, words: Sequence[str]) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self.log = folder / f"log{len(list(folder.glob('log*.txt')))}.txt"
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"  # `python` is this one
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                words, cwd=ROOT, stdout=log, stderr=log, start_new_session=True,
                env={**os.environ, "OMP_NUM_THREADS": "1", "PATH": path},
            )  # fmt: skip
        self.began = time.monotonic()

    @classmethod
    def train(cls, folder: Path, options: Sequence[str] = ()) -> "Job":
        """Begin a run, or go on with it."""
        return cls(folder, ["python", "train.py", *training(folder, options)])

    def runs_at(self, seconds: float, until: Callable[[], bool] = lambda: False) -> bool:
        """Wait until so long after the start, or until something holds; whether the process still runs."""
        while self.process.poll() is None and time.monotonic() < self.began + seconds and not until():
            time.sleep(0.002)
        return self.process.poll() is None

    def seconds(self) -> float:
        """Since its start."""
        return time.monotonic() - self.began

    def send(self, number: int, pid: int | None = None) -> None:
        """Send a signal to this process or another one, unless it has ended; a negative id is that of a group."""
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid or self.process.pid, number)

    def end(self, seconds: float = HANGS) -> int:
        """Let it come to its end; its status, `HUNG` if it does not and was killed."""
        try:
            return self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            self.kill()
            return HUNG

    def kill(self) -> None:
        """Kill it and its children."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()

    def children(self) -> list[int]:
        """Ids of the processes that it has started, the oldest first."""
        found = subprocess.run(["pgrep", "-P", str(self.process.pid)], capture_output=True, text=True, check=False)
        return [int(line) for line in found.stdout.split()]

    def text(self) -> str:
        """What it has printed."""
        return self.log.read_text(errors="replace")

    def trains(self) -> bool:
        """Whether it has ended an epoch."""
        return " steps in " in self.text()

    def last_line(self) -> str:
        """The line in which it says how it ended; empty where there is none or there are several."""
        lines = [line for line in self.text().splitlines() if line.startswith("decar: ")]
        return lines[0] if len(lines) == 1 else ""

    def command_to_go_on(self) -> list[str]:
        """The words of the command that the last line gives."""
        text = TO_GO_ON.split(self.last_line())[-1]
        return shlex.split(text.partition(" (exit status ")[0])


def command(main: Callable[[], None], words: Sequence[str]) -> tuple[int, str]:
    """Call an entry point of decar in this process; its exit status and what it printed."""
    printed, status, before = io.StringIO(), 0, sys.argv
    sys.argv = ["decar", *words]
    with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(printed):
        try:
            main()
        except SystemExit as ended:
            status = int(ended.code or 0)
        except Exception:
            traceback.print_exc()
            status = 1
        finally:
            sys.argv = before
    return status, printed.getvalue()


def logged(call: Callable[[], object]) -> str:
    """What decar logs during a call."""
    printed = io.StringIO()
    handler, logger = logging.StreamHandler(printed), logging.getLogger("decar")
    logger.addHandler(handler)
    try:
        call()
    finally:
        logger.removeHandler(handler)
    return printed.getvalue()


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
            except Exception as error:  # whatever the reader raises, the file is damaged
                bad.append(f"{path}: {error}")
    return bad


def difference(a: Path, b: Path) -> str:
    """The first thing in which two finished runs differ; nothing if they are the same to the bit."""
    ours, theirs = (torch.load(x / "run/checkpoints/last.ckpt", weights_only=True) for x in (a, b))
    for key in ("state_dict", "optimizer_states", "lr_schedulers", "PretrainData", "StreamData", "means", "epoch_row",
                "bank"):  # fmt: skip
        if not same(ours.get(key), theirs.get(key)):
            return f"{key} of the checkpoint"
    for name in ("encoder.safetensors", "metrics.csv"):
        if (a / "run" / name).read_bytes() != (b / "run" / name).read_bytes():
            return name
    parts = [{p.name: p.read_bytes() for p in (x / "run" / ASSIGNMENTS).glob("[!.]*.parquet")} for x in (a, b)]
    return "" if parts[0] == parts[1] else ASSIGNMENTS


def same(a: object, b: object) -> bool:
    """Equal to the bit, at any depth."""
    if isinstance(a, torch.Tensor) and isinstance(b, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict) and isinstance(b, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple) and isinstance(b, list | tuple):
        return len(a) == len(b) and all(map(same, a, b))
    return a == b
