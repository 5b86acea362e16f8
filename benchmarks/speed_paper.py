"""Steps on a GPU: the paper's network on crops and on whole clips in each precision, and what each switch is worth.

Of the batch of 512 crops, beside the time, memory and what the loader costs.
"""

import statistics
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from pytorch_lightning import Callback, LightningModule, Trainer
from rig import Line, line
from speed_train import PAPER, SMALL, TEN_SECONDS, noise_store, settings, settled

from decar.cli.train import build_module
from decar.pretrain import PretrainData

WARM_UP, STEPS = 5, 20
PRECISIONS = ("32-true", "16-mixed", "bf16-mixed")
WHOLE = ["experiment=paper", "k=64"]  # clips of 10 s
SWITCHES = {"cuDNN's search": ["trainer.benchmark=true"], "compiled": ["compile=true"]}
SWITCHES["both"] = [word for words in SWITCHES.values() for word in words]
BATCH = 64


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


def trained(
    words: Sequence[str], precision: str, workers: int, batch: int, runs: int, device: str
) -> tuple[list[float], float]:
    """Seconds a step, and GiB of the device's memory that tensors took at most."""
    cfg = settings(*words, f"loader.batch_size={batch}", f"loader.num_workers={workers}")
    times = Times(runs)
    with tempfile.TemporaryDirectory() as folder:
        clips = noise_store(4 * batch, TEN_SECONDS, Path(folder))
        options = {**cfg.sampler, "every_n_steps": WARM_UP + STEPS * runs + 1}
        data = PretrainData(clips, **cfg.loader, **options, seed=0)
        trainer = Trainer(
            max_epochs=1, accelerator=device, devices=1, precision=precision, use_distributed_sampler=False,  # type: ignore[arg-type]
            enable_model_summary=False, enable_checkpointing=False, logger=False, enable_progress_bar=False,
            callbacks=[times], default_root_dir=folder, benchmark=cfg.trainer.benchmark,
        )  # fmt: skip
        if device == "cuda":
            torch.cuda.reset_peak_memory_stats()
        trainer.fit(build_module(cfg, clips), datamodule=data)
    return times.seconds, torch.cuda.max_memory_allocated() / 2**30 if device == "cuda" else 0.0


def measure(runs: int = 5, device: str = "cuda", batch: int = 512) -> list[Line]:
    """All of them; the reference of a precision is float32, that of a switch bf16-mixed without it."""
    return [*crops(runs, device, batch), *whole_clips(runs, device), *switches(runs, device)]


def whole_clips(runs: int, device: str) -> list[Line]:
    """The paper's setting: a line for each precision."""
    lines, plain = [], list[float]()
    for precision in PRECISIONS:
        ours, memory = trained(WHOLE, precision, 2, BATCH, runs, device)
        plain = plain or ours
        note = f"float32 / {precision}; {BATCH / statistics.median(ours):,.0f} clips a second, {memory:.1f} GiB"
        pairs = list(zip(ours, plain, strict=True))
        lines.append(line(f"step of {BATCH} whole clips of 10 s, {precision}", pairs, note=note))
    return lines


def switches(runs: int, device: str) -> list[Line]:
    """A line for each switch and setting."""
    lines = []
    for setting, words in (("recipe's crops", SMALL), ("whole clips", WHOLE)):
        plain, _ = trained(words, "bf16-mixed", 2, BATCH, runs, device)
        for name, switch in SWITCHES.items():
            ours, memory = trained([*words, *switch], "bf16-mixed", 2, BATCH, runs, device)
            pairs = list(zip(ours, plain, strict=True))
            note = f"bf16-mixed without / with; {memory:.1f} GiB"
            lines.append(line(f"step of {BATCH}, {setting}, {name}", pairs, note=note))
    return lines


def crops(runs: int, device: str, batch: int) -> list[Line]:
    """A line for each precision and number of loader workers."""
    lines = []
    for workers in (0, 2, 8):
        plain: list[float] = []
        for precision in PRECISIONS:
            ours, memory = trained(PAPER, precision, workers, batch, runs, device)
            plain = plain or ours
            speed = batch / statistics.median(ours)
            note = f"float32 / {precision}; {speed:,.0f} crops a second, {memory:.1f} GiB"
            name = f"step of {batch} crops, {precision}, {workers} loader workers"
            lines.append(line(name, list(zip(ours, plain, strict=True)), note=note))
    return lines
