"""Clusters learned from batches: Sinkhorn-Knopp against plain loops, the queue, two crops a clip, resume, ranks."""

import math

import numpy as np
import pytest
import torch
from pytorch_lightning import Callback
from torch import nn

from decar.clustering import PIC, KMeans
from decar.clustering.stats import entropy
from decar.errors import ConfigError
from decar.models.embed import embed_clips
from decar.pretrain import DescriptorLabels, EpochLabels, OnlineLabels
from decar.pretrain.labels import FittedLabels
from decar.pretrain.online import Prototypes, sinkhorn
from decar.pretrain.sampler import Stream, derive_seed
from tests.pretrain.helpers import build, fit
from tests.pretrain.test_loop import LENGTHS, adamw
from tests.pretrain.test_ranks import LENGTHS as ODD
from tests.pretrain.test_ranks import run


def by_loops(scores, epsilon, n_iter):
    """Cuturi 2013, algorithm 1, in float64: `diag(u) exp(scores / epsilon) diag(v)`, an entry at a time."""
    rows, columns = scores.shape
    kernel = [[math.exp(s / epsilon) for s in row] for row in scores.tolist()]
    u, v = [1.0] * rows, [1.0] * columns
    for _ in range(n_iter):
        for k in range(columns):
            v[k] = (rows / columns) / sum(u[b] * kernel[b][k] for b in range(rows))
        for b in range(rows):
            u[b] = 1.0 / sum(kernel[b][k] * v[k] for k in range(columns))
    return np.array([[u[b] * kernel[b][k] * v[k] for k in range(columns)] for b in range(rows)])


@pytest.mark.parametrize("n_iter", [1, 3, 50])
def test_codes_are_those_of_plain_loops(n_iter):
    scores = torch.rand(17, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * 2 - 1
    np.testing.assert_allclose(sinkhorn(scores, 0.1, n_iter), by_loops(scores, 0.1, n_iter), rtol=1e-9)
    found = sinkhorn(scores.float(), 0.1, n_iter)
    np.testing.assert_allclose(found, by_loops(scores, 0.1, n_iter), rtol=1e-3, atol=1e-6)


def test_codes_have_even_marginals_however_small_epsilon():
    scores = torch.rand(40, 8, generator=torch.Generator().manual_seed(1)) * 2 - 1
    for epsilon, n_iter in ((0.05, 300), (0.002, 20_000)):
        codes = sinkhorn(scores, epsilon, n_iter)
        torch.testing.assert_close(codes.sum(1), torch.ones(40))
        torch.testing.assert_close(codes.sum(0), torch.full((8,), 5.0), rtol=1e-2, atol=1e-2)
    assert torch.isfinite(sinkhorn(scores, 1e-6, 3)).all()


def vectors(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


class Middle(nn.Module):
    """An encoder whose vectors are easy to say: the middle frame."""

    def forward(self, logmel):
        return logmel[:, 0, :, logmel.shape[3] // 2]

    def for_objective(self, x):
        return self(x)


class Same(nn.Module):
    def forward(self, embedding):
        return torch.relu(embedding), embedding


def prototypes(k=4, dim=2, queue=6, **options):
    """Of five numbers a frame, clustered in `dim` whitened dimensions."""
    made = Prototypes(Middle(), Same(), 5, OnlineLabels(KMeans(k=k), dim=dim, queue=queue, **options))
    fitted = FittedLabels.fit(
        vectors(90, 5, seed=8).numpy() * np.arange(1, 6, dtype=np.float32) + 2, [KMeans(k=k)], dim
    )
    made.renew(Middle(), Same(), fitted)
    return made, fitted


def crops_of(z):
    """Log-mels whose middle frames are these vectors."""
    return vectors(len(z), 1, 5, 7, seed=len(z)).index_copy(3, torch.tensor([3]), z[:, None, :, None])


def test_codes_are_of_the_first_crop_and_balanced_over_batch_and_queue():
    online, fitted = prototypes(epsilon=0.1, n_iter=3)
    earlier, z = vectors(12, 5, seed=1), vectors(8, 5, seed=2)
    online(crops_of(earlier))
    codes = online(crops_of(z))
    white = fitted.whitening.unit(torch.cat([z[:4], earlier[:6]]).numpy())
    centres = fitted.centres[0].points / np.linalg.norm(fitted.centres[0].points, axis=1)[:, None]
    expected = by_loops(white @ centres.T, 0.1, 3)[:4]
    np.testing.assert_allclose(codes, np.concatenate([expected, expected]), rtol=1e-3, atol=1e-5)
    assert not codes.requires_grad


def test_the_queue_has_the_latest_vectors_and_no_more():
    online, fitted = prototypes(queue=10)
    batches = [vectors(8, 5, seed=i) for i in range(4)]
    for i, batch in enumerate(batches):
        online(crops_of(batch))
        recent = torch.cat([each[:4] for each in batches[i::-1]])[:10]
        np.testing.assert_allclose(online.queue, fitted.whitening.unit(recent.numpy()), rtol=1e-3, atol=1e-5)
    other, _ = prototypes(queue=10)
    other.load_state_dict(online.state_dict())
    assert torch.equal(other.queue, online.queue)
    assert torch.equal(online(crops_of(batches[0])), other(crops_of(batches[0])))
    online.renew(Middle(), Same(), fitted)
    assert len(online.queue) == 0, "vectors of the previous teacher"


def test_vectors_that_are_all_the_same_are_spread_over_all_clusters():
    """A network that maps everything to one point gains nothing by it: every code is uniform."""
    online, _ = prototypes(k=5, queue=5)
    codes = online(crops_of(vectors(1, 5).expand(10, 5)))
    torch.testing.assert_close(codes, torch.full((10, 5), 0.2))


@pytest.mark.parametrize(("name", "value"), [("dim", 0), ("epsilon", -1.0), ("n_iter", 0), ("queue", 3), ("sample", 3)])
def test_numbers_that_make_no_sense(name, value):
    with pytest.raises(ConfigError, match=f"labels.{name}"):
        OnlineLabels(KMeans(k=4), **{name: value})


def test_a_clusterer_without_centres():
    with pytest.raises(ConfigError, match="clusterer=kmeans"):
        OnlineLabels(PIC())


def both():
    first = DescriptorLabels(KMeans(k=3), ("spectrum", "envelope"), dim=4)
    return OnlineLabels(KMeans(k=4), first=first, dim=4, queue=20, sample=30)


def alone():
    return OnlineLabels(KMeans(k=4), dim=4, queue=20, sample=30)


SOURCES = pytest.mark.parametrize("source", [both, alone], ids=["with descriptors", "alone"])


@SOURCES
def test_each_clip_has_two_crops_in_a_batch(make_store, tmp_path, source):
    model, data = build(make_store(LENGTHS), source=source())
    _, recorder = fit(model, data, tmp_path, epochs=2)
    assert len(recorder.pairs) == 2 * data.steps_per_epoch
    for epoch in range(2):
        drawn = [index.numpy() for e, index, _ in recorder.pairs if e == epoch]
        assert all((index[:4] == index[4:]).all() for index in drawn)
        counts = np.bincount(np.concatenate(drawn), minlength=len(LENGTHS))
        if source is alone:
            assert counts.max() - counts.min() <= 2, "the draw is uniform over the clips"
    crops, *_ = next(iter(data.train_dataloader()))
    assert (crops[:4] != crops[4:]).flatten(1).any(1).any()
    assert model.heads.sizes == ([3, 3, 4] if source is both else [4])


def test_a_batch_that_does_not_divide_into_pairs_is_refused(make_store, monkeypatch):
    data = build(make_store(LENGTHS), source=alone())[1]
    labels = EpochLabels(np.empty((len(LENGTHS), 0), np.int64), [4], 0, views=2)
    for size, batch, wanted in ((1, 7, 8), (3, 8, 12)):
        monkeypatch.setattr("decar.pretrain.datamodule.rank_and_size", lambda size=size: (0, size))
        data.batch_size = batch
        with pytest.raises(ConfigError, match=rf"loader.batch_size={batch}: .*pass loader.batch_size={wanted}$"):
            data.set_labels(labels)


class Watch(Callback):
    """Writes down the network and the teacher at the first batch of each epoch, and the teacher at its end."""

    def __init__(self):
        self.network, self.first, self.last = [], [], []

    def on_train_batch_start(self, trainer, module, batch, batch_idx):
        if batch_idx == 0:
            self.network.append([x.clone() for x in module.encoder.state_dict().values()])
            self.first.append([x.clone() for x in module.online.teacher.encoder.state_dict().values()])

    def on_train_epoch_end(self, trainer, module):
        assert not any(part.training for part in module.online.teacher.modules())
        self.last.append([x.clone() for x in module.online.teacher.encoder.state_dict().values()])


def test_the_teacher_is_the_network_at_the_start_of_the_epoch(make_store, tmp_path):
    model, data = build(make_store(LENGTHS), source=both())
    watch = Watch()
    trainer, _ = fit(model, data, tmp_path, epochs=3, callbacks=[watch])
    for network, first, last in zip(watch.network, watch.first, watch.last, strict=True):
        assert all(torch.equal(a, b) and torch.equal(a, c) for a, b, c in zip(network, first, last, strict=True))
    assert any(not torch.equal(a, b) for a, b in zip(watch.first[1], watch.first[2], strict=True))
    trained = {id(p) for group in trainer.optimizers[0].param_groups for p in group["params"]}
    assert not trained & {id(p) for p in model.online.parameters()}


def test_the_clusters_are_those_of_the_sample(make_store, tmp_path):
    """The first epoch's, made here from the untrained network."""
    store = make_store(LENGTHS)
    model, data = build(store, source=alone())
    fit(model, data, tmp_path, epochs=1)
    fresh, _ = build(store, source=alone())
    clips, k_means = data.labels.sample[:, 0], KMeans(k=4, seed=derive_seed(Stream.CLUSTERS, 0, 0, 0) % 2**31)
    with torch.no_grad():
        z = torch.cat([embed_clips(fresh.eval(), [store[i]], fresh.encoder, 1) for i in clips]).numpy()
    np.testing.assert_array_equal(data.labels.sample[:, 1], FittedLabels.fit(z, [k_means], 4)(z)[:, 0])


@SOURCES
def test_figures_are_of_one_sample_and_there_is_no_pass(make_store, tmp_path, source, monkeypatch):
    seen = []
    monkeypatch.setattr("decar.pretrain.module.embed_dataset", lambda *a, **k: pytest.fail("a pass over the set"))
    from decar.pretrain import module
    from decar.pretrain.vectors import embed_dataset

    def spy(trainer, net, encoder, store, **options):
        seen.append(store.manifest.table["path"].tolist())
        return embed_dataset(trainer, net, encoder, store, **options)

    monkeypatch.setattr(module, "embed_dataset", spy)
    model, data = build(make_store(LENGTHS), source=source())
    trainer, _ = fit(model, data, tmp_path, epochs=3)
    assert len(seen) == 3
    assert len(seen[0]) == 30 < len(LENGTHS)
    assert seen[0] == seen[1] == seen[2]
    assert 0 < float(trainer.callback_metrics["nmi"]) <= 1
    assert data.labels.sample.shape == (30, 2)


@pytest.mark.parametrize("options", [{}, {"optimizer": adamw, "head_optimizer": {}}], ids=["sgd", "adamw"])
def test_training_keeps_the_clusters_even(make_store, tmp_path, options):
    model, data = build(make_store(LENGTHS), source=alone(), **options)
    fit(model, data, tmp_path, epochs=5)
    sample = data.labels.sample[:, 1]
    assert entropy(sample, 4) > 0.8
    assert np.bincount(sample, minlength=4).min() > 0


@SOURCES
@pytest.mark.parametrize("done", [13, 20], ids=["mid-epoch", "last batch"])
def test_resume_is_exact(make_store, tmp_path, source, done):
    store = make_store(LENGTHS)
    options = {"optimizer": adamw, "head_optimizer": {}, "schedule": "cosine", "warmup_steps": 3}
    model, data = build(store, source=source(), **options)
    _, whole = fit(model, data, tmp_path / "whole", epochs=3, every_n_steps=13 if done == 13 else 10)
    again, data = build(store, source=source(), **options)
    checkpoint = tmp_path / "whole" / f"epoch=1-step={done}.ckpt"
    _, rest = fit(again, data, tmp_path / "rest", epochs=3, ckpt_path=checkpoint)
    assert rest.losses == whole.losses[done:]
    for key, value in model.state_dict().items():
        assert torch.equal(value, again.state_dict()[key]), key
    np.testing.assert_array_equal(again.data.labels.sample, model.data.labels.sample)
    assert again.data.labels.health == model.data.labels.health


@SOURCES
def test_two_processes_find_what_one_does(make_store, tmp_path, source):
    one, two = (run(n, make_store(ODD), tmp_path / str(n), sync=True, source=source()) for n in (1, 2))
    for e in range(3):
        curve = np.mean([rank["epochs"][e]["loss"] for rank in two], axis=0)
        np.testing.assert_allclose(curve, one[0]["epochs"][e]["loss"], rtol=2e-3)  # codes amplify rounding
        assert e > 0 or curve[0] == pytest.approx(one[0]["epochs"][0]["loss"][0], rel=1e-5)
        for key, value in two[1]["epochs"][e]["state"].items():
            assert torch.equal(value, two[0]["epochs"][e]["state"][key]), f"ranks differ: {key}"
        np.testing.assert_array_equal(two[1]["epochs"][e]["sample"], two[0]["epochs"][e]["sample"])
        same = one[0]["epochs"][e]["sample"] == two[0]["epochs"][e]["sample"]
        assert same.mean() > 0.95
    queue = "online._extra_state"
    last = [found[0]["epochs"][2]["state"][queue] for found in (one, two)]
    torch.testing.assert_close(last[0], last[1], rtol=1e-2, atol=1e-2)
