from dataclasses import replace

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import confusion_matrix, log_loss
from sklearn.preprocessing import StandardScaler

from decar.downstream import probe
from decar.downstream.probe import fit_frozen
from decar.downstream.protocol import PaperProtocol, SearchProtocol
from decar.downstream.task import Task
from decar.errors import TaskError
from decar.models.embed import half_standardised, half_standardiser, standardiser
from tests.downstream.helpers import blob_task, make_task

PROTOCOLS = [
    PaperProtocol(lr=0.02, max_epochs=15),
    PaperProtocol(lr=0.02, max_epochs=15, refit=True),
    SearchProtocol(strengths=(0.01, 0.1, 1.0, 10.0)),
]
both = pytest.mark.parametrize("protocol", PROTOCOLS, ids=["paper", "paper, refit", "search"])


def same(a: object, b: object) -> bool:
    """Whether two outcomes are equal to the last bit."""
    return all(np.array_equal(va, vb) if k == "confusion" else va == vb for (k, va), vb in zip(vars(a).items(), vars(b).values(), strict=True))  # fmt: skip # noqa: E501


@both
def test_separable_blobs_are_told_apart(protocol: PaperProtocol | SearchProtocol) -> None:
    x, task = blob_task(noise=0.05)
    outcome = fit_frozen(x, task, replace(protocol, max_epochs=50), seed=0)
    assert outcome.test_value > 0.9
    assert outcome.confusion.shape == (3, 3)
    truth = np.bincount(task.y[task.indices("test")])
    assert (outcome.confusion.sum(1) == truth).all()
    assert np.trace(outcome.confusion) / outcome.confusion.sum() == outcome.test_value


@both
def test_same_seed_same_numbers(protocol: PaperProtocol | SearchProtocol) -> None:
    x, task = blob_task()
    before = torch.random.get_rng_state()
    assert same(fit_frozen(x, task, protocol, seed=3), fit_frozen(x, task, protocol, seed=3))
    assert torch.equal(before, torch.random.get_rng_state())


def test_paper_seed_matters() -> None:
    x, task = blob_task()
    assert not same(fit_frozen(x, task, PROTOCOLS[0], seed=3), fit_frozen(x, task, PROTOCOLS[0], seed=4))


@both
def test_test_split_takes_no_part_in_fitting_or_choosing(protocol: PaperProtocol | SearchProtocol) -> None:
    x, task = blob_task(noise=2.0)
    plain = fit_frozen(x, task, protocol, seed=0)
    test = task.indices("test")
    for scramble in range(5):
        rng = np.random.default_rng(scramble)
        y, x2 = task.y.copy(), x.copy()
        y[test] = rng.permutation(y[test])
        x2[test] = 100 * rng.normal(size=x2[test].shape)
        other = fit_frozen(x2, replace(task, y=y), protocol, seed=0)
        assert other.chosen == plain.chosen
        assert other.history == plain.history
        assert other.valid_value == plain.valid_value
    assert other.test_value != plain.test_value


@both
def test_test_split_is_read_once_and_last(
    protocol: PaperProtocol | SearchProtocol, monkeypatch: pytest.MonkeyPatch
) -> None:
    events: list[str] = []

    class Watched(Task):
        def indices(self, name: str) -> np.ndarray:
            events.append(name)
            return super().indices(name)

    for name in ("_fit_adam", "fit_search", "fit_knn"):
        fit = getattr(probe, name)
        monkeypatch.setattr(probe, name, lambda *a, fit=fit: (fit(*a), events.append("chosen"))[0])
    x, task = blob_task()
    fit_frozen(x, Watched(**vars(task)), protocol, seed=0)
    assert events == ["train", "valid", "chosen", "test"]


@both
def test_choosing_on_validation_differs_from_choosing_on_test(protocol: PaperProtocol | SearchProtocol) -> None:
    """Selection does look at validation: other validation labels, another choice."""
    x, task = blob_task(noise=2.0)
    valid, choices = task.indices("valid"), set()
    for scramble in range(12):
        y = task.y.copy()
        y[valid] = np.random.default_rng(scramble).permutation(y[valid])
        choices.add(str(fit_frozen(x, replace(task, y=y), protocol, seed=0).chosen))
    assert len(choices) > 1


def test_search_equals_a_plain_reference() -> None:
    x, task = blob_task(noise=1.5)
    protocol = SearchProtocol()
    part = {
        name: (x[task.indices(name)].astype(float), task.y[task.indices(name)]) for name in ("train", "valid", "test")
    }
    scores, losses = [], []
    for strength in protocol.strengths:
        scaler = StandardScaler().fit(part["train"][0])
        model = LogisticRegression(C=strength, max_iter=1000).fit(scaler.transform(part["train"][0]), part["train"][1])
        scores.append(model.score(scaler.transform(part["valid"][0]), part["valid"][1]))
        losses.append(log_loss(part["valid"][1], model.predict_proba(scaler.transform(part["valid"][0]))))
    best = protocol.strengths[int(np.lexsort([losses, -np.asarray(scores)])[0])]
    both_x, both_y = (np.concatenate([part["train"][i], part["valid"][i]]) for i in (0, 1))
    scaler = StandardScaler().fit(both_x)
    model = LogisticRegression(C=best, max_iter=1000).fit(scaler.transform(both_x), both_y)
    outcome = fit_frozen(x, task, protocol, seed=0)
    assert outcome.chosen == {"C": best}
    assert outcome.valid_value == max(scores)
    assert [tried["valid_loss"] for tried in outcome.history] == pytest.approx(losses, rel=1e-2)
    assert outcome.test_value == pytest.approx(model.score(scaler.transform(part["test"][0]), part["test"][1]))


def test_more_dimensions_than_clips_equals_the_fit_in_all_dimensions() -> None:
    x, task = blob_task(dim=200, noise=3.0)
    x[:, 3] = 7.0
    train = task.indices("train")
    for strength in (1e-3, 1.0, 100.0):
        prepare = probe.preparation(x[train])
        fitted = probe.fit_logistic(prepare(x[train]), task.y[train], strength, 3)
        scaler = StandardScaler().fit(x[train])
        model = LogisticRegression(C=strength, tol=1e-8, max_iter=5000).fit(scaler.transform(x[train]), task.y[train])
        assert (fitted(prepare(x)).argmax(1) == model.predict(scaler.transform(x))).all()


def test_embeddings_that_say_nothing_give_the_largest_class() -> None:
    task = make_task([0, 1, 1] * 8, ["train"] * 12 + ["valid"] * 6 + ["test"] * 6)
    outcome = fit_frozen(np.ones((24, 50), np.float32), task, SearchProtocol(), seed=0)
    assert outcome.test_value == pytest.approx(2 / 3)


def test_search_takes_the_lowest_log_loss_of_equally_good_strengths() -> None:
    x, task = blob_task(noise=1.0, seed=4)
    outcome = fit_frozen(x, task, SearchProtocol(), seed=0)
    tied = [tried for tried in outcome.history if tried["valid_value"] == outcome.valid_value]
    losses = [tried["valid_loss"] for tried in tied]
    assert 0 < np.argmin(losses) < len(tied) - 1  # else the next line says nothing
    assert outcome.chosen == {"C": tied[int(np.argmin(losses))]["C"]}


def test_search_takes_the_smallest_of_strengths_that_do_not_differ() -> None:
    task = make_task([0, 1, 1] * 8, ["train"] * 12 + ["valid"] * 6 + ["test"] * 6)
    outcome = fit_frozen(np.ones((24, 5), np.float32), task, SearchProtocol(strengths=(100.0, 1.0, 10.0)), seed=0)
    assert outcome.chosen == {"C": 1.0}


def test_log_loss_of_a_class_that_was_not_learned_is_large_and_finite() -> None:
    x, y = np.eye(3)[[0, 1] * 4], np.array([0, 2] * 4)
    given = probe.fit_logistic(x, y, 1.0, 3)(x)
    assert probe.loss_of(given, y) == pytest.approx(log_loss(y, given[:, [0, 2]]))
    assert probe.loss_of(given, np.ones_like(y)) == pytest.approx(-np.log(np.finfo(float).eps))


def test_paper_takes_the_first_best_epoch_and_raw_embeddings() -> None:
    x, task = blob_task(noise=0.5)
    outcome = fit_frozen(x, task, PaperProtocol(max_epochs=30, lr=0.01), seed=0)
    scores = [entry["valid_value"] for entry in outcome.history]
    assert len(scores) == 30
    assert outcome.chosen["epoch"] == scores.index(max(scores))
    assert outcome.valid_value == max(scores)
    cut = fit_frozen(x, task, PaperProtocol(max_epochs=int(outcome.chosen["epoch"]) + 1, lr=0.01), seed=0)
    assert np.array_equal(cut.confusion, outcome.confusion)  # the weights are those of that epoch
    tiny = fit_frozen(1e-4 * x, task, PaperProtocol(max_epochs=30, lr=0.01), seed=0)
    assert tiny.valid_value < outcome.valid_value  # nobody standardised them


def test_refit_is_the_probe_of_train_and_validation_for_the_chosen_epochs() -> None:
    """The slow form: one loop over both splits, for as many epochs as validation chose."""
    x, task = blob_task(noise=1.5)
    protocol = PaperProtocol(max_epochs=30, lr=0.01, batch_size=16)
    plain = fit_frozen(x, task, protocol, seed=3)
    again = fit_frozen(x, task, replace(protocol, refit=True), seed=3)
    assert (again.chosen, again.valid_value, again.history) == (plain.chosen, plain.valid_value, plain.history)
    rows = np.concatenate([task.indices("train"), task.indices("valid")])
    torch.manual_seed(3)
    layer = torch.nn.Linear(x.shape[1], 3)
    adam = torch.optim.Adam(layer.parameters(), lr=0.01)
    for epoch in range(int(plain.chosen["epoch"]) + 1):
        order = np.random.default_rng([3, epoch]).permutation(len(rows))
        for start in range(0, len(rows), 16):
            batch = rows[order[start : start + 16]]
            loss = torch.nn.functional.cross_entropy(layer(torch.from_numpy(x[batch])), torch.from_numpy(task.y[batch]))
            adam.zero_grad()
            loss.backward()
            adam.step()
    test = task.indices("test")
    answers = layer(torch.from_numpy(x[test])).argmax(1).numpy()
    assert (again.confusion == confusion_matrix(task.y[test], answers)).all()
    assert (again.confusion != plain.confusion).any(), "else the refit says nothing here"
    few = replace(task, spec=replace(task.spec, shots=5))
    assert same(fit_frozen(x, few, replace(protocol, refit=True), seed=3), fit_frozen(x, few, protocol, seed=3))


def test_search_does_not_mind_scale_shift_or_dead_columns() -> None:
    x, task = blob_task(noise=1.5)
    dead = np.full((len(x), 1), 1.1, np.float32)
    dead[task.indices("test")] = 1e6  # a unit that wakes up on test clips must not decide
    plain = fit_frozen(x, task, SearchProtocol(), seed=0)
    moved = fit_frozen(np.hstack([1e-3 * x + 5e-3, dead]), task, SearchProtocol(), seed=0)
    assert moved.chosen == plain.chosen
    assert np.array_equal(moved.confusion, plain.confusion)


def test_standardiser() -> None:
    x = np.random.default_rng(0).normal(3, 4, (50, 5)).astype(np.float32)
    x[:, 2] = 0.1
    mean, scale = standardiser([x])
    z = (x - mean) * scale
    assert np.allclose(z.mean(0), 0, atol=1e-6)
    assert np.allclose(z.std(0), [1, 1, 0, 1, 1])
    assert scale[2] == 0
    np.testing.assert_allclose(standardiser([x[:7], x[7:30], x[30:]]), (mean, scale), rtol=1e-12, atol=1e-12)


def test_half_standardised_a_small_column_counts_little() -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(3, 1, (200, 3)).astype(np.float32) * np.array([4, 1, 0.01], np.float32)
    mean, factor = half_standardiser([x[:50], x[50:]])
    variance = x.astype(np.float64).var(axis=0)
    np.testing.assert_allclose(factor, 1 / np.sqrt(variance + variance.mean()), rtol=1e-6)
    z = ((x - mean) * factor).std(axis=0)
    assert z[0] > 0.8 > z[1] > 0.3
    assert z[2] < 0.01
    rows = half_standardised(x)
    np.testing.assert_allclose(np.linalg.norm(rows, axis=1), 1, rtol=1e-5)
    np.testing.assert_allclose(half_standardised(1000 * x), rows, atol=1e-4)  # whatever the unit
    assert not half_standardised(np.ones((3, 4), np.float32)).any()


def test_classes_without_training_clips_or_test_clips_do_not_hurt() -> None:
    task = make_task([0, 1, 2] * 4, ["train"] * 6 + ["valid"] * 3 + ["test"] * 3)
    task = replace(task, y=np.where(task.split == "train", task.y % 2, task.y))
    x = np.eye(3, dtype=np.float32)[[0, 1, 2] * 4]
    for protocol in PROTOCOLS:
        assert fit_frozen(x, task, protocol, seed=0).confusion.shape == (3, 3)


def test_bad_embeddings_are_refused() -> None:
    x, task = blob_task()
    x[7, 2] = np.nan
    with pytest.raises(TaskError, match=r"1 embeddings are not finite, first: clip7\.wav"):
        fit_frozen(x, task, SearchProtocol(), seed=0)
    with pytest.raises(TaskError, match="89 embeddings for 90 clips"):
        fit_frozen(x[:-1], task, SearchProtocol(), seed=0)


def test_a_linear_layer_that_diverges_is_no_result() -> None:
    """The largest of NaNs is the first class: the score was the share of that class."""
    x, task = blob_task()
    with pytest.raises(TaskError, match="diverged"):
        fit_frozen(x * np.float32(1e30), task, PaperProtocol(lr=1e30, max_epochs=2), 0)
