"""Real clusters on this machine: Ray nodes, of which one is killed, and SLURM jobs as submitit's local ones."""

import json
import os
import socket
import subprocess
import sys
import time

import numpy as np
import pandas as pd
import pytest
import soundfile

from decar.cli.app import main
from decar.embedder import Embedder, engines
from decar.embedder.engines import RayEngine, SlurmEngine
from decar.errors import ConfigError

RATE = 16_000
DECAR = (sys.executable, "-m", "decar.cli.app")


def sounds(root, n, seconds=0.3):
    """`n` clips of noise, one of which is no sound."""
    root.mkdir()
    rng = np.random.default_rng(0)
    for i in range(n):
        soundfile.write(root / f"{i:05}.wav", rng.normal(size=round(RATE * seconds)) * 0.1, RATE)
    (root / f"{n // 2:05}.wav").write_text("no sound")
    return root


def assert_equal(many, one):
    assert many.with_name(f"{many.name}.bad.csv").read_text() == one.with_name(f"{one.name}.bad.csv").read_text()
    many, one = pd.read_parquet(many), pd.read_parquet(one)
    pd.testing.assert_frame_equal(many.drop(columns="embedding"), one.drop(columns="embedding"))
    np.testing.assert_allclose(np.stack(many["embedding"]), np.stack(one["embedding"]), rtol=0, atol=1e-6)


def says(capsys, words):
    """The one line on which a command ends."""
    with pytest.raises(SystemExit) as ended:
        main(words)
    assert ended.value.code == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1
    return lines[0]


@pytest.mark.parametrize(("engine", "module", "extra"), [("ray", "ray", "ray"), ("slurm", "submitit", "sweep")])
def test_a_package_that_is_missing_is_named_with_its_extra(engine, module, extra, monkeypatch, capsys, tmp_path):
    monkeypatch.setitem(sys.modules, module, None)
    words = ["embed", str(sounds(tmp_path / "in", 2)), "--bundle", "random", "--engine", engine]
    assert f"not installed: pip install 'decar[{extra}]'" in says(capsys, words)


@pytest.mark.parametrize("scheme", ["", "ray://"])
def test_a_cluster_that_does_not_answer_is_one_line(scheme, monkeypatch, capsys, tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    words = ["embed", str(sounds(tmp_path / "in", 2)), "--bundle", "random", "--engine", "ray", "--address"]
    begun = time.monotonic()
    assert f"--address {scheme}127.0.0.1:{port}: no answer (" in says(capsys, [*words, f"{scheme}127.0.0.1:{port}"])
    assert "--address nonsense: no Ray cluster there" in says(capsys, [*words, "nonsense"])
    assert time.monotonic() - begun < 30


def test_options_of_other_engines_and_wrong_ones_are_refused(capsys, tmp_path):
    source = str(sounds(tmp_path / "in", 2))
    for words, line in (
        (["--address", "auto"], "--address auto: it is for --engine ray"),
        (["--jobs", "2", "--engine", "ray"], "--jobs 2: it is for --engine slurm"),
        (["--engine", "slurm", "--jobs", "0"], "--jobs=0"),
        (["--engine", "slurm", "--slurm", "gpu"], "--slurm gpu: give NAME=VALUE"),
        (["--engine", "slurm", "--slurm", "cluster=local", "nonsense=1"], "SLURM cannot be used"),
        (["--engine", "slurm"], "SLURM cannot be used"),  # there is no sbatch here
    ):
        assert line in says(capsys, ["embed", source, "--bundle", "random", "--out", str(tmp_path / "o.npy"), *words])


def test_slurm_jobs_write_the_table_of_one_process(tmp_path, monkeypatch, small_encoder):
    from decar.audio import Manifest

    monkeypatch.setattr("decar.embedder.shards.SHARD_CLIPS", 8)
    clips = Manifest.from_folder(sounds(tmp_path / "in", 60))
    Embedder(small_encoder).write(clips, tmp_path / "one.parquet", progress=False)
    engine = SlurmEngine(2, options={"cluster": "local"})
    Embedder(small_encoder, engine=engine).write(clips, tmp_path / "many.parquet", progress=False)
    assert_equal(tmp_path / "many.parquet", tmp_path / "one.parquet")
    assert sorted(path.name for path in tmp_path.iterdir() if path.name.startswith(".")) == []


def test_a_ray_cluster_of_this_machine_writes_the_table_of_one_process(tmp_path, monkeypatch, small_encoder):
    import ray

    from decar.audio import Manifest

    monkeypatch.setattr("decar.embedder.shards.SHARD_CLIPS", 8)
    clips = Manifest.from_folder(sounds(tmp_path / "in", 60))
    Embedder(small_encoder).write(clips, tmp_path / "one.parquet", progress=False)
    ray.init(num_cpus=1, object_store_memory=10**8, include_dashboard=False, log_to_driver=False)
    try:
        Embedder(small_encoder, engine=RayEngine()).write(clips, tmp_path / "many.parquet", progress=False)
    finally:
        ray.shutdown()
    assert_equal(tmp_path / "many.parquet", tmp_path / "one.parquet")
