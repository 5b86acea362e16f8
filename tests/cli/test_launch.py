"""What becomes of a job whose process is killed or stopped."""

import os
import signal
import subprocess
import threading

import pytest

from decar.cli import launch
from decar.errors import LostProcessError


@pytest.fixture
def child():
    process = subprocess.Popen(["sleep", "60"])
    yield process
    process.kill()
    process.wait()


def test_a_killed_process_is_named_in_place_of_the_error_of_the_exchange(child):
    child.kill()
    with (
        pytest.raises(LostProcessError, match=rf"process 1 \(pid {child.pid}\) .* killed by SIGKILL. To go on") as told,
        launch._losses_told([child]),
    ):
        raise RuntimeError("[gloo/transport/tcp/pair.cc:534] Connection closed by peer")
    assert told.value.status == 3


def test_an_error_of_our_own_stays_what_it_is(child):
    with pytest.raises(RuntimeError, match="ours"), launch._losses_told([child]):
        raise RuntimeError("ours")


def test_a_process_that_stays_stopped_ends_the_job(child, monkeypatch):
    ended = []
    monkeypatch.setattr("decar.signals.end_now", lambda *args: ended.append(args))
    child.send_signal(signal.SIGSTOP)
    launch._watch([child], threading.Event(), 1)
    assert ended[0][0] == 3
    assert f"process 1 (pid {child.pid}) of this job has been stopped for 1 s" in ended[0][1]


def test_a_process_ends_with_a_parent_that_stays_stopped(monkeypatch):
    ended = threading.Event()
    monkeypatch.setenv(launch.PARENT, str(os.getppid()))
    monkeypatch.setattr(launch, "is_stopped", lambda pid: pid == os.getppid())
    monkeypatch.setattr(os, "_exit", lambda status: ended.set() if status == 3 else None)
    launch.end_with_parent(0.5)
    assert ended.wait(5)
