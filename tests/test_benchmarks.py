"""What the figures of the README and docs are computed with."""

import importlib.util
import math
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from scipy import stats

FOLDER = Path(__file__).parents[1] / "benchmarks"


def load(name: str):
    """A script of benchmarks/ as a module."""
    spec = importlib.util.spec_from_file_location(name, FOLDER / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    sys.modules[name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(sys.modules[name])
    return sys.modules[name]


recipe = load("recipe")


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
            compose("train", overrides=[word for word in options if not word.startswith("benchmarks.")])


def test_the_figures_are_of_the_bundled_tasks_and_no_others():
    """`task=glob(*)` also takes public corpora that are prepared on the machine: the demo once judged 23 tasks."""
    bundled = [file.stem for file in (FOLDER.parent / "conf" / "task").glob("*.yaml") if "bundled:" in file.read_text()]
    assert f"task={','.join(sorted(bundled))}" == recipe.BUNDLED
    assert f"\nTASKS={','.join(sorted(bundled))}\n" in (FOLDER / "demo.sh").read_text()
    for name in ("demo.sh", "demo_seeds.py", "ready.py", "recipe.py"):
        assert "task=glob" not in (FOLDER / name).read_text()


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


def test_an_arm_is_compared_with_the_first_by_seed():
    first = recipe.Row("a", "", 620, math.nan, [0.5, 0.7, 0.6], [0.4, 0.4, 0.4], {"pitch": 0.25})
    other = recipe.Row("b", "", 620, math.nan, [0.51, 0.72, 0.6], [0.3, 0.4, 0.5], {"pitch": 0.5})
    half = stats.t.interval(0.95, 2, loc=0.01, scale=stats.sem([0.01, 0.02, 0.0]))[1] - 0.01
    lines = recipe.markdown([first, other], first).splitlines()
    assert lines[2] == "| a |  | 620 |  | 60.0 ± 24.8 | 40.0 ± 0.0 |  |  | 25 |"
    assert lines[3].split(" | ")[6:8] == [f"+1.0 ± {100 * half:.1f}", "+0.0 ± 24.8"]


def test_the_number_of_clips_bounds_what_a_mean_says():
    rng, n_test, accuracy = np.random.default_rng(0), [50, 400], [0.2, 0.9]
    drawn = np.mean([rng.binomial(n, p, 20_000) / n for n, p in zip(n_test, accuracy, strict=True)], axis=0)
    results = [
        SimpleNamespace(valid_value=p, n_valid=4 * n, value=p, n_test=n) for n, p in zip(n_test, accuracy, strict=True)
    ]
    valid, test = recipe.over_clips(results)
    assert test == pytest.approx(1.96 * drawn.std(), rel=0.02)
    assert valid == pytest.approx(test / 2)


def test_arms_of_one_network_share_its_untrained_weights(tmp_path):
    for name, width in (("a", 64), ("b", 64), ("c", 32)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.yaml").write_text(
            f"encoder: {{name: conv, hidden: {width}, seed: 3, min_frames: 98}}"
        )
    networks = [recipe.network_of(tmp_path / name) for name in "abc"]
    assert networks[0] == ["encoder.name=conv", "encoder.hidden=64"]
    places = [recipe.untrained(tmp_path, network, 3) for network in networks]
    assert places[0] == places[1] != places[2]
    assert recipe.untrained(tmp_path, networks[0], 4) != places[0]


def test_an_arm_with_another_front_end_is_judged_with_it(tmp_path):
    for name, n_mels in (("a", 64), ("b", 128)):
        (tmp_path / name).mkdir()
        frontend = f"{{_target_: decar.audio.FrontEnd, n_mels: {n_mels}, f_min: 60.0}}"
        (tmp_path / name / "config.yaml").write_text(f"encoder: {{name: conv}}\nfrontend: {frontend}")
    assert [recipe.frontend_of(tmp_path / name) for name in "ab"] == [[], ["frontend.n_mels=128"]]
    assert recipe.network_of(tmp_path / "b") == ["encoder.name=conv", "frontend.n_mels=128"]


def test_the_plot_is_drawn_from_the_table_as_written(tmp_path):
    def row(name, test):
        return recipe.Row(name, "", 620, 60, test, test, {"pitch": 0.25})

    rows = [row("log-mel statistics", [0.4]), row("a, untrained", [0.5, 0.6]), row("a", [0.7, 0.72])]
    recipe.write(rows, tmp_path)
    table = pd.read_csv(tmp_path / "recipe.csv")
    assert table.set_index("arm").loc["a", "test_interval"] == pytest.approx(recipe.interval([0.7, 0.72]), abs=1e-5)
    load("plot_recipe").draw(table, "", tmp_path / "plot.png")
    assert (tmp_path / "plot.png").stat().st_size > 5_000


def test_the_card_is_filled_where_it_says_so():
    ready = load("ready")
    card = "a\n<!-- X -->\nold\n<!-- /X -->\nb\n"
    assert ready.fill(card, {"X": "new"}) == "a\n<!-- X -->\nnew\n<!-- /X -->\nb\n"
    with pytest.raises(SystemExit, match="no place for Y"):
        ready.fill(card, {"Y": "new"})


def test_the_ready_encoder_is_trained_on_no_foreign_licence(tmp_path):
    ready = load("ready")
    licences = ["MIT", "GPL-2", "GPL-2+", "GPL-2+ with exception", "GPL-3 or LGPL-3", "CC-BY-3.0", "CC-BY-3.0"]
    table = pd.DataFrame({"path": list("abcdefg"), "license": licences, "pretrain": ["True"] * 6 + ["False"]})
    table.to_csv(tmp_path / "index.csv", index=False)
    assert ready.trained_on(tmp_path)["path"].tolist() == ["a", "f"]
    table.loc[0, "license"] = "AGPL-3"
    table.to_csv(tmp_path / "index.csv", index=False)
    with pytest.raises(SystemExit, match="AGPL-3 would be trained on"):
        ready.trained_on(tmp_path)
    table[table["license"].isin(["MIT", "CC-BY-3.0"])].to_csv(tmp_path / "index.csv", index=False)
    assert ready.trained_on(tmp_path)["path"].tolist() == ["f"]  # no licence to leave out


def test_damage_that_nobody_noticed_is_a_fault_of_the_table():
    for name in ("damage", "rig", "jobs"):
        load(name)
    chaos = load("chaos")
    well = chaos.Trial("a cut tail", "it is damaged")
    idle = chaos.Trial("a cut tail", effect=False)
    silent, lost = chaos.Trial("a cut tail"), chaos.Trial("a cut tail", "it is damaged", recovered=False, lost="labels")
    left_out = chaos.Trial("a cut tail", "its epoch is left out", recovered=False)
    assert [trial.fault for trial in (well, idle, silent, lost, left_out)] == ["", "", "not noticed", "labels", ""]
    line = chaos.row(chaos.ARMS["store"], [well, idle, silent, lost, left_out])
    assert line.endswith("| 5 | 1 | 3 | 1 | 2 |")  # done, no effect, noticed, recovered, lost


def test_a_plan_is_counts_times_costs():
    load("rig")
    load("speed_train")
    plan = load("plan")
    cfg = plan.settings("labels=network", "experiment=paper", "k=512", "trainer.max_epochs=3")
    costs = plan.Costs("here", 0.01, 0.02, (5.0, 0.001), 0.5, 2.0, 10**8)
    found = {phase.name: phase for phase in plan.phases(20_000, 10.0, cfg, costs, gpus=8)}
    once = {name: phase.seconds for name, phase in found.items()}
    assert once == pytest.approx(
        {
            "log-mel store": 200.0, "pass over all clips": 50.0, "whitening and K-Means": 25.0,
            "training epoch": 20_000 // 64 * 0.5, "checkpoint": 2.0,
        }
    )  # fmt: skip
    assert [phase.times for phase in found.values()] == [1, 3, 3, 3, 3]
    assert found["log-mel store"].disk == 20_000 * 998 * 64 * 2
    assert found["pass over all clips"].memory == 20_000 * 512 * 4
    assert "| all | | | " in plan.show(list(found.values()), "x")
