"""The clustering loop as a whole: labels never stale, resume exact, heads renewed, the mathematics of the step."""

import math
import multiprocessing
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch.nn import functional

from decar.audio import SpecAugment
from decar.clustering import PIC, KMeans
from decar.errors import StoreError
from decar.models import Projection
from decar.pretrain import (
    BothLabels,
    DescriptorLabels,
    EpochCheckpoint,
    EpochLabels,
    NetworkLabels,
    PretrainData,
    ResumableCSVLogger,
    StopOnNMI,
    UniformClusterSampler,
)
from decar.pretrain.logger import read_rows
from tests.conftest import SMALL, make_encoder
from tests.pretrain.helpers import SameClusters, build, fit

LENGTHS = [20, 40, 33, 64, 100, 50, 31, 32] * 5


def assert_never_stale(recorder, epochs):
    """Every target is that epoch's label of its clip."""
    assert sorted(recorder.labels) == epochs
    for epoch, index, seen in recorder.pairs:
        np.testing.assert_array_equal(seen.numpy(), recorder.labels[epoch][index.numpy()])


def assert_drawn_by_its_labels(recorder, seed=0):
    """Every epoch's order is the balanced draw over that epoch's labels, made here independently."""
    for epoch, labels in recorder.labels.items():
        drawn = np.concatenate([index.numpy() for e, index, _ in recorder.pairs if e == epoch])
        sampler = UniformClusterSampler(labels[:, epoch % labels.shape[1]], len(drawn), seed=seed)
        sampler.set_epoch(epoch)
        np.testing.assert_array_equal(drawn, list(sampler))


WORKERS = pytest.mark.parametrize(("num_workers", "persistent"), [(0, True), (2, True), (2, False)])


@WORKERS
def test_labels_are_never_stale(make_store, tmp_path, num_workers, persistent):
    model, data = build(make_store(LENGTHS), num_workers=num_workers, persistent_workers=persistent)
    _, recorder = fit(model, data, tmp_path, epochs=3)
    assert_never_stale(recorder, [0, 1, 2])
    assert_drawn_by_its_labels(recorder)
    assert len(recorder.pairs) == 3 * data.steps_per_epoch
    changed = any((recorder.labels[0] != recorder.labels[e]).any() for e in (1, 2))
    assert changed, "labels must change or this shows nothing"


@WORKERS
def test_a_training_leaves_no_workers_behind(make_store, tmp_path, num_workers, persistent):
    """Else they end when the loader is collected, which takes 5 s each, and holds up whatever runs then."""
    before = {child.pid for child in multiprocessing.active_children()}
    model, data = build(make_store(LENGTHS), num_workers=num_workers, persistent_workers=persistent)
    fit(model, data, tmp_path, epochs=1, max_steps=4)
    assert {child.pid for child in multiprocessing.active_children()} <= before


@WORKERS
@pytest.mark.parametrize("stop", [(1, 3), (1, 10), (0, 10)], ids=["mid-epoch", "last batch", "first epoch's end"])
def test_resume_repeats_the_run_exactly(make_store, tmp_path, num_workers, persistent, stop):
    epoch, steps = stop
    store = make_store(LENGTHS)
    model, data = build(store, num_workers=num_workers, persistent_workers=persistent)
    assert data.steps_per_epoch == 10
    _, whole = fit(model, data, tmp_path / "whole", epochs=3, every_n_steps=10 if steps == 10 else 13)
    done = epoch * 10 + steps
    checkpoint = tmp_path / "whole" / f"epoch={epoch}-step={done}.ckpt"
    again, data = build(store, num_workers=num_workers, persistent_workers=persistent)
    with torch.no_grad():
        again.encoder.network[0].weight.zero_()  # nothing may come from anywhere but the checkpoint
    _, rest = fit(again, data, tmp_path / "rest", epochs=3, ckpt_path=checkpoint)
    assert_never_stale(rest, sorted({e for e, _, _ in whole.pairs[done:]}))
    assert rest.losses == whole.losses[done:]
    for (_, a, _), (_, b, _) in zip(whole.pairs[done:], rest.pairs, strict=True):
        assert torch.equal(a, b)
    for key, value in model.state_dict().items():
        assert torch.equal(value, again.state_dict()[key]), key


def test_resume_is_exact_with_the_readings_of_the_released_code(make_store, tmp_path):
    """Whole clips, dropped blocks and the code's mask widths: all that is drawn in a step follows from its place."""

    def start():
        model, _ = build(make_store(LENGTHS))
        model.encoder = make_encoder(SMALL, seed=0, drop_path=0.5)
        model.projection, model.augment = Projection(model.encoder.dim, 8, seed=0), SpecAugment(released=True)
        return model, PretrainData(make_store(LENGTHS), batch_size=8, draws_per_clip=2.0, crop_frames=None)

    model, data = start()
    assert data.crop_frames == 100, "the longest"
    _, whole = fit(model, data, tmp_path / "whole", epochs=2, every_n_steps=13)
    again, data = start()
    _, rest = fit(again, data, tmp_path / "rest", epochs=2, ckpt_path=tmp_path / "whole" / "epoch=1-step=13.ckpt")
    assert rest.losses == whole.losses[13:]
    for key, value in model.state_dict().items():
        assert torch.equal(value, again.state_dict()[key]), key


def test_a_resume_within_an_epoch_does_not_cluster_again(make_store, tmp_path, monkeypatch):
    model, data = build(make_store(LENGTHS))
    fit(model, data, tmp_path / "whole", epochs=2, every_n_steps=5)
    again, data = build(make_store(LENGTHS))
    epochs = []
    assign = type(again.source).assign

    def spy(self, z, situation):
        epochs.append(situation.epoch)
        return assign(self, z, situation)

    monkeypatch.setattr(type(again.source), "assign", spy)
    fit(again, data, tmp_path / "rest", epochs=3, ckpt_path=tmp_path / "whole" / "epoch=1-step=15.ckpt")
    assert epochs == [2]


def test_same_seed_same_run_and_another_seed_another(make_store, tmp_path):
    runs = []
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        model, data = build(make_store(LENGTHS), seed=seed)
        torch.manual_seed(len(runs))  # the global generator must not matter
        _, recorder = fit(model, data, tmp_path / name, epochs=2)
        runs.append(recorder.losses)
    assert runs[0] == runs[1] != runs[2]


def test_pic_changes_the_number_of_clusters_and_heads_follow(make_store, tmp_path):
    model, data = build(make_store(LENGTHS), clusterers=[PIC(n_neighbors=3), KMeans(k=3)])
    _, recorder = fit(model, data, tmp_path, epochs=3, every_n_steps=7)
    assert_never_stale(recorder, [0, 1, 2])
    assert model.heads.sizes == data.labels.sizes
    assert data.labels.labels.shape == (len(LENGTHS), 2)
    assert len({int(labels[:, 0].max()) for labels in recorder.labels.values()}) > 1, "this seed shows no change of k"
    again, data = build(make_store(LENGTHS), clusterers=[PIC(n_neighbors=3), KMeans(k=3)])
    _, rest = fit(again, data, tmp_path / "rest", epochs=3, ckpt_path=tmp_path / "epoch=1-step=14.ckpt")
    assert rest.losses == recorder.losses[14:]


def both():
    """Two descriptors from the start, one clustering of the network's vectors from epoch 1 on."""
    first = DescriptorLabels(KMeans(k=3), ("spectrum", "envelope"), dim=4)
    return BothLabels(first, NetworkLabels([KMeans(k=5)], dim=4), network_from=1)


def adamw(parameters):
    return torch.optim.AdamW(parameters, lr=1e-3)


def build_both(store):
    return build(store, source=both(), optimizer=adamw, head_optimizer={}, schedule="cosine", warmup_steps=3)


def test_heads_of_labels_that_stay_go_on_learning_and_new_ones_join(make_store, tmp_path):
    model, data = build_both(make_store(LENGTHS))
    trainer, recorder = fit(model, data, tmp_path, epochs=3)
    assert_never_stale(recorder, [0, 1, 2])
    assert model.heads.sizes == [3, 3, 5]
    for epoch in (1, 2):
        np.testing.assert_array_equal(recorder.labels[epoch][:, :2], recorder.labels[0])
    state = trainer.optimizers[0].state
    ages = [int(state[head.weight]["step"]) for head in model.heads]
    assert ages == [3 * data.steps_per_epoch, 3 * data.steps_per_epoch, data.steps_per_epoch]
    alive = {id(p) for group in trainer.optimizers[0].param_groups for p in group["params"]}
    assert {id(p) for p in state} <= alive


@pytest.mark.parametrize("done", [4, 10, 14, 20, 24])
def test_resume_is_exact_when_clusterings_join(make_store, tmp_path, done):
    store = make_store(LENGTHS)
    model, data = build_both(store)
    assert data.steps_per_epoch == 10
    _, whole = fit(model, data, tmp_path / "whole", epochs=3, every_n_steps=2)
    again, data = build_both(store)
    checkpoint = tmp_path / "whole" / f"epoch={(done - 1) // 10}-step={done}.ckpt"
    _, rest = fit(again, data, tmp_path / "rest", epochs=3, ckpt_path=checkpoint)
    assert rest.losses == whole.losses[done:]
    for key, value in model.state_dict().items():
        assert torch.equal(value, again.state_dict()[key]), key


def test_each_batch_is_drawn_evenly_over_another_clustering(make_store):
    _, data = build(make_store(LENGTHS), draws_per_clip=10)
    rng = np.random.default_rng(0)
    labels = np.stack([rng.choice(4, 40, p=[0.7, 0.1, 0.1, 0.1]), rng.choice(2, 40, p=[0.9, 0.1])], axis=1)
    data.set_labels(EpochLabels(labels, [4, 2], epoch=0))
    batches = data.batches(0)
    assert len(batches) == data.steps_per_epoch == 50
    drawn = np.array([[index for index, _ in batch] for batch in batches])
    for h, k in ((0, 4), (1, 2)):
        counts = np.bincount(labels[drawn[h::2], h].ravel(), minlength=k)
        assert counts.max() - counts.min() <= 1
    assert np.ptp(np.bincount(labels[drawn[0::2], 1].ravel())) > 50, (
        "the other half is balanced by the other clustering"
    )
    room = np.array(LENGTHS)[drawn] - data.crop_frames
    firsts = batches[..., 1]
    assert ((firsts >= 0) & (firsts <= np.maximum(room, 0))).all()
    assert np.bincount(firsts[room == 8]).min() > 0, "each place of a clip of 40 frames occurs"


def test_the_distance_between_clusterings_in_steps(make_store):
    store = make_store(LENGTHS)
    data = PretrainData(store, crop_frames=32, batch_size=8, draws_per_clip=5, every_n_steps=7)
    data.set_labels(EpochLabels(np.arange(len(store))[:, None] % 3, [3], epoch=0))
    assert data.steps_per_epoch == len(data.batches(0)) == 7


def test_loss_is_the_mean_cross_entropy_over_heads(make_store, tmp_path):
    model, data = build(make_store(LENGTHS), clusterers=[KMeans(k=4), KMeans(k=6, seed=1)])
    fit(model, data, tmp_path, epochs=1)
    model.eval()  # no augmentation, no batch statistics
    x, index = data.on_after_batch_transfer(next(iter(data.train_dataloader())), 0)
    with torch.no_grad():
        scores = model.heads(model.projection(model.encoder(x))[0])
        expected = (
            functional.cross_entropy(scores[0], torch.from_numpy(data.labels.labels[index, 0]))
            + functional.cross_entropy(scores[1], torch.from_numpy(data.labels.labels[index, 1]))
        ) / 2
        model.log = lambda *a, **k: None
        assert model.training_step((x, index), 0) == pytest.approx(float(expected))


def test_the_objective_does_not_see_the_readout(make_store, tmp_path):
    """The same losses, clusters and weights with one as without."""
    losses, weights = [], []
    for readout in ([], [1, 2]):
        model, data = build(make_store(LENGTHS), encoder=make_encoder(
            "conv", "catavgmax", widths=(4, 8, 8), hidden=8, local=True, readout=readout, seed=0, min_frames=32
        ))  # fmt: skip
        _, recorder = fit(model, data, tmp_path / str(len(readout)), epochs=2)
        losses.append(recorder.losses)
        weights.append(model.state_dict())
    assert losses[0] == losses[1]
    assert all(torch.equal(value, weights[1][key]) for key, value in weights[0].items())
    assert model.embed_store(data.store, "readout").shape == (len(LENGTHS), model.encoder.objective_dim + 2 * 12 * 16)


def test_renewed_heads_are_trained_and_the_old_ones_forgotten(make_store, tmp_path):
    from functools import partial

    adam = partial(torch.optim.AdamW, lr=1e-3)
    model, data = build(make_store(LENGTHS), optimizer=adam, head_optimizer={})
    trainer, _ = fit(model, data, tmp_path, epochs=3)
    optimizer = trainer.optimizers[0]
    assert optimizer.param_groups[1]["params"] == list(model.heads.parameters())
    alive = {id(p) for group in optimizer.param_groups for p in group["params"]}
    assert {id(p) for p in optimizer.state} <= alive
    steps = {int(optimizer.state[p]["step"]) for p in model.heads.parameters()}
    assert steps == {data.steps_per_epoch}, "a head is as old as its epoch"
    fresh = type(model.heads)(8, [4])
    assert not torch.equal(fresh[0].weight, model.heads[0].weight)


def test_head_group_has_its_own_options(make_store, tmp_path):
    model, data = build(make_store(LENGTHS))
    trainer, _ = fit(model, data, tmp_path, epochs=1)
    assert [group["momentum"] for group in trainer.optimizers[0].param_groups] == [0.9, 0.0]


class WithoutEpoch:
    """A source of a user's own that forgets to say which epoch its labels are for; they differ with each call."""

    clusterers = ()

    def __init__(self):
        self.calls = []

    def needs_vectors(self, epoch):
        return False

    def assign(self, z, situation):
        self.calls.append(situation.epoch)
        rng = np.random.default_rng(len(self.calls))
        return EpochLabels(rng.integers(3, size=(len(situation.store), 1)), [3], epoch=0)


def test_labels_are_made_once_an_epoch_whatever_epoch_their_source_writes_on_them(make_store, tmp_path):
    whole, rest = WithoutEpoch(), WithoutEpoch()
    model, data = build(make_store(LENGTHS), source=whole)
    fit(model, data, tmp_path / "a", epochs=3, every_n_steps=4)
    assert whole.calls == [0, 1, 2]
    model, data = build(make_store(LENGTHS), source=rest)
    [within] = (tmp_path / "a").glob("epoch=1-step=16.ckpt")
    fit(model, data, tmp_path / "b", epochs=2, ckpt_path=within)
    assert rest.calls == [], "a run that goes on within an epoch has its labels"


def test_nmi_is_logged_and_patience_on_it_stops(make_store, tmp_path):
    model, data = build(make_store(LENGTHS), clusterers=[SameClusters()])
    stop = StopOnNMI(patience=3)
    trainer, _ = fit(model, data, tmp_path, epochs=50, callbacks=[stop])
    assert trainer.current_epoch == 5  # none, 1.0, then three without improvement
    assert trainer.callback_metrics["nmi"] == pytest.approx(1.0)
    for name in ("loss_epoch", "pseudo_accuracy", "n_clusters", "entropy", "effective_rank"):
        assert math.isfinite(float(trainer.callback_metrics[name])), name


def test_epochs_whose_labels_were_kept_neither_stop_the_run_nor_choose_its_best(make_store, tmp_path):
    """labels=both with a patience: the network's clusters join in epoch 4, the first NMI is that of epoch 5."""
    first = DescriptorLabels(KMeans(k=3), ("spectrum", "envelope"), dim=4)
    source = BothLabels(first, NetworkLabels([KMeans(k=5)], dim=4), network_from=4)
    model, data = build(make_store(LENGTHS), source=source, draws_per_clip=0.5)
    best = EpochCheckpoint(tmp_path / "kept", "best", monitor="nmi", mode="max")
    trainer, _ = fit(model, data, tmp_path, epochs=6, callbacks=[StopOnNMI(patience=2), best])
    assert trainer.current_epoch == 6
    assert torch.load(tmp_path / "kept/best.ckpt", weights_only=True)["epoch"] == 5


@pytest.mark.parametrize(
    ("options", "batches", "steps"),
    [({}, 10, 10), ({"limit_train_batches": 3}, 3, 3), ({"limit_train_batches": 0.5}, 5, 5),
     ({"accumulate_grad_batches": 4}, 10, 3), ({"limit_train_batches": 7, "accumulate_grad_batches": 2}, 7, 4)],
)  # fmt: skip
def test_what_an_epoch_is_is_asked_of_the_trainer(make_store, tmp_path, options, batches, steps):
    """The means are over the batches that ran, and the cosine ends with the steps that ran, in every epoch's row."""
    model, data = build(make_store(LENGTHS), schedule="cosine")
    logger = ResumableCSVLogger(tmp_path)
    trainer, recorder = fit(model, data, tmp_path / "all", epochs=2, logger=logger, **options)
    assert len(recorder.losses) == 2 * batches
    assert trainer.global_step == 2 * steps
    rows = [row for row in read_rows(tmp_path / "metrics.csv") if "loss_epoch" in row]
    raw = np.array(recorder.losses).reshape(2, batches) * options.get("accumulate_grad_batches", 1)
    np.testing.assert_allclose([float(row["loss_epoch"]) for row in rows], raw.mean(axis=1), rtol=1e-5)
    assert trainer.optimizers[0].param_groups[0]["lr"] == pytest.approx(0.0, abs=1e-9)


def test_the_pass_sees_every_clip_once_in_order_and_changes_nothing(make_store, tmp_path):
    store = make_store(LENGTHS)
    model, data = build(store)
    seen = []

    class Features:
        def needs_vectors(self, epoch):
            return True

        def assign(self, z, situation):
            seen.append((z.gather(), {k: v.clone() for k, v in model.state_dict().items()}, model.training))
            return EpochLabels(np.zeros((len(store), 1), np.int64), [1], situation.epoch, {"nmi": 0.0})

    model.source = Features()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    fit(model, data, tmp_path, epochs=1)
    features, after, training = seen[0]
    assert training
    assert all(torch.equal(before[key], after[key]) for key in before)
    from decar.models.embed import embed_clips

    fresh, _ = build(store)
    fresh.eval()
    with torch.no_grad():
        expected = [embed_clips(fresh, [store[i]], fresh.encoder, 1) for i in range(len(store))]
    torch.testing.assert_close(torch.from_numpy(features), torch.cat(expected))


def test_checkpoints_hold_plain_values_only(make_store, tmp_path):
    model, data = build(make_store(LENGTHS))
    fit(model, data, tmp_path, epochs=1)
    checkpoint = torch.load(next(tmp_path.glob("*.ckpt")), weights_only=True)
    assert checkpoint["PretrainData"]["labels"].dtype == torch.int32


class TestPretrainData:
    def test_an_epoch_is_whole_batches_and_at_least_one(self, make_store):
        for n, draws, steps in ((100, 1.0, 12), (100, 2.5, 31), (3, 1.0, 1)):
            assert PretrainData(make_store([40] * n), batch_size=8, draws_per_clip=draws).steps_per_epoch == steps

    def test_crops_are_fresh_each_epoch_and_repeatable(self, make_store):
        data = PretrainData(make_store([200] * 16), batch_size=8, crop_frames=50)
        data.set_labels(EpochLabels(np.zeros((16, 1), np.int64), [1], 0))
        loader = data.train_dataloader()
        first = torch.cat([x for x, *_ in loader])
        again = torch.cat([x for x, *_ in data.train_dataloader()])
        assert torch.equal(first, again)
        data.current_epoch = lambda: 1
        assert not torch.equal(first, torch.cat([x for x, *_ in loader]))

    def test_a_crop_is_a_stretch_of_its_clip(self, make_store):
        store = make_store([200, 30])
        data = PretrainData(store, batch_size=4, crop_frames=50)
        data.set_labels(EpochLabels(np.array([[0], [1]]), [2], 0))
        for batch in data.train_dataloader():
            x, index = data.on_after_batch_transfer(batch, 0)
            assert batch[0].dtype == torch.float16, "half the bytes go to the device"
            for crop, i in zip(x[:, 0].numpy(), index.tolist(), strict=True):
                clip = store[i].astype(np.float32).T
                windows = range(max(1, clip.shape[1] - 49))
                assert any(np.array_equal(crop[:, : clip.shape[1]], clip[:, s : s + 50]) for s in windows)
                assert (crop[:, clip.shape[1] :] == np.float32(math.log(1e-5))).all()

    def test_two_workers_and_pinned_memory_where_a_gpu_trains(self, make_store, monkeypatch):
        made = {}
        monkeypatch.setattr("decar.pretrain.datamodule.DataLoader", lambda *a, **options: made.update(options))
        for given, gpu, expected in (
            ({}, True, (2, True, True, 300)),
            ({}, False, (0, False, False, 0)),
            ({"num_workers": 0, "pin_memory": False}, True, (0, False, False, 0)),
            ({"num_workers": 3, "persistent_workers": False}, False, (3, False, False, 300)),
        ):
            data = PretrainData(make_store([40] * 4), **given)
            monkeypatch.setattr(data, "on_gpu", lambda gpu=gpu: gpu)
            data.train_dataloader()
            names = ("num_workers", "pin_memory", "persistent_workers", "timeout")
            assert tuple(made[name] for name in names) == expected
        assert not PretrainData(make_store([40] * 4)).on_gpu()
        data.trainer = SimpleNamespace(strategy=SimpleNamespace(root_device=torch.device("cuda", 1)))
        assert PretrainData.on_gpu(data)

    def test_whole_clips_are_padded_with_silence_and_long_ones_cut(self, make_store):
        lengths = [30, 200, 400, 30]
        store = make_store(lengths)
        data = PretrainData(store, batch_size=4, draws_per_clip=3, crop_frames=None, min_frames=98, max_frames=300)
        data.set_labels(EpochLabels(np.arange(4)[:, None], [4], 0))
        cuts = set()
        for batch in data.train_dataloader():
            x, index = data.on_after_batch_transfer(batch, 0)
            assert x.shape == (4, 1, 64, 300)
            for row, i in zip(x[:, 0].numpy(), index.tolist(), strict=True):
                clip = store[i].astype(np.float32).T
                starts = range(max(1, lengths[i] - 299))
                [first] = [s for s in starts if np.array_equal(row[:, : lengths[i]], clip[:, s : s + 300])]
                cuts |= {first} if lengths[i] > 300 else set()
                assert (row[:, lengths[i] :] == np.float32(math.log(1e-5))).all()
        assert len(cuts) > 1, "pieces of the long clip are drawn"
        short = PretrainData(make_store([30, 40]), batch_size=2, crop_frames=None)
        assert short.crop_frames == 98, "as the pass pads them"

    def test_labels_of_another_set_and_no_clips_are_refused(self, make_store):
        data = PretrainData(make_store([40] * 4))
        with pytest.raises(StoreError, match="do not fit"):
            data.set_labels(EpochLabels(np.zeros((5, 1), np.int64), [1], 0))
        with pytest.raises(StoreError, match="before there were labels"):
            data.batches(0)
        with pytest.raises(StoreError, match="no usable clip"):
            PretrainData(make_store([40] * 4).take(np.arange(0)))


def test_what_is_compiled_is_the_network_of_a_step_and_not_the_pass(make_store, tmp_path, monkeypatch):
    """A pass has batches of many lengths, each of which would be compiled."""
    calls = []

    def compile(function, *, dynamic):
        assert dynamic is False

        def compiled(crops):
            calls.append(tuple(crops.shape))
            return function(crops)

        return compiled

    monkeypatch.setattr(torch, "compile", compile)
    curves = []
    for compiled in (False, True):
        model, data = build(make_store(LENGTHS), compiled=compiled)
        _, recorder = fit(model, data, tmp_path, epochs=2)
        assert calls == compiled * len(recorder.losses) * [(8, 1, 64, 32)]
        curves.append(recorder.losses)
    assert curves[0] == curves[1]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["conv", "efficientnet_b0"])
def test_the_network_of_a_step_compiles_in_one_piece(name):
    encoder = make_encoder(name, seed=0).double().train()
    model = Projection(encoder.objective_dim, seed=0).double()
    for layer in encoder.modules():
        layer.p = 0.0  # of dropout, which draws anew
    whole = torch.compile(lambda x: model(encoder.for_objective(x)), backend="aot_eager", fullgraph=True, dynamic=False)
    x = torch.randn(4, 1, 64, 98, generator=torch.Generator().manual_seed(0)).double()
    for mine, theirs in zip(whole(x), model(encoder.for_objective(x)), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-4)
