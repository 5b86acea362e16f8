"""Whole or not at all."""

import errno
import os
import signal
import socket
import subprocess
import sys
import threading
import time

import pytest

from decar import files
from decar.files import locked, whole


def test_what_is_written_stands_where_it_should_and_is_readable_by_others(tmp_path):
    target = tmp_path / "a" / "b.txt"
    with whole(target) as part:
        part.write_text("new")
        assert not target.exists()
        assert part.suffix == ".txt"
    assert target.read_text() == "new"
    assert target.stat().st_mode & 0o777 == 0o644
    assert list(target.parent.iterdir()) == [target]


def test_a_failure_leaves_the_old_file_and_nothing_else(tmp_path):
    target = tmp_path / "b.txt"
    target.write_text("old")

    def fail():
        with whole(target) as part:
            part.write_text("half of the n")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail()
    assert target.read_text() == "old"
    assert list(tmp_path.iterdir()) == [target]


HOLD = """
import sys, time; from decar.files import locked
with locked(sys.argv[1]): print("held", flush=True); time.sleep(60)
"""


@pytest.fixture
def holder(tmp_path):
    process = subprocess.Popen([sys.executable, "-c", HOLD, tmp_path / ".lock"], stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.communicate()


def test_a_lock_names_its_holder_and_is_free_as_soon_as_that_is_killed(tmp_path, holder):
    with (
        pytest.raises(BlockingIOError, match=f"process {holder.pid} on {socket.gethostname()}"),
        locked(tmp_path / ".lock", wait=0.2),
    ):
        pass
    holder.kill()
    began = time.monotonic()
    with locked(tmp_path / ".lock"):
        assert time.monotonic() - began < 1
    assert not (tmp_path / ".lock").exists()


def test_a_lock_waits_for_a_holder_that_is_about_to_end(tmp_path, holder):
    threading.Timer(0.3, holder.kill).start()
    with locked(tmp_path / ".lock", wait=5):
        assert holder.wait(5) == -signal.SIGKILL


def test_children_do_not_keep_the_lock_of_a_dead_parent(tmp_path):
    """A forked loader worker outlives its parent by seconds, a stopped one for ever."""
    code = (
        "import os, sys, time; from decar.files import locked\n"
        "with locked(sys.argv[1]):\n"
        "    if os.fork() == 0: time.sleep(30)\n"
        "    os._exit(0)"
    )
    subprocess.run([sys.executable, "-c", code, tmp_path / ".lock"], check=True)
    with locked(tmp_path / ".lock", wait=10):  # the child sleeps for longer
        pass


def test_a_lock_file_that_its_holder_deletes_is_not_shared_by_two(tmp_path, monkeypatch):
    path, tried = tmp_path / ".lock", []

    def once_too_late(descriptor, there):
        if not tried:
            path.unlink()  # its holder ends between open and lock
        tried.append(descriptor)
        return files_lock(descriptor, there)

    files_lock = files._lock
    monkeypatch.setattr(files, "_lock", once_too_late)
    with locked(path):
        assert len(tried) == 2
        assert f"process {os.getpid()}" in path.read_text()


def test_a_file_system_without_locks_costs_a_line(tmp_path, monkeypatch, caplog):
    def refuse(*args):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(files.fcntl, "flock", refuse)
    with locked(tmp_path / ".lock"):
        assert "has no locks (No locks available)" in caplog.text
