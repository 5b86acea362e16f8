"""Windows and macOS, as far as Linux can tell: every module is imported where what only POSIX has is missing."""

import subprocess
import sys
from pathlib import Path

import decar

ROOM = Path(decar.__file__).parent
CODE = """
import importlib, os, signal, sys

for name in ("fcntl", "resource", "pwd", "grp", "termios", "pty"):
    sys.modules[name] = None  # an import of it raises ImportError
import torch, pytorch_lightning, hydra  # theirs to care for
for name in ("SIGUSR1", "SIGUSR2", "SIGHUP", "SIGKILL", "SIGALRM", "SIGCHLD", "SIGSTOP"):
    vars(signal).pop(name, None)
for name in ("sched_getaffinity", "fork", "getuid", "statvfs", "posix_fadvise", "mkfifo", "killpg", "getpgid"):
    vars(os).pop(name, None)
for name in sys.argv[1:]:
    importlib.import_module(name)
from decar.cores import cpu_count
from decar.files import locked, whole
from decar.signals import stoppable

assert cpu_count() >= 1
with stoppable(), locked(".lock"), whole("file.txt") as part:
    part.write_text("x")
assert open("file.txt").read() == "x"
"""


def test_every_module_is_imported_without_what_only_posix_has(tmp_path):
    files = [file.relative_to(ROOM.parent).with_suffix("") for file in ROOM.rglob("*.py")]
    names = [".".join(file.parts).removesuffix(".__init__") for file in files]
    done = subprocess.run([sys.executable, "-c", CODE, *names], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert len(names) > 100
