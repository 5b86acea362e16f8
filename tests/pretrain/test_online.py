"""Clusters learned from batches: Sinkhorn-Knopp against plain loops, the queue, two crops a clip, resume, ranks."""

import math

import numpy as np
import pytest
import torch

from decar.clustering import KMeans, Whitening, nmi
from decar.clustering.stats import entropy
from decar.errors import ConfigError
from decar.pretrain import DescriptorLabels, OnlineLabels
from decar.pretrain.online import Prototypes, principal_axes, sinkhorn
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


def test_axes_are_those_of_the_clusterings_whitening():
    z = vectors(600, 12, seed=3) * torch.arange(1.0, 13) + 7
    mean, axes = principal_axes(z, 4)
    whitening = Whitening.fit_exactly(z.numpy(), 4)
    np.testing.assert_allclose(mean, whitening.mean, rtol=1e-5)
    ours, theirs = (z - mean) @ axes.T, whitening(z.numpy())
    np.testing.assert_allclose(ours.abs(), np.abs(theirs), rtol=1e-2, atol=1e-2)
    for n, kept in ((600, 10), (60, 4), (4, 1)):  # an axis per 30 clips, of two crops each
        axes = principal_axes(z[:n], 10)[1]
        assert (axes.abs().sum(1) > 0).sum() == kept
    assert (principal_axes(torch.ones(50, 3), 2)[1] == 0).all(), "no variance"


def prototypes(k=4, dim=5, **options):
    return Prototypes(dim, OnlineLabels(k, **options), seed=0)


def vectors(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_a_crop_predicts_the_code_of_the_other_crop_of_its_clip():
    online = prototypes(queue=6, epsilon=0.1, n_iter=3)
    online(*[vectors(4, 5, seed=9)] * 2, 0)
    earlier, z = vectors(6, 5, seed=1) * 3 + 1, vectors(8, 5, seed=2) * torch.arange(1.0, 6)
    projected = vectors(8, 5, seed=3)
    online(projected[:6], earlier, 1)
    points = online.points.double().numpy()
    loss, right = online(projected, z, 10)

    recent = torch.cat([z, earlier]).double().numpy()
    variance, directions = np.linalg.eigh(np.cov(recent.T, bias=True))
    kept = directions[:, ::-1][:, :2]  # 6 clips: `affordable_dim`
    white = unit((recent - recent.mean(0)) @ kept / np.sqrt(variance[::-1][:2]))
    codes = by_loops(white @ unit(points @ kept).T, 0.1, 3)
    expected, hits = 0.0, 0
    for crop in range(8):
        scores = (online.head.weight @ projected[crop] + online.head.bias).detach().double().numpy()
        chances, wanted = np.exp(scores) / np.exp(scores).sum(), codes[(crop + 4) % 8]
        expected -= (wanted * np.log(chances)).sum() / 8
        hits += wanted.argmax() == chances.argmax()
    assert loss.item() == pytest.approx(expected, rel=1e-4)
    assert right.item() == pytest.approx(hits / 8)
    means = np.array([(codes[:, k : k + 1] * white).sum(0) for k in range(4)])
    np.testing.assert_allclose(unit(online.points.numpy() @ kept), unit(means), rtol=1e-3, atol=1e-4)


def unit(rows):
    return rows / np.linalg.norm(rows, axis=1)[:, None]


def test_the_network_learns_by_the_head_alone():
    online, z = prototypes(), vectors(40, 5).requires_grad_()
    projected = vectors(40, 5, seed=1).requires_grad_()
    online(projected, z, 0)[0].backward()
    assert (projected.grad.abs().sum(1) > 0).all()
    assert (online.head.weight.grad.abs().sum(1) > 0).all()
    assert z.grad is None
    assert not online.queue.requires_grad
    assert [name for name, _ in online.named_parameters()] == ["head.weight", "head.bias"]


def test_prototypes_find_groups_that_are_there():
    """Eight groups of equal size along the axes, a queue of them, and eight prototypes."""
    groups = torch.cat([torch.eye(4), -torch.eye(4)])
    online = prototypes(k=8, dim=4, queue=600)
    for step in range(40):
        kind = torch.arange(64) % 8
        online(vectors(64, 4), groups[kind] + 0.1 * vectors(64, 4, seed=step), step)
    kind = torch.arange(400) % 8
    found = online.clusters((groups[kind] + 0.1 * vectors(400, 4, seed=99)).numpy())
    assert nmi(kind.numpy(), found) > 0.9


def test_the_queue_has_the_latest_vectors_and_no_more():
    online, batches = prototypes(queue=10), [vectors(4, 5, seed=i) for i in range(4)]
    start = online.points
    for i, batch in enumerate(batches):
        online(batch, batch, i)
        assert torch.equal(online.queue, torch.cat(batches[i::-1])[:10])
        assert torch.equal(online.points, start) == (i < 2), "random until the queue is full"
    other = prototypes(queue=10)
    other.load_state_dict(online.state_dict())
    for name in ("queue", "points", "mean", "axes"):
        assert torch.equal(getattr(other, name), getattr(online, name)), name
    assert online(batches[0], batches[0], 5)[0] == other(batches[0], batches[0], 5)[0], "step 5 does not renew the axes"


def test_axes_are_renewed_in_every_tenth_step_once_the_queue_is_full():
    online, renewed = prototypes(queue=8), []
    for step in range(25):
        before, z = online.axes, vectors(4, 5, seed=step)
        online(z, z, step)
        if not torch.equal(before, online.axes):
            renewed.append(step)
    assert renewed == [0, 1, 10, 20]


def test_vectors_that_are_all_the_same_are_spread_over_all_prototypes():
    """A network that maps everything to one point gains nothing by it: every code is uniform."""
    online = prototypes(k=5, queue=5)
    codes = online._codes(vectors(1, 5).expand(10, 5), 0)
    torch.testing.assert_close(codes, torch.full((10, 5), 0.2))


@pytest.mark.parametrize(("name", "value"), [("k", 1), ("dim", 0), ("epsilon", -1.0), ("n_iter", 0), ("queue", 3)])
def test_numbers_that_make_no_sense(name, value):
    with pytest.raises(ConfigError, match=f"labels.{name}"):
        OnlineLabels(**{"k": 4, name: value})


def both():
    return OnlineLabels(k=4, first=DescriptorLabels(KMeans(k=3), ("spectrum", "envelope"), dim=4), queue=20, sample=30)


def alone():
    return OnlineLabels(k=4, queue=20, sample=30)


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
    assert model.heads.sizes == ([3, 3] if source is both else [])


def test_an_odd_batch_is_refused(make_store, tmp_path):
    model, data = build(make_store(LENGTHS), source=alone())
    data.batch_size = 7
    with pytest.raises(ConfigError, match=r"loader.batch_size=7: .*pass loader.batch_size=8"):
        fit(model, data, tmp_path)


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
