"""One, two and three processes (gloo): the same labels, every clip once, and all ranks the same to the bit."""

import copy
import multiprocessing
import os
import socket
from pathlib import Path

import numpy as np
import pytest
import torch
from pytorch_lightning import Callback, Trainer
from pytorch_lightning.strategies import DDPStrategy
from torch import nn

from decar.clustering import PIC, KMeans
from decar.models.encode import run_pass
from decar.pretrain import NetworkLabels
from decar.pretrain import embed as embed_module
from decar.pretrain.sync import SyncBatchNorm, SyncLayers
from tests.pretrain.helpers import build

LENGTHS = [20, 40, 33, 64, 100, 50, 31, 32] * 5 + [77]  # 41 clips: not a multiple of 2 or 3


class Watch(Callback):
    """Writes down what a rank has at the end of each epoch, which clips it embedded, and the mean loss over ranks."""

    def __init__(self) -> None:
        self.epochs: list[dict[str, object]] = []

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        labels = trainer.datamodule.labels
        if len(self.epochs) == trainer.current_epoch:
            self.epochs.append({"labels": labels.labels.copy(), "sizes": labels.sizes, "index": [], "loss": []})
        self.epochs[-1]["index"].append(batch[1].numpy().copy())

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self.epochs[-1]["loss"].append(float(outputs["loss"]))

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

    embed_module.run_pass = spy
    k_means = KMeans(k=4, n_iter=5, max_points=options["sample"])
    clusterer = PIC(n_neighbors=3, sigma="auto", n_iter=20) if options["pic"] else k_means
    model, data = build(store, source=NetworkLabels([clusterer], dim=4), features=options["features"])
    data.batch_size = options["batch"] // size
    if options["plain"]:  # nothing random within a step, so that one process and two do the same
        model.augment = nn.Identity()
    watch = Watch()
    trainer = Trainer(
        max_epochs=3, accelerator="cpu", devices=size, logger=False, enable_progress_bar=False,
        strategy=DDPStrategy(process_group_backend="gloo") if size > 1 else "auto", enable_checkpointing=False,
        enable_model_summary=False, use_distributed_sampler=False, callbacks=[watch], default_root_dir=folder,
        plugins=[SyncLayers(on_gpu=False)] if options["sync"] else [],
    )  # fmt: skip
    trainer.fit(model, datamodule=data)
    bank = model.bank.share(torch.device("cpu"))[0] if model.bank else None
    torch.save({"epochs": watch.epochs, "embedded": embedded, "bank": bank}, Path(folder) / f"rank{rank}of{size}.pt")


def run(size, store, folder, *, pic=False, batch=12, plain=False, sync=False, sample=None, features="pass"):
    """What every rank of a run wrote down."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    folder.mkdir(exist_ok=True)
    options = {"pic": pic, "batch": batch, "plain": plain, "sync": sync, "sample": sample, "features": features}
    if size == 1:
        one_rank(0, 1, port, store, str(folder), options)
        embed_module.run_pass = run_pass
        return [torch.load(folder / "rank0of1.pt", weights_only=False)]
    context = multiprocessing.get_context("spawn")
    jobs = [context.Process(target=one_rank, args=(r, size, port, store, str(folder), options)) for r in range(size)]
    for job in jobs:
        job.start()
    for job in jobs:
        job.join(120)
        assert job.exitcode == 0
    return [torch.load(folder / f"rank{r}of{size}.pt", weights_only=False) for r in range(size)]


@pytest.mark.parametrize(
    ("pic", "sample"), [(False, None), (True, None), (False, 20)], ids=["kmeans", "pic", "sampled"]
)
def test_ranks_agree_to_the_bit(make_store, tmp_path, pic, sample):
    store = make_store(LENGTHS)
    found = {size: run(size, store, tmp_path / str(size), pic=pic, sample=sample) for size in (1, 2, 3)}
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
    sizes = [epoch["sizes"] for epoch in found[2][0]["epochs"]]
    assert not pic or len(set(map(tuple, sizes))) > 1, "PIC's number of clusters must change or this shows nothing"


def test_two_processes_learn_what_one_does(make_store, tmp_path):
    """SyncBatchNorm, equal global batch, nothing random within a step: one loss curve (mean over ranks)."""
    store = make_store(LENGTHS)
    one, two = (run(size, store, tmp_path / str(size), plain=True, sync=True) for size in (1, 2))
    for e in range(3):
        dealt = [np.stack(rank["epochs"][e]["index"]) for rank in two]
        whole = np.stack(one[0]["epochs"][e]["index"])
        assert np.array_equal(whole[:, 0::2], dealt[0])
        assert np.array_equal(whole[:, 1::2], dealt[1])
        curve = np.mean([rank["epochs"][e]["loss"] for rank in two], axis=0)
        np.testing.assert_allclose(curve, one[0]["epochs"][e]["loss"], rtol=1e-4)


def test_sync_batchnorm_alone_is_batchnorm():
    """Converted layers keep weights and statistics, and with one process do what they did."""
    torch.manual_seed(0)
    plain = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Flatten(1), nn.LazyBatchNorm1d())
    x = torch.randn(5, 1, 6, 6)
    plain(x)
    converted = SyncLayers(on_gpu=False).apply(copy.deepcopy(plain))
    assert sum(isinstance(layer, SyncBatchNorm) for layer in converted.modules()) == 2
    assert converted.state_dict().keys() == plain.state_dict().keys()
    for train in (True, False):
        assert torch.equal(converted.train(train)(x), plain.train(train)(x))
    assert torch.equal(converted[1].running_var, plain[1].running_var)
