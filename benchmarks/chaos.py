"""`make chaos`: damage files, processes and folders of small real runs at random, go on, compare with undamaged runs.

    python benchmarks/chaos.py --seed 0 --minutes 30 --out benchmarks/chaos.md
    python benchmarks/chaos.py --arms signals ranks --trials 2

Each arm tries one kind of damage at random places or moments. Damage that has an effect must be noticed: a line names
it, and the exit status is the one that docs/security.md documents. After that the run goes on, and its weights,
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
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TextIO

import numpy as np
import torch
from damage import KINDS, NAMED, damage
from rig import machine, versions
from runs import ASSIGNMENTS, HANGS, Job, broken_files, command, difference, logged, training

from decar.cli import eval as judging
from decar.cli import train
from decar.errors import DecarError, LostProcessError, exit_status
from decar.report.clusters import read_assignments

PIC = ("clusterer=pic", "clusterer.n_neighbors=5", "clusterer.n_iter=20")
BANK = ("pretrain.features=bank",)
TWO = ("trainer=ddp", "trainer.devices=2")
LONG = ("sampler.every_n_steps=60",)  # a second run waits 10 s for the first one's lock
RUNS = [(), PIC, TWO, (*PIC, *TWO), BANK, (*BANK, *TWO)]
STALL = 15  # seconds: stall_timeout and loader.timeout of runs in which a process is frozen


@dataclass(frozen=True)
class Trial:
    """What came of one piece of damage.

    Attributes:
        done: What was done.
        noticed: The line or the status that says so; empty for none.
        effect: Whether it could be noticed: some bytes of a file mean nothing, and a run may have ended before.
        recovered: Whether the end is that of an undamaged run.
        lost: What is lost without a line, or not as it is documented; empty for nothing.
        times: How often damage was done before the run came to its end.
        seconds: From the last start until training went on; 0 where it was not measured.
    """

    done: str
    noticed: str = ""
    effect: bool = True
    recovered: bool = True
    lost: str = ""
    times: int = 1
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
    _known: dict[object, tuple[Path, float]] = field(default_factory=dict)

    def folder(self, name: str) -> Path:
        """A new folder."""
        return self.root / f"{name}{len(list(self.root.glob(f'{name}*')))}"

    def unbroken(self, options: Sequence[str] = ()) -> tuple[Path, float]:
        """A run that nothing happened to, and its seconds."""
        if tuple(options) not in self._known:
            folder = self.folder("unbroken")
            job = Job.train(folder, options)
            must(job.end() == 0, f"an unbroken run failed, see {job.log}")
            self._known[tuple(options)] = folder, time.monotonic() - job.began
        return self._known[tuple(options)]

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

    def judged(self) -> Path:
        """A finished run and the result of a task, its embeddings in the cache."""

        def make(folder: Path) -> None:
            shutil.copytree(self.unbroken()[0], folder)
            for call in (go_on, judge):
                status, text = call(folder)
                must(status == 0, text)

        return self.copy("judged", make)


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


def damaged_run(stage: Stage, *patterns: str, harm: Callable[[Path], str] | None = None) -> Trial:
    """Damage a file of a run that was stopped half-way, and go on."""
    folder = stage.half_way()
    done = damaged(stage, folder, patterns, harm)
    status, text = go_on(folder)
    line = named(text)
    if status == DecarError.status and line:  # found while training: the line says to run it again
        status, again = go_on(folder)
        text += again
    if status:
        return Trial(done, line, recovered=False, lost=f"status {status}: {text[-2000:]}")
    differs = difference(folder, stage.unbroken()[0])
    if differs == ASSIGNMENTS:  # those of an earlier epoch are read by reports only
        line = named(logged(lambda: read_assignments(folder / "run" / ASSIGNMENTS)))
        return Trial(done, line, recovered=False, lost="" if line else differs)
    return Trial(done, line, effect=bool(line), recovered=not differs, lost=differs)


def damaged_judgement(stage: Stage, *patterns: str, anew: bool) -> Trial:
    """Damage a file that judging reads, and judge again; a bundle that is refused is copied anew, as the line says."""
    folder = stage.judged()
    expected = result(folder)
    done = damaged(stage, folder, patterns)
    if anew:
        shutil.rmtree(folder / "eval")
    status, text = judge(folder)
    line = named(text)
    if status == DecarError.status and line and "safetensors" in done:
        shutil.copy(stage.root / "judged-kept/run/encoder.safetensors", folder / "run")
        status, text = judge(folder)
    lost = f"status {status}: {text[-2000:]}" if status else "" if result(folder) == expected else "result.json differs"
    return Trial(done, line, bool(line), not lost, lost)


def damaged(stage: Stage, folder: Path, patterns: Sequence[str], harm: Callable[[Path], str] | None = None) -> str:
    """Damage one of the files below a folder; what was done."""
    file = stage.rng.choice(sorted(path for pattern in patterns for path in folder.glob(pattern)))
    bits = np.random.default_rng(stage.rng.getrandbits(32))
    return harm(file) if harm else damage(file, bits, KINDS[stage.number % len(KINDS)])


def named(text: str) -> str:
    """The first line that names damage."""
    return next((line for line in text.splitlines() if NAMED.search(line)), "")


def store(stage: Stage) -> Trial:
    """A log-mel store and the identities of its sounds."""
    return damaged_run(stage, "cache/logmel/*/*", "cache/identity/*")


def checkpoint(stage: Stage) -> Trial:
    """`last.ckpt`."""
    return damaged_run(stage, "run/checkpoints/last.ckpt")


def run_files(stage: Stage) -> Trial:
    """What lies in a run's folder, and in that of a judged task."""
    if stage.number % 2:
        return damaged_judgement(stage, "eval/result.json", "eval/judged.json", "eval/config.yaml", anew=False)
    return damaged_run(stage, "run/metrics.csv", "run/.metrics.sealed", "run/config.yaml", "run/clusters.parquet/*")


def bundle(stage: Stage) -> Trial:
    """`encoder.safetensors`."""
    return damaged_judgement(stage, "run/encoder.safetensors", anew=True)


def embedding_cache(stage: Stage) -> Trial:
    """Embeddings that judging finds in the cache."""
    return damaged_judgement(stage, "cache/embeddings/*", anew=True)


def config_yaml(stage: Stage) -> Trial:
    """A `config.yaml` that is torn, zeroed or emptied beside a whole checkpoint, and written anew."""
    ways: dict[str, Callable[[bytes], bytes]] = {
        "torn": lambda data: data[: stage.rng.randrange(1, len(data))],
        "zeroed": lambda data: bytes(len(data)),
        "emptied": lambda data: b"",
    }
    name, way = list(ways.items())[stage.number % len(ways)]
    written = b""

    def harm(file: Path) -> str:
        nonlocal written
        written = file.read_bytes()
        file.write_bytes(way(written))
        return f"{file.name} {name}"

    trial = damaged_run(stage, "run/config.yaml", harm=harm)
    back = (stage.root / "half-way/run/config.yaml").read_bytes() == written
    # the picks lie in the checkpoint, so nothing has to be said: config.yaml is only written
    return Trial(trial.done, trial.noticed or "written anew" * back, True, trial.recovered and back, trial.lost)


# Killed and stopped processes


def killed(stage: Stage) -> Trial:
    """SIGKILL of a run, of all of its processes or of its second one, twice before it comes to its end."""
    options = RUNS[stage.number % len(RUNS)]
    seconds = stage.unbroken(options)[1]
    folder, done, noticed, lost = stage.folder("killed"), [], [], []
    for _ in range(2):
        job = Job.train(folder, options)
        what = kill(stage, job, options, seconds)
        if not what:
            break
        done.append(what)
        expected = (-signal.SIGKILL, LostProcessError.status) if what.startswith("second") else (-signal.SIGKILL,)
        status = job.end()
        noticed.append(status in expected and (status < 0 or "was killed by SIGKILL" in job.last_line()))
        lost += [] if noticed[-1] else [f"status {status} after {what}, see {job.log}"]
        time.sleep(1)  # further processes see that the first one is gone
        lost += broken_files(folder)
    trial = come_to_end(stage, folder, options, Job.train(folder, options), "; ".join(done))
    return Trial(
        trial.done, "status" * (len(noticed) > 0), bool(done), trial.recovered,
        "; ".join([*lost, trial.lost] if trial.lost else lost), max(1, len(done)), trial.seconds,
    )  # fmt: skip


def kill(stage: Stage, job: Job, options: Sequence[str], seconds: float) -> str:
    """SIGKILL at a random moment, one in four times as a checkpoint is being written; what was killed, if anything."""
    checkpoints, writing = job.log.parent / "run/checkpoints", stage.rng.random() < 0.25
    moment = stage.rng.uniform(0.1, 0.95) * seconds
    whom = stage.rng.choice(["run", "all", "second"] if TWO[0] in options else ["run", "all"])
    if not job.runs_at(moment, lambda: writing and any(checkpoints.glob(".*.part"))):
        return ""
    parts = ", a checkpoint being written" * (writing and any(checkpoints.glob(".*.part")))
    second = job.children()[:1] if whom == "second" else []
    if whom == "all" or (whom == "second" and not second):
        job.kill()
        return f"all killed{parts}"
    job.send(signal.SIGKILL, *second)
    return f"{whom} killed{parts}"


def come_to_end(stage: Stage, folder: Path, options: Sequence[str], job: Job, done: str, noticed: str = "",
                effect: bool = True) -> Trial:  # fmt: skip
    """Let a run that goes on come to its end, and compare it with one that nothing happened to."""
    job.runs_at(HANGS, job.trains)
    seconds = time.monotonic() - job.began if job.trains() else 0.0
    status = job.end()
    lost = (
        f"status {status} when it went on, see {job.log}" if status else difference(folder, stage.unbroken(options)[0])
    )
    return Trial(done, noticed, effect, not lost, lost, seconds=seconds)


def signals(stage: Stage) -> Trial:
    """SIGINT, SIGHUP, SIGTERM, or SIGINT twice; then the command that the last line prints."""
    names = ("SIGINT", "SIGHUP", "SIGTERM", "SIGINT twice")
    name = names[stage.number % len(names)]
    number = signal.Signals[name.split()[0]]
    whole, seconds = stage.unbroken()
    moment = stage.rng.uniform(0, seconds)
    folder = stage.folder("signals")
    job = Job.train(folder)
    job.runs_at(moment)
    job.send(number)
    if "twice" in name:
        job.runs_at(moment + stage.rng.uniform(1.1, 3))
        job.send(number)
    status, line, done = job.end(), job.last_line(), f"{name} after {moment:.1f} s"
    if (folder / "run/finished.json").exists():  # it came as the run ended
        return Trial(done, effect=False, lost=difference(folder, whole))
    begun = (folder / "run").exists()
    as_documented = status == exit_status(number) and line
    if not as_documented and (begun or status != -number):
        return Trial(done, line, lost=f"status {status}, see {job.log}")
    broken = "; ".join(broken_files(folder))
    words = job.command_to_go_on()
    again = Job(folder, words) if words[:1] == ["python"] else Job.train(folder)
    trial = come_to_end(stage, folder, (), again, done, line or f"status {status}")
    return replace(trial, lost=broken or trial.lost)


def two_runs(stage: Stage) -> Trial:
    """The same command twice in one folder; every second time the first run is killed."""
    seconds = stage.unbroken(LONG)[1]
    begins, killed_at = stage.rng.uniform(0, seconds / 2), stage.rng.uniform(0, seconds / 2)
    folder = stage.folder("two")
    first = Job.train(folder, LONG)
    first.runs_at(begins)
    second = Job.train(folder, LONG)
    done = f"a second run {second.began - first.began:.1f} s after the first"
    if stage.number % 2 and first.runs_at(begins + killed_at):
        first.kill()
        done += f", which was killed {time.monotonic() - second.began:.1f} s later"
    status = second.end(), first.end()
    said = second.last_line() if status[0] else "done already" if "done already" in second.text() else "went on"
    refused = status[0] == DecarError.status and "in use by process" in said
    killed = status[1] == -signal.SIGKILL
    if not (refused or status[0] == 0) or not (killed or status[1] == 0):
        return Trial(done, said, lost=f"statuses {status}, see {second.log}")
    return come_to_end(stage, folder, LONG, Job.train(folder, LONG), done, said)


FAULTS = (  # what happens to which process
    "rank 1 frozen", "rank 0 frozen", "rank 1 killed", "loader worker killed", "loader worker frozen",
)  # fmt: skip


def ranks(stage: Stage) -> Trial:
    """A process of a job is frozen or killed: a rank, or a worker that reads batches."""
    fault = FAULTS[stage.number % len(FAULTS)]
    kept = TWO if "rank" in fault else ()
    whole, seconds = stage.unbroken(kept)
    options = [*kept, f"stall_timeout={STALL}"] if kept else ["loader.num_workers=1", f"loader.timeout={STALL}"]
    folder = stage.folder("ranks")
    job = Job.train(folder, options)
    # a process that is frozen before its first heartbeat is noticed too, but only after two minutes
    job.runs_at(HANGS, lambda: "GLOBAL_RANK: 1" in job.text() if kept else bool(job.children()))
    moment = stage.rng.uniform(time.monotonic() - job.began, seconds)
    if not job.runs_at(moment) or not (children := job.children()):
        return come_to_end(stage, folder, kept, job, f"nothing: {fault} came too late", effect=False)
    done = f"{fault} after {moment:.1f} s"
    pid = job.process.pid if fault == "rank 0 frozen" else children[-1]
    job.send(signal.SIGKILL if "killed" in fault else signal.SIGSTOP, pid)
    if pid == job.process.pid:  # the other one ends by itself, and this one when it is woken
        job.runs_at(moment + 6 * STALL, lambda: bool(job.last_line()))
        line = job.last_line()
        job.send(signal.SIGCONT)
        status = job.end()
    else:
        status = job.end()
        line = job.last_line()
    expected = LostProcessError.status if "rank" in fault else DecarError.status
    if status == 0:
        return Trial(done, effect=False, lost=difference(folder, whole))
    if status != expected or not line:
        return Trial(done, line, lost=f"status {status}, see {job.log}")
    return come_to_end(stage, folder, kept, Job.train(folder, options), done, line)


@dataclass(frozen=True)
class Arm:
    """One line of the table: what it is called there, and how often it is tried."""

    title: str
    act: Callable[[Stage], Trial]
    trials: int


ARMS = {
    "store": Arm("log-mel store, identities of sounds: zeros, flipped bits, cut tails", store, 12),
    "bundle": Arm("bundle: the same", bundle, 18),
    "checkpoint": Arm("checkpoint: the same", checkpoint, 12),
    "embeddings": Arm("cached embeddings: the same", embedding_cache, 18),
    "files": Arm("files of a run and of a judged task: the same", run_files, 18),
    "config": Arm("`config.yaml` torn, zeroed or emptied", config_yaml, 10),
    "two": Arm("two runs in one folder, every second time the first one killed", two_runs, 10),
    "signals": Arm("SIGINT, SIGHUP, SIGTERM, SIGINT twice", signals, 10),
    "ranks": Arm("a rank frozen or killed, a loader worker killed or frozen", ranks, 10),
    "kills": Arm("SIGKILL of a run, of all its processes, of its second one", killed, 8),
}
NOTES = [
    "*No effect*: the bytes mean nothing to a reader, or the run had ended. *Noticed*: a line names the damage, or the",
    "exit status is the documented one (docs/security.md). *Recovered*: the run then ended with the weights,",
    "optimizer, assignments and metrics of an undamaged one, to the bit. An epoch of `clusters.parquet` has no second",
    "copy: it is left out with a line, so it is noticed, not recovered. A bundle is refused until it is copied anew.",
    "`config.yaml` is not read when a run goes on, but written anew. *Lost*: without a line or not as documented.",
    "",
]  # fmt: skip
IN_PROCESS = ("store", "bundle", "checkpoint", "embeddings", "files", "config")
HEAD = ("damage", "done", "no effect", "noticed", "recovered", "lost")


def row(arm: Arm, trials: Sequence[Trial]) -> str:
    """A line of the table."""
    counts = (
        sum(t.times for t in trials),
        sum(t.times for t in trials if not t.effect),
        sum(t.times for t in trials if t.effect and t.noticed),
        sum(t.times for t in trials if t.effect and t.recovered and not t.fault),
        sum(t.times for t in trials if t.fault),
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
            said = f"{trial.fault or trial.noticed or 'no effect'}{'' if trial.recovered else ' (not recovered)'}"
            print(
                f"  {name} {stage.number}, {time.monotonic() - began:.0f} s: {trial.done}: {said}", file=out, flush=True
            )
    return found


def main() -> None:
    """Damage, go on, compare, print the table; exit status 1 if anything was lost or not noticed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=list(ARMS), help="kinds of damage (default: all)")
    parser.add_argument("--trials", type=int, help="of each arm (default: 10 to 18)")
    parser.add_argument("--minutes", type=float, default=30, help="no trial begins after as many (default: 30)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--keep", type=Path, help="a folder for the runs (default: a temporary one)")
    parser.add_argument("--out", type=Path, help="a Markdown file for the table")
    args = parser.parse_args()
    torch.set_num_threads(1)
    root = (args.keep or Path(tempfile.mkdtemp(prefix="decar-chaos-"))).resolve()
    began = time.monotonic()
    numbers = {name: args.trials or ARMS[name].trials for name in args.arms}
    here = {name: number for name, number in numbers.items() if name in IN_PROCESS}  # in the main thread
    rest = {name: number for name, number in numbers.items() if name not in IN_PROCESS}
    more = (args.seed, began + 60 * args.minutes, sys.stdout)
    with ThreadPoolExecutor(1) as pool:
        later = pool.submit(try_arms, root / "processes", rest, *more)
        found = {**try_arms(root / "files", here, *more), **later.result()}
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
