"""Real clusters on this machine: Ray nodes, of which one is killed, and SLURM jobs as submitit's local ones."""

import json
import os
import socket
import subprocess
import sys
import time
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import soundfile

from decar.audio import Manifest
from decar.cli.app import main
from decar.embedder import Embedder, engines
from decar.embedder.engines import RayEngine, SlurmEngine, _RayPool
from decar.errors import ConfigError, DecarError

RATE = 16_000
pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="Ray is installed for tests on Linux")
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
    many, one = np.stack(many["embedding"]), np.stack(one["embedding"])
    assert (np.abs(many - one).max(axis=1) <= 1e-6 * np.linalg.norm(one, axis=1)).all()


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


class Connected:
    """Ray as a process has it that is connected to the cluster of the head 10.0.0.1:6379 of the machine 10.0.0.2."""

    util = SimpleNamespace(get_node_ip_address=lambda: "10.0.0.2")

    def __init__(self, head="10.0.0.1:6379", already=True):
        self.head, self.already, self.asked = head, already, []

    def is_initialized(self):
        return self.already

    def init(self, address, **options):
        self.already = True
        self.asked.append(address)

    def get_runtime_context(self):
        return SimpleNamespace(gcs_address=self.head)

    def cluster_resources(self):
        return {"CPU": 4.0}


@pytest.mark.parametrize(
    "address", ["10.0.0.1:6380", "10.0.0.3:6379", "127.0.0.1:6379", "ray://10.0.0.1:10001", "local"]
)
def test_an_address_is_refused_where_ray_is_connected_to_another_cluster(address, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", Connected())
    with pytest.raises(ConfigError, match=rf"--address {address}: .* connected to the Ray cluster at 10\.0\.0\.1:6379"):
        RayEngine(address)
    for same in (None, "auto", "10.0.0.1:6379"):
        assert RayEngine(same).cores == 1
    monkeypatch.setenv("RAY_ADDRESS", address)
    RayEngine()  # Ray itself has read that variable, or was given something else in its place
    monkeypatch.setitem(sys.modules, "ray", Connected(head="10.0.0.2:6379"))
    RayEngine("127.0.0.1:6379")


def test_the_address_of_an_earlier_call_is_that_of_the_same_cluster(monkeypatch):
    """`ray://` leads to another port than the head's."""
    ray = Connected(already=False)
    monkeypatch.setitem(sys.modules, "ray", ray)
    monkeypatch.setattr(engines, "_require_answer", lambda address: None)
    monkeypatch.setattr(RayEngine, "connected", (None, ""))
    for _ in range(2):
        RayEngine("ray://head:10001")
    assert ray.asked == ["ray://head:10001"]
    ray.head = "10.0.0.9:6379"  # somebody has connected to another one since
    with pytest.raises(ConfigError, match=r"--address ray://head:10001"):
        RayEngine("ray://head:10001")


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


def test_the_script_of_a_slurm_job_asks_for_what_was_given(tmp_path, monkeypatch):
    for name in ("sbatch", "srun"):
        (tmp_path / name).write_text("#!/bin/sh\n")
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    engine = SlurmEngine(2, options={"partition": "gpu", "mem_gb": "7"})
    for cores, gpus, line in ((4, 1, "--gpus-per-node=1"), (2, 0, "--cpus-per-task=2")):
        executor = engine._executor(tmp_path, cores, gpus)._executor
        text = executor._make_submission_file_text("work", "0")
        assert line in text
        assert all(word in text for word in ("--partition=gpu", "--mem=7GB", "--time=240", f"--cpus-per-task={cores}"))


class Nodes:
    """Ray, as far as it says which machines there are."""

    def __init__(self, *resources):
        self.resources = resources

    def nodes(self):
        return [{"Alive": alive, "Resources": has} for alive, has in self.resources]

    def put(self, thing):
        return thing

    def remote(self, **options):
        self.options = options
        return lambda work: work


def test_a_worker_has_its_gpu_and_cores_on_one_machine(monkeypatch):
    monkeypatch.setattr(engines, "ANSWERS", 0.0)
    ray = Nodes((True, {"CPU": 8.0, "GPU": 2.0}), (True, {"CPU": 4.0}), (False, {"CPU": 64.0, "GPU": 8.0}))
    assert _RayPool(ray, None, 1, 0).room() == 2 * 12
    assert _RayPool(ray, None, 3, 0).room() == 2 * 3
    assert _RayPool(ray, None, 4, 1).room() == 2 * 2
    assert ray.options["num_cpus"] == 4
    assert ray.options["num_gpus"] == 1
    with pytest.raises(DecarError, match="no machine of the Ray cluster has 16 cores and 0 GPUs"):
        _RayPool(ray, None, 16, 0).room()


def test_a_machine_that_joins_late_is_waited_for(monkeypatch):
    monkeypatch.setattr(engines, "POLL", 0.01)
    ray = Nodes()
    answers = iter([[], [(True, {})], [(True, {"CPU": 2.0})]])
    monkeypatch.setattr(ray, "nodes", lambda: [{"Alive": a, "Resources": has} for a, has in next(answers)])
    assert _RayPool(ray, None, 1, 0).room() == 2 * 2


def test_slurm_jobs_write_the_table_of_one_process(tmp_path, monkeypatch, small_encoder):
    monkeypatch.setattr("decar.embedder.shards.SHARD_CLIPS", 8)
    clips = Manifest.from_folder(sounds(tmp_path / "in", 60))
    Embedder(small_encoder).write(clips, tmp_path / "one.parquet", progress=False)
    engine = SlurmEngine(1, options={"cluster": "local"})
    Embedder(small_encoder, engine=engine).write(clips, tmp_path / "many.parquet", progress=False)
    assert_equal(tmp_path / "many.parquet", tmp_path / "one.parquet")
    assert sorted(path.name for path in tmp_path.iterdir() if path.name.startswith(".")) == []


@pytest.mark.slow
def test_a_ray_cluster_of_this_machine_writes_the_table_of_one_process(tmp_path):
    sounds(tmp_path / "in", 600)
    for out, options in (("one.parquet", []), ("many.parquet", ["--engine", "ray", "--workers", "1"])):
        words = [*DECAR, "embed", "in", "--out", out, *options]
        done = subprocess.run(words, cwd=tmp_path, env=environment(), capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        said = [line for line in done.stderr.splitlines() if not line.startswith("embed:")]
        assert [line.partition(" ")[0] for line in said] == ["00300.wav:", "1"]  # nothing of Ray's
    assert_equal(tmp_path / "many.parquet", tmp_path / "one.parquet")


@pytest.fixture
def cluster():
    """A Ray cluster of a head that embeds nothing and two nodes with a core each; and the nodes."""
    from ray.cluster_utils import Cluster

    small = {"object_store_memory": 10**8, "include_dashboard": False}
    made = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, **small})
    nodes = [made.add_node(num_cpus=1, object_store_memory=10**8) for _ in range(2)]
    yield made, nodes
    made.shutdown()


@pytest.mark.slow
def test_a_node_killed_half_way_leaves_no_trace_in_the_table(tmp_path, cluster):
    made, nodes = cluster
    sounds(tmp_path / "in", 5_000)
    words = [*DECAR, "embed", "in", "--windows", "0.1", "--out"]  # three rows a clip: half of it is 15 s of work
    many = [*words, "many.parquet", "--engine", "ray", "--address", made.address]
    running = subprocess.Popen(many, cwd=tmp_path, env=environment(), stderr=subprocess.PIPE, text=True)
    try:
        parts = tmp_path / ".many.parquet.parts"
        while running.poll() is None and committed(parts / "journal.jsonl") < 2_500:
            time.sleep(0.2)
        assert running.poll() is None, running.stderr.read()
        made.remove_node(nodes[0], allow_graceful=False)
        _, said = running.communicate(timeout=600)
    finally:
        running.kill()
    assert running.returncode == 0, said
    assert " are embedded again: " in said
    subprocess.run([*words, "one.parquet"], cwd=tmp_path, env=environment(), check=True)
    assert_equal(tmp_path / "many.parquet", tmp_path / "one.parquet")
    assert len(pd.read_parquet(tmp_path / "many.parquet", columns=["path"])) == 3 * 4_999


def committed(journal):
    """Clips in a journal."""
    try:
        return sum(len(json.loads(line)["clips"]) for line in journal.read_text().splitlines() if line.endswith("}"))
    except FileNotFoundError:
        return 0


@pytest.mark.slow
def test_a_process_that_dies_on_one_clip_again_and_again_is_an_error_not_a_loop(tmp_path):
    """As with sounds that make libsndfile crash: real workers that really die."""
    sounds(tmp_path / "in", 4)
    (tmp_path / "deadly.py").write_text(DEADLY)
    env = environment(tmp_path)
    words = [*DECAR, "embed", "in", "--engine", "ray", "--workers", "1", "--bundle", "torch:deadly.build"]
    done = subprocess.run(words, cwd=tmp_path, env=env, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 2, done.stderr
    assert "clips 1 to 4 (00000.wav and those behind it): not done by 3 workers" in done.stderr.splitlines()[-1]


DEADLY = """
import os
import torch

class Deadly(torch.nn.Module):
    sample_rate, dim = 16_000, 4
    def forward(self, waveforms):
        if len(waveforms) == 3:
            os._exit(1)
        return torch.zeros(len(waveforms), 4)

def build():
    return Deadly()
"""


def environment(*folders):
    """That of this process, with folders to import from, and a core a process."""
    paths = [*map(str, folders), *sys.path]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths))}
