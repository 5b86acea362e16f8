"""What only a CUDA device can show: `make test-gpu`. Each test is skipped by name where there is none."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from decar.clustering import PIC, KMeans, nmi
from decar.clustering.nearest import gpu_index
from decar.models import load_encoder

ROOT = Path(__file__).resolve().parents[2]
SMALL = ["debug=fast", "sampler.every_n_steps=20", "trainer=gpu", "loader.pin_memory=true"]

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


def train(folder, *words):
    done = subprocess.run(
        [sys.executable, "train.py", *words, f"hydra.run.dir={folder}"], cwd=ROOT, capture_output=True, text=True,
        timeout=500, check=False, env={**os.environ},
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
