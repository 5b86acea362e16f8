"""Clips with several labels: loading, both probes, fine-tuning."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from sklearn.linear_model import LogisticRegression

from decar.downstream import PaperProtocol, SearchProtocol, TaskSpec, fit_frozen, load_task, probe
from decar.downstream.finetune import fit_finetune
from tests.downstream.helpers import TinyEncoder


@pytest.fixture
def task(tmp_path):
    labels = ["Bark,Dog", "Rain", "Dog,Rain", "Dog"] * 12
    split = [["train", "train", "valid", "test"][i // 4 % 4] for i in range(48)]
    table = pd.DataFrame({"path": [f"{i}.wav" for i in range(48)], "labels": labels, "split": split})
    table.to_csv(tmp_path / "t.csv", index=False)
    return load_task(TaskSpec("several", "labels", str(tmp_path / "t.csv"), multilabel=True))


def many_labels(tmp_path, n=300):
    """Clips with one to five of forty labels, of ten sites: next to no two clips have the same set of labels."""
    rng = np.random.default_rng(0)
    names = np.array([f"l{i:02}" for i in range(40)])
    labels = [",".join(rng.choice(names, rng.integers(1, 6), replace=False)) for _ in range(n)]
    table = pd.DataFrame({"path": [f"{i:03}.wav" for i in range(n)], "labels": labels, "site": np.arange(n) % 10})
    table.to_csv(tmp_path / "many.csv", index=False)
    return TaskSpec("many", "labels", str(tmp_path / "many.csv"), split=None, multilabel=True)


def test_a_split_is_drawn_by_labels_not_by_their_sets(tmp_path):
    """Nothing is drawn of what is there once: of 300 clips 17 were for test and 5 for validation."""
    drawn = load_task(replace(many_labels(tmp_path), group=None))
    parts = {name: drawn.y[drawn.indices(name)] for name in ("train", "valid", "test")}
    for name, share in (("train", 0.7), ("valid", 0.1), ("test", 0.2)):
        shares = parts[name].sum(axis=0) / drawn.y.sum(axis=0)
        assert np.median(shares) == pytest.approx(share, abs=0.08)
        assert (shares > 0).mean() > 0.9
    again = load_task(replace(many_labels(tmp_path), group=None))
    assert again.hash() == drawn.hash()


def test_sites_are_kept_apart_though_sets_of_labels_are_rare(tmp_path, caplog):
    """Of each set there were too few sites: `auto` left the column out, with a warning."""
    drawn = load_task(many_labels(tmp_path))
    sites = {name: set(drawn.manifest.table["site"].to_numpy()[drawn.indices(name)]) for name in drawn.counts()}
    assert sum(map(len, sites.values())) == 10
    assert min(map(len, sites.values())) > 0
    assert "not kept apart" not in caplog.text


def embeddings(task, noise=0.5):
    rng = np.random.default_rng(0)
    return (task.y @ rng.normal(size=(3, 10)) + noise * rng.normal(size=(len(task), 10))).astype(np.float32)


def test_labels_become_columns(task):
    assert task.classes == ["Bark", "Dog", "Rain"]
    assert task.y[:4].tolist() == [[True, True, False], [False, False, True], [False, True, True], [False, True, False]]
    assert [task.label(i) for i in range(3)] == ["Bark,Dog", "Rain", "Dog,Rain"]


@pytest.mark.parametrize("strength", [0.01, 1.0, 30.0])
def test_all_labels_at_once_equal_one_regression_each(task, strength):
    x = embeddings(task, noise=1.5).astype(np.float64)
    given = probe.fit_logistic(x, task.y, strength, 3)(x)
    for c in range(3):
        one = LogisticRegression(C=strength, tol=1e-8, max_iter=10_000).fit(x, task.y[:, c])
        np.testing.assert_allclose(given[:, c], one.predict_proba(x)[:, 1], atol=2e-4)


@pytest.mark.parametrize("protocol", [SearchProtocol(), PaperProtocol(lr=0.05)])
def test_frozen_is_judged_by_map(task, protocol):
    outcome = fit_frozen(embeddings(task), task, protocol, seed=0)
    assert outcome.metric == "mAP"
    assert outcome.test_value > 0.9
    noise = np.random.default_rng(1).normal(size=(len(task), 10)).astype(np.float32)
    assert fit_frozen(noise, task, protocol, seed=0).test_value < 0.8


def test_fine_tuning_learns_labels_from_sound(task, make_store):
    store = make_store([98] * 48, n_kinds=4)  # clip i is of kind i % 4, as are its labels
    outcome = fit_finetune(TinyEncoder(), task, store, PaperProtocol(lr=0.02, max_epochs=8, batch_size=16), seed=0)
    assert outcome.metric == "mAP"
    assert outcome.test_value > 0.9
    assert outcome.confusion.shape == (0, 0)


def test_log_loss_of_labels(task):
    given = np.random.default_rng(0).uniform(0.1, 0.9, (48, 3))
    slow = [-np.log(p if t else 1 - p) for p, t in zip(given.ravel(), task.y.ravel(), strict=True)]
    assert probe.loss_of(given, task.y) == pytest.approx(np.mean(slow))
