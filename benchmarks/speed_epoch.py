"""What an epoch costs beside its steps: pass, clustering, swap of labels and sampler; with a pass and with the bank."""

import time
from typing import Any

from pytorch_lightning import Callback, LightningModule, Trainer
from rig import Line, line
from speed_train import PAPER, settings, trained


class Clock(Callback):
    """Seconds of each epoch until its first step, and from there on. The first epoch of each kind warms up."""

    def __init__(self) -> None:
        self.epochs: list[tuple[float, float]] = []
        self._began = self._first = 0.0

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Runs before the module's own hook, in which all is clustered."""
        self._began = time.perf_counter()

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """The labels are there."""
        if batch_idx == 0:
            self._first = time.perf_counter()

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """The steps are done."""
        now = time.perf_counter()
        self.epochs.append((self._first - self._began, now - self._first))


def measure(runs: int = 5, device: str = "cpu") -> list[Line]:
    """Cost of an epoch in units of its steps alone, the paper's setting on the bundled sounds."""
    lines = []
    for features, target in (("pass", ""), ("bank", "<= 1.03")):
        clock = Clock()
        cfg = settings(*PAPER, f"pretrain.features={features}", f"trainer.max_epochs={runs + 1}")
        with trained(cfg, clock, device=device):
            pairs = [(before + steps, steps) for before, steps in clock.epochs[1:]]
        lines.append(
            line(
                f"epoch, pretrain.features={features}", pairs, speed=False, target=target,
                note="pass + cluster + swap + steps / steps alone",
            )
        )  # fmt: skip
    return lines
