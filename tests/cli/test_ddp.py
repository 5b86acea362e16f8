"""Several processes from the command line, and runs that are killed; each as a shell would start it."""

import os
import signal
import subprocess
import sys
import time
from datetime import timedelta
from itertools import product
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import soundfile
import torch
from hydra import compose, initialize_config_dir
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from hydra.utils import instantiate
from omegaconf import OmegaConf

from benchmarks.jobs import difference, same
from decar.cli.config import conf_dir
from decar.cli.eval import device_of
from decar.cli.trainer import gpus_in_turn, gpus_of_job, trainer_options, turn
from decar.errors import ConfigError
from decar.pretrain.sync import SyncLayers

ROOT = Path(__file__).resolve().parents[2]
SMALL = ["debug=fast", "sampler.every_n_steps=20", "trainer.accelerator=cpu"]


def start(folder, *words, runner=(sys.executable, "train.py"), small=SMALL):
    command = [*runner, *small, *words, f"hydra.run.dir={folder}/run"]
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


DDP = ["trainer=ddp", "trainer.devices=2", "sampler.every_n_steps=40"]


@pytest.mark.slow
def test_two_processes_started_here_or_by_torchrun_are_the_same_run(tmp_path):
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "train.py", "-m"]
    finish(tmp_path / "whole", *DDP)
    sweep = [f"hydra.sweep.dir={tmp_path}/torchrun", "hydra.sweep.subdir=${sampler.every_n_steps}/run"]
    finish(tmp_path / "torchrun", *DDP[:2], "sampler.every_n_steps=5,40", *sweep, runner=torchrun)
    assert not difference(tmp_path / "torchrun/40", tmp_path / "whole")


@pytest.mark.slow  # `make chaos` kills ranks too
def test_a_kill_changes_nothing_with_two_processes(tmp_path):
    finish(tmp_path / "whole", *DDP)
    process = start(tmp_path / "cut", *DDP, "resume=auto", "callbacks.inside.minutes=0")
    wait_for(tmp_path / "cut/run/checkpoints/last.ckpt", process)
    process.kill()
    process.communicate()
    assert "going on from" in finish_log(tmp_path / "cut", *DDP, "resume=auto", "callbacks.inside.minutes=0")
    assert not difference(tmp_path / "cut", tmp_path / "whole")
    rows = (tmp_path / "whole/run/metrics.csv").read_text().splitlines()
    assert len(rows) == 1 + 2 * (4 + 1), "one process logs"


@pytest.mark.slow
@pytest.mark.parametrize("words", [["labels=online"], ["labels=online", "data.stream=true", "data.buffer=100"]])
@pytest.mark.parametrize("processes", [[], ["trainer=ddp", "trainer.devices=2"]], ids=["alone", "two"])
def test_a_kill_changes_nothing_without_a_pass(tmp_path, words, processes):
    """Prototypes, queue and the place in the stream are those of the checkpoint, in the middle of an epoch."""
    words = [*words, *processes, "sampler.every_n_steps=40"]
    finish(tmp_path / "whole", *words)
    process = start(tmp_path / "cut", *words, "resume=auto", "callbacks.inside.minutes=0")
    wait_for(tmp_path / "cut/run/checkpoints/last.ckpt", process)
    process.kill()
    process.communicate()
    state = torch.load(tmp_path / "cut/run/checkpoints/last.ckpt", weights_only=True)
    assert 0 < state["global_step"] < 80
    assert "going on from" in finish_log(tmp_path / "cut", *words, "resume=auto", "callbacks.inside.minutes=0")
    assert not difference(tmp_path / "cut", tmp_path / "whole")


def finish_log(folder, *words):
    finish(folder, *words)
    return (folder / "run/train.log").read_text()


@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 75), (signal.SIGINT, 130)])
def test_a_signal_saves_and_names_the_command_that_goes_on(tmp_path, number, status):
    words = ["sampler.every_n_steps=200", "trainer.max_epochs=1", "callbacks.inside.minutes=0", "resume=auto"]
    process = start(tmp_path, *words)
    wait_for(tmp_path / "run/checkpoints/last.ckpt", process)
    process.send_signal(number)
    _, err = process.communicate(timeout=60)
    assert process.returncode == status, err
    assert f"stopped by {number.name}; what is done is kept. To go on: python train.py debug=fast" in err
    assert f"hydra.run.dir={tmp_path}/run resume=auto (exit status {status}" in err
    assert "Traceback" not in err
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
        (["trainer.devices=2", "trainer.strategy=fsdp"], "trainer.strategy=fsdp: heads are renewed every epoch"),
        (["trainer.strategy=deepspeed_stage_2"], "trainer.strategy=deepspeed_stage_2: heads are renewed"),
        (["trainer.devices=2", "trainer.strategy=ddp_spawn"], "trainer.strategy=ddp_spawn: heads are renewed"),
        (["trainer=ddp", "trainer.devices=3"], "loader.batch_size=64 is the batch of all 3 processes"),
        *(
            (["trainer.precision=" + name], f"trainer.precision={name}: weights are trained in float32 only")
            for name in ("bf16-true", "16-true", "64-true", "transformer-engine", "64")
        ),
        (["trainer=ddp", "trainer.devices=2", "+trainer.num_nodes=2"], "start it with torchrun or srun on every node"),
    ],
)
def test_what_cannot_be_is_said(train, words, told):
    done = train("debug=fast", "trainer.accelerator=cpu", *words)
    assert done.code == 2
    assert told in done.errors[0]


def test_sync_batchnorm_becomes_the_plugin_that_works_everywhere():
    cfg = OmegaConf.create({"trainer": {"strategy": "ddp", "sync_batchnorm": True, "plugins": [{"_target_": "x"}]}})
    made = trainer_options(cfg)
    assert "sync_batchnorm" not in made
    assert [plugin["_target_"] for plugin in made.plugins] == ["x", f"{SyncLayers.__module__}.SyncLayers"]


CPU = ["trainer.accelerator=cpu", "trainer.precision=32-true", "trainer.enable_progress_bar=false"]


def options_of(*words):
    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        return trainer_options(compose("train", [*CPU, *words]))


@pytest.mark.parametrize("strategy", [None, "auto", "ddp", "ddp_find_unused_parameters_true"])
def test_however_several_processes_are_asked_for_the_settings_are_those_of_ddp(strategy):
    """Lightning's own give up after 30 minutes, while rank 0 may cluster for longer."""
    word = [] if strategy is None else [f"trainer.strategy={strategy}"]
    by_gpu, by_ddp = (options_of(f"trainer={name}", "trainer.devices=8", *word) for name in ("gpu", "ddp"))
    assert by_gpu == by_ddp
    made = instantiate(by_gpu.strategy)
    assert type(made).__name__ == "DDPStrategy"
    assert made._timeout == timedelta(hours=24)
    assert made._ddp_kwargs == {"find_unused_parameters": True}
    assert options_of("trainer=gpu", "trainer.devices=1").strategy == "auto"
    own = "trainer.strategy={_target_:pytorch_lightning.strategies.DDPStrategy,find_unused_parameters:false}"
    assert instantiate(options_of(own).strategy)._timeout == timedelta(hours=24)
    assert instantiate(options_of(own).strategy)._ddp_kwargs == {"find_unused_parameters": False}


def test_without_exactness_ddp_does_less_in_each_step():
    made = instantiate(options_of("trainer=ddp", "trainer.devices=2", "exact=false").strategy)
    assert made._ddp_kwargs == {"find_unused_parameters": False, "broadcast_buffers": False}
    own = ["exact=false", "trainer.strategy=ddp_find_unused_parameters_true"]
    assert instantiate(options_of(*own).strategy)._ddp_kwargs["find_unused_parameters"], "what is given goes first"


@pytest.fixture
def four_gpus(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)


class TestGpusOfASweep:
    def test_every_job_has_as_many_as_it_wants_and_they_are_used_alike(self):
        for visible, wanted in product(range(1, 9), range(1, 5)):
            found = [gpus_of_job(number, wanted, visible) for number in range(24)]
            if wanted > visible:
                assert found == [None] * 24
                continue
            assert all(len(set(job)) == wanted and set(job) <= set(range(visible)) for job in found)
            beside = visible // wanted
            for first in range(24 - beside):
                together = [gpu for job in found[first : first + beside] for gpu in job]
                assert len(set(together)) == len(together), "jobs that begin one after the other share none"

    @pytest.mark.parametrize(("launcher", "mode", "number"), [
        ("joblib", RunMode.MULTIRUN, 6), ("basic", RunMode.MULTIRUN, None), ("submitit_slurm", RunMode.MULTIRUN, None),
        ("joblib", RunMode.RUN, None),
    ])  # fmt: skip
    def test_only_jobs_that_run_side_by_side_take_turns(self, monkeypatch, launcher, mode, number):
        runtime = SimpleNamespace(choices={"hydra/launcher": launcher})
        conf = SimpleNamespace(mode=mode, runtime=runtime, job=SimpleNamespace(num=6))
        monkeypatch.setattr(HydraConfig, "initialized", lambda: True)
        monkeypatch.setattr(HydraConfig, "get", lambda: conf)
        assert turn() == number

    def test_a_training_takes_its_gpus_unless_it_names_them(self, four_gpus, monkeypatch):
        monkeypatch.setenv("DECAR_TURN", "6")  # a further process of the job has its number from here
        assert gpus_in_turn(1, "auto") == [2]
        assert gpus_in_turn(2, "gpu") == [0, 1]
        for wanted, accelerator in (([3], "gpu"), (1, "cpu"), ("auto", "gpu"), (-1, "gpu"), (8, "gpu")):
            assert gpus_in_turn(wanted, accelerator) is None
        made = trainer_options(OmegaConf.create({"trainer": {"accelerator": "gpu", "devices": 1, "strategy": "ddp"}}))
        assert made.devices == [2]
        monkeypatch.delenv("DECAR_TURN")
        assert gpus_in_turn(1, "auto") is None

    def test_a_judgement_takes_one(self, four_gpus, monkeypatch):
        assert [device_of("cpu", [3]), device_of("auto"), device_of("gpu", [3])] == ["cpu", "cuda", "cuda:3"]
        monkeypatch.setenv("DECAR_TURN", "6")
        assert [device_of("auto"), device_of("auto", [3])] == ["cuda:2", "cuda:3"]
        for devices in (2, [0, 1], "auto"):
            with pytest.raises(ConfigError, match=r"devices=.*: a task is judged on one device; give 1"):
                device_of("gpu", devices)
        with pytest.raises(ConfigError, match=r"devices=\[4\]: torch sees 4 GPUs here"):
            device_of("gpu", [4])


def test_same_sees_the_smallest_difference():
    a = {"x": [torch.zeros(3), 1.0], "y": {"z": "w"}}
    b = {"x": [torch.tensor([0.0, 0.0, 1e-30]), 1.0], "y": {"z": "w"}}
    assert same(a, a)
    assert not same(a, b)


@pytest.mark.slow
def test_two_processes_have_the_loss_curve_of_one(tmp_path):
    """SGD, SpecAugment, SyncBatchNorm over three epochs; only `trainer.devices` differs.

    An untrained EfficientNet-B0 multiplies the rounding of float32 too much to compare curves; its gradients are
    compared in float64 in tests/pretrain/test_ranks.py, where a smaller network also makes its own clusters.
    """
    rng = np.random.default_rng(0)
    for i in range(64):
        tone = np.sin(2 * np.pi * (200 * 1.5 ** (i % 8)) * np.arange(20_000) / 16_000)
        path = tmp_path / "sounds" / f"{i}.wav"
        path.parent.mkdir(exist_ok=True)
        soundfile.write(path, 0.2 * tone + rng.uniform(0.001, 0.1) * rng.normal(size=len(tone)), 16_000)
    words = ["experiment=paper", "encoder=conv", "encoder.dropout=0", "labels=descriptors", "labels.dim=4", "k=8",
             "data=folder", f"data.root={tmp_path}/sounds", f"cache_dir={tmp_path}/cache", "trainer.accelerator=cpu",
             "trainer.max_epochs=3", "sampler.every_n_steps=4", "loader.batch_size=16", "optimizer.lr=0.005",
             "report=false", "trainer.log_every_n_steps=1"]  # fmt: skip
    curves = []
    for devices in (1, 2):
        folder = tmp_path / str(devices)
        finish(folder, *words, f"trainer.devices={devices}", small=())
        rows = pd.read_csv(folder / "run/metrics.csv")
        curves.append([rows[key].dropna().to_numpy() for key in ("loss_step", "loss_epoch", "n_clusters")])
    assert [len(values) for values in curves[0]] == [12, 3, 3]
    for mine, theirs in zip(*curves, strict=True):
        np.testing.assert_allclose(theirs, mine, rtol=1e-4)
