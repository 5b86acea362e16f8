"""Neighbours against the plainest way to find them."""

import numpy as np
import pytest

from decar.downstream import KnnProtocol, fit_frozen
from decar.downstream.probe import neighbours
from decar.errors import ConfigError
from tests.downstream.helpers import blob_task


def slow(x, y, z, k, n_classes):
    mean, variance = x.mean(0), x.var(0)
    x, z = ((rows - mean) / np.sqrt(variance + variance.mean()) for rows in (x, z))
    votes = np.zeros((len(z), n_classes))
    for i, clip in enumerate(z):
        cosines = [float(clip @ other) / np.linalg.norm(clip) / np.linalg.norm(other) for other in x]
        for j in sorted(range(len(x)), key=lambda j: -cosines[j])[:k]:
            votes[i, y[j]] += (1 + cosines[j]) / 2 / k
    return votes


@pytest.mark.parametrize("k", [1, 4, 100])
def test_votes_equal_the_loop(k):
    rng = np.random.default_rng(k)
    x, y, z = rng.normal(2, 3, (40, 5)), rng.integers(0, 3, 40), rng.normal(2, 3, (7, 5))
    np.testing.assert_allclose(neighbours(x, y, k, 3)(z), slow(x, y, z, min(k, 40), 3), atol=1e-9)


def test_several_labels_vote_each_for_itself():
    x = np.array([[1.0, 0], [0.9, 0.1], [-1, 0]])
    y = np.array([[1, 1], [1, 0], [0, 1]], bool)
    first, second = neighbours(x, y, 2, 2)(np.array([[1.0, 0.05]]))[0]
    assert first > second > 0


def test_validation_chooses_the_number_and_then_votes_too():
    x, task = blob_task(noise=1.2, per_class=60)
    outcome = fit_frozen(x, task, KnnProtocol((1, 5, 25)), seed=0)
    values = {tried["neighbors"]: tried["valid_value"] for tried in outcome.history}
    assert values[outcome.chosen["neighbors"]] == max(values.values())
    learn = np.flatnonzero(task.split != "test")
    votes = neighbours(x[learn], task.y[learn], outcome.chosen["neighbors"], 3)(x[task.indices("test")])
    assert outcome.test_value == np.mean(votes.argmax(1) == task.y[task.indices("test")])
    assert outcome.test_value > 0.5


@pytest.mark.parametrize("wrong", [[], [0], [1.5], 3, ["a"]])
def test_numbers_that_are_none_are_refused(wrong):
    with pytest.raises(ConfigError, match=r"protocol\.neighbors"):
        KnnProtocol(wrong)
