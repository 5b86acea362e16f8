import logging

import numpy as np
import pytest

from decar.clustering.stats import effective_rank
from decar.errors import ConfigError, TrainingError
from decar.models import embed_store
from decar.pretrain import EmbeddingHealth, EpochLabels
from decar.pretrain.health import is_worse, nearest_neighbour_accuracy
from tests.pretrain.helpers import build, fit

LENGTHS = [20, 40, 33, 64] * 10


def test_nearest_neighbours_in_loops():
    rng = np.random.default_rng(0)
    vectors, labels = rng.normal(size=(40, 5)).astype(np.float32) * [1, 10, 100, 0, 1], rng.integers(3, size=40)
    variance = vectors.var(0)
    scaled = (vectors - vectors.mean(0)) / np.sqrt(variance + variance.mean())
    hits = 0
    for i in range(40):
        cosine = [a @ scaled[i] / np.linalg.norm(a) if j != i else -9 for j, a in enumerate(scaled)]
        hits += labels[int(np.argmax(cosine))] == labels[i]
    assert nearest_neighbour_accuracy(vectors.astype(np.float32), labels) == pytest.approx(hits / 40)


def test_one_clip_has_no_neighbour():
    assert nearest_neighbour_accuracy(np.ones((1, 3), np.float32), np.zeros(1, np.int64)) == 0.0


def test_neighbours_of_the_same_file_do_not_count():
    """Segments of a recording are near each other whatever the label says of it."""
    rng = np.random.default_rng(0)
    files = np.repeat(np.arange(30), 4)
    labels = rng.integers(4, size=30)[files]
    vectors = (rng.normal(size=(30, 8))[files] + 0.01 * rng.normal(size=(120, 8))).astype(np.float32)
    scaled = (vectors - vectors.mean(0)) / np.sqrt(vectors.var(0) + vectors.var(0).mean())
    unit = scaled / np.linalg.norm(scaled, axis=1, keepdims=True)
    hits = [labels[max((j for j in range(120) if files[j] != files[i]), key=lambda j, a=a: a @ unit[j])] == labels[i]
            for i, a in enumerate(unit)]  # fmt: skip
    assert nearest_neighbour_accuracy(vectors, labels, files) == pytest.approx(np.mean(hits))
    assert np.mean(hits) < 0.5, "by chance"
    assert nearest_neighbour_accuracy(vectors, labels) == 1.0
    apart = nearest_neighbour_accuracy(vectors[::4], labels[::4], files[::4])
    assert apart == nearest_neighbour_accuracy(vectors[::4], labels[::4]), "to the bit, where each file has one clip"


def test_segments_are_probed_across_recordings_and_not_where_no_label_is_in_two(make_store, tmp_path):
    store = make_store(LENGTHS)
    table = store.manifest.table
    table["path"] = [f"recording{i // 4}.wav" for i in range(len(LENGTHS))]
    table["start"] = [float(i % 4) for i in range(len(LENGTHS))]
    table["sort"] = [f"kind{i // 4 % 2}" for i in range(len(LENGTHS))]
    model, data = build(store)
    vectors = embed_store(model.encoder, store, progress=False)
    health = EmbeddingHealth("sort")
    fit(model, data, tmp_path / "a", epochs=1, callbacks=[health])
    files = np.arange(len(LENGTHS)) // 4
    expected = nearest_neighbour_accuracy(vectors, files % 2, files)
    assert health.start["probe_accuracy"] == pytest.approx(expected)
    table["sort"] = table["path"]
    alone = EmbeddingHealth("sort")
    model, data = build(store)
    fit(model, data, tmp_path / "b", epochs=1, callbacks=[alone])
    assert set(alone.start) == {"embedding_rank"}


def labelled(make_store):
    store = make_store(LENGTHS)
    store.manifest.table["sort"] = [f"kind{i % 4}" if i < 30 else None for i in range(len(LENGTHS))]
    return store


def test_the_embedding_is_measured_before_and_after_and_training_is_not_touched(make_store, tmp_path):
    store = labelled(make_store)
    health = EmbeddingHealth("sort")
    model, data = build(store)
    vectors = embed_store(model.encoder, store, progress=False)
    _, recorder = fit(model, data, tmp_path / "with", epochs=2, callbacks=[health])
    assert health.start["embedding_rank"] == pytest.approx(effective_rank(vectors))
    expected = nearest_neighbour_accuracy(vectors[:30], np.arange(30) % 4)
    assert health.start["probe_accuracy"] == pytest.approx(expected)
    after = nearest_neighbour_accuracy(embed_store(model.encoder, store, progress=False)[:30], np.arange(30) % 4)
    assert model.trainer.callback_metrics["probe_accuracy"] == pytest.approx(after)
    model, data = build(labelled(make_store))
    _, without = fit(model, data, tmp_path / "without", epochs=2)
    assert recorder.losses == without.losses


def test_one_warning_when_it_gets_worse(make_store, tmp_path, caplog, monkeypatch):
    health = EmbeddingHealth("sort", max_clips=100)
    values = iter([0.8, 0.79, 0.5, 0.4])
    monkeypatch.setattr(health, "measure", lambda *_: {"probe_accuracy": next(values)})
    health.probed = 100
    model, data = build(labelled(make_store))
    with caplog.at_level(logging.WARNING):
        fit(model, data, tmp_path, epochs=3, callbacks=[health])
    worse = [r.getMessage() for r in caplog.records if "worse than before" in r.getMessage()]
    assert len(worse) == 1
    assert "0.500, untrained 0.800" in worse[0]


def test_an_empty_cell_is_no_label(make_store, tmp_path):
    """As a table with `""` where `labelled` has None: the same figures, over 30 clips of 40."""
    found = []
    for empty in (None, "", float("nan")):
        store = make_store(LENGTHS)
        store.manifest.table["sort"] = [f"kind{i % 4}" if i < 30 else empty for i in range(len(LENGTHS))]
        health = EmbeddingHealth("sort")
        model, data = build(store)
        fit(model, data, tmp_path / str(empty), epochs=1, callbacks=[health])
        assert health.probed == 30
        found.append(health.start)
    assert found[0] == found[1] == found[2]


@pytest.mark.parametrize("labels", [[""] * 40, ["a"] * 40, ["a"] + [""] * 39])
def test_fewer_than_two_classes_are_not_probed(make_store, tmp_path, labels):
    store = make_store(LENGTHS)
    store.manifest.table["sort"] = labels
    health = EmbeddingHealth("sort", max_clips=20)
    model, data = build(store)
    trainer, _ = fit(model, data, tmp_path, epochs=1, callbacks=[health])
    assert set(health.start) == {"embedding_rank"}
    assert "probe_accuracy" not in trainer.callback_metrics
    assert health.start["embedding_rank"] > 1


def test_worse_is_two_standard_errors_over_the_clips_that_were_seen():
    rng = np.random.default_rng(0)
    for n in (20, 1000):
        a, b = rng.binomial(n, 0.6, (2, 20_000)) / n
        alarms = np.mean([is_worse(x, y, n) for x, y in zip(a, b, strict=True)])
        assert alarms == pytest.approx(0.023, abs=0.012), "nothing has changed: one in forty by chance"
    assert not is_worse(0.5, 0.6, 20)
    assert is_worse(0.5, 0.6, 1000)
    assert not is_worse(0.0, 1.0, 0)


def test_a_single_collapsed_clustering_of_many_is_noticed(make_store, tmp_path, caplog):
    model, data = build(make_store(LENGTHS))

    class Collapsed:
        def needs_vectors(self, epoch):
            return False

        def assign(self, z, situation):
            rows = np.arange(len(data.store))
            return EpochLabels(np.stack([rows % 4, rows % 3, rows == 0], axis=1).astype(np.int64), [4, 3, 2], 0)

    model.source = Collapsed()
    with caplog.at_level(logging.WARNING):
        fit(model, data, tmp_path, epochs=1, callbacks=[EmbeddingHealth()])
    assert "collapse: most clips are in one cluster (entropy 0.17 of 1)" in caplog.text


def test_a_resumed_run_compares_with_the_untrained_embedding(make_store, tmp_path):
    health = EmbeddingHealth("sort")
    model, data = build(labelled(make_store))
    fit(model, data, tmp_path / "a", epochs=1, callbacks=[health])
    again = EmbeddingHealth("sort")
    model, data = build(labelled(make_store))
    checkpoint = next((tmp_path / "a").glob("*.ckpt"))
    fit(model, data, tmp_path / "b", epochs=2, callbacks=[again], ckpt_path=checkpoint)
    assert again.start == health.start


def resumed(make_store, tmp_path, health, *, begun=(), epochs=2, sort=None):
    """A run of one epoch with the callbacks `begun`, gone on with `health`, its labels replaced by `sort`."""
    model, data = build(labelled(make_store))
    fit(model, data, tmp_path / "a", epochs=1, callbacks=begun)
    store = labelled(make_store)
    store.manifest.table["place"] = [f"place{i % 3}" for i in range(len(LENGTHS))]
    if sort is not None:
        store.manifest.table["sort"] = sort
    model, data = build(store)
    checkpoint = next((tmp_path / "a").glob("*.ckpt"))
    return fit(model, data, tmp_path / "b", epochs=epochs, callbacks=[health], ckpt_path=checkpoint)[0]


def test_a_resumed_run_is_not_compared_with_the_figure_of_another_column(make_store, tmp_path, caplog):
    health = EmbeddingHealth("place")
    resumed(make_store, tmp_path, health, begun=[EmbeddingHealth("sort")])
    assert "probe_accuracy" not in health.start
    assert "embedding_rank" in health.start
    assert "data.label=place: earlier figures of this run are of other clips or labels" in caplog.text
    caplog.clear()
    again = EmbeddingHealth("sort")
    resumed(make_store, tmp_path / "again", again, begun=[EmbeddingHealth("sort")], sort=["a", "b"] * 20)
    assert "probe_accuracy" not in again.start
    assert "of other clips or labels" in caplog.text


def test_what_is_first_watched_after_a_resume_knows_nothing_of_the_untrained_embedding(make_store, tmp_path):
    health = EmbeddingHealth("sort")
    trainer = resumed(make_store, tmp_path, health)
    assert health.start == {}
    assert "probe_accuracy" in trainer.callback_metrics


def test_a_complete_run_does_not_pass_its_figure_off_as_that_of_another_column(make_store, tmp_path):
    with pytest.raises(TrainingError, match=r"data\.label=place: this run is complete, with figures of label sort"):
        resumed(make_store, tmp_path, EmbeddingHealth("place"), begun=[EmbeddingHealth("sort")], epochs=1)
    same = EmbeddingHealth("sort")
    resumed(make_store, tmp_path / "again", same, begun=[EmbeddingHealth("sort")], epochs=1)
    assert "probe_accuracy" in same.start


def test_without_labels_only_the_rank_and_a_missing_column_is_named(make_store, tmp_path):
    model, data = build(make_store(LENGTHS))
    health = EmbeddingHealth()
    fit(model, data, tmp_path / "a", epochs=1, callbacks=[health])
    assert set(health.start) == {"embedding_rank"}
    model, data = build(make_store(LENGTHS))
    with pytest.raises(ConfigError, match=r"data\.label=animal: no such column; there are path"):
        fit(model, data, tmp_path / "b", epochs=1, callbacks=[EmbeddingHealth("animal")])
