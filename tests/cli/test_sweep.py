"""Sweeps: jobs that fail, jobs in processes of their own, jobs of a cluster."""

import dataclasses

import pytest
from hydra import compose, initialize_config_dir

from decar.cli.config import conf_dir

FAST = ["debug=fast", "sampler.every_n_steps=2", "trainer.accelerator=cpu"]


@pytest.mark.parametrize("launcher", ["basic", "joblib"])
def test_a_failed_job_does_not_stop_the_others_and_the_summary_says_why(train, tmp_path, launcher):
    options = [] if launcher == "basic" else ["hydra/launcher=joblib", "hydra.launcher.n_jobs=1"]
    words = ["-m", *FAST, "k=5000,4", "resume=auto", f"hydra.sweep.dir={tmp_path}/sweep", *options]
    done = train(*words)
    assert done.code == 2
    assert len(done.errors) == 1
    assert "k=5000 is larger than the number of usable clips (1991)" in done.errors[0]
    assert done.errors[0].startswith("decar: error: [")
    finished = [path.parent.name for path in tmp_path.glob("sweep/*/finished.json")]
    assert len(finished) == 1
    assert "k=4" in finished[0]
    before = next(tmp_path.glob("sweep/*/encoder.safetensors")).stat().st_mtime_ns
    words[words.index("k=5000,4")] = "k=4"
    assert train(*words).code == 0, "a failure of an earlier sweep is not this one's"
    assert next(tmp_path.glob("sweep/*/encoder.safetensors")).stat().st_mtime_ns == before, "done is done"


def test_a_fault_of_ours_does_not_stop_the_other_jobs_either(train, tmp_path, monkeypatch):
    from decar.cli import train as command

    real = command.prepare_run

    def faulty(cfg, *args):
        if cfg.seed == 1:
            raise ZeroDivisionError("by zero")
        return real(cfg, *args)

    monkeypatch.setattr(command, "prepare_run", faulty)
    done = train("-m", *FAST, "seed=1,2", f"hydra.sweep.dir={tmp_path}/sweep")
    assert done.code == 2
    assert "ZeroDivisionError: by zero (a fault of decar's: see train.log there)" in done.errors[0]
    assert "Traceback" in next(tmp_path.glob("sweep/*seed=1*/train.log")).read_text()
    assert len(list(tmp_path.glob("sweep/*seed=2*/finished.json"))) == 1


@pytest.mark.parametrize("command", ["train", "eval"])
@pytest.mark.parametrize("launcher", ["joblib", "submitit_slurm", "ray"])
def test_launchers_compose(command, launcher):
    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        cfg = compose(command, overrides=[f"hydra/launcher={launcher}"], return_hydra_config=True)
    name = {"joblib": "JoblibLauncher", "submitit_slurm": "SlurmLauncher", "ray": "RayLauncher"}[launcher]
    assert cfg.hydra.launcher._target_.endswith(name)


def test_the_options_of_the_launchers_are_the_plugins_own():
    """A plugin that drops or renames an option would be found out only on the cluster."""
    joblib = pytest.importorskip("hydra_plugins.hydra_joblib_launcher.config").JobLibLauncherConf
    slurm = pytest.importorskip("hydra_plugins.hydra_submitit_launcher.config").SlurmQueueConf
    for launcher, schema in (("joblib", joblib), ("submitit_slurm", slurm)):
        with initialize_config_dir(str(conf_dir()), version_base="1.3"):
            cfg = compose("train", overrides=[f"hydra/launcher={launcher}"], return_hydra_config=True)
        assert set(cfg.hydra.launcher) == {field.name for field in dataclasses.fields(schema)}


@pytest.mark.slow  # a Ray cluster, and two processes that import torch
def test_a_sweep_on_a_ray_cluster_of_this_machine(train, tmp_path):
    schema = pytest.importorskip("hydra_plugins.hydra_ray_launcher._config", exc_type=ImportError).RayLauncherConf
    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        cfg = compose("train", overrides=["hydra/launcher=ray"], return_hydra_config=True)
    assert set(cfg.hydra.launcher) == {field.name for field in dataclasses.fields(schema)}
    done = train("-m", *FAST, "k=3,4", f"hydra.sweep.dir={tmp_path}/sweep", "hydra/launcher=ray")
    assert done.code == 0, done.err
    assert len(list(tmp_path.glob("sweep/*/encoder.safetensors"))) == 2
