"""Searches for good options: Optuna in this process, and what an agent of wandb's sweep starts."""

import json
from pathlib import Path

import pandas as pd
import pytest
import wandb
import yaml
from omegaconf import OmegaConf
from wandb.sdk.launch.sweeps.utils import create_sweep_command, create_sweep_command_args

from tests.pretrain.wandb_files import files, records, run_ids

ROOT = Path(__file__).parents[2]
SMALL = ["debug=fast", "trainer=cpu", "loader.batch_size=4", "labels.first.dim=4", "labels.network.dim=4", "k=2"]


@pytest.fixture
def labelled(sound_folder):
    names = sorted(str(path.relative_to(sound_folder)) for path in sound_folder.rglob("*.wav"))
    table = pd.DataFrame({"path": names, "sort": [name.split("/")[0] for name in names]})
    table.to_csv(sound_folder / "t.csv", index=False)
    return ["data=csv", f"data.path={sound_folder}/t.csv", "data.label=sort"]


def test_optuna_finds_the_best_of_what_it_tried_and_goes_on_where_it_stopped(train, labelled, tmp_path):
    sweep = tmp_path / "sweep"
    words = ["-m", "hydra/sweeper=optuna", "hydra.sweeper.n_trials=2", f"hydra.sweep.dir={sweep}", "resume=auto"]
    done = train(*words, *SMALL, *labelled)
    assert done.code == 0, done.err
    assert "alembic" not in done.out + done.err
    jobs = {file.parent: json.loads(file.read_text()) for file in sweep.glob("*/finished.json")}
    assert len(jobs) == 2
    values = {job["run"]["options"]["optimizer.lr"]: job["metrics"]["probe_accuracy"] for job in jobs.values()}
    assert all(3e-4 <= rate <= 1e-2 for rate in values)
    best = OmegaConf.load(sweep / "optimization_results.yaml")
    assert best.best_value == pytest.approx(max(values.values()))
    assert values[best.best_params["optimizer.lr"]] == best.best_value
    before = {job: (job / "encoder.safetensors").stat().st_mtime_ns for job in jobs}
    words[2] = "hydra.sweeper.n_trials=3"
    done = train(*words, *SMALL, *labelled)
    assert done.code == 0, done.err
    assert len(list(sweep.glob("*/finished.json"))) == 3, "the first two are those of before"
    assert {job: (job / "encoder.safetensors").stat().st_mtime_ns for job in jobs} == before


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["data.label=null"], "objective=None is the NMI of consecutive clusterings, which is highest where nothing"),
        (["objective=nmi"], "pass objective=embedding_rank, or labelled sounds"),
        (["objective=loss_epoch"], "hydra.sweeper.direction=maximize: pass hydra.sweeper.direction=minimize"),
        (["hydra.sweeper.direction=minimize"], "objective=None with hydra.sweeper.direction=minimize: pass"),
    ],
)
def test_a_search_for_the_wrong_thing_is_refused(train, labelled, tmp_path, options, says):
    words = ["-m", "hydra/sweeper=optuna", "hydra.sweeper.n_trials=1", f"hydra.sweep.dir={tmp_path}/sweep"]
    done = train(*words, *SMALL, *labelled[:2], *(labelled[2:] if "data.label=null" not in options else []), *options)
    assert done.code == 2
    [line] = done.errors
    assert says in line
    assert not list(tmp_path.glob("sweep/*/checkpoints"))


def test_labels_that_no_probe_can_use_do_not_make_it_a_search_for_the_nmi(train, labelled, sound_folder, tmp_path):
    table = pd.read_csv(sound_folder / "t.csv").assign(sort="bird")
    table.to_csv(sound_folder / "t.csv", index=False)
    words = ["-m", "hydra/sweeper=optuna", "hydra.sweeper.n_trials=1", f"hydra.sweep.dir={tmp_path}/sweep"]
    done = train(*words, *SMALL, *labelled)
    assert done.code == 2
    assert "objective=null: the run has no probe_accuracy (are there clips of two labels?)" in done.errors[-1]
    assert not (tmp_path / "sweep/optimization_results.yaml").exists()


def test_without_the_extra_a_line_says_what_to_install(train, monkeypatch):
    monkeypatch.setattr("decar.cli.main.OPTUNA", "hydra_plugins.none")
    done = train("-m", "hydra/sweeper=optuna")
    assert done.code == 2
    assert done.errors == [
        "decar: error: hydra/sweeper=optuna: the plugin is not installed; pip install 'decar[sweep]'"
    ]


def test_without_labels_the_rank_of_the_embedding_is_searched(train, labelled, tmp_path):
    words = ["-m", "hydra/sweeper=optuna", "hydra.sweeper.n_trials=1", f"hydra.sweep.dir={tmp_path}/sweep"]
    done = train(*words, *SMALL, *labelled[:2], "objective=embedding_rank", "augment=none")
    assert done.code == 0, done.err
    [file] = tmp_path.glob("sweep/*/finished.json")
    best = OmegaConf.load(tmp_path / "sweep/optimization_results.yaml")
    assert best.best_value == pytest.approx(json.loads(file.read_text())["metrics"]["embedding_rank"])
    assert list(best.best_params) == ["optimizer.lr"], "what is fixed on the command line is not searched"


def test_what_an_agent_of_wandb_starts(train, labelled, tmp_path, monkeypatch):
    """`sweep.yaml` as an agent reads it: one run, under the id that the agent has given it."""
    sweep = yaml.safe_load((ROOT / "sweep.yaml").read_text())
    low = sweep["parameters"]["optimizer.lr"]
    assert set(low) == {"distribution", "min", "max"}
    chosen = {"optimizer.lr": {"value": 0.001}, "augment": {"value": sweep["parameters"]["augment"]["values"][0]}}
    flags = create_sweep_command_args({"args": chosen})["args_no_hyphens"]
    command = create_sweep_command(sweep["command"])
    assert command[:3] == ["${env}", "${interpreter}", "${program}"]
    assert command[-1] == "${args_no_hyphens}"
    assert (ROOT / sweep["program"]).is_file()
    monkeypatch.setenv("WANDB_RUN_ID", "abcd1234")
    wandb.teardown()  # wandb reads the environment once, and an earlier test may have been there
    done = train(*command[3:-1], *flags, *SMALL, *labelled)
    assert done.code == 0, done.err
    wandb.teardown()
    run = tmp_path / "runs/sweep/abcd1234"
    assert run_ids(run) == {"abcd1234"}
    updates = [update for record in records(files(run)[0]) for update in record.summary.update]
    name = sweep["metric"]["name"]
    found = [json.loads(update.value_json) for update in updates if (update.key or update.nested_key[0]) == name]
    value = json.loads((run / "finished.json").read_text())["metrics"][name.removeprefix("final_")]
    assert found[-1] == pytest.approx(value)
    assert sweep["metric"]["goal"] == "maximize"
