"""One, two and three processes (gloo): the same labels, every clip once, and all ranks the same to the bit."""

import copy
import os
import socket
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from pytorch_lightning import Callback, Trainer
from pytorch_lightning.callbacks import ModelCheckpoint
from pytorch_lightning.strategies import DDPStrategy
from timm.layers import BatchNormAct2d
from torch import distributed, nn
from torch._subclasses.fake_tensor import DynamicOutputShapeException, FakeTensorMode
from torch.nn import functional
from torch.nn.modules._functions import SyncBatchNorm
from torch.nn.modules.batchnorm import _BatchNorm

from decar.cli.trainer import INEXACT
from decar.clustering import PIC, KMeans
from decar.errors import ConfigError, TrainingError
from decar.models.embed import run_pass
from decar.pretrain import EpochLabels, NetworkLabels
from decar.pretrain import vectors as vectors_module
from decar.pretrain.datamodule import share_of_batch
from decar.pretrain.ranks import average_gradients, deal_batch, mean_over_ranks
from decar.pretrain.sync import SyncedLayer, SyncLayers, _OnGpu, batch_norm_over_ranks
from tests.conftest import FORK, make_encoder
from tests.pretrain.helpers import build

LENGTHS = [20, 40, 33, 64, 100, 50, 31, 32] * 5 + [77]  # 41 clips: not a multiple of 2 or 3


class Watch(Callback):
    """Writes down what a rank has at the end of each epoch, which clips it embedded, and the mean loss over ranks."""

    def __init__(self) -> None:
        self.epochs: list[dict[str, object]] = []

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        labels = trainer.datamodule.labels
        while len(self.epochs) <= trainer.current_epoch:
            made = {"labels": labels.labels.copy(), "sizes": labels.sizes, "sample": labels.sample}
            self.epochs.append({**made, "index": [], "loss": [], "logged": []})
        self.epochs[-1]["index"].append(batch[1].numpy().copy())

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self.epochs[-1]["loss"].append(float(outputs["loss"]))
        self.epochs[-1]["logged"].append(float(trainer.logged_metrics["loss_step"]))

    def on_train_epoch_start(self, trainer, pl_module):
        self._state(pl_module)

    def on_train_end(self, trainer, pl_module):
        self._state(pl_module)

    def _state(self, module):
        if self.epochs:
            self.epochs[-1]["state"] = {key: value.detach().clone() for key, value in module.state_dict().items()}


def one_rank(rank, size, port, store, folder, options):
    """A process as torchrun starts it."""
    torch.set_num_threads(1)
    os.environ |= {} if size == 1 else {
        "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(size), "RANK": str(rank),
        "LOCAL_RANK": str(rank), "LOCAL_WORLD_SIZE": str(size), "GROUP_RANK": "0", "TORCHELASTIC_RUN_ID": "test",
    }  # fmt: skip
    embedded: list[int] = []
    forward = run_pass

    def spy(*args, batches=None, **kwargs):
        embedded.extend(range(len(args[1])) if batches is None else np.concatenate([*batches]).tolist())
        return forward(*args, batches=batches, **kwargs)

    vectors_module.run_pass = spy
    k_means = KMeans(k=4, n_iter=5, max_points=options["sample"])
    clusterer = PIC(n_neighbors=2, sigma="auto", n_iter=20) if options["pic"] else k_means
    source = options["source"] or NetworkLabels([clusterer], dim=4)
    model, data = build(store, source=source, features=options["features"])
    data.batch_size = options["batch"]
    if options["sync"]:  # a norm with an activation in it, as in EfficientNet
        model.encoder.network = nn.Sequential(model.encoder.network[0], BatchNormAct2d(8, act_layer=nn.SiLU))
    watch = Watch()
    trainer = Trainer(
        max_epochs=3, accelerator="cpu", devices=size, logger=False, enable_progress_bar=False,
        strategy=DDPStrategy(process_group_backend="gloo", **options["ddp"]) if size > 1 else "auto",
        log_every_n_steps=1,
        enable_model_summary=False, use_distributed_sampler=False, default_root_dir=folder,
        callbacks=[watch, ModelCheckpoint(folder, filename="{step}", save_top_k=-1, every_n_train_steps=4)],
        plugins=[SyncLayers()] if options["sync"] else [],
    )  # fmt: skip
    trainer.fit(model, datamodule=data, ckpt_path=options["resume"], weights_only=True)
    bank = model.bank.vectors().rows if model.bank else None
    torch.save({"epochs": watch.epochs, "embedded": embedded, "bank": bank}, Path(folder) / f"rank{rank}of{size}.pt")


def run(size, store, folder, *, pic=False, batch=12, sync=False, sample=None, features="pass", resume=None,
        source=None, ddp=None):  # fmt: skip
    """What every rank of a run wrote down."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    folder.mkdir(exist_ok=True)
    options = {"pic": pic, "batch": batch, "sync": sync, "sample": sample, "features": features, "resume": resume,
               "source": source, "ddp": ddp or {}}  # fmt: skip
    if size == 1:
        one_rank(0, 1, port, store, str(folder), options)
        vectors_module.run_pass = run_pass
        return [torch.load(folder / "rank0of1.pt", weights_only=False)]
    jobs = [FORK.Process(target=one_rank, args=(r, size, port, store, str(folder), options)) for r in range(size)]
    for job in jobs:
        job.start()
    for job in jobs:
        job.join(120)
        assert job.exitcode == 0
    return [torch.load(folder / f"rank{r}of{size}.pt", weights_only=False) for r in range(size)]


@pytest.mark.parametrize(
    ("pic", "sample"),
    [(False, None), (True, None), pytest.param(False, 20, marks=pytest.mark.slow)],
    ids=["kmeans", "pic", "sampled"],
)
def test_ranks_agree_to_the_bit(make_store, tmp_path, pic, sample):
    store = make_store(LENGTHS)
    sizes = (1, 3) if pic or sample else (1, 2, 3)
    found = {size: run(size, store, tmp_path / str(size), pic=pic, sample=sample) for size in sizes}
    for size, ranks in found.items():
        seen = np.concatenate([rank["embedded"] for rank in ranks])
        assert np.array_equal(np.bincount(seen, minlength=41), np.full(41, 3)), f"{size}: each clip once an epoch"
        for rank in ranks[1:]:
            for mine, first in zip(rank["epochs"], ranks[0]["epochs"], strict=True):
                assert np.array_equal(mine["labels"], first["labels"])
                assert mine["state"].keys() == first["state"].keys()
                for key, value in mine["state"].items():
                    assert torch.equal(value, first["state"][key]), f"{size} ranks: {key}"
        first = ranks[0]["epochs"][0]
        assert np.array_equal(first["labels"], found[1][0]["epochs"][0]["labels"]), "the same weights, the same labels"
    clusters = [epoch["sizes"] for epoch in found[3][0]["epochs"]]
    assert not pic or len(set(map(tuple, clusters))) > 1, (
        f"{clusters}: PIC's number of clusters must change or this shows nothing"
    )


def test_two_processes_learn_what_one_does(make_store, tmp_path):
    """Nothing but the number of processes changed: the batches, SpecAugment too, and the loss curve are the same.

    So are they when one process goes on, in the middle of an epoch, from a checkpoint of two; and with exact=false.
    """
    store = make_store(LENGTHS)
    one, two = (run(size, store, tmp_path / str(size), sync=True) for size in (1, 2))
    fast = run(2, store, tmp_path / "fast", sync=True, ddp=INEXACT)
    for e in range(3):
        np.testing.assert_allclose(fast[0]["epochs"][e]["logged"], two[0]["epochs"][e]["logged"], rtol=1e-4)
        dealt = [np.stack(rank["epochs"][e]["index"]) for rank in two]
        whole = np.stack(one[0]["epochs"][e]["index"])
        assert np.array_equal(whole[:, 0::2], dealt[0])
        assert np.array_equal(whole[:, 1::2], dealt[1])
        curve = np.mean([rank["epochs"][e]["loss"] for rank in two], axis=0)
        np.testing.assert_allclose(curve, one[0]["epochs"][e]["loss"], rtol=1e-4)
        np.testing.assert_allclose(two[0]["epochs"][e]["logged"], curve, rtol=1e-6)
    later = run(1, store, tmp_path / "later", sync=True, resume=str(tmp_path / "2/step=8.ckpt"))[0]["epochs"]
    assert len(curve) == 6
    assert np.array_equal(later[1]["index"], one[0]["epochs"][1]["index"][2:])
    np.testing.assert_allclose(later[1]["loss"], one[0]["epochs"][1]["loss"][2:], rtol=1e-4)
    np.testing.assert_allclose(later[2]["loss"], one[0]["epochs"][2]["loss"], rtol=1e-4)


@pytest.mark.slow
def test_a_bank_on_rank_zero_is_labelled_by_centres_of_a_sample(make_store, tmp_path):
    store = make_store(LENGTHS)
    one, two = (run(size, store, tmp_path / str(size), sample=20, features="bank") for size in (1, 2))
    assert np.array_equal(two[0]["epochs"][0]["labels"], one[0]["epochs"][0]["labels"])
    for mine, first in zip(two[1]["epochs"], two[0]["epochs"], strict=True):
        assert np.array_equal(mine["labels"], first["labels"])


def synced(model):
    return SyncLayers().apply(copy.deepcopy(model))


def test_synced_layers_keep_all_that_they_are():
    """EfficientNet-B0 has a SiLU in 49 of its BatchNorm layers: with one process it computes what it did."""
    torch.manual_seed(0)
    plain = make_encoder("efficientnet_b0", seed=0)
    called = []
    plain.network.bn1.register_forward_hook(lambda *_: called.append(1))
    converted = synced(plain)
    layers = [layer for layer in converted.modules() if isinstance(layer, _BatchNorm)]
    assert sum(isinstance(layer, SyncedLayer) for layer in layers) == len(layers) == 49
    assert sum(isinstance(layer, BatchNormAct2d) for layer in layers) == 49
    assert sum(isinstance(layer.act, nn.SiLU) for layer in layers) == 33, "the others have the identity"
    assert converted.state_dict().keys() == plain.state_dict().keys()
    x = torch.randn(2, 1, 64, 98)
    for train in (True, False):
        assert torch.equal(converted.train(train)(x), plain.train(train)(x))
    assert len(called) == 4
    for mine, theirs in zip(converted.buffers(), plain.buffers(), strict=True):
        assert torch.equal(mine, theirs)
    reverted = SyncLayers().revert(converted)
    assert [type(layer) for layer in reverted.modules()] == [type(layer) for layer in plain.modules()]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_statistics_over_ranks_are_those_of_the_whole_batch(monkeypatch, dtype):
    monkeypatch.setattr("decar.pretrain.sync.rank_and_size", lambda: (0, 2))
    monkeypatch.setattr("decar.pretrain.sync.sum_over_ranks", lambda x: x + x)  # two ranks with the same batch
    torch.manual_seed(0)
    x = torch.randn(6, 3, 5, 4).to(dtype) * 3 + 100
    for layer in (nn.BatchNorm2d(3), BatchNormAct2d(3, act_layer=nn.SiLU), nn.BatchNorm2d(3, affine=False),
                  nn.BatchNorm2d(3, track_running_stats=False), nn.BatchNorm2d(3, momentum=None)):  # fmt: skip
        layer = layer.double() if dtype == torch.float64 else layer
        mine = synced(layer)
        out, expected = mine(x), layer(torch.cat([x, x]))[:6]
        assert out.dtype == expected.dtype
        torch.testing.assert_close(out, expected, rtol=1.6e-2 if dtype == torch.bfloat16 else 1e-4, atol=1e-4)
        for a, b in zip(mine.buffers(), layer.buffers(), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)


def over(x, value):
    return value.view(1, -1, *[1] * (x.ndim - 2))


class Kernels:
    """What torch's CUDA kernels of a BatchNorm over ranks compute, written out: (B, C, ...)."""

    def batch_norm_stats(x, eps):
        rest = [d for d in range(x.ndim) if d != 1]
        return x.mean(rest), (x.var(rest, correction=0) + eps).rsqrt()

    def batch_norm_gather_stats_with_counts(x, means, inverses, running_mean, running_var, momentum, eps, counts):
        share = (counts / counts.sum())[:, None]
        mean = (share * means).sum(0)
        var = (share * (inverses**-2 - eps + (means - mean) ** 2)).sum(0)
        running_mean.lerp_(mean, momentum)
        running_var.lerp_(var * counts.sum() / (counts.sum() - 1), momentum)
        return mean, (var + eps).rsqrt()

    def batch_norm_elemt(x, weight, bias, mean, inverse, eps):
        out = (x - over(x, mean)) * over(x, inverse)
        return out if weight is None else out * over(x, weight) + over(x, bias)

    def batch_norm_backward_reduce(above, x, mean, inverse, weight, *wanted):
        rest = [d for d in range(x.ndim) if d != 1]
        dot = (above * (x - over(x, mean))).sum(rest)
        return above.sum(rest), dot, dot * inverse, above.sum(rest)

    def batch_norm_backward_elemt(above, x, mean, inverse, weight, total, dot, counts):
        centred, n = (x - over(x, mean)) * over(x, inverse**2), counts.sum()
        scale = inverse if weight is None else inverse * weight
        return (above - over(x, total / n) - centred * over(x, dot / n)) * over(x, scale)


@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize("shape", [(3,), (3, 5, 4)])
def test_a_gpu_s_batchnorm_over_ranks_is_that_of_the_whole_batch(monkeypatch, affine, shape):
    """The kernels in closed form, two ranks with shares of other sizes; tests/gpu has the kernels themselves."""
    for name in [name for name in vars(Kernels) if name.startswith("batch_norm")]:
        monkeypatch.setattr(torch, name, vars(Kernels)[name])
    torch.manual_seed(0)
    x, above = torch.randn(10, *shape, dtype=torch.float64) * 3 + 10, torch.randn(10, *shape, dtype=torch.float64)
    weight, bias = (torch.rand(3, dtype=torch.float64).requires_grad_() if affine else None for _ in range(2))
    mean, var = torch.zeros(3, dtype=torch.float64), torch.ones(3, dtype=torch.float64)
    whole = x.clone().requires_grad_()
    expected = functional.batch_norm(whole, mean, var, weight, bias, True)
    wanted = torch.autograd.grad(expected, [whole, *([weight, bias] if affine else [])], above)
    one, inverse = Kernels.batch_norm_stats(x, 1e-5)
    shares, found = (slice(0, 6), slice(6, 10)), []
    stats = [torch.cat([*Kernels.batch_norm_stats(x[rows], 1e-5), x.new_tensor([x[rows, 0].numel()])])
             for rows in shares]  # fmt: skip
    monkeypatch.setattr("decar.pretrain.sync.all_gather", lambda own: stats)
    sums = sum(torch.cat(Kernels.batch_norm_backward_reduce(above[rows], x[rows], one, inverse, weight)[:2])
               for rows in shares)  # fmt: skip
    monkeypatch.setattr("decar.pretrain.sync.sum_over_ranks", lambda own: sums)
    for rows in shares:
        own, running = x[rows].clone().requires_grad_(), [torch.zeros_like(mean), torch.ones_like(var)]
        out = _OnGpu.apply(own, weight, bias, *running, 1e-5, 0.1)
        torch.testing.assert_close(out, expected[rows])
        torch.testing.assert_close(running, [mean, var])
        found.append(torch.autograd.grad(out, [own, *([weight, bias] if affine else [])], above[rows]))
    torch.testing.assert_close(torch.cat([part[0] for part in found]), wanted[0])
    for mine, theirs in zip([sum(parts) for parts in list(zip(*found, strict=True))[1:]], wanted[1:], strict=True):
        torch.testing.assert_close(mine, theirs)


def test_a_gpu_s_batchnorm_over_ranks_does_not_make_the_cpu_wait(monkeypatch):
    """torch's own looks in each layer for ranks without a batch. Tensors without numbers: who needs one raises."""
    for name in [name for name in vars(Kernels) if name.startswith("batch_norm")]:
        monkeypatch.setattr(torch, name, vars(Kernels)[name])
    monkeypatch.setattr("decar.pretrain.sync.all_gather", lambda own: [own, own])
    monkeypatch.setattr(distributed, "all_gather", lambda *args, **kwargs: None)
    group = SimpleNamespace(_get_backend_name=lambda: "gloo")
    with FakeTensorMode(), torch.device("cuda"):
        x, mean, var, weight = (torch.empty(shape) for shape in ((4, 3, 8, 8), 3, 3, 3))
        assert batch_norm_over_ranks(x, mean, var, weight, weight, True).shape == x.shape
        with pytest.raises(DynamicOutputShapeException):
            SyncBatchNorm.apply(x, weight, weight, mean, var, 1e-5, 0.1, group, 2)


class OwnMath(nn.BatchNorm1d):
    def forward(self, x):
        return (x - x.mean(0)) * self.weight


def test_a_norm_that_cannot_be_synced_is_refused_by_name(monkeypatch):
    assert synced(OwnMath(2))(torch.ones(3, 2)).sum() == 0
    monkeypatch.setattr("decar.pretrain.sync.rank_and_size", lambda: (0, 2))
    with pytest.raises(TrainingError, match="BatchNorm subclass OwnMath does not call"):
        synced(OwnMath(2))(torch.ones(3, 2))


@pytest.mark.parametrize("size", [2, 3, 6])
def test_batches_do_not_depend_on_the_number_of_processes(monkeypatch, make_store, size):
    data = build(make_store(LENGTHS))[1]
    data.batch_size = 12
    data.set_labels(EpochLabels(np.arange(82).reshape(41, 2) % 5, [5, 5], 0))
    whole = data.batches(3)
    dealt = []
    for rank in range(size):
        monkeypatch.setattr("decar.pretrain.datamodule.rank_and_size", lambda rank=rank: (rank, size))
        assert len(data.train_dataloader()) == len(whole)
        dealt.append(data.batches(3))
    for p in range(12):
        np.testing.assert_array_equal(dealt[p % size][:, p // size], whole[:, p])


@pytest.mark.parametrize(("batch", "size", "pass_"), [(64, 3, "63 or 66"), (2, 4, "4")])
def test_a_batch_that_does_not_divide_is_refused(batch, size, pass_):
    assert share_of_batch(64, 8) == 8
    with pytest.raises(ConfigError, match=rf"batch_size={batch} .* {size} processes .*pass loader.batch_size={pass_},"):
        share_of_batch(batch, size)


def test_a_checkpoint_of_other_batches_is_refused(make_store):
    before, after = (build(make_store(LENGTHS))[1] for _ in range(2))
    for data, size in ((before, 12), (after, 6)):
        data.batch_size, data.every_n_steps = size, 5
    before.set_labels(EpochLabels(np.zeros((41, 1), np.int64), [1], 0))
    with pytest.raises(TrainingError, match=r"batches of 12 crops .* here they have 6: give loader\.batch_size=12"):
        after.load_state_dict(before.state_dict())
    after.batch_size = 12
    after.load_state_dict(before.state_dict())


def gradients(rank, size, port, path):
    """Loss and gradient of EfficientNet-B0 in float64 on this rank's share of a batch; over ranks, as DDP has them."""
    torch.set_num_threads(1)
    encoder = make_encoder("efficientnet_b0", seed=0).double().train()
    if size > 1:
        where = {"init_method": f"tcp://127.0.0.1:{port}", "rank": rank, "world_size": size}
        distributed.init_process_group("gloo", **where)
        SyncLayers().apply(encoder)
    x = torch.randn(8, 1, 64, 98, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    loss = functional.cross_entropy(encoder(deal_batch(x)), deal_batch(torch.arange(8)))
    loss.backward()
    average_gradients(encoder.parameters())
    found = {"loss": mean_over_ranks(loss), **{name: p.grad for name, p in encoder.named_parameters()}}
    torch.save({**found, **dict(encoder.named_buffers())}, f"{path}/{rank}of{size}.pt")


@pytest.mark.slow
def test_efficientnet_learns_the_same_from_shares_of_a_batch(tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    gradients(0, 1, port, tmp_path)
    torch.multiprocessing.spawn(gradients, (2, port, tmp_path), nprocs=2)
    one, two = (torch.load(tmp_path / f"0of{size}.pt") for size in (1, 2))
    assert one.keys() == two.keys()
    for name in one:
        torch.testing.assert_close(two[name], one[name], rtol=1e-6, atol=1e-9, msg=lambda text, name=name: name + text)
