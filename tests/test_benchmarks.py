"""What the figures of the README and docs are computed with."""

import importlib.util
import math
import sys
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

FILE = Path(__file__).parents[1] / "benchmarks" / "recipe.py"
spec = importlib.util.spec_from_file_location("recipe", FILE)
assert spec is not None
assert spec.loader is not None
recipe = importlib.util.module_from_spec(spec)
sys.modules["recipe"] = recipe
spec.loader.exec_module(recipe)


def test_the_interval_is_students():
    values = [0.61, 0.64, 0.6, 0.7]
    low, high = stats.t.interval(0.95, 3, loc=np.mean(values), scale=stats.sem(values))
    assert recipe.interval(values) == pytest.approx((high - low) / 2)
    assert math.isnan(recipe.interval([0.5]))


def test_every_arm_of_the_repository_composes():
    from hydra import compose, initialize_config_dir

    from decar.cli.config import conf_dir, register_resolvers

    register_resolvers()
    arms = recipe.read_arms(recipe.ARMS, [])
    assert len(arms) > 5
    for options in arms.values():
        with initialize_config_dir(str(conf_dir()), version_base="1.3"):
            compose("train", overrides=options)


def test_arms_that_are_not_there(tmp_path):
    with pytest.raises(SystemExit, match=r"no arm demmo in .*; there are demo, "):
        recipe.read_arms(recipe.ARMS, ["demmo"])
    (tmp_path / "arms.yaml").write_text("- demo\n")
    with pytest.raises(SystemExit, match="is expected"):
        recipe.read_arms(tmp_path / "arms.yaml", [])


def test_the_table_has_means_and_intervals():
    row = recipe.Row("a", "k=3", 620, math.nan, [0.5, 0.7], [0.4, 0.4], {"pitch": 0.25})
    alone = recipe.Row("b", "", math.nan, 60, [0.5], [0.4], {"pitch": 0.5})
    lines = recipe.markdown([row, alone]).splitlines()
    assert lines[0] == "| arm | options | steps | s | validation | test | pitch |"
    assert lines[2] == "| a | k=3 | 620 |  | 60.0 ± 127.1 | 40.0 ± 0.0 | 25 |"
    assert lines[3] == "| b |  |  | 60 | 50.0 | 40.0 | 50 |"
