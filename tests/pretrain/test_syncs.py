"""How often training makes the CPU wait for the device: each `.item()`, `bool(tensor)` and the like of a step."""

import traceback
from types import SimpleNamespace

import pytest
import torch
from pytorch_lightning import Callback, Trainer
from pytorch_lightning.loops.training_epoch_loop import _TrainingEpochLoop
from torch import nn
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode
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
from decar.pretrain.vectors import FeatureBank
from tests.pretrain.helpers import build, fit

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


CASES = pytest.mark.parametrize(("labels", "features"), [("both", "pass"), ("both", "bank"), ("online", "pass")])


@CASES
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


class Elsewhere(Waits):
    """Writes down copies to the CPU as well."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = super().__torch_dispatch__(func, types, args, kwargs)
        if func is aten._to_copy.default and args[0].is_cuda and not out.is_cuda:
            self.found.append((self.step, "copy"))
        return out


def without_numbers(model):
    """Put tensors on CUDA that have no numbers in the place of parameters and buffers."""
    for module in model.modules():
        for name, value in module._parameters.items():
            module._parameters[name] = value if value is None else nn.Parameter(torch.empty(value.shape))
        for name, value in module._buffers.items():
            module._buffers[name] = value if value is None else torch.empty(value.shape, dtype=value.dtype)


@CASES
def test_the_forward_pass_of_a_step_on_a_gpu_waits_for_nothing(make_store, monkeypatch, labels, features):
    """On tensors that are CUDA's in all but their numbers: whatever needs a number raises."""
    model, data = build(make_store([40] * 16), source=source(labels), module=DecarModule, features=features)
    model.heads.reset([4, 4], seed=0)
    model.bank = FeatureBank(8)
    model.bank.filled = features == "bank"
    trainer = SimpleNamespace(num_training_batches=STEPS, current_epoch=0, datamodule=data, optimizers=[model])
    monkeypatch.setattr(DecarModule, "trainer", trainer)
    monkeypatch.setattr(DecarModule, "global_rank", 0)
    monkeypatch.setattr(DecarModule, "log", lambda *args, **kwargs: None)
    with FakeTensorMode(), torch.device("cuda"):
        without_numbers(model)
        data._targets = torch.zeros(16, 1 if model.online else 2, dtype=torch.int64)
        if model.online:
            model.online.queue = torch.empty(0, 4)
        stored = torch.zeros(8, 32, 64, dtype=torch.float16), torch.ones(8, dtype=torch.int64), torch.arange(8)
        with Elsewhere() as waits:
            for step in range(9):
                loss = model.training_step(data.on_after_batch_transfer(stored, 0), step)
            assert loss.is_cuda
            assert not waits.found
            with pytest.raises(DataDependentOutputException):
                model.training_step(data.on_after_batch_transfer(stored, 0), 9)


def test_lightning_s_broadcast_before_each_batch_is_not_made_where_signals_are_ours(make_store, tmp_path, monkeypatch):
    calls = []
    monkeypatch.setattr(_TrainingEpochLoop, "_broadcast_sigterm_tensor", lambda self: calls.append("made"))

    class AsOfSeveral(Callback):
        def on_train_batch_end(self, trainer, *args):
            trainer.fit_loop.epoch_loop._broadcast_sigterm_tensor()

    for own, made in (([], 4), ([Safeguard(tmp_path / "last.ckpt")], 0)):
        model, data = build(make_store([40] * 16))
        trainer, _ = fit(model, data, tmp_path, epochs=1, callbacks=[*own, AsOfSeveral()])
        assert len(calls) == made
        trainer.fit_loop.epoch_loop._broadcast_sigterm_tensor()  # after training it is Lightning's again
        assert len(calls) == made + 1
        calls.clear()
