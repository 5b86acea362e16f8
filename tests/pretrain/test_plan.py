import numpy as np
import pytest
import torch

from decar.errors import ConfigError
from decar.models import Encoder
from decar.pretrain.plan import PASSES, STAGE_STEPS, clusters_for, measure_step, parse_budget, plan


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


def test_clusters_grow_with_the_clips_up_to_a_limit():
    ks = [clusters_for(n) for n in (1, 50, 200, 1_000, 2_000, 5_000, 10_000, 100_000)]
    assert ks == sorted(ks)
    assert ks[0] == 2
    assert ks[-1] == 128
    for n in (200, 1_000, 3_000):
        assert 15 <= n / clusters_for(n) <= 60


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
    encoder = Encoder("mobilenetv3_small_050", seed=0)
    weights = {key: value.clone() for key, value in encoder.network.state_dict().items()}
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    assert 0 < measure_step(encoder, 2, 98, "cpu") < 60
    np.testing.assert_array_equal(torch.rand(2), expected)
    assert all(torch.equal(value, weights[key]) for key, value in encoder.network.state_dict().items())
    assert all(parameter.grad is None for parameter in encoder.parameters())
