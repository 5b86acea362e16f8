import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from decar.errors import ClusteringError
from decar.pretrain import UniformClusterSampler
from decar.pretrain.sampler import uniform_draw


def label_entropy(labels):
    share = np.bincount(labels) / len(labels)
    share = share[share > 0]
    return -(share * np.log(share)).sum()


def test_a_55_percent_cluster_does_not_dominate():
    rng = np.random.default_rng(0)
    labels = np.where(rng.random(5000) < 0.55, 0, rng.integers(1, 64, 5000))
    drawn = labels[list(UniformClusterSampler(labels, num_samples=4960))]
    assert label_entropy(labels) < 0.65 * np.log(64)
    assert label_entropy(drawn) > 0.99 * np.log(64)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(0, 12), min_size=1, max_size=80), st.integers(0, 300), st.integers(0, 5))
def test_counts_are_equal_to_within_one_and_clips_take_turns(labels, num_samples, seed):
    labels = np.array(labels)
    drawn = uniform_draw(labels, num_samples, seed)
    assert len(drawn) == num_samples
    counts = np.array([np.count_nonzero(labels[drawn] == c) for c in np.unique(labels)])
    assert counts.max() - counts.min() <= 1
    for cluster in np.unique(labels):
        per_clip = [np.count_nonzero(drawn == clip) for clip in np.flatnonzero(labels == cluster)]
        assert max(per_clip) - min(per_clip) <= 1


def test_order_is_fixed_by_seed_and_epoch_and_changes_with_either():
    labels = np.arange(100) % 7
    sampler = UniformClusterSampler(labels, seed=1)
    first = list(sampler)
    assert list(sampler) == first
    sampler.set_epoch(1)
    assert list(sampler) != first
    assert list(UniformClusterSampler(labels, seed=2)) != first


def test_the_order_within_an_epoch_is_mixed():
    drawn = (np.arange(1000) // 100)[list(UniformClusterSampler(np.arange(1000) // 100))]
    assert np.mean(drawn[1:] == drawn[:-1]) == pytest.approx(0.1, abs=0.04)


@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_ranks_share_one_global_order(world_size):
    labels = np.arange(50) % 3
    parts = [list(UniformClusterSampler(labels, 50, seed=4, rank=r, world_size=world_size)) for r in range(world_size)]
    assert len({len(part) for part in parts}) == 1
    assert all(len(part) == len(UniformClusterSampler(labels, 50, world_size=world_size)) for part in parts)
    merged = [i for step in zip(*parts, strict=True) for i in step]
    assert merged == uniform_draw_of(labels, len(merged))


def uniform_draw_of(labels, n):
    return list(UniformClusterSampler(labels, n, seed=4))


def test_empty_clusters_are_left_out():
    labels = np.array([5, 5, 900, 900, 900])
    assert set(labels[list(UniformClusterSampler(labels, 10))]) == {5, 900}


def test_no_labels_is_an_error():
    with pytest.raises(ClusteringError, match=r"\(N,\)"):
        UniformClusterSampler([])
