"""Several processes from the command line, and runs that are killed; each as a shell would start it."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf

from benchmarks.chaos import difference, same
from decar.cli.launch import trainer_options
from decar.pretrain.sync import SyncLayers

ROOT = Path(__file__).resolve().parents[2]
SMALL = ["debug=fast", "sampler.every_n_steps=20", "trainer.accelerator=cpu"]


def start(folder, *words, runner=(sys.executable,)):
    command = [*runner, "train.py", *SMALL, *words, f"hydra.run.dir={folder}/run"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(command, cwd=ROOT, env=environment, stderr=subprocess.PIPE, text=True)


def finish(folder, *words, **kwargs):
    process = start(folder, *words, **kwargs)
    _, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    return err


def wait_for(path, process):
    ends = time.monotonic() + 120
    while not path.is_file():
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < ends, f"{path} did not come"
        time.sleep(0.02)


def test_two_processes_started_here_or_by_torchrun_are_the_same_run_and_a_kill_changes_nothing(tmp_path):
    ddp = ["trainer=ddp", "trainer.devices=2", "sampler.every_n_steps=40"]
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2"]
    finish(tmp_path / "whole", *ddp)
    finish(tmp_path / "torchrun", *ddp, runner=torchrun)
    assert not difference(tmp_path / "torchrun", tmp_path / "whole")
    process = start(tmp_path / "cut", *ddp, "resume=auto", "callbacks.inside.minutes=0")
    wait_for(tmp_path / "cut/run/checkpoints/last.ckpt", process)
    process.kill()
    process.communicate()
    assert "going on from" in finish_log(tmp_path / "cut", *ddp, "resume=auto", "callbacks.inside.minutes=0")
    assert not difference(tmp_path / "cut", tmp_path / "whole")
    rows = (tmp_path / "whole/run/metrics.csv").read_text().splitlines()
    assert len(rows) == 1 + 2 * (4 + 1), "one process logs"


def finish_log(folder, *words):
    finish(folder, *words)
    return (folder / "run/train.log").read_text()


def test_sigterm_saves_and_asks_to_be_requeued(tmp_path):
    words = ["sampler.every_n_steps=200", "trainer.max_epochs=1", "callbacks.inside.minutes=0", "resume=auto"]
    process = start(tmp_path, *words)
    wait_for(tmp_path / "run/checkpoints/last.ckpt", process)
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 75
    assert "stopped by SIGTERM; nothing is lost" in err
    assert torch.load(tmp_path / "run/checkpoints/last.ckpt", weights_only=True)["global_step"] < 200
    assert not (tmp_path / "run/finished.json").exists()


def test_a_sweep_over_several_processes_leaves_the_environment_as_it_was(train, tmp_path):
    before = {name: value for name, value in os.environ.items() if name != "TORCH_CPP_LOG_LEVEL"}
    threads = torch.get_num_threads()
    done = train("-m", *SMALL, "sampler.every_n_steps=5", "trainer=ddp", "trainer.devices=2", "trainer.accelerator=cpu",
                 "seed=0,1", f"hydra.sweep.dir={tmp_path}/sweep")  # fmt: skip
    assert done.code == 0, done.err
    assert len(list((tmp_path / "sweep").glob("*/finished.json"))) == 2
    assert not torch.distributed.is_initialized()
    assert torch.get_num_threads() == threads
    after = {name: value for name, value in os.environ.items() if name != "TORCH_CPP_LOG_LEVEL"}
    assert {k: v for k, v in after.items() if k in before} == before
    assert not {"LOCAL_RANK", "MASTER_PORT", "NODE_RANK"} & after.keys()


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["trainer.devices=2", "trainer.strategy=fsdp", "trainer.accelerator=cpu"], "trainer"),
        (["trainer=ddp", "trainer.devices=2", "+trainer.num_nodes=2"], "start it with torchrun or srun on every node"),
    ],
)
def test_what_cannot_be_is_said(train, words, told):
    done = train("debug=fast", "trainer.accelerator=cpu", *words)
    assert done.code == 2
    assert told in done.errors[0]


def test_sync_batchnorm_becomes_the_plugin_that_works_everywhere():
    cfg = OmegaConf.create({"trainer": {"sync_batchnorm": True, "plugins": [{"_target_": "x"}]}})
    made = trainer_options(cfg)
    assert "sync_batchnorm" not in made
    assert [plugin["_target_"] for plugin in made.plugins] == ["x", f"{SyncLayers.__module__}.SyncLayers"]


def test_same_sees_the_smallest_difference():
    a = {"x": [torch.zeros(3), 1.0], "y": {"z": "w"}}
    b = {"x": [torch.tensor([0.0, 0.0, 1e-30]), 1.0], "y": {"z": "w"}}
    assert same(a, a)
    assert not same(a, b)
