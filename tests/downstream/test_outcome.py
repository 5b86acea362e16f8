"""The measures are scikit-learn's, over the classes that there are."""

import numpy as np
import pytest
from sklearn import metrics as sk

from decar.downstream.protocol import measure, score


@pytest.mark.parametrize("seed", range(5))
def test_measures_of_one_class_a_clip(seed):
    rng = np.random.default_rng(seed)
    truth = rng.integers(0, 4, 50)  # of five: one has no clip
    scores = rng.normal(size=(50, 5)) + 2 * np.eye(5)[truth]
    found, confusion = measure(scores, truth)
    said, labels = scores.argmax(1), np.unique(truth)
    assert list(found) == ["accuracy", "balanced_accuracy", "macro_f1"]
    assert found["accuracy"] == score(scores, truth) == pytest.approx(sk.accuracy_score(truth, said))
    recalls = sk.recall_score(truth, said, labels=labels, average=None)
    assert found["balanced_accuracy"] == pytest.approx(np.mean(recalls))
    assert found["macro_f1"] == pytest.approx(sk.f1_score(truth, said, labels=labels, average="macro"))
    np.testing.assert_array_equal(confusion, sk.confusion_matrix(truth, said, labels=range(5)))


def test_mean_average_precision_by_hand():
    truth = np.array([[1, 0, 0], [0, 1, 0], [1, 1, 0]], bool)  # the third label is nowhere: it does not count
    scores = np.array([[0.9, 0.8, 0.1], [0.8, 0.3, 0.1], [0.1, 0.5, 0.1]])
    # label 0: right at ranks 1 and 3: (1/1 + 2/3) / 2; label 1: at ranks 2 and 3: (1/2 + 2/3) / 2
    expected = ((1 + 2 / 3) / 2 + (1 / 2 + 2 / 3) / 2) / 2
    found, confusion = measure(scores, truth)
    assert found == {"mAP": pytest.approx(expected)}
    assert score(scores, truth) == pytest.approx(expected)
    assert confusion.shape == (0, 0)
