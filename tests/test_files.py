"""Written whole or not at all, listed whatever lies there, read back as they were."""

import errno
import inspect
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import pandas as pd
import pytest

from decar import files
from decar.errors import is_unicode, printable
from decar.files import find_files, locked, whole, whole_folder, write_csv

EVIL = "\x1b]0;evil\x07a.wav"  # retitles a terminal


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        (EVIL, "\\x1b]0;evil\\x07a.wav"),
        ("a\nb\r.wav\x85\u2028", "a\\nb\\r.wav\\x85\\u2028"),
        ("abc\u202egpj.wav\u2066", "abc\\u202egpj.wav\\u2066"),  # shown as abcwav.jpg by a terminal that reorders
        (os.fsdecode(b"\xff.wav"), "\\udcff.wav"),
        ("C:\\new ä \u3000\xa0 می\u200cخواهم", "C:\\new ä \u3000\xa0 می\u200cخواهم"),
    ],
)
def test_what_a_terminal_would_obey_is_escaped_and_all_else_stays(text: str, shown: str) -> None:
    assert printable(text) == shown
    assert printable(printable(text)) == shown
    assert is_unicode(text) == ("udcff" not in shown)


def test_text_in_csv_reads_back_as_it_was(tmp_path: Path) -> None:
    names = [EVIL, "a\nb", "a\rb", 'quo"te, comma', "=1+1", "", "plain"]
    table = pd.DataFrame({"path": names, "x\ry": range(7)})
    write_csv(table, tmp_path / "t.csv")
    pd.testing.assert_frame_equal(pd.read_csv(tmp_path / "t.csv", keep_default_na=False), table)
    write_csv(pd.DataFrame({"path": ["a", "b c"]}, index=pd.Index([3, 4], name="task")), tmp_path / "t.csv", index=True)
    assert (tmp_path / "t.csv").read_text() == "task,path\n3,a\n4,b c\n"


@pytest.fixture
def odd_folder() -> Path:
    """A folder in which only `a.wav`, `deep/b.wav` and the dangling `gone.wav` are files that can be read."""
    top = Path(tempfile.mkdtemp(prefix="decar-odd-"))
    top.chmod(0o755)  # pytest's own folders are private
    for name in ("a.wav", "deep/b.wav", "deep/private/secret/c.wav"):
        (top / name).parent.mkdir(parents=True, exist_ok=True)
        (top / name).touch()
    os.mkfifo(top / "pipe.wav")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(top / "socket.wav"))
    for name, target in {
        "self.wav": "self.wav", "one.wav": "two.wav", "two.wav": "one.wav", "to pipe.wav": "pipe.wav",
        "gone.wav": "nowhere.wav", "null.wav": "/dev/null", "deep/loop": "..", "to secret": "deep/private/secret",
    }.items():  # fmt: skip
        (top / name).symlink_to(target)
    (top / "deep" / "private").chmod(0)
    yield top
    (top / "deep" / "private").chmod(0o755)
    shutil.rmtree(top)


@pytest.fixture
def unprivileged() -> None:
    """Private folders are private, also where the tests run as root."""
    if os.geteuid():
        yield
        return
    os.seteuid(65534)
    yield
    os.seteuid(0)


LEFT_OUT = {
    "deep/loop": "the same folder as", "deep/private": "Permission denied", "to secret": "Permission denied",
    "self.wav": "Too many levels", "one.wav": "Too many levels", "two.wav": "Too many levels",
    "pipe.wav": "a named pipe", "to pipe.wav": "a named pipe", "socket.wav": "a socket", "null.wav": "a device",
}  # fmt: skip


@pytest.mark.usefixtures("unprivileged")
def test_whatever_lies_in_a_folder_costs_one_line_and_the_scan_goes_on(
    odd_folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    assert find_files(odd_folder) == ["a.wav", "gone.wav", "deep/b.wav"]
    lines = [record.message for record in caplog.records]
    assert len(lines) == len(LEFT_OUT)
    for name, reason in LEFT_OUT.items():
        [line] = [line for line in lines if f"{odd_folder}/{name} (" in line or f"{odd_folder}/{name}/ (" in line]
        assert reason in line


def test_a_folder_that_vanishes_during_the_scan(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    for name in ("a/1.wav", "b/2.wav", "c/3.wav"):
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).touch()
    scandir = os.scandir

    def scan(folder: Path) -> object:
        if folder == tmp_path / "a":
            (tmp_path / "b" / "2.wav").unlink()
            (tmp_path / "b").rmdir()
        return scandir(folder)

    monkeypatch.setattr(os, "scandir", scan)
    assert find_files(tmp_path) == ["a/1.wav", "c/3.wav"]
    assert [record.message for record in caplog.records] == [
        f"left out: the folder {tmp_path}/b (No such file or directory)"
    ]


def test_folders_deeper_than_pythons_stack(tmp_path: Path) -> None:
    (tmp_path / ("d/" * 200)).mkdir(parents=True)
    (tmp_path / ("d/" * 200) / "a.wav").touch()
    limit = sys.getrecursionlimit()
    sys.setrecursionlimit(len(inspect.stack(0)) + 150)
    try:
        assert find_files(tmp_path) == ["d/" * 200 + "a.wav"]
    finally:
        sys.setrecursionlimit(limit)


def test_of_many_files_that_are_left_out_the_first_are_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for i in range(50):
        (tmp_path / f"{i}.wav").symlink_to(f"{i}.wav")
    assert find_files(tmp_path) == []
    assert len(caplog.records) == 21
    assert caplog.records[-1].message == "left out: 30 more"


def test_what_is_written_stands_where_it_should_and_is_readable_by_others(tmp_path):
    target = tmp_path / "a" / "b.txt"
    with whole(target) as part:
        part.write_text("new")
        assert not target.exists()
        assert part.suffix == ".txt"
    assert target.read_text() == "new"
    assert target.stat().st_mode & 0o777 == 0o644
    assert list(target.parent.iterdir()) == [target]


def test_a_folder_is_there_whole_or_not_at_all(tmp_path):
    with whole_folder(tmp_path / "deep" / "made") as part:
        (part / "a").write_text("1")
        assert not (tmp_path / "deep" / "made").exists()
    assert [file.name for file in (tmp_path / "deep").iterdir()] == ["made"]
    assert (tmp_path / "deep" / "made").stat().st_mode & 0o777 == 0o755
    with pytest.raises(OSError, match=r"not empty|exists"), whole_folder(tmp_path / "deep" / "made") as part:
        (part / "a").write_text("2")
    with pytest.raises(RuntimeError, match="in between"), whole_folder(tmp_path / "deep" / "other") as part:
        raise RuntimeError("in between")
    assert [file.name for file in (tmp_path / "deep").iterdir()] == ["made"]
    assert (tmp_path / "deep" / "made" / "a").read_text() == "1"


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
