"""Memory over a stream: `labels=online` learns from generated clips that come one after another, each once.

    python benchmarks/stream.py                      # 102,400 clips of .3 s, a tiny network; some minutes
    python benchmarks/stream.py --clips 19200

Each clip is a file that is written just before it is read and deleted soon after, so there is never a set. Prints the
resident memory after every tenth of the clips, and the ratio of the last figure to the first; ends with 1 where it is
above 1.05, or a clip was not read.
"""

import argparse
import gc
import logging
import os
import sys
import tempfile
import time
import warnings
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np
import soundfile
import torch
from pytorch_lightning import Callback, LightningModule, Trainer
from rig import machine

from decar.audio import FrontEnd, LogMelStore, SpecAugment
from decar.audio.clips import Job
from decar.clustering import KMeans
from decar.models import Encoder, Projection, build_network
from decar.models.networks import seeded
from decar.pretrain import DecarModule, DescriptorLabels, OnlineLabels, StreamData
from decar.pretrain.online import FittedDescriptors
from decar.pretrain.stream import sample_of

BUFFER, BATCH, SAMPLE = 250, 64, 200
KEPT = 20 * BUFFER  # files: one in 10^8 waits longer in the buffer
RATE = 16_000
MOST = 1.05
IN_MEMORY = Path("/dev/shm")  # not of this process, so no part of what is measured; a disk takes 9 ms a file


class Generated:
    """Clips of .3 s: a tone of one of 32 pitches and a noise; written as they are asked for."""

    def __init__(self, n: int, folder: Path) -> None:
        self.n, self.folder, self.made = n, folder, 0

    def __iter__(self) -> Iterator[Job]:
        rng = np.random.default_rng(0)
        for _ in range(self.n):
            pitch = 100 * 2 ** (rng.integers(32) / 6)
            tone = np.sin(2 * np.pi * pitch * np.arange(int(0.3 * RATE)) / RATE + rng.uniform(0, 6))
            self._file(self.made - KEPT).unlink(missing_ok=True)
            soundfile.write(self._file(self.made), 0.3 * tone + rng.normal(0, 0.03, len(tone)), RATE)
            self.made += 1
            yield self._file(self.made - 1), 0.0, None

    def _file(self, number: int) -> Path:
        return self.folder / f"{number}.wav"


class Memory(Callback):
    """Writes down the resident memory, MiB, after every so many clips."""

    def __init__(self, every: int) -> None:
        self.every, self.rows = every, list[tuple[int, float]]()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: object, batch: object, batch_idx: int
    ) -> None:
        """Measure when it is time to."""
        clips = trainer.global_step * BATCH // 2
        if clips >= self.every * (len(self.rows) + 1):
            gc.collect()
            pages = int(Path("/proc/self/statm").read_text().split()[1])
            self.rows.append((clips, pages * os.sysconf("SC_PAGE_SIZE") / 2**20))
            nmi = float(trainer.callback_metrics.get("nmi", float("nan")))
            print(f"{clips:>8,} clips  {self.rows[-1][1]:7.1f} MiB  NMI {nmi:.2f}", flush=True)


def train(clips: Generated, every: int, folder: Path) -> tuple[Memory, int]:
    """One pass over the clips; also how many could not be read."""
    frontend = FrontEnd()
    store = LogMelStore.open_or_build(sample_of(clips, SAMPLE, 0), frontend, folder / "cache", progress=False)
    first = DescriptorLabels(KMeans(k=8, n_init="auto"), ("spectrum", "envelope"), dim=8)
    fitted = FittedDescriptors.fit(first, store, 0)
    steps = every * 2 // BATCH
    data = StreamData(
        clips, store, buffer=BUFFER, label=fitted.label, crop_frames=28, batch_size=BATCH, every_n_steps=steps
    )
    with seeded(0):
        network = build_network("conv", widths=[8, 8, 16], hidden=32)
    encoder = Encoder(network, frontend, min_frames=28)
    projection = Projection(encoder.dim, 64, "batchnorm", seed=0)
    source = OnlineLabels(KMeans(k=32, n_init="auto"), first=fitted, sample=SAMPLE)
    augment = SpecAugment(freq_width=10, time_width=6)
    module = DecarModule(encoder, projection, source, augment, partial(torch.optim.AdamW, lr=1e-3))
    memory = Memory(every)
    trainer = Trainer(
        max_epochs=clips.n // every, accelerator="cpu", callbacks=[memory], logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False, use_distributed_sampler=False,
        default_root_dir=folder,
    )  # fmt: skip
    trainer.fit(module, datamodule=data)
    return memory, data.unusable


def main() -> None:
    """Train, print, judge."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clips", type=int, default=102_400, help="a multiple of 320 (default: %(default)s)")
    args = parser.parse_args()
    if args.clips % (5 * BATCH):
        parser.error(f"--clips {args.clips}: give a multiple of {5 * BATCH}, so that the last tenth is whole")
    logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore")
    print(machine())
    with tempfile.TemporaryDirectory(dir=IN_MEMORY if IN_MEMORY.is_dir() else None) as folder:
        began = time.monotonic()
        (Path(folder) / "clips").mkdir()
        memory, unread = train(Generated(args.clips, Path(folder) / "clips"), args.clips // 10, Path(folder))
    ratio = memory.rows[-1][1] / memory.rows[0][1]
    print(f"last / first: {ratio:.3f} (at most {MOST}), {time.monotonic() - began:.0f} s, {unread} clips not read")
    sys.exit(ratio > MOST or unread > 0)


if __name__ == "__main__":
    main()
