"""How long a pre-training takes, and what it needs: hours, disk and memory of each phase, from measured costs.

    python benchmarks/plan.py --clips 200000 --seconds 10 experiment=paper k=512           # on this machine's CPU
    python benchmarks/plan.py --clips 200000 2000000 --gpus 1 8 experiment=paper           # four plans, on H100s
    python benchmarks/plan.py --clips 10000 --seconds 1 --check labels=network k=64 sampler.every_n_steps=60

Without `--gpus` all costs are measured here, in about a minute: decoding and log-mels, the pass, whitening and
K-Means, steps, a checkpoint. With it, pass, step and K-Means are those of `results-cuda.json`, which were measured on
one H100; log-mels are still of this machine's cores. What is not measured is not in the plan: the exchange of gradients
between GPUs, and reading a store that does not fit into memory. `--check` then does all that was planned, two epochs of
it, and prints what it took beside the plan. Words are options of `train.py`.
"""

import argparse
import json
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
from hydra.utils import instantiate
from omegaconf import DictConfig
from pytorch_lightning import Callback, LightningModule, Trainer
from rig import machine, seconds
from speed_train import noise_store, settings

from decar.audio import FrontEnd, LogMelStore, Manifest
from decar.cli.train import build_module
from decar.clustering import Clusterer, Whitening
from decar.pretrain import AtomicCheckpointIO, PretrainData
from decar.pretrain.datamodule import steps_for

ON_GPU = Path(__file__).with_name("results-cuda.json")
RATE = 16_000
WARM_UP, STEPS = 3, 12  # of the calibration
CALIBRATION = 600  # s of sound
CLUSTERED = (2_000, 6_000)  # vectors; the cost of more lies on the line through these two
SHORT, LONG = 0.8, 10.0  # s, clips whose pass was measured on a GPU


@dataclass(frozen=True)
class Costs:
    """What was measured.

    Attributes:
        where: On what.
        log_mel: s a clip, on all cores.
        embedding: s a clip, of the pass.
        cluster: Fixed s and s a clip, of whitening and K-Means.
        step: s.
        save: s a checkpoint.
        checkpoint: Bytes of one.
        memory: Bytes of a GPU's memory that a step takes; None where it is not known.
    """

    where: str
    log_mel: float
    embedding: float
    cluster: tuple[float, float]
    step: float
    save: float
    checkpoint: int
    memory: float | None = None


@dataclass(frozen=True)
class Phase:
    """A line of the plan: how often it happens, how long it takes once, bytes on disk, bytes of memory of its own."""

    name: str
    times: int
    seconds: float
    disk: float
    memory: float


def phases(n: int, clip_seconds: float, cfg: DictConfig, costs: Costs, gpus: int = 1) -> list[Phase]:
    """The plan for `n` clips of one length."""
    epochs, dim = int(cfg.trainer.max_epochs or 100), int(cfg.projection.get("out", 512))
    frames = frames_of(clip_seconds)
    steps = cfg.sampler.every_n_steps or steps_for(n, cfg.sampler.draws_per_clip, cfg.loader.batch_size)
    store, vectors = n * frames * FrontEnd().n_mels * 2.0, n * dim * 4.0
    fixed, each = costs.cluster
    banked = vectors if cfg.pretrain.features == "bank" else 0.0
    return [
        Phase("log-mel store", 1, n * costs.log_mel, store, 2.0**27),
        Phase("pass over all clips", epochs, n * costs.embedding / gpus, 0, vectors),
        Phase("whitening and K-Means", epochs, fixed + n * each, 0, vectors * (1 + int(cfg.labels.dim) / dim)),
        Phase("training epoch", epochs, steps * costs.step, 0, costs.memory or 0),
        Phase("checkpoint", epochs, costs.save, 3.0 * (costs.checkpoint + banked), 0),  # last, the one before, best
    ]


def frames_of(clip_seconds: float) -> int:
    """Frames of a clip's log-mel."""
    spec = FrontEnd()
    return 1 + (round(clip_seconds * RATE) - spec.win_length) // spec.hop_length


class Clock(Callback):
    """Seconds before the first step of each epoch, and of its steps; those of the first few are left out of `step`."""

    def __init__(self, checkpoint: Path | None = None) -> None:
        self.checkpoint = checkpoint
        self.before: list[float] = []
        self.epochs: list[float] = []
        self.step = self.save = 0.0
        self._began = 0.0

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Comes before the module's own hook, in which all is clustered."""
        self._began = time.perf_counter()

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """The first batch of an epoch: labels are there."""
        if batch_idx == 0:
            self.before.append(time.perf_counter() - self._began)
            self._began = time.perf_counter()
        if batch_idx == WARM_UP:
            self._warm = time.perf_counter()

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """The steps are done."""
        now = time.perf_counter()
        self.epochs.append(now - self._began)
        self.step = (now - self._warm) / (trainer.num_training_batches - WARM_UP)
        if self.checkpoint is not None:
            path = self.checkpoint
            self.save = seconds(lambda: trainer.save_checkpoint(path))


def train(cfg: DictConfig, store: LogMelStore, clock: Clock, epochs: int, steps: int, folder: Path) -> Trainer:
    """Fit as configured, `epochs` of `steps` steps."""
    data = PretrainData(store, **cfg.loader, **{**cfg.sampler, "every_n_steps": steps}, seed=0)
    trainer = Trainer(
        max_epochs=epochs, accelerator="cpu", devices=1, use_distributed_sampler=False, enable_model_summary=False,
        enable_checkpointing=False, num_sanity_val_steps=0, logger=False, enable_progress_bar=False, callbacks=[clock],
        plugins=[AtomicCheckpointIO()], default_root_dir=folder,
    )  # fmt: skip
    trainer.fit(build_module(cfg, store), datamodule=data)
    return trainer


def calibrate(cfg: DictConfig, clip_seconds: float) -> Costs:
    """Measure every cost on this machine."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        n = min(max(round(CALIBRATION / clip_seconds), 64), 1_000)
        (folder / "first").mkdir()
        building(folder / "first", 16, clip_seconds)  # loads libraries: half a second, as much as 600 clips of 1 s
        log_mel = building(folder, n, clip_seconds) / n
        store, clock, few = noise_store(n, frames_of(clip_seconds), folder), Clock(folder / "last.ckpt"), small(cfg, n)
        train(few, store, clock, 2, WARM_UP + STEPS, folder)
        fixed, each = clustering(cfg, CLUSTERED)
        embedding = (clock.before[-1] - clustering_of(few, n)) / n  # of the second epoch: the first one warms up
        size = (folder / "last.ckpt").stat().st_size
    return Costs(machine(), log_mel, embedding, (fixed, each), clock.step, clock.save, size)


def small(cfg: DictConfig, n: int) -> DictConfig:
    """The same with so few clusters that `n` clips can have them."""
    made = cfg.copy()
    made.k = min(int(cfg.k), n // 4)
    return made


def clusterer_of(cfg: DictConfig) -> Clusterer:
    """The clusterer of the labels."""
    found: Clusterer = instantiate(cfg.labels, _convert_="all").clusterers[0]
    return found.with_seed(0)


def building(folder: Path, n: int, clip_seconds: float) -> float:
    """Seconds to build the store of `n` sounds of noise; it is then `folder/cache`."""
    sounds = folder / "sounds"
    sounds.mkdir()
    noise = np.random.default_rng(0).normal(0, 0.1, round(clip_seconds * RATE)).astype(np.float32)
    for i in range(n):
        soundfile.write(sounds / f"{i:06d}.wav", np.roll(noise, 37 * i), RATE)
    manifest = Manifest.from_folder(sounds)
    return seconds(lambda: LogMelStore.open_or_build(manifest, cache_dir=folder / "cache", progress=False))


def clustering(cfg: DictConfig, sizes: Sequence[int]) -> tuple[float, float]:
    """Fixed seconds and seconds a vector of whitening and K-Means: the line through the times of two sizes."""
    few, many = (clustering_of(cfg, n) for n in sizes)
    each = max(0.0, (many - few) / (sizes[1] - sizes[0]))
    return max(0.0, few - each * sizes[0]), each


def clustering_of(cfg: DictConfig, n: int) -> float:
    """Seconds of whitening and K-Means of `n` vectors of noise."""
    vectors = np.random.default_rng(0).normal(size=(n, int(cfg.projection.get("out", 512)))).astype(np.float32)
    clusterer = clusterer_of(cfg)

    def once() -> None:
        clusterer.fit_predict(Whitening.fit(vectors, int(cfg.labels.dim)).unit(vectors))

    return min(seconds(once) for _ in range(2))


def on_h100(cfg: DictConfig, clip_seconds: float, gpus: int, here: Costs) -> Costs:
    """Costs of a GPU from `results-cuda.json`; sounds become log-mels, and files are written, on this machine."""
    parts = json.loads(ON_GPU.read_text())
    took = {x["name"]: x["ours"] for part in parts.values() for x in part["lines"]}
    name = "recipe's network" if cfg.encoder.name == "conv" else "EfficientNet-B0"
    clips = 256 if cfg.encoder.name == "conv" else 48  # of the 10 s pass, see `speed_train`
    short, long = took[f"pass, bundled sounds, {name}"] / 1_991, took[f"pass, 10 s clips, {name}"] / clips
    share = (min(max(clip_seconds, SHORT), LONG) - SHORT) / (LONG - SHORT)
    embedding = (short + share * (long - short)) * max(1.0, clip_seconds / LONG)
    batch = int(cfg.loader.batch_size) // gpus
    whole = min(value for key, value in took.items() if key.startswith("step of 512 crops"))
    large = batch >= 512 and name == "EfficientNet-B0"
    step = whole * batch / 512 if large else took[f"step, {name}"] * max(1.0, batch / 64)
    kmeans = took["K-Means"] / (50_000 * 1_024) * int(cfg.k)
    whiten = here.cluster[1] - clustering_share(cfg)
    return Costs(
        f"{gpus} x {parts['train']['machine'].split(',')[0]}, files and log-mels: {machine()}", here.log_mel,
        embedding, (0.0, kmeans + max(0.0, whiten)), step, here.save, here.checkpoint,
        5.8 * 2**30 * batch / 512,
    )  # fmt: skip


def clustering_share(cfg: DictConfig) -> float:
    """Seconds a vector that K-Means alone takes on this machine."""
    points = np.random.default_rng(0).normal(size=(CLUSTERED[1], int(cfg.labels.dim))).astype(np.float32)
    return seconds(lambda: clusterer_of(cfg).fit_predict(points)) / CLUSTERED[1]


def show(plan: Sequence[Phase], where: str) -> str:
    """The plan as a table, with its sum."""
    lines = [
        where,
        "",
        "| phase | times | s each | hours | GB on disk | GB of memory |",
        "|---|---:|---:|---:|---:|---:|",
    ]
    for x in plan:
        hours, disk, memory = x.times * x.seconds / 3600, x.disk / 1e9, x.memory / 1e9
        lines.append(f"| {x.name} | {x.times} | {x.seconds:,.3g} | {hours:,.3g} | {disk:,.3g} | {memory:,.3g} |")
    total, disk = sum(x.times * x.seconds for x in plan) / 3600, sum(x.disk for x in plan) / 1e9
    return "\n".join([*lines, f"| all | | | {total:,.3g} | {disk:,.3g} | {max(x.memory for x in plan) / 1e9:,.3g} |"])


def check(cfg: DictConfig, n: int, clip_seconds: float, plan: Sequence[Phase]) -> str:
    """Do it, two epochs, and print what each phase took beside the plan."""
    planned = {x.name: x for x in plan}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        built = building(folder, n, clip_seconds)
        store = LogMelStore.open_or_build(
            Manifest.from_folder(folder / "sounds"), cache_dir=folder / "cache", progress=False
        )
        steps = cfg.sampler.every_n_steps or steps_for(n, cfg.sampler.draws_per_clip, cfg.loader.batch_size)
        clock = Clock(folder / "last.ckpt")
        train(cfg, store, clock, 2, int(steps), folder)
        sizes = store.mel.nbytes, 3 * (folder / "last.ckpt").stat().st_size
    before = planned["pass over all clips"].seconds + planned["whitening and K-Means"].seconds
    rows = [
        ("log-mel store, s", planned["log-mel store"].seconds, built),
        ("pass, whitening and K-Means, s", before, sum(clock.before) / 2),
        ("training epoch, s", planned["training epoch"].seconds, sum(clock.epochs) / 2),
        ("store, MB", planned["log-mel store"].disk / 1e6, sizes[0] / 1e6),
        ("three checkpoints, MB", planned["checkpoint"].disk / 1e6, sizes[1] / 1e6),
    ]
    total = [built + sum(clock.before) + sum(clock.epochs)]
    rows.append(("all, two epochs, s", rows[0][1] + 2 * (rows[1][1] + rows[2][1]), total[0]))
    lines = ["| phase | planned | took | planned / took |", "|---|---:|---:|---:|"]
    return "\n".join([*lines, *(f"| {what} | {p:.3g} | {t:.3g} | {p / t:.2f} |" for what, p, t in rows)])


def main(words: Sequence[str] | None = None) -> None:
    """Print the plan, and with `--check` what it is worth."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clips", type=int, nargs="+", required=True, metavar="N")
    parser.add_argument("--seconds", type=float, default=10.0, help="length of a clip (default: 10)")
    parser.add_argument("--gpus", type=int, nargs="+", default=[0], help="H100s; 0: this machine's CPU (default)")
    parser.add_argument("--check", action="store_true", help="do it too, two epochs, on this machine")
    parser.add_argument("options", nargs="*", metavar="OPTION=VALUE", help="as of train.py")
    args = parser.parse_args(words)
    if args.check and any(args.gpus):
        parser.error("--check is for this machine's CPU: leave out --gpus")
    cfg = settings("labels=network", *args.options)
    if cfg.k is None:
        parser.error("say how many clusters, such as k=512")
    here = calibrate(cfg, args.seconds)
    for gpus, n in product(args.gpus, args.clips):
        costs = on_h100(cfg, args.seconds, gpus, here) if gpus else here
        plan = phases(n, args.seconds, cfg, costs, max(1, gpus))
        print(show(plan, f"\n{n:,} clips of {args.seconds:g} s; {' '.join(args.options)}; {costs.where}"))
        if args.check:
            print(f"\n{check(cfg, n, args.seconds, plan)}")


if __name__ == "__main__":
    main()
