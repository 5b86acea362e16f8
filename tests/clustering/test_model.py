"""Clusters that are kept: placed again as they were, refused when damaged, new where sounds are new."""

import json
import sys
import tracemalloc

import numpy as np
import pytest

from decar.clustering import Clusters, make_clusters, nmi
from decar.clustering.choose import NEARLY, choose_k, plausible, silhouette, smallest_nearly_best
from decar.clustering.kmeans import KMeans
from decar.clustering.model import NOISE
from decar.digests import seal_zip
from decar.errors import ClusteringError

KINDS = 6


def sounds(n=600, dim=24, seed=0, kinds=KINDS):
    """Vectors of `kinds` kinds, and which kind each is."""
    rng = np.random.default_rng(seed)
    centres = 3 * np.random.default_rng(7).normal(size=(KINDS, dim))
    kind = rng.integers(kinds, size=n)
    return (centres[kind] + rng.normal(size=(n, dim))).astype(np.float32), kind


@pytest.mark.parametrize("method", ["kmeans", "pic", "hdbscan"])
def test_the_same_clips_get_the_same_clusters(method, tmp_path):
    vectors, kind = sounds()
    made, placed = make_clusters(vectors, np.arange(len(vectors)), method=method, facts={"bundle": "small"})
    assert nmi(placed.labels[placed.labels >= 0], kind[placed.labels >= 0]) > 0.6
    made.save(tmp_path / "clusters.npz")
    again = Clusters.load(tmp_path / "clusters.npz")
    assert (again.method, again.facts, again.scale) == (method, {"bundle": "small"}, made.scale)
    found = again.place(vectors)
    np.testing.assert_array_equal(found.labels, placed.labels)
    np.testing.assert_array_equal(found.distance, placed.distance)
    others, other_kind = sounds(seed=1)
    labels = again.place(others).labels
    assert nmi(labels[labels >= 0], other_kind[labels >= 0]) > 0.6


@pytest.mark.parametrize("method", ["kmeans", "pic", "hdbscan"])
def test_labels_distance_and_order_follow_their_definitions(method):
    vectors, _ = sounds()
    made, placed = make_clusters(vectors, np.arange(len(vectors)), method=method)
    sizes = np.bincount(placed.labels[placed.labels >= 0])
    assert (np.diff(sizes) <= 0).all()
    assert (sizes > 0).all()
    assert len(sizes) == len(made.centres)
    unit = made.whitening.unit(vectors)
    for row in range(0, len(vectors), 37):
        label = placed.labels[row]
        if label == NOISE:
            assert np.isnan(placed.distance[row])
            continue
        centre = made.centres[label]
        cosine = unit[row] @ centre / np.linalg.norm(centre)
        assert placed.distance[row] == pytest.approx(1 - cosine, abs=1e-5)
        if method != "kmeans":
            np.testing.assert_allclose(centre, unit[placed.labels == label].mean(axis=0), atol=1e-5)


def test_beyond_so_many_clips_centres_are_learned_from_a_sample_and_all_clips_assigned():
    vectors, _ = sounds(3_000)
    everything, _ = make_clusters(vectors, np.arange(3_000), k=KINDS, max_points=3_000)
    usual, _ = make_clusters(vectors, np.arange(3_000), k=KINDS)
    np.testing.assert_array_equal(everything.centres, usual.centres)
    made, placed = make_clusters(vectors, np.arange(3_000), k=KINDS, max_points=500)
    unit = made.whitening.unit(vectors)
    some = KMeans(max_points=500).sample(3_000)
    learned = KMeans(KINDS, n_init="auto").fit(unit[some]).points
    assert {tuple(centre) for centre in made.centres} == {tuple(centre) for centre in learned}
    squared = ((unit[:, None] - made.centres) ** 2).sum(axis=2)
    np.testing.assert_array_equal(placed.labels, squared.argmin(axis=1))
    assert nmi(placed.labels, usual.place(vectors).labels) > 0.9
    auto, _ = make_clusters(vectors, np.arange(3_000), max_points=500)
    assert len(auto.centres) >= min(plausible(3_000)) > min(plausible(500))  # k follows from all clips
    with pytest.raises(ClusteringError, match="k=9 is more than max_points=8"):
        make_clusters(vectors, np.arange(3_000), k=9, max_points=8)
    assert len(make_clusters(vectors, np.arange(3_000), max_points=8)[0].centres) < 8


def test_a_table_in_a_file_is_clustered_in_memory_that_does_not_grow_with_it(tmp_path, monkeypatch):
    """Allocations of numpy, with blocks of 500 rows; the whitened vectors lie in a file as well."""
    monkeypatch.setattr("decar.clustering.base.IN_MEMORY", 0)
    monkeypatch.setattr(sys.modules["decar.clustering.whiten"], "_ROWS_AT_ONCE", 500)
    for name in ("_ROWS_AT_ONCE", "ROWS_AT_ONCE", "KEPT"):
        monkeypatch.setattr(f"decar.clustering.model.{name}", 500)
    make_clusters(*sounds(100), k=KINDS)  # imports are no part of it
    peaks = []
    for n in (5_000, 20_000):
        np.save(tmp_path / "v.npy", sounds(n, dim=64)[0])
        vectors, recordings = np.load(tmp_path / "v.npy", mmap_mode="r"), np.arange(n)
        tracemalloc.start()
        _, placed = make_clusters(vectors, recordings, k=KINDS, max_points=1_000)
        peaks.append(tracemalloc.get_traced_memory()[1] - 60 * n)  # less numbers a clip: codes, labels, distances
        tracemalloc.stop()
        assert len(placed.labels) == n
    assert peaks[1] < 1.2 * peaks[0]


def test_novelty_is_measured_to_other_recordings():
    """Each clip has a near copy in its own recording, which must not make it known."""
    vectors, _ = sounds(300)
    twice = np.repeat(vectors, 2, axis=0) + 0.001 * np.random.default_rng(0).normal(size=(600, 24)).astype(np.float32)
    recordings = np.repeat(np.arange(300), 2)
    made, placed = make_clusters(twice, recordings, k=KINDS)
    unit = made.whitening.unit(twice)
    cosine = unit @ unit.T
    cosine[recordings[:, None] == recordings] = -np.inf
    apart = 1 - cosine.max(axis=1)
    assert made.scale == pytest.approx(np.median(apart), rel=1e-4)
    np.testing.assert_allclose(placed.novelty, apart / np.median(apart), rtol=1e-3, atol=1e-4)
    _, copies = make_clusters(twice, np.arange(600), k=KINDS)
    assert np.median(copies.novelty) == pytest.approx(1.0)
    _, alone = make_clusters(twice, np.zeros(600), k=KINDS)  # one recording: other clips of it
    np.testing.assert_array_equal(alone.novelty, copies.novelty)


def test_an_unknown_kind_is_novel():
    vectors, kind = sounds()
    made, _ = make_clusters(vectors[kind < 5], np.arange((kind < 5).sum()), k=5)
    unknown = made.place(vectors[kind == 5]).novelty
    others, other_kind = sounds(seed=1)
    known = made.place(others[other_kind < 5]).novelty
    assert np.median(known) == pytest.approx(1, abs=0.3)
    better = (unknown[:, None] > known).mean()
    assert better > 0.85, "AUROC"


def test_more_clips_than_are_kept(monkeypatch):
    monkeypatch.setattr("decar.clustering.model.KEPT", 100)
    vectors, _ = sounds()
    made, placed = make_clusters(vectors, np.arange(600), k=KINDS)
    assert made.known.shape[0] == 100
    np.testing.assert_array_equal(made.place(vectors).labels, placed.labels)
    assert (placed.novelty > 0.01).all(), "a clip that is kept is not compared with itself"


def test_what_cannot_be_clustered():
    vectors, _ = sounds(40)
    for told, options in (
        ("k=50 is larger", {"k": 50}),
        ("k=0 makes no sense", {"k": 0}),
        ("no way to cluster", {"method": "dbscan"}),
    ):
        with pytest.raises(ClusteringError, match=told):
            make_clusters(vectors, np.arange(40), **options)
    with pytest.raises(ClusteringError, match="1 clip: nothing to cluster"):
        make_clusters(vectors[:1], np.arange(1))
    with pytest.raises(ClusteringError, match="NaN or Inf"):
        make_clusters(np.full_like(vectors, np.nan), np.arange(40))
    noise = np.random.default_rng(0).normal(size=(4, 24)).astype(np.float32)
    with pytest.raises(ClusteringError, match="4 clips, HDBSCAN"):
        make_clusters(noise, np.arange(4), method="hdbscan")
    made, _ = make_clusters(vectors, np.arange(40), k=3)
    with pytest.raises(ClusteringError, match="made of 24 numbers"):
        made.place(np.zeros((2, 12)))


def test_equal_clips_are_one_cluster_and_not_novel():
    _, placed = make_clusters(np.ones((20, 8), np.float32), np.arange(20))
    assert len(np.unique(placed.labels)) == 1
    assert np.isfinite(placed.novelty).all()


def write(file, **arrays):
    with file.open("w+b") as out:
        np.savez(out, **arrays)
        seal_zip(out)


def test_damaged_and_hostile_files_are_refused(tmp_path):
    vectors, _ = sounds(60)
    made, _ = make_clusters(vectors, np.arange(60), k=3)
    good = tmp_path / "good.npz"
    made.save(good)
    content = good.read_bytes()
    rng = np.random.default_rng(0)
    for place in rng.integers(len(content), size=40):
        bad = bytearray(content)
        bad[place] ^= 0x41
        (tmp_path / "bad.npz").write_bytes(bad)
        with pytest.raises(ClusteringError, match=r"bad\.npz: not readable as clusters"):
            Clusters.load(tmp_path / "bad.npz")
    arrays = dict(np.load(good))
    about = json.loads(str(arrays["about"]))
    for change in (
        {"labels": arrays["labels"] + 3},
        {"labels": arrays["labels"][:-1]},
        {"centres": arrays["centres"][:, :1]},
        {"centres": arrays["centres"] * np.nan},
        {"mean": np.array(["a"])},
        {"known": np.array([{}], dtype=object)},
        {"about": np.array(json.dumps({**about, "format": 99}))},
        {"about": np.array(json.dumps({**about, "scale": 0.0}))},
        {"about": np.array("[]")},
    ):
        write(tmp_path / "odd.npz", **{**arrays, **change})
        with pytest.raises(ClusteringError, match=r"odd\.npz: not readable"):
            Clusters.load(tmp_path / "odd.npz")
    np.savez_compressed(tmp_path / "packed.npz", **arrays)
    for name in ("packed.npz", "missing.npz"):
        with pytest.raises(ClusteringError, match=f"{name}: not readable"):
            Clusters.load(tmp_path / name)


# --- k=auto ---


def test_plausible_numbers_span_a_factor_of_four():
    for n in (2, 3, 10, 100, 22_464):
        found = plausible(n)
        assert found == sorted(set(found))
        assert min(found) >= 2
        assert n < 4 or max(found) < n
    assert (plausible(20_000)[0], plausible(20_000)[-1]) == (50, 200)


def test_the_number_of_clear_blobs_is_found():
    rng = np.random.default_rng(0)
    for kinds in (8, 16):  # sqrt(400 / 2) = 14
        centres = rng.normal(size=(kinds, 16))
        points = np.repeat(centres, 400 // kinds, axis=0) + 0.05 * rng.normal(size=(400, 16))
        points /= np.linalg.norm(points, axis=1, keepdims=True)
        assert kinds / 1.5 <= choose_k(points) <= 1.5 * kinds


def test_the_silhouette_is_the_slow_one():
    points, labels = sounds(80)
    distance = np.linalg.norm(points[:, None] - points, axis=2)
    values = []
    for i, own in enumerate(labels):
        mine = (labels == own) & (np.arange(80) != i)
        a = distance[i, mine].mean()
        b = min(distance[i, labels == other].mean() for other in set(labels.tolist()) - {int(own)})
        values.append((b - a) / max(a, b))
    assert silhouette(points, labels) == pytest.approx(np.mean(values), abs=1e-5)
    assert silhouette(points, np.zeros(80, np.int64)) == -1.0


def test_choose_k_takes_the_smallest_that_is_nearly_best():
    vectors, _ = sounds(200)
    scores = {
        k: silhouette(vectors, KMeans(k, n_init="auto").fit_predict(vectors).labels) for k in plausible(len(vectors))
    }
    best = max(scores.values())
    assert choose_k(vectors) == min(k for k, score in scores.items() if score >= NEARLY * best)
    assert smallest_nearly_best({3: 0.94, 5: 0.95, 9: 1.0}) == 5
