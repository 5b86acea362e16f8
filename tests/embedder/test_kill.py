"""`decar embed` as a process of its own: killed at many moments, and in bounded memory."""

import signal
import subprocess
import sys

import numpy as np
import pytest
import soundfile

from tests.conftest import FORK
from tests.embedder import embed_slowly


def start(source, out, pause, *options):
    """An embedding in a process of its own, and the end of a pipe that each of its commits is read from."""
    here, there = FORK.Pipe(duplex=False)
    process = FORK.Process(target=embed_slowly.run, args=(there, str(source), str(out), pause, *options))
    process.start()
    there.close()
    return process, here


def finish(source, out, *options):
    process, _ = start(source, out, 0.0, *options)
    process.join(60)
    assert process.exitcode == 0


def killed_after(commits, source, out, *options):
    """Kill right after so many commits."""
    process, commit = start(source, out, 0.05, *options)
    for _ in range(commits):
        commit.recv()
    process.kill()
    process.join()
    assert process.exitcode == -signal.SIGKILL


@pytest.mark.parametrize(
    "options",
    [[], pytest.param(["--windows", "0.5", "--hop", "0.25"], marks=pytest.mark.slow)],
    ids=["clips", "windows"],
)
def test_killed_and_started_again_gives_the_same_bytes(tmp_path, capfd, options):
    rng = np.random.default_rng(0)
    source = tmp_path / "in"
    source.mkdir()
    for i in range(14):
        soundfile.write(source / f"{i:02}.wav", rng.normal(size=round(16_000 * (0.3 + 0.3 * i))) * 0.1, 16_000)
    (source / "bad.wav").write_text("no sound")
    finish(source, tmp_path / "never.parquet", *options)
    for commits in (1, 2):  # the second kill is of a run that goes on
        killed_after(commits, source, tmp_path / "often.parquet", *options)
        assert not (tmp_path / "often.parquet").exists()
        assert (tmp_path / ".often.parquet.parts").is_dir()
    capfd.readouterr()
    finish(source, tmp_path / "often.parquet", *options)
    assert "going on with" in capfd.readouterr().err
    assert (tmp_path / "often.parquet").read_bytes() == (tmp_path / "never.parquet").read_bytes()
    assert (tmp_path / "often.parquet.bad.csv").read_bytes() == (tmp_path / "never.parquet.bad.csv").read_bytes()
    assert not (tmp_path / ".often.parquet.parts").exists()


def embed_in_memory(tmp_path, seconds):
    """Peak memory in bytes of embedding a stereo wav of some length at 22,050 Hz."""
    rng = np.random.default_rng(0)
    with soundfile.SoundFile(tmp_path / "long.wav", "w", 22_050, 2, "PCM_16") as file:
        minute = (0.1 * rng.standard_normal((22_050 * 60, 2))).astype(np.float32)
        for _ in range(seconds // 60):
            file.write(minute)
    words = ["embed", str(tmp_path / "long.wav"), "--out", str(tmp_path / "o.parquet")]
    code = (
        "import resource; from decar.cli.app import main; "
        f"main({words!r}); print('peak', resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)"
    )
    # a child begins with the peak of the process that forked it: a small one in between, not this one
    small = f"import subprocess, sys; sys.exit(subprocess.run([sys.executable, '-c', {code!r}]).returncode)"
    done = subprocess.run([sys.executable, "-c", small], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    unit = 1 if sys.platform == "darwin" else 1024
    return int(done.stdout.split()[-1]) * unit


def test_ten_minutes_in_bounded_memory(tmp_path):
    assert embed_in_memory(tmp_path, 600) < 1.8e9


@pytest.mark.slow
def test_ten_hours_in_bounded_memory(tmp_path):
    assert embed_in_memory(tmp_path, 36_000) < 2e9
