"""The paper's batch of 512 crops on a GPU: time of a step, memory, and what the loader costs, in each precision."""

import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from pytorch_lightning import Callback, LightningModule, Trainer
from rig import Line, line
from speed_train import PAPER, TEN_SECONDS, noise_store, settings, settled

from decar.cli.train import build_module
from decar.pretrain import PretrainData

WARM_UP, STEPS = 5, 20
PRECISIONS = ("32-true", "16-mixed", "bf16-mixed")


class Times(Callback):
    """Seconds of the steps after the first few, from the end of one to the end of a later one."""

    def __init__(self, runs: int) -> None:
        self.runs, self.seconds = runs, list[float]()
        self._began = 0.0

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Stop the clock after each `STEPS` steps."""
        if (batch_idx - WARM_UP) % STEPS == 0:
            settled(trainer.strategy.root_device)
            now = time.perf_counter()
            if self._began:
                self.seconds.append((now - self._began) / STEPS)
            self._began = time.perf_counter()
            trainer.should_stop = len(self.seconds) == self.runs


def trained(precision: str, workers: int, batch: int, runs: int, device: str) -> "tuple[list[float], float]":
    """Seconds a step, and GiB of the device's memory that tensors took at most."""
    cfg = settings(*PAPER, f"loader.batch_size={batch}", f"loader.num_workers={workers}")
    times = Times(runs)
    with tempfile.TemporaryDirectory() as folder:
        clips = noise_store(4 * batch, TEN_SECONDS, Path(folder))
        options = {**cfg.sampler, "every_n_steps": WARM_UP + STEPS * runs + 1}
        data = PretrainData(clips, **cfg.loader, **options, seed=0)
        trainer = Trainer(
            max_epochs=1, accelerator=device, devices=1, precision=precision, use_distributed_sampler=False,  # type: ignore[arg-type]
            enable_model_summary=False, enable_checkpointing=False, logger=False, enable_progress_bar=False,
            callbacks=[times], default_root_dir=folder,
        )  # fmt: skip
        if device == "cuda":
            torch.cuda.reset_peak_memory_stats()
        trainer.fit(build_module(cfg, clips), datamodule=data)
    return times.seconds, torch.cuda.max_memory_allocated() / 2**30 if device == "cuda" else 0.0


def measure(runs: int = 5, device: str = "cuda", batch: int = 512) -> list[Line]:
    """A line for each precision and number of loader workers; the reference is float32 with the same workers."""
    lines = []
    for workers in (0, 2, 8):
        plain: list[float] = []
        for precision in PRECISIONS:
            ours, memory = trained(precision, workers, batch, runs, device)
            plain = plain or ours
            speed = batch / statistics.median(ours)
            note = f"float32 / {precision}; {speed:,.0f} crops a second, {memory:.1f} GiB"
            name = f"step of {batch} crops, {precision}, {workers} loader workers"
            lines.append(line(name, list(zip(ours, plain, strict=True)), note=note))
    return lines
