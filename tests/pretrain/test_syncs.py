"""How often training makes the CPU wait for the device: each `.item()`, `bool(tensor)` and the like of a step."""

import traceback

import pytest
import torch
from pytorch_lightning import Callback, Trainer
from torch.utils._python_dispatch import TorchDispatchMode

from decar.clustering import KMeans
from decar.pretrain import (
    BothLabels,
    DecarModule,
    DescriptorLabels,
    EpochCheckpoint,
    EpochLine,
    NetworkLabels,
    OnlineLabels,
    ResumableCSVLogger,
    Safeguard,
    StepBar,
)
from tests.pretrain.helpers import build

aten = torch.ops.aten
WAITS = {aten._local_scalar_dense.default, aten.nonzero.default, aten.masked_select.default, aten.equal.default}
EVERY, STEPS = 10, 25  # steps between two that log, and of an epoch


class Waits(TorchDispatchMode):
    """Writes down each operation whose result the CPU needs to go on, and who asks for it."""

    def __init__(self):
        super().__init__()
        self.step, self.found = -1, []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func in WAITS:
            stack = [frame for frame in traceback.extract_stack() if frame.filename != __file__]
            last = max(i for i, frame in enumerate(stack) if "/torch/" not in frame.filename)
            # an optimizer counts its steps on the CPU, wherever the parameters are
            if not any("/torch/optim/adam" in frame.filename for frame in stack[last:]):
                self.found.append((self.step, f"{stack[last].filename.rpartition('/')[2]}:{stack[last].name}"))
        return func(*args, **(kwargs or {}))


class Between(Callback):
    """Counts from the start of a batch to that of the next, within an epoch."""

    def __init__(self, waits):
        self.waits = waits

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        self.waits.step = trainer.global_step + 1

    def on_train_epoch_end(self, trainer, pl_module):
        self.waits.step = -1


def source(labels):
    clusterer = KMeans(k=4, n_iter=2, gpu=False)
    first = DescriptorLabels(clusterer, ["spectrum"], dim=4)
    if labels == "online":
        return OnlineLabels(clusterer, first, dim=4, queue=8, sample=8)
    return BothLabels(first, NetworkLabels([clusterer], dim=4), 0)


@pytest.mark.parametrize(("labels", "features"), [("both", "pass"), ("both", "bank"), ("online", "pass")])
def test_a_step_waits_for_nothing_unless_it_logs(make_store, tmp_path, labels, features):
    model, data = build(make_store([40] * 16), source=source(labels), module=DecarModule, features=features)
    data.every_n_steps = STEPS
    waits = Waits()
    own = [Safeguard(tmp_path / "last.ckpt"), EpochCheckpoint(tmp_path), EpochLine(), StepBar(refresh_rate=2)]
    trainer = Trainer(
        max_epochs=2, accelerator="cpu", enable_model_summary=False, use_distributed_sampler=False,
        log_every_n_steps=EVERY, logger=ResumableCSVLogger(tmp_path), callbacks=[Between(waits), *own],
    )  # fmt: skip
    with waits:
        trainer.fit(model, datamodule=data)
    within = [(step, who) for step, who in waits.found if step > 0 and step % STEPS]
    on_a_cpu = {"module.py:_require_finite", "crops.py:as_input"}  # nothing waits there, see the test of a GPU's step
    assert {who for _, who in within} > on_a_cpu
    assert {step % EVERY for step, who in within if who not in on_a_cpu} == {0}, sorted(set(within))
