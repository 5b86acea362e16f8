"""The numbers on the page, against slow or closed forms."""

from collections import Counter

import numpy as np
import pandas as pd
import pytest

from decar.errors import DecarError
from decar.models.embed import half_standardised
from decar.report import clusters as of
from decar.report.clips import ALIKE, ends, middles, near_duplicates, order_of, sample, tsne
from decar.report.folder import curves
from tests.report.helpers import write_clusters, write_metrics


def assigned(*rows):
    rows = np.array(rows)
    return of.Assignments(pd.DataFrame({"clip": map(str, range(rows.shape[1]))}), list(range(len(rows))), rows)


def test_purity_is_the_share_of_the_commonest_label_among_the_labelled():
    rng = np.random.default_rng(0)
    clusters, words = rng.integers(0, 6, 300), pd.Series(rng.choice(["a", "b", "c", ""], 300, p=[0.4, 0.2, 0.2, 0.2]))
    for cluster, found in of.purity(clusters, words).items():
        counts = Counter(w for c, w in zip(clusters, words, strict=True) if c == cluster and w)
        [(top, most)] = counts.most_common(1)
        assert (found.top, found.n) == (top, sum(counts.values()))
        assert found.value == most / sum(counts.values())
    right = sum(p.value * p.n for p in of.purity(clusters, words).values())
    assert of.agreement(clusters, words)["purity"] == pytest.approx(right / (words != "").sum())


def test_a_cluster_without_any_label_has_no_purity():
    found = of.purity(np.array([0, 0, 1]), pd.Series(["", "", "x"]))
    assert found[0] == of.Purity(None, "", 0)
    assert found[1].value == 1.0


def test_flow_counts_every_clip_once_and_puts_a_mere_renaming_onto_the_diagonal():
    rng = np.random.default_rng(1)
    before = rng.integers(0, 5, 200)
    renamed = np.array([3, 0, 4, 1, 2])[before]
    same = of.flow(before, renamed)
    assert same["stay"] == same["nmi"] == 1.0
    assert np.array(same["counts"]).trace() == 200
    after = rng.integers(0, 7, 200)
    mixed = of.flow(before, after)
    for r, row in zip(mixed["rows"], mixed["counts"], strict=True):
        assert row == [int(((before == int(r)) & (after == int(c))).sum()) for c in mixed["columns"]]
    assert mixed["rows"] == [str(c) for c, _ in Counter(before.tolist()).most_common()], "largest first"


def test_a_flow_between_many_clusters_is_bounded_and_still_whole(monkeypatch):
    monkeypatch.setattr(of, "MAX_FLOW", 5)
    found = of.flow(np.arange(100) % 30, np.arange(100) % 12)
    assert np.array(found["counts"]).shape == (5, 5)
    assert np.sum(found["counts"]) == 100
    assert found["rows"][-1] == "26 others"
    assert "8 others" in found["columns"]


def test_sizes_and_flows_with_a_number_of_clusters_that_changes():
    """As PIC finds it."""
    found = assigned([0, 0, 0, 1, 1, 2], [5, 5, 5, 5, 5, 9])
    told = of.sizes(found)
    assert told["n_clusters"] == [3, 2]
    assert told["quantiles"] == [[1, 1.5, 2, 2.5, 3], [1, 2, 3, 4, 5]]
    assert told["shown"] == {0: [3, 2, 1], 1: [5, 1]}
    [flow] = of.flows(found)
    assert flow["counts"] == [[3, 0], [2, 0], [0, 1]]
    assert flow["stay"] == pytest.approx(4 / 6)


def test_one_epoch_has_no_flow_and_many_are_thinned():
    assert of.flows(assigned([0, 1, 1])) == []
    found = assigned(*[[0, 1, 1]] * 60)
    assert len(of.flows(found)) == of.MAX_EPOCHS
    assert (of.flows(found)[0]["from"], of.flows(found)[-1]["to"]) == (0, 59)
    assert list(of.sizes(found)["shown"])[-1] == 59


def test_assignments_come_back_as_written_and_a_late_clustering_starts_late(tmp_path):
    clips, none = pd.DataFrame({"path": ["a", "b", "c"]}), [-1, -1, -1]
    write_clusters(tmp_path, clips, np.array([[[0, 1, 1], none], [[2, 1, 1], [0, 0, 1]]]))
    first, second = of.read_assignments(tmp_path / "clusters.parquet")
    assert (first.epochs, second.epochs) == ([0, 1], [1])
    assert first.labels.tolist() == [[0, 1, 1], [2, 1, 1]]
    assert second.labels.tolist() == [[0, 0, 1]]


def test_of_a_log_too_long_to_read_the_last_epochs_are(tmp_path, monkeypatch):
    write_clusters(tmp_path, pd.DataFrame({"path": ["a", "b"]}), np.array([[[e, 1]] for e in range(9)]))
    monkeypatch.setattr(of, "MAX_ROWS", 6)
    [found] = of.read_assignments(tmp_path / "clusters.parquet")
    assert (found.epochs, found.skipped) == ([6, 7, 8], 6)
    assert found.labels.tolist() == [[6, 1], [7, 1], [8, 1]]


def test_a_torn_file_is_named_and_does_not_hide_the_others(tmp_path, caplog):
    write_clusters(tmp_path, pd.DataFrame({"path": ["a", "b"]}), np.array([[[e, 1]] for e in range(4)]))
    torn = tmp_path / "clusters.parquet" / "epoch_00002.parquet"
    torn.write_bytes(torn.read_bytes()[:-9])
    [found] = of.read_assignments(tmp_path / "clusters.parquet")
    assert (found.epochs, found.damaged) == ([0, 1, 3], ("epoch_00002.parquet",))
    assert found.labels.tolist() == [[0, 1], [1, 1], [3, 1]]
    assert f"{torn} is damaged" in caplog.text


def test_epochs_of_other_clips_are_left_out(tmp_path):
    write_clusters(tmp_path, pd.DataFrame({"path": ["a", "b"]}), np.array([[[0, 1]], [[1, 1]]]))
    other = pd.DataFrame({"clip": ["z"], "epoch": 2, "clustering": 0, "pseudo_label": 5})
    other.to_parquet(tmp_path / "clusters.parquet" / "epoch_00002.parquet")
    [found] = of.read_assignments(tmp_path / "clusters.parquet")
    assert (found.epochs, found.labels.tolist()) == ([2], [[5]])


def test_columns_that_sort_clips_into_kinds():
    table = pd.DataFrame({
        "path": list("abcdef"), "split": list("xxyyxy"), "name": list("uvwxyz"), "one": list("aaaaaa"),
        "kind": list("aabbab"), "rare": ["", "", "p", "p", "q", "q"],
    })  # fmt: skip
    assert of.label_columns(table, "rare") == ["rare", "kind"]


def test_nearest_and_farthest_against_a_sort_of_all():
    rng = np.random.default_rng(0)
    unit = half_standardised(rng.normal(size=(120, 9)).astype(np.float32))
    clusters = rng.integers(0, 4, 120)
    cosine = middles(unit, clusters)
    for cluster, near, far in zip(range(4), *ends(cosine, clusters, 3), strict=True):
        rows = [i for i in range(120) if clusters[i] == cluster]
        middle = np.mean([unit[i] for i in rows], axis=0)
        order = sorted(rows, key=lambda i: -float(unit[i] @ middle))
        assert (near, far) == (order[:3], order[::-1][:3])
        assert cosine[rows] == pytest.approx([unit[i] @ middle / np.linalg.norm(middle) for i in rows], abs=1e-6)


def test_no_clip_is_at_both_ends_of_a_small_cluster():
    cosine = np.random.default_rng(0).random(5).astype(np.float32)
    near, far = ends(cosine, np.array([0, 0, 0, 0, 1]), 3)
    assert sorted(near[0] + far[0]) == [0, 1, 2, 3]
    assert (near[1], far[1]) == ([4], [])


def test_a_sample_is_even_bounded_and_the_seed_s():
    assert sample(5, 0, 10).tolist() == [0, 1, 2, 3, 4]
    drawn = sample(10_000, 3, 2000)
    assert len(set(drawn.tolist())) == 2000
    assert (np.diff(drawn) > 0).all()
    assert np.array_equal(drawn, sample(10_000, 3, 2000))
    assert not np.array_equal(drawn, sample(10_000, 4, 2000))
    assert abs(drawn.mean() - 5000) < 200


def test_the_map_keeps_groups_apart_and_within_bounds():
    rng = np.random.default_rng(0)
    middles = 6 * rng.normal(size=(3, 8))
    unit = half_standardised(np.concatenate([m + rng.normal(size=(30, 8)) for m in middles]).astype(np.float32))
    places = tsne(unit, 0)
    assert np.abs(places).max() <= 1
    kinds = np.repeat(range(3), 30)
    gaps = np.linalg.norm(places[:, None] - places[None], axis=2) + 9 * np.eye(90)
    assert (kinds[gaps.argmin(axis=1)] == kinds).mean() > 0.95


@pytest.mark.parametrize("vectors", [np.zeros((9, 4)), np.ones((1, 4)), np.eye(3), np.zeros((0, 4))])
def test_a_map_of_nothing_much(vectors):
    places = tsne(vectors.astype(np.float32), 0)
    assert places.shape == (len(vectors), 2)
    assert np.isfinite(places).all()


def test_the_clips_of_all_clusters_come_before_the_rest():
    assert order_of([[[7, 3], [], [5]], [[3, 2]]], [2, 9, 7]) == [7, 5, 3, 2, 9]


def test_curves_are_the_finite_values_at_their_steps(tmp_path):
    write_metrics(tmp_path, 3)
    with open(tmp_path / "metrics.csv", "a") as file:
        file.write("3,39,,nan,0.9,4\n3,40,,1.0")  # the last row was cut by a kill
    loss, nmi, clusters = curves(tmp_path)
    assert (loss["x"], loss["y"]) == ([10, 20, 30], [1.5, 0.5, -0.5])
    assert loss["fine"]["y"] == [2.0, 1.0, 0.0]
    assert (nmi["x"], nmi["epoch"]) == ([10, 20, 30, 40], [1, 2, 3, 4])
    assert clusters["y"] == [3, 3, 3, 4]
    with pytest.raises(DecarError, match="not there"):
        curves(tmp_path / "nowhere")


def test_one_point_is_no_curve_and_what_is_not_known_yet_is_a_gap_not_zero(tmp_path):
    (tmp_path / "metrics.csv").write_text(
        "epoch,step,loss_epoch,loss_step,nmi,probe_accuracy\n0,4,2.0,,,\n0,4,,1.9,,\n1,9,1.5,,,0.5\n2,14,1.0,,0.7,\n3,19,0.5,,0.8,\n"
    )
    loss, nmi = curves(tmp_path)
    assert (loss["epoch"], loss["y"]) == ([1, 2, 3, 4], [2.0, 1.5, 1.0, 0.5])
    assert (nmi["epoch"], nmi["y"]) == ([3, 4], [0.7, 0.8])


def test_near_duplicates_are_chains_of_clips_that_are_alike():
    rng = np.random.default_rng(0)
    unit = half_standardised(rng.normal(size=(60, 40)).astype(np.float32))
    assert (near_duplicates(unit) == -1).all()
    unit[[3, 50]] = unit[7]
    unit[20] = unit[21] + 0.02 * rng.normal(size=40)  # nearly
    unit[20] /= np.linalg.norm(unit[20])
    assert ALIKE < unit[20] @ unit[21] < 1
    found = near_duplicates(unit)
    assert {i: int(group) for i, group in enumerate(found) if group >= 0} == {3: 0, 7: 0, 50: 0, 20: 1, 21: 1}
    chain = np.stack([np.cos(0.3 * np.arange(9)), np.sin(0.3 * np.arange(9))], axis=1).astype(np.float32)
    assert near_duplicates(chain, least=np.cos(0.31)).tolist() == [0] * 9, "though its ends are not alike"
    assert near_duplicates(chain, least=np.cos(0.29)).tolist() == [-1] * 9
    assert near_duplicates(np.zeros((4, 3), np.float32)).tolist() == [0] * 4, "all the same"
    assert near_duplicates(np.eye(1, 3, dtype=np.float32)).tolist() == [-1]
