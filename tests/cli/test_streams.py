"""Streams that the caller has closed, and a user without a home: the same exit status as ever, and no traceback."""

import os
import pwd
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from decar.cli.config import cache_home

COMMAND = f"'{sys.executable}' -m decar.cli.app"


@pytest.mark.parametrize(
    ("command", "code", "told"),
    [
        (f"{COMMAND} doctor nowhere >&- 2>&-", 2, ""),
        (f"{COMMAND} --version >&-", 0, ""),
        (f"{COMMAND} embed - <&-", 2, "no path came on stdin"),
        (f"({COMMAND} --help; echo status $? >&2) | true", 0, "status 0\n"),
        (f"(PYTHONUNBUFFERED=1 {COMMAND} --help; echo status $? >&2) | true", 0, "status 0\n"),
    ],
)
def test_closed_streams(tmp_path: Path, command: str, code: int, told: str) -> None:
    done = subprocess.run(["sh", "-c", command], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == code, done.stderr
    assert told in done.stderr
    assert "Traceback" not in done.stderr + done.stdout
    assert "BrokenPipe" not in done.stderr


def test_what_is_opened_next_is_not_standard_error(tmp_path: Path) -> None:
    """Without a null device in its place, number 2 would be the next file, and get what libraries write there."""
    code = "import os, decar.cli; file = open('data', 'wb'); os.write(2, b'noise'); print(file.fileno() > 2)"
    done = subprocess.run(["sh", "-c", f"'{sys.executable}' -c \"{code}\" 2>&-"], cwd=tmp_path, capture_output=True,
                          text=True, check=False)  # fmt: skip
    assert done.stdout.strip() == "True"
    assert (tmp_path / "data").read_bytes() == b""


@pytest.mark.parametrize("home", [None, "", "/nowhere"])
def test_without_a_home_the_cache_lies_among_the_temporary_files(
    monkeypatch: pytest.MonkeyPatch, home: str | None
) -> None:
    def unknown(uid: int) -> None:
        raise KeyError(f"getpwuid(): uid not found: {uid}")

    monkeypatch.setattr(pwd, "getpwuid", unknown)
    for name in ("DECAR_CACHE", "XDG_CACHE_HOME", "HOME"):
        monkeypatch.delenv(name, raising=False)
    if home is not None:
        monkeypatch.setenv("HOME", home)
    assert cache_home() == str(Path(tempfile.gettempdir()) / f"decar-{os.getuid()}")
    monkeypatch.setenv("HOME", "/tmp")
    assert cache_home() == "/tmp/.cache/decar"
    monkeypatch.setenv("DECAR_CACHE", "/c")
    assert cache_home() == "/c"


def test_one_usable_clip_is_not_told_to_take_two_clusters() -> None:
    from omegaconf import OmegaConf

    from decar.cli.trainer import check_k
    from decar.errors import ConfigError

    with pytest.raises(ConfigError, match="1 usable clip: nothing can be clustered, give more sounds"):
        check_k(OmegaConf.create({"labels": {"_target_": "types.SimpleNamespace", "clusterers": []}}), 1)
