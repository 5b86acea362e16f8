import logging

import numpy as np
import pytest

from decar.clustering.stats import effective_rank
from decar.errors import ConfigError
from decar.models import encode_store
from decar.pretrain import EmbeddingHealth
from decar.pretrain.health import nearest_neighbour_accuracy
from tests.pretrain.helpers import build, fit

LENGTHS = [20, 40, 33, 64] * 10


def test_nearest_neighbours_in_loops():
    rng = np.random.default_rng(0)
    vectors, labels = rng.normal(size=(40, 5)).astype(np.float32) * [1, 10, 100, 0, 1], rng.integers(3, size=40)
    scaled = (vectors - vectors.mean(0)) / np.where(vectors.std(0) > 0, vectors.std(0), np.inf)
    hits = 0
    for i in range(40):
        cosine = [a @ scaled[i] / np.linalg.norm(a) if j != i else -9 for j, a in enumerate(scaled)]
        hits += labels[int(np.argmax(cosine))] == labels[i]
    assert nearest_neighbour_accuracy(vectors.astype(np.float32), labels) == pytest.approx(hits / 40)


def test_one_clip_has_no_neighbour():
    assert nearest_neighbour_accuracy(np.ones((1, 3), np.float32), np.zeros(1, np.int64)) == 0.0


def labelled(make_store):
    store = make_store(LENGTHS)
    store.manifest.table["sort"] = [f"kind{i % 4}" if i < 30 else None for i in range(len(LENGTHS))]
    return store


def test_the_embedding_is_measured_before_and_after_and_training_is_not_touched(make_store, tmp_path):
    store = labelled(make_store)
    health = EmbeddingHealth("sort")
    model, data = build(store)
    known = store.take(np.arange(30))
    vectors = encode_store(model.encoder, known, progress=False)
    _, recorder = fit(model, data, tmp_path / "with", epochs=2, callbacks=[health])
    assert health.start["embedding_rank"] == pytest.approx(effective_rank(vectors))
    expected = nearest_neighbour_accuracy(vectors, np.arange(30) % 4)
    assert health.start["probe_accuracy"] == pytest.approx(expected)
    after = nearest_neighbour_accuracy(encode_store(model.encoder, known, progress=False), np.arange(30) % 4)
    assert model.trainer.callback_metrics["probe_accuracy"] == pytest.approx(after)
    model, data = build(labelled(make_store))
    _, without = fit(model, data, tmp_path / "without", epochs=2)
    assert recorder.losses == without.losses


def test_one_warning_when_it_gets_worse(make_store, tmp_path, caplog, monkeypatch):
    health = EmbeddingHealth("sort", max_clips=100)
    values = iter([0.8, 0.79, 0.5, 0.4])
    monkeypatch.setattr(health, "measure", lambda *_: {"probe_accuracy": next(values)})
    model, data = build(labelled(make_store))
    with caplog.at_level(logging.WARNING):
        fit(model, data, tmp_path, epochs=3, callbacks=[health])
    worse = [r.getMessage() for r in caplog.records if "worse than before" in r.getMessage()]
    assert len(worse) == 1
    assert "0.500, untrained 0.800" in worse[0]


def test_a_resumed_run_compares_with_the_untrained_embedding(make_store, tmp_path):
    health = EmbeddingHealth("sort")
    model, data = build(labelled(make_store))
    fit(model, data, tmp_path / "a", epochs=1, callbacks=[health])
    again = EmbeddingHealth("sort")
    model, data = build(labelled(make_store))
    checkpoint = next((tmp_path / "a").glob("*.ckpt"))
    fit(model, data, tmp_path / "b", epochs=2, callbacks=[again], ckpt_path=checkpoint)
    assert again.start == health.start


def test_without_labels_only_the_rank_and_a_missing_column_is_named(make_store, tmp_path):
    model, data = build(make_store(LENGTHS))
    health = EmbeddingHealth()
    fit(model, data, tmp_path / "a", epochs=1, callbacks=[health])
    assert set(health.start) == {"embedding_rank"}
    model, data = build(make_store(LENGTHS))
    with pytest.raises(ConfigError, match=r"data\.label=animal: no such column; there are path"):
        fit(model, data, tmp_path / "b", epochs=1, callbacks=[EmbeddingHealth("animal")])
