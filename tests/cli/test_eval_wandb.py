"""Results on wandb, read back from its offline files."""

import json
import multiprocessing
import os
import signal

import pytest
import wandb
from wandb.sdk.wandb_run import Run

from decar.cli.eval_wandb import cells_of, pretraining_of
from decar.downstream import Result
from decar.models import save_bundle
from tests.conftest import make_encoder
from tests.pretrain.wandb_files import files, history, records


@pytest.fixture
def run(tmp_path):
    """What a training with `logger=wandb` leaves, as far as an evaluation looks at it."""
    folder = tmp_path / "run"
    save_bundle(make_encoder("conv", widths=[4], hidden=8, seed=1), folder / "encoder.safetensors", {"k": 7})
    from decar.pretrain.wandb_logger import ResumableWandbLogger

    server = type("Run", (), {"offline": False, "id": "abc", "project": "decar", "entity": "me", "starting_step": 0,
                              "dir": "/nowhere", "log": lambda *a, **k: None})()  # fmt: skip
    ResumableWandbLogger(folder, experiment=server).log_metrics({"nmi": 0.5}, 3)
    (folder / "config.yaml").write_text("k: 7\ndata:\n  name: birds\n")
    return folder


def config_of(folder):
    wandb.teardown()  # its service writes the last records as it ends
    found = [record for file in files(folder) for record in records(file)]
    config = {update.key: json.loads(update.value_json) for record in found for update in record.config.update}
    [about] = [record.run for record in found if record.WhichOneof("record_type") == "run"]
    return config, about


def table(folder, row, key):
    [path] = folder.glob("wandb/offline-run-*/files/" + row[f"{key}.path"])
    return json.loads(path.read_text())


def words(sound_folder, *more):
    return ["task=folder", f"task.path={sound_folder}", "accelerator=cpu", "logger=wandb", *more]


def test_a_sweep_on_wandb(evaluate, sound_folder, run, tmp_path):
    sweep = tmp_path / "my sweep"
    done = evaluate("-m", *words(sound_folder, f"bundle=logmel,{run}", f"hydra.sweep.dir={sweep}"))
    assert done.code == 0, done.err
    assert "not logged" not in done.out + done.err
    jobs = {json.loads(path.read_text())["bundle"]: path.parent for path in sweep.glob("*/result.json")}
    assert set(jobs) == {"logmel", str(run)}
    for bundle, job in jobs.items():
        result = Result.read(job / "result.json")
        config, about = config_of(job)
        assert (about.run_group, about.job_type, about.display_name) == ("my sweep", "eval", job.name)
        assert config["result"]["encoder_hash"] == result.encoder_hash
        assert config["protocol"]["_target_"].endswith("SearchProtocol")
        [row] = history(job)
        assert row["value"] == pytest.approx(result.value)
        assert row["balanced_accuracy"] == pytest.approx(result.metrics["balanced_accuracy"])
        found = table(job, row, "results")
        assert dict(zip(found["columns"], *found["data"], strict=True))["value"] == pytest.approx(result.value)
        cells = table(job, row, "confusion_table")["data"]
        matrix = {(true, predicted): count for true, predicted, count in cells}
        for i, true in enumerate(result.classes):
            assert [matrix[true, other] for other in result.classes] == result.confusion[i]
        linked = {"run": "me/decar/abc", "config": {"k": 7, "data": {"name": "birds"}}}
        assert config["pretraining"] == (linked if bundle == str(run) else {})
    config, about = config_of(sweep)
    assert (about.run_group, about.job_type) == ("my sweep", "table")
    [row] = history(sweep)
    data = table(sweep, row, "results")
    at = data["columns"].index("value")
    assert sorted(entry[at] for entry in data["data"]) == sorted(
        Result.read(job / "result.json").value for job in jobs.values()
    )


def test_a_result_that_is_there_is_logged_once_and_not_judged_again(evaluate, sound_folder, run, tmp_path, monkeypatch):
    common = [f"bundle={run}", f"hydra.sweep.dir={tmp_path}/sweep", "resume=auto"]
    done = evaluate("-m", *words(sound_folder)[:-1], *common)
    assert done.code == 0, done.err
    [folder] = [path.parent for path in (tmp_path / "sweep").glob("*/result.json")]
    before = (folder / "result.json").read_bytes()
    assert not (folder / "wandb").exists()
    monkeypatch.setattr("decar.downstream.judge", lambda *a, **k: 1 / 0)
    for _ in range(2):
        done = evaluate("-m", *words(sound_folder), *common)
        assert done.code == 0, done.err
        wandb.teardown()
        assert len(list((tmp_path / "sweep").glob("*/result.json"))) == 1, "wandb is no part of a job's name"
        assert len(history(folder)) == 1
        assert len(files(folder)) == 1
    assert (folder / "result.json").read_bytes() == before
    assert [row["_step"] for row in history(tmp_path / "sweep")] == [0, 1], "the tables of two calls"


def test_a_result_that_a_kill_kept_from_wandb_is_logged_by_the_next_call(evaluate, sound_folder, tmp_path, monkeypatch):
    """The service has kept what it was given in memory, and is killed with the job."""
    folder = tmp_path / "cell"
    given = words(sound_folder, "bundle=logmel", f"hydra.run.dir={folder}", "resume=auto")

    def killed(run):
        os.killpg(0, signal.SIGKILL)

    def job():
        os.setpgid(0, 0)
        monkeypatch.setattr(Run, "finish", killed)
        evaluate(*given)

    process = multiprocessing.get_context("fork").Process(target=job)
    process.start()
    process.join(120)
    assert process.exitcode == -signal.SIGKILL
    assert (folder / "result.json").is_file()
    assert history(folder) == []
    assert evaluate(*given).code == 0
    [row] = history(folder)
    assert row["value"] == Result.read(folder / "result.json").value
    assert {"results.path", "confusion_table.path"} <= {*row}
    there = files(folder)
    assert evaluate(*given).code == 0
    assert files(folder) == there


def test_wandb_that_fails_costs_a_line(evaluate, sound_folder, tmp_path, monkeypatch):
    def fail(*args, **kwargs):
        raise RuntimeError("the service is gone")

    monkeypatch.setattr(wandb, "init", fail)
    done = evaluate(*words(sound_folder, "bundle=logmel", f"hydra.run.dir={tmp_path / 'cell'}"))
    assert done.code == 0, done.err
    assert "not logged to wandb (RuntimeError: the service is gone); the same command with resume=auto" in done.out
    assert (tmp_path / "cell/result.json").is_file()


def test_other_loggers_are_refused(evaluate, sound_folder):
    done = evaluate(*words(sound_folder)[:-1], "logger=csv")
    assert done.code == 2
    assert "logger=csv: eval.py logs to wandb only" in done.err
    done = evaluate(*words(sound_folder), "logger.wandb.log_model=true")
    assert "logger.wandb.log_model=true is not used" in done.err


def test_the_best_bundle_of_a_run_is_of_that_run(run):
    save_bundle(make_encoder("conv", widths=[4], hidden=8, seed=1), run / "best" / "encoder.safetensors")
    assert pretraining_of(str(run / "best"))["run"] == "me/decar/abc"
    assert pretraining_of("small") == {}
    (run / "config.yaml").write_text("a: &x [*x]\n")
    assert pretraining_of(str(run)) == {"run": "me/decar/abc"}, "it may come from anybody"


def test_a_large_confusion_matrix_is_shown_as_far_as_wandb_does():
    result = Result(
        task="t", mode="frozen", protocol="search", bundle="small", encoder="decar", encoder_hash="", seed=0,
        split_hash="", value=1.0, valid_value=1.0, n_train=1, n_valid=1, n_test=1, n_classes=3, dropped={},
        classes=["a", "b", "c"],
        confusion=[[5, 0, 1], [0, 2, 0], [0, 0, 9]], chosen={}, version="", seconds=0,
    )  # fmt: skip
    assert len(cells_of(result)) == 9
    assert cells_of(result, 4) == [["c", "c", 9], ["a", "a", 5], ["b", "b", 2], ["a", "c", 1]]
    assert cells_of(result, 2) == [["c", "c", 9], ["a", "a", 5]]
