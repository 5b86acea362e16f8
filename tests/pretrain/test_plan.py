import numpy as np
import pytest
import torch

from decar.errors import ConfigError
from decar.pretrain.plan import PASSES, STAGE_PASSES, STAGE_STEPS, clusters_for, measure_step, parse_budget, plan
from tests.conftest import make_encoder


def test_without_a_limit_the_data_are_passed_so_many_times():
    for n in (2_000, 10_000, 50_000):
        made = plan(n, 64)
        assert made.steps == pytest.approx(PASSES * n / 64, rel=0.02)
        assert made.every_n_steps >= STAGE_STEPS


def test_time_limits_the_steps_and_the_log_says_so():
    free, tight = plan(10_000, 64), plan(10_000, 64, seconds=600, step_seconds=0.5)
    assert tight.steps < free.steps
    assert 0.75 * 600 <= tight.steps * 0.5 <= 600
    assert "0.50 s" in tight.reason
    assert plan(10_000, 64, seconds=1e9, step_seconds=0.5) == free


def test_few_clips_or_little_time_still_make_a_plan():
    for made in (plan(1, 64), plan(10_000, 64, seconds=1, step_seconds=30.0), plan(100, 64)):
        assert made.max_epochs >= 1
        assert made.every_n_steps >= 1
        assert made.k >= 2


@pytest.mark.parametrize("n", [1, 45, 150, 470, 991, 992, 1_400, 1_487, 1_488, 1_991, 50_000])
def test_every_set_has_a_stage_of_the_networks_own_clusters(n):
    free = plan(n, 64)
    assert free.network_from == (1 if free.max_epochs == 2 else 2)
    for made, first in ((free, free.network_from), (plan(n, 64, network_from=5), 5), (plan(n, 64, network_from=0), 0)):
        assert made.network_from == first < made.max_epochs
        assert made.every_n_steps >= min(STAGE_STEPS, STAGE_PASSES * n // 64)


def test_a_budget_without_time_for_own_clusters_has_none():
    made = plan(10_000, 64, seconds=STAGE_STEPS, step_seconds=1.0)
    assert made.max_epochs <= made.network_from
    assert made.steps < STAGE_STEPS


def test_clusters_grow_with_the_clips_up_to_a_limit():
    ks = [clusters_for(n) for n in (1, 50, 200, 1_000, 2_000, 5_000, 10_000, 100_000)]
    assert ks == sorted(ks)
    assert ks[0] == 2
    assert ks[-1] == 128
    for n in (200, 1_000, 3_000):
        assert 15 <= n / clusters_for(n) <= 60
    for n in (30, 45, 100):
        assert 5 <= n / clusters_for(n) <= 15


@pytest.mark.parametrize(
    ("text", "seconds"), [("10min", 600), ("8h", 28_800), ("90s", 90), ("1h30min", 5_400), ("0.5h", 1_800)]
)
def test_budgets(text, seconds):
    assert parse_budget(text) == seconds


@pytest.mark.parametrize("text", ["", "10", "0min", "1d", "ten minutes", "-1h"])
def test_what_is_no_time_is_refused_by_name(text):
    with pytest.raises(ConfigError, match="budget="):
        parse_budget(text)


def test_measuring_a_step_leaves_the_encoder_and_the_random_numbers_alone():
    encoder = make_encoder("mobilenetv3_small_050", seed=0)
    weights = {key: value.clone() for key, value in encoder.network.state_dict().items()}
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    assert 0 < measure_step(encoder, 2, 98, "cpu") < 60
    np.testing.assert_array_equal(torch.rand(2), expected)
    assert all(torch.equal(value, weights[key]) for key, value in encoder.network.state_dict().items())
    assert all(parameter.grad is None for parameter in encoder.parameters())


@pytest.mark.parametrize(
    ("seconds", "network_from", "epochs"),
    [(None, 1, 31), (None, 40, 63), (150 * 1.15, 1, 1), (1050 * 1.15, 1, 10), (1.0, 1, 1), (1e9, 1, 31)],
)
def test_stages_of_a_run_that_goes_on_keep_their_length(seconds, network_from, epochs):
    """10,000 clips are good for 3,125 steps, and for 41 stages of 155 where the 41st is the first with own clusters."""
    limit = {"seconds": seconds, "step_seconds": 1.0} if seconds else {}
    made = plan(10_000, 64, network_from=network_from, every_n_steps=100, **limit)
    assert (made.every_n_steps, made.max_epochs) == (100, epochs)
    assert ("fewer than" in made.reason) == (epochs < 31)
