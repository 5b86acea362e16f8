"""`make chaos`: damage files, processes and folders of small real runs at random, go on, compare with undamaged runs.

    python benchmarks/chaos.py --seed 0 --minutes 30 --out benchmarks/chaos.md
    python benchmarks/chaos.py --arms signals frozen --trials 2

Each arm tries one kind of damage at random places or moments. Damage that has an effect must be noticed: a line names
it, or the exit status is the one that docs/security.md documents. After that the run goes on, and its weights,
optimizer, assignments and metrics must be those of an undamaged run, to the bit. Nothing may be lost.
"""

import argparse
import json
import random
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TextIO

import numpy as np
import torch
from damage import KINDS, NAMED, damage
from jobs import ASSIGNMENTS, HANGS, Job, broken_files, command, difference, logged, training
from rig import machine, versions

from decar.cli import eval as judging
from decar.cli import train
from decar.errors import DecarError, LostProcessError, exit_status
from decar.report.clusters import read_assignments

TWO = ("trainer=ddp", "trainer.devices=2")
RUNS = [(), ("clusterer=pic", "clusterer.n_neighbors=5", "clusterer.n_iter=20"), ("pretrain.features=bank",)]
LONG = ("sampler.every_n_steps=60",)  # a second run waits 10 s for the first one's lock
STALL = 12  # seconds that a process of the runs below may hang
LIMITS = (f"stall_timeout={STALL}", f"loader.timeout={STALL}")


@dataclass(frozen=True)
class Trial:
    """What came of one piece of damage.

    Attributes:
        done: What was done.
        noticed: The log line or exit status that shows the damage; empty for none.
        effect: Whether it could be noticed: no program reads some bytes of a file, and a run may have ended before.
        recovered: Whether the end is that of an undamaged run.
        lost: What is lost without a line, or not as it is documented; empty for nothing.
        seconds: From the last start until training went on; 0 where it was not measured.
    """

    done: str
    noticed: str = ""
    effect: bool = True
    recovered: bool = True
    lost: str = ""
    seconds: float = 0.0

    @property
    def fault(self) -> str:
        """What is wrong with decar; empty where all is well."""
        return self.lost or ("not noticed" if self.effect and not self.noticed else "")


@dataclass
class Stage:
    """What the trials of all arms share.

    Attributes:
        root: A folder for all runs.
        rng: Of the trial that is under way.
        number: Of the trial within its arm.
    """

    root: Path
    rng: random.Random = field(default_factory=random.Random)
    number: int = 0
    _known: dict[tuple[str, ...], tuple[Path, float]] = field(default_factory=dict)

    def folder(self, name: str) -> Path:
        """A new folder."""
        return self.root / f"{name}{len(list(self.root.glob(f'{name}*')))}"

    def unbroken(self, options: tuple[str, ...] = ()) -> tuple[Path, float]:
        """A run that nothing happened to, and its seconds."""
        if options not in self._known:
            job = Job.train(self.folder("unbroken"), options)
            must(job.end() == 0, f"an unbroken run failed, see {job.log}")
            self._known[options] = job.folder, job.seconds()
        return self._known[options]

    def copy(self, name: str, make: Callable[[Path], None]) -> Path:
        """The folder that `make` fills, as it was then, always at the same place."""
        folder, kept = self.root / name, self.root / f"{name}-kept"
        if not kept.exists():
            make(folder)
            shutil.copytree(folder, kept)
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(kept, folder)
        return folder

    def half_way(self) -> Path:
        """A run that SIGTERM has stopped in the third of four epochs."""

        def make(folder: Path) -> None:
            job = Job.train(folder)
            job.runs_at(HANGS, lambda: job.text().count(" steps in ") > 1)
            job.send(signal.SIGTERM)
            must(job.end() == exit_status(signal.SIGTERM), f"SIGTERM did not stop a run, see {job.log}")

        return self.copy("half-way", make)

    def finished(self) -> Path:
        """A finished run and the result of a task, its embeddings in the cache."""

        def make(folder: Path) -> None:
            shutil.copytree(self.unbroken()[0], folder)
            for call in (go_on, judge):
                status, text = call(folder)
                must(status == 0, text)

        return self.copy("finished", make)


def must(holds: bool, line: str) -> None:
    """End where there is nothing to compare with."""
    if not holds:
        raise SystemExit(line)


def go_on(folder: Path) -> tuple[int, str]:
    """Go on with a run, in this process."""
    return command(train.main, training(folder))


def judge(folder: Path) -> tuple[int, str]:
    """Judge the encoder of a run on a task, in this process."""
    words = ["task=kind", "mode=frozen", f"bundle={folder}/run", f"cache_dir={folder}/cache"]
    return command(judging.main, [*words, f"hydra.run.dir={folder}/eval", "resume=auto"])


def result(folder: Path) -> dict[str, object]:
    """What was judged, but for the time it took."""
    found: dict[str, object] = json.loads((folder / "eval/result.json").read_text())
    return {key: value for key, value in found.items() if key not in ("seconds", "xxh3")}


# Damaged files


def damaged_run(
    stage: Stage, patterns: Sequence[str], begin: Callable[[Stage], Path] = Stage.half_way, kinds: Sequence[str] = KINDS
) -> Trial:
    """Damage a file of a run that was stopped half-way or has finished, and go on."""
    folder = begin(stage)
    config = (folder / "run/config.yaml").read_bytes()
    done = damaged(stage, folder, patterns, kinds)
    status, text = go_on(folder)
    line = named(text)
    if status == DecarError.status and line:  # found while training: the line says to run it again
        status, text = go_on(folder)
    if status:
        return Trial(done, line, recovered=False, lost=f"status {status}: {text[-2000:]}")
    differs = difference(folder, stage.unbroken()[0])
    if differs == ASSIGNMENTS:  # those of an earlier epoch are read by reports only
        line = line or named(logged(lambda: read_assignments(folder / "run" / ASSIGNMENTS)))
        return Trial(done, line, recovered=False, lost="" if line else differs)
    if done.startswith("config.yaml") and (folder / "run/config.yaml").read_bytes() == config:
        line = line or "written anew"  # it is not read: the picks lie in the checkpoint
    effect = bool(line) or done.startswith("config.yaml")
    return Trial(done, line, effect=effect, recovered=not differs, lost=differs)


def damaged_task(stage: Stage, patterns: Sequence[str], anew: bool = False) -> Trial:
    """Damage a file that judging reads, and judge again; a bundle that is refused is copied anew, as the line says."""
    folder = stage.finished()
    expected = result(folder)
    done = damaged(stage, folder, patterns, KINDS)
    if anew:
        shutil.rmtree(folder / "eval")
    status, text = judge(folder)
    line = named(text)
    if status == DecarError.status and line and "safetensors" in done:
        shutil.copy(stage.root / "finished-kept/run/encoder.safetensors", folder / "run")
        status, text = judge(folder)
    lost = f"status {status}: {text[-2000:]}" if status else "" if result(folder) == expected else "result.json differs"
    return Trial(done, line, bool(line), not lost, lost)


def damaged(stage: Stage, folder: Path, patterns: Sequence[str], kinds: Sequence[str]) -> str:
    """Damage one of the files below a folder; what was done."""
    file = stage.rng.choice(sorted(path for pattern in patterns for path in folder.glob(pattern)))
    return damage(file, np.random.default_rng(stage.rng.getrandbits(32)), kinds[stage.number % len(kinds)])


def named(text: str) -> str:
    """The first line that names damage."""
    return next((line for line in text.splitlines() if NAMED.search(line)), "")


# Stopped, killed and frozen processes


def signals(stage: Stage) -> Trial:
    """SIGINT, SIGHUP, SIGTERM, or SIGINT twice; then the command that the last line prints."""
    names = ("SIGINT", "SIGHUP", "SIGTERM", "SIGINT twice")
    name = names[stage.number % len(names)]
    number = signal.Signals[name.split()[0]]
    moment = stage.rng.uniform(0, 0.8 * stage.unbroken()[1])  # the rest may be faster than the unbroken run was
    job = Job.train(stage.folder("signals"))
    job.runs_at(moment)
    begun = (job.folder / "run").exists()  # before that Python's imports may end with a status of their own
    job.send(number)
    if "twice" in name:
        job.runs_at(moment + stage.rng.uniform(1.1, 3))
        job.send(number)
    return goes_on(stage, job, (), f"{name} after {moment:.1f} s", exit_status(number), 0 if begun else -number)


@dataclass(frozen=True)
class Fault:
    """What happens to which process of a job, and the statuses that the job may end with."""

    whom: str
    number: int
    statuses: tuple[int, ...]


LOST, USER = LostProcessError.status, DecarError.status
FROZEN = [Fault(whom, signal.SIGSTOP, (LOST,)) for whom in ("rank 0", "rank 1")]
FROZEN += [Fault("loader worker", signal.SIGSTOP, (LOST, USER))]  # by stall_timeout or by loader.timeout
KILLED = [Fault(whom, signal.SIGKILL, (-signal.SIGKILL,)) for whom in ("run", "all processes")]
KILLED += [Fault("rank 1", signal.SIGKILL, (LOST,)), Fault("loader worker", signal.SIGKILL, (USER,))]


def faulty(stage: Stage, name: str, faults: Sequence[Fault]) -> Trial:
    """A process is frozen or killed at a random moment; one kill in four hits a checkpoint that is being written."""
    fault = faults[stage.number % len(faults)]
    options = RUNS[stage.number // len(faults) % len(RUNS)] + TWO * fault.whom.startswith("rank")
    seconds, writing = stage.unbroken(options)[1], stage.rng.random() < 0.25 * (fault.number == signal.SIGKILL)
    worker = ("loader.num_workers=1",) * (fault.whom == "loader worker")
    job = Job.train(stage.folder(name), (*options, *LIMITS, *worker))
    job.runs_at(HANGS, lambda: victim(job, fault.whom) is not None)
    moment = stage.rng.uniform(job.seconds(), 0.8 * seconds)  # later, rank 1 may have ended and rank 0 be alone
    job.runs_at(moment, lambda: writing and any((job.folder / "run/checkpoints").glob(".*.part")))
    done, pid = f"{fault.whom} {name} after {job.seconds():.1f} s", victim(job, fault.whom)
    if pid is not None:
        job.send(fault.number, pid)
    line = ""
    if fault.number == signal.SIGSTOP:  # a frozen rank 0 ends when it is woken
        hangs = job.runs_at(job.seconds() + 6 * STALL, lambda: bool(job.last_line()))
        line = job.last_line()
        job.send(signal.SIGCONT, pid)
        if hangs and not line:
            return Trial(done, lost=f"it hung for {6 * STALL} s, see {job.log}")
    return goes_on(stage, job, options, done, *fault.statuses, line=line)


def victim(job: Job, whom: str) -> int | None:
    """The id of a process of a job, negative for all of its group; None while it does not take part."""
    if "rank" in whom and not job.trains():  # before its first heartbeat it is noticed only after two minutes
        return None
    if whom in ("run", "rank 0"):
        return job.process.pid
    return -job.process.pid if whom == "all processes" else next(reversed(job.children()), None)


def goes_on(stage: Stage, job: Job, options: tuple[str, ...], done: str, *statuses: int, line: str = "") -> Trial:
    """See that a job ends with one of these statuses and a line, and that the command in the line goes on with it."""
    status, line = job.end(), line or job.last_line()
    finished = (job.folder / "run/finished.json").exists()  # it had come to its end before
    if status not in (*statuses, *[0] * finished) or (status > 0 and not line):
        return Trial(done, line, lost=f"status {status}, see {job.log}")
    if finished:
        return Trial(done, effect=False, lost=difference(job.folder, stage.unbroken(options)[0]))
    time.sleep(1)  # further processes see that the first one is gone
    broken = "; ".join(broken_files(job.folder))
    words = job.command_to_go_on()
    again = Job(job.folder, words) if words[:1] == ["python"] else Job.train(job.folder, (*options, *LIMITS))
    return compared(stage, again, options, done, line or f"status {status}", broken)


def compared(stage: Stage, job: Job, options: tuple[str, ...], done: str, noticed: str, broken: str = "") -> Trial:
    """Let a run that goes on come to its end, and compare it with one that nothing happened to."""
    job.runs_at(HANGS, job.trains)
    seconds = job.seconds() if job.trains() else 0.0
    status = job.end()
    if status:
        wrong = f"status {status} when it went on, see {job.log}"
    else:
        wrong = difference(job.folder, stage.unbroken(options)[0])
    return Trial(done, noticed, recovered=not wrong, lost=broken or wrong, seconds=seconds)


def two_runs(stage: Stage) -> Trial:
    """The same command twice in one folder; every second time the first run is killed.

    One of the two is refused, usually the second; where both start at once it may be the first.
    """
    half = stage.unbroken(LONG)[1] / 2
    begins, killed_at = stage.rng.uniform(0, half), stage.rng.uniform(0, half)
    first = Job.train(stage.folder("two"), LONG)
    first.runs_at(begins)
    second = Job.train(first.folder, LONG)
    done = f"a second run {second.began - first.began:.1f} s after the first"
    kill = bool(stage.number % 2) and first.runs_at(begins + killed_at)
    if kill:
        first.kill()
        done += f", which was killed {second.seconds():.1f} s later"
    statuses = second.end(), first.end()
    refused = [status == DecarError.status and "in use by process" in job.last_line()
               for job, status in zip((second, first), statuses, strict=True)]  # fmt: skip
    line = (first if refused[1] else second).last_line() if any(refused) else "went on"
    line = "done already" if "done already" in second.text() else line
    expected = (0, -signal.SIGKILL if kill else 0)
    if all(refused) or any(s != e and not r for s, e, r in zip(statuses, expected, refused, strict=True)):
        return Trial(done, line, lost=f"statuses {statuses}, see {second.log}")
    return compared(stage, Job.train(first.folder, LONG), LONG, done, line)


# The table


@dataclass(frozen=True)
class Arm:
    """One line of the table: what it is called there, how often it is tried, and how."""

    title: str
    trials: int
    act: Callable[[Stage], Trial]


SAME = "zeros, flipped bits, cut tails"
FILES = {  # tried in this process, in the main thread
    "store": Arm(f"log-mel store, identities of sounds: {SAME}", 12,
                 partial(damaged_run, patterns=["cache/logmel/*/*", "cache/identity/*"])),
    "bundle": Arm("bundle: the same", 12,
                  partial(damaged_task, patterns=["run/encoder.safetensors"], anew=True)),
    "checkpoint": Arm("checkpoint: the same", 12,
                      partial(damaged_run, patterns=["run/checkpoints/last.ckpt"])),
    "embeddings": Arm("cached embeddings: the same", 12,
                      partial(damaged_task, patterns=["cache/embeddings/*"], anew=True)),
    "task": Arm("files of a judged task: the same", 12,
                partial(damaged_task, patterns=["eval/result.json", "eval/judged.json", "eval/config.yaml"])),
    "run": Arm("figures and assignments of a stopped run: the same", 12,
               partial(damaged_run, patterns=["run/metrics.csv", "run/.metrics.sealed", "run/clusters.parquet/*"])),
    "config": Arm("`config.yaml` of a stopped run: torn, zeroed, emptied", 12,
                  partial(damaged_run, patterns=["run/config.yaml"], kinds=("cut tail", "zeroed", "emptied"))),
    "outputs": Arm(f"bundle and last assignment of a finished run: {SAME}, deleted", 12,
                   partial(damaged_run, patterns=["run/encoder.safetensors", "run/clusters.parquet/*3.parquet"],
                           begin=Stage.finished, kinds=(*KINDS, "deleted"))),
}  # fmt: skip
JOBS = {  # tried after them
    "two": Arm("two runs in one folder, every second time the first one killed", 10, two_runs),
    "signals": Arm("SIGINT, SIGHUP, SIGTERM, SIGINT twice", 10, signals),
}  # fmt: skip
PROCESSES = {  # tried beside both: this machine's second core
    "frozen": Arm("SIGSTOP of rank 0, of rank 1, of a loader worker", 10,
                  partial(faulty, name="frozen", faults=FROZEN)),
    "killed": Arm("SIGKILL of a run, of all its processes, of rank 1, of a loader worker", 8,
                  partial(faulty, name="killed", faults=KILLED)),
}  # fmt: skip
ARMS = {**FILES, **JOBS, **PROCESSES}
NOTES = [
    "*No effect*: no program reads the bytes, or the run had ended. *Noticed*: a line names the damage, or the",
    "exit status is the documented one (docs/security.md). *Recovered*: the run then ended with the weights,",
    "optimizer, assignments and metrics of an undamaged one, to the bit. An epoch of `clusters.parquet` has no second",
    "copy: it is left out with a line, so it is noticed, not recovered. A bundle is refused until it is copied anew.",
    "`config.yaml` is not read when a run goes on, but written anew. *Lost*: without a line or not as documented.",
    "",
]  # fmt: skip
HEAD = ("damage", "done", "no effect", "noticed", "recovered", "lost")


def row(arm: Arm, trials: Sequence[Trial]) -> str:
    """A line of the table."""
    with_effect = [trial for trial in trials if trial.effect]
    counts = (
        len(trials),
        len(trials) - len(with_effect),
        sum(bool(trial.noticed) for trial in with_effect),
        sum(trial.recovered and not trial.fault for trial in with_effect),
        sum(bool(trial.fault) for trial in trials),
    )
    return f"| {arm.title} | {' | '.join(map(str, counts))} |"


def report(found: dict[str, list[Trial]], seed: int, seconds: float) -> str:
    """The table, with what it was made on."""
    resumed = [trial.seconds for trials in found.values() for trial in trials if trial.seconds]
    lines = [
        "# Damage done to real runs, and what was lost", "",
        f"By `make chaos` (`benchmarks/chaos.py`, seed {seed}), in {seconds / 60:.0f} minutes on {machine()};",
        f"{versions()}.",
        "", f"| {' | '.join(HEAD)} |", "|---|" + "---:|" * (len(HEAD) - 1),
        *(row(ARMS[name], trials) for name, trials in found.items()), "", *NOTES,
    ]  # fmt: skip
    if resumed:
        middle = sorted(resumed)[len(resumed) // 2]
        lines.append(f"From the start of a resumed run until it trained: {middle:.0f} s (median), at most "
                     f"{max(resumed):.0f} s.")  # fmt: skip
    return "\n".join(lines) + "\n"


def try_arms(root: Path, numbers: Mapping[str, int], seed: int, ends: float, out: TextIO) -> dict[str, list[Trial]]:
    """Try the damage of some arms in turn, each as often as `numbers` says, until there is no time left."""
    stage = Stage(root)
    found: dict[str, list[Trial]] = {name: [] for name in numbers}
    for stage.number in range(max(numbers.values(), default=0)):
        for name in [name for name, number in numbers.items() if number > stage.number]:
            if time.monotonic() > ends:
                return found
            stage.rng, began = random.Random(f"{seed}/{name}/{stage.number}"), time.monotonic()
            trial = ARMS[name].act(stage)
            found[name].append(trial)
            said = (trial.fault or trial.noticed or "no effect") + " (not recovered)" * (not trial.recovered)
            took = f"{time.monotonic() - began:.0f} s"
            print(f"  {name} {stage.number}, {took}: {trial.done}: {said}", file=out, flush=True)
    return found


def main() -> None:
    """Damage, go on, compare, print the table; exit status 1 if anything was lost or not noticed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=list(ARMS), help="kinds of damage (default: all)")
    parser.add_argument("--trials", type=int, help="of each arm (default: 8 to 12)")
    parser.add_argument("--minutes", type=float, default=30, help="no trial begins after as many (default: 30)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--keep", type=Path, help="a folder for the runs (default: a temporary one)")
    parser.add_argument("--out", type=Path, help="a Markdown file for the table")
    args = parser.parse_args()
    torch.set_num_threads(1)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a job in the background of a shell ignores it,
    signal.signal(signal.SIGHUP, signal.SIG_DFL)  # and one of nohup this one, and so would the runs
    root = (args.keep or Path(tempfile.mkdtemp(prefix="decar-chaos-"))).resolve()
    began = time.monotonic()

    def try_some(arms: Mapping[str, Arm], folder: str) -> dict[str, list[Trial]]:
        numbers = {name: args.trials or arm.trials for name, arm in arms.items() if name in args.arms}
        return try_arms(root / folder, numbers, args.seed, began + 60 * args.minutes, sys.stdout)

    with ThreadPoolExecutor(1) as pool:
        later = pool.submit(try_some, PROCESSES, "processes")
        found = {**try_some(FILES, "files"), **try_some(JOBS, "jobs"), **later.result()}
    text = report(found, args.seed, time.monotonic() - began)
    print(text)
    if args.out:
        args.out.write_text(text)
    faults = [trial for trials in found.values() for trial in trials if trial.fault]
    for trial in faults:
        print(f"{trial.done}: {trial.fault}")
    if not args.keep and not faults:
        shutil.rmtree(root)
    sys.exit(int(bool(faults)))


if __name__ == "__main__":
    main()
