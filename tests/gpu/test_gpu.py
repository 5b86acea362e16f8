"""What only a CUDA device can show: `make test-gpu`. Each test is skipped by name where there is none."""

import json
import os
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from hydra import compose, initialize_config_dir
from pytorch_lightning import Callback, Trainer

from decar import hear
from decar.cli.config import conf_dir
from decar.cli.train import all_clips, build_data, build_module
from decar.clustering import PIC, KMeans, nmi
from decar.clustering.nearest import GPU_TEMP_BYTES, faiss_on, flat_index, gpu_index
from decar.errors import ClusteringError
from decar.models import load_encoder
from decar.models.embed import evaluating, run_pass
from decar.pretrain import EpochCheckpoint, ResumableCSVLogger, Safeguard, StepBar

ROOT = Path(__file__).resolve().parents[2]
DETERMINISTIC = {**os.environ, "CUBLAS_WORKSPACE_CONFIG": ":4096:8"}  # asked for by torch's deterministic kernels
QUICK = ["protocol.max_epochs=2", "protocol.learning_rates=[1.0e-3]"]
SMALL = ["debug=fast", "sampler.every_n_steps=20", "trainer=gpu"]  # two loader workers, pinned memory

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


def train(folder, *words):
    done = subprocess.run(
        [sys.executable, "train.py", *words, f"hydra.run.dir={folder}"], cwd=ROOT, capture_output=True, text=True,
        timeout=500, check=False, env=DETERMINISTIC,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return folder


def blobs(n=4000, kinds=10):
    rng = np.random.default_rng(0)
    kind = rng.integers(kinds, size=n)
    return (rng.standard_normal((kinds, 16))[kind] * 6 + rng.standard_normal((n, 16))).astype(np.float32), kind


@pytest.mark.parametrize("clusterer", [KMeans(k=10, gpu=True), PIC(gpu=True)], ids=["kmeans", "pic"])
def test_faiss_on_the_gpu_finds_what_it_finds_on_the_cpu(clusterer):
    if gpu_index("auto") is None:
        pytest.skip("faiss sees no GPU: make setup EXTRA=gpu")
    from dataclasses import replace

    points, _ = blobs()
    there = clusterer.fit_predict(points).labels
    here = replace(clusterer, gpu=False).fit_predict(points).labels
    assert nmi(there, here) > 0.99


def test_faiss_takes_the_card_of_this_process_and_little_memory():
    faiss = pytest.importorskip("faiss")
    if gpu_index("auto") is None:
        pytest.skip("faiss sees no GPU: make setup EXTRA=gpu")
    torch.zeros(1, device="cuda")
    flat_index(faiss, 16, gpu=True)  # the libraries and their handles
    before = torch.cuda.mem_get_info()[0]
    index = flat_index(faiss, 16, gpu=True)
    assert before - torch.cuda.mem_get_info()[0] < 1.2 * GPU_TEMP_BYTES
    assert index.getDevice() == torch.cuda.current_device()
    with faiss_on(None):  # the process trains on the CPU
        assert gpu_index("auto") is None
        with pytest.raises(ClusteringError, match="trains on the CPU"):
            gpu_index(True)


def test_a_job_on_the_cpu_leaves_the_gpu_alone(tmp_path):
    script = (
        "import faiss, torch; del faiss.StandardGpuResources; from decar.cli.train import main; main(); "
        "assert torch.cuda.max_memory_reserved() == 0"
    )
    words = ["debug=fast", "trainer=cpu", "trainer.max_epochs=1", f"hydra.run.dir={tmp_path}"]
    done = subprocess.run([sys.executable, "-c", script, *words], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("seconds", [0.7, 10.0, 25.0])
def test_the_gpu_embeds_as_the_cpu_does(seconds):
    sound = torch.randn(int(16_000 * seconds), generator=torch.Generator().manual_seed(0)) / 10
    here, there = (load_encoder("small").to(device).embed(sound).cpu() for device in ("cpu", "cuda"))
    assert torch.nn.functional.cosine_similarity(here, there, dim=-1).min() > 0.9999
    torch.testing.assert_close(there, here, rtol=2e-3, atol=2e-3 * float(here.std()))


def test_the_pass_on_the_gpu_has_the_vectors_of_the_cpu(make_store):
    """Read ahead, copied from pinned memory, and fetched while later batches are computed."""
    from decar.models import embed_store

    store = make_store(np.random.default_rng(0).integers(1, 2300, 150).tolist())
    here, there = (embed_store(load_encoder("small"), store, device=d, progress=False) for d in ("cpu", "cuda"))
    cosine = (here * there).sum(1) / np.linalg.norm(here, axis=1) / np.linalg.norm(there, axis=1)
    assert cosine.min() > 0.9999


@contextmanager
def no_waiting():
    """Whatever makes the CPU wait for the GPU raises; not `Event.synchronize`."""
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_the_pass_waits_for_no_batch(make_store):
    """Copies leave pinned memory and come into it; only the events of earlier batches are waited for."""
    store = make_store(np.random.default_rng(0).integers(1, 2300, 150).tolist())
    encoder = load_encoder("small").to("cuda")
    options = {"dim": encoder.dim, "batch_size": 64, "title": "", "device": "cuda", "progress": False}
    with evaluating(encoder):
        run_pass(encoder, store, encoder, **options)  # libraries are loaded, memory is reserved
        with no_waiting():
            run_pass(encoder, store, encoder, **options)


BOTH = "labels.network_from=1"  # else picked by train.py


class NoWaiting(Callback):
    """From the third step on, all but those that log, and the last one: loader, step, callbacks, progress bar."""

    def __init__(self):
        self.looked = 0

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        step, last = trainer.global_step + 1, batch_idx + 1 == trainer.num_training_batches
        looks = batch_idx > 1 and step % trainer.log_every_n_steps and not last
        torch.cuda.set_sync_debug_mode("error" if looks else "default")
        self.looked += bool(looks)

    def on_exception(self, trainer, pl_module, exception):
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("words", [
    [BOTH], ["labels=online"], [BOTH, "trainer.precision=bf16-mixed"], [BOTH, "compile=true"],
    ["experiment=paper", "encoder.name=mobilenetv3_small_050", "k=4"],
], ids=["recipe", "online", "bf16", "compiled", "paper, whole clips"])  # fmt: skip
def test_a_step_waits_for_nothing_unless_it_logs(tmp_path, words):
    """16-mixed waits in each step: the scaler of the loss looks whether gradients are finite."""
    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        words = ["debug=fast", "sampler.every_n_steps=25", "trainer.max_epochs=2", *words]
        cfg = compose("train", [*words, "trainer.enable_progress_bar=false"])
    clips, look = all_clips(cfg).usable(), NoWaiting()
    module = build_module(cfg, clips)
    trainer = Trainer(
        accelerator="gpu", devices=1, max_epochs=2, precision=cfg.trainer.precision, use_distributed_sampler=False,
        num_sanity_val_steps=0, log_every_n_steps=10, logger=ResumableCSVLogger(tmp_path), default_root_dir=tmp_path,
        callbacks=[look, Safeguard(tmp_path / "last.ckpt"), EpochCheckpoint(tmp_path), StepBar(refresh_rate=2)],
    )  # fmt: skip
    trainer.fit(module, datamodule=build_data(cfg, clips, module))
    assert look.looked > 30


def test_a_compiled_step_learns_what_one_that_is_not_learns(tmp_path):
    losses = []
    for word in ("compile=false", "compile=true"):
        run = train(tmp_path / word, *SMALL, word, "trainer.precision=32-true", "trainer.max_epochs=3")
        losses.append(pd.read_csv(run / "metrics.csv")["loss_epoch"].dropna().to_numpy())
    assert losses[1] == pytest.approx(losses[0], rel=0.05)


def test_the_switches_for_speed_train_and_the_paper_s_whole_clips(tmp_path):
    fast = ["trainer.benchmark=true", "exact=false", "trainer=ddp", "trainer.accelerator=gpu", "trainer.devices=[0]"]
    assert (train(tmp_path / "fast", *SMALL, *fast) / "finished.json").is_file()
    paper = ["experiment=paper", "loader.crop_frames=null", "k=4", "trainer.precision=bf16-mixed", "data.segment=null"]
    run = train(tmp_path / "paper", *SMALL, *paper)
    assert np.isfinite(pd.read_csv(run / "metrics.csv")["loss_epoch"].dropna()).all()


def test_decar_embed_writes_on_the_gpu_what_it_writes_on_the_cpu(tmp_path):
    mini = ROOT / "src" / "decar" / "data" / "mini"
    tables = []
    for device in ("cpu", "cuda"):
        out = tmp_path / f"{device}.parquet"
        script = "from decar.cli.app import main; main()"
        words = ["embed", str(mini), "--bundle", "small", "--out", str(out), "--device", device]
        done = subprocess.run(
            [sys.executable, "-c", script, *words], cwd=ROOT, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
        tables.append(pd.read_parquet(out))
    here, there = (np.stack(table["embedding"]).astype(np.float64) for table in tables)
    assert tables[0]["path"].equals(tables[1]["path"])
    assert here.shape[1] > 1
    cosine = (here * there).sum(1) / np.linalg.norm(here, axis=1) / np.linalg.norm(there, axis=1)
    assert cosine.min() > 0.999


def test_hear_answers_on_the_device_of_its_sounds():
    sounds = torch.randn(3, 32_000, generator=torch.Generator().manual_seed(0)) / 10
    model = hear.load_model("small")
    here = hear.get_scene_embeddings(sounds, model)
    model = model.to("cuda")
    there = hear.get_scene_embeddings(sounds.cuda(), model)
    assert there.device.type == "cuda"
    torch.testing.assert_close(there.cpu(), here, rtol=2e-3, atol=2e-3 * float(here.std()))
    vectors, times = hear.get_timestamp_embeddings(sounds.cuda(), model)
    assert vectors.device.type == times.device.type == "cuda"
    assert torch.isfinite(vectors).all()


def test_a_run_that_was_killed_ends_with_the_weights_of_one_that_was_not(tmp_path):
    words = [*SMALL, "loader.num_workers=2", "trainer.max_epochs=4", "+trainer.deterministic=true"]
    whole = train(tmp_path / "whole", *words)
    cut = subprocess.Popen(
        [sys.executable, "train.py", *words, f"hydra.run.dir={tmp_path / 'cut'}"], cwd=ROOT, env=DETERMINISTIC,
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    log = tmp_path / "cut" / "train.log"
    end = time.monotonic() + 200
    while not (log.is_file() and "epoch 2/4" in log.read_text()):
        assert cut.poll() is None, log.read_text() if log.is_file() else "no log"
        assert time.monotonic() < end
        time.sleep(0.05)
    cut.kill()
    cut.wait()
    assert not (tmp_path / "cut" / "finished.json").exists()
    again = train(tmp_path / "cut", *words, "resume=auto")
    assert "going on from" in log.read_text()
    weights = [load_encoder(run).state_dict() for run in (whole, again)]
    for name, value in weights[0].items():
        assert torch.equal(value, weights[1][name]), name


@pytest.mark.parametrize("precision", ["16-mixed", "bf16-mixed"])
def test_mixed_precision_learns_what_float32_learns(tmp_path, precision):
    losses = []
    for name in ("32-true", precision):
        run = train(tmp_path / name, *SMALL, f"trainer.precision={name}", "trainer.max_epochs=3")
        losses.append(pd.read_csv(run / "metrics.csv")["loss_epoch"].dropna().to_numpy())
    assert losses[0][-1] < losses[0][0]
    assert losses[1] == pytest.approx(losses[0], rel=0.1)


def test_fine_tuning_and_frozen_judging(tmp_path):
    for mode in ("frozen", "finetune"):
        words = ["task=kind", "bundle=small", f"mode={mode}", "accelerator=gpu", f"hydra.run.dir={tmp_path / mode}"]
        words += ["protocol=search", *(QUICK if mode == "finetune" else [])]
        done = subprocess.run(
            [sys.executable, "eval.py", *words], cwd=ROOT, capture_output=True, text=True, timeout=500, check=False
        )
        assert done.returncode == 0, done.stderr
        result = json.loads((tmp_path / mode / "result.json").read_text())
        assert result["value"] > 0.5  # of five kinds


def test_mixed_precision_and_pinned_loading_learn(tmp_path):
    run = train(tmp_path / "run", *SMALL, "loader.num_workers=2")
    assert "precision: 16-mixed" in (run / "config.yaml").read_text()
    assert torch.isfinite(load_encoder(run).embed(torch.randn(2, 16_000))).all()


def test_a_resume_goes_on_where_it_stopped(tmp_path):
    train(tmp_path / "run", *SMALL)
    log = (tmp_path / "run" / "train.log").read_text()
    assert "epoch 2/2" in log
    words = [*SMALL, "trainer.max_epochs=3", "resume=auto"]
    train(tmp_path / "run", *words)
    rest = (tmp_path / "run" / "train.log").read_text()[len(log) :]
    assert "going on from" in rest
    assert "epoch 3/3" in rest
    assert "epoch 1/3" not in rest


def test_nccl(tmp_path):
    run = train(tmp_path / "run", *SMALL, "trainer=ddp", "trainer.accelerator=gpu", "trainer.devices=1")
    assert (run / "finished.json").is_file()
    if torch.cuda.device_count() < 2:
        pytest.skip("one device: NCCL between two was not tried")
    run = train(tmp_path / "two", *SMALL, "trainer=ddp", "trainer.devices=2")
    assert (run / "finished.json").is_file()


def test_fused_batchnorm_over_ranks_is_batchnorm():
    """Of one rank; what it computes over several is tested on CPUs, with the other kernel."""
    from torch import distributed
    from torch.nn import functional

    from decar.pretrain.sync import batch_norm_over_ranks

    distributed.init_process_group("nccl", store=distributed.HashStore(), rank=0, world_size=1)
    try:
        x = torch.randn(6, 3, 5, 4, device="cuda") * 3 + 10
        found = []
        for norm in (functional.batch_norm, batch_norm_over_ranks):
            mean, var = torch.zeros(3, device="cuda"), torch.ones(3, device="cuda")
            weight = torch.full((3,), 2.0, device="cuda", requires_grad=True)
            out = norm(x, mean, var, weight, None if norm is functional.batch_norm else torch.zeros_like(mean), True)
            out.square().sum().backward()
            found.append([out.detach(), mean, var, weight.grad])
        for mine, theirs in zip(*found, strict=True):
            torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-4)
    finally:
        distributed.destroy_process_group()
