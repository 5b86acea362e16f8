"""What happens between a signal and the end of a job; whole jobs are in tests/cli/test_ddp.py."""

import contextlib
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from decar import signals
from decar.errors import DecarError, LostProcessError, PreemptedError, exit_status

STATUS = {signal.SIGINT: 130, signal.SIGHUP: 129, signal.SIGTERM: 75, signal.SIGUSR1: 75}


def test_each_signal_has_its_exit_status():
    assert {number: exit_status(number) for number in signals.SIGNALS} == STATUS


@pytest.mark.parametrize("number", signals.SIGNALS)
def test_a_signal_raises_and_says_how_to_go_on(number):
    before = signal.getsignal(number)
    told = f"{signal.Signals(number).name}.*kept.*go on: do this"
    with pytest.raises(PreemptedError, match=told) as raised, signals.stoppable("do this"):
        os.kill(os.getpid(), number)
    assert raised.value.status == STATUS[number]
    assert signal.getsignal(number) is before
    assert not signals.active()


def test_no_except_exception_swallows_a_stop():
    with pytest.raises(PreemptedError), signals.stoppable(), contextlib.suppress(Exception):
        os.kill(os.getpid(), signal.SIGINT)


def test_a_deferred_signal_waits_and_the_first_one_counts():
    with signals.stoppable():
        signals.defer(True)
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGHUP)
        assert signals.asked() == signal.SIGTERM
        signals.defer(False)


def test_a_process_that_does_not_lead_waits_for_the_one_that_does():
    with signals.stoppable(leads=False):
        os.kill(os.getpid(), signal.SIGINT)
        assert signals.asked() == signal.SIGINT


SLOW = '''
import sys
from decar import errors, signals
errors.GRACE = 0.5
def wait():
    """In C, where no handler runs, as in an exchange with a frozen process: a mutex that is locked twice."""
    import ctypes
    mutex = ctypes.create_string_buffer(64)
    lock = ctypes.CDLL(None).pthread_mutex_lock
    lock(mutex); print("waiting", flush=True); lock(mutex)
with signals.stoppable("do this"):
    signals.defer(sys.argv[1] != "free", hurry=sys.argv[1] != "saving")
    wait()
'''


def start(how, *numbers, pause=1.1):
    process = subprocess.Popen([sys.executable, "-c", SLOW, how], stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                               text=True, preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL))  # fmt: skip
    assert process.stdout.readline() == "waiting\n"
    began = time.monotonic()
    for place, number in enumerate(numbers):
        time.sleep(pause if place else 0)
        process.send_signal(number)
    _, err = process.communicate(timeout=10)
    return process.returncode, err, time.monotonic() - began


@pytest.mark.parametrize("how", ["free", "step"])
def test_a_job_that_is_stuck_in_c_ends_after_the_grace_with_a_line(how):
    code, err, seconds = start(how, signal.SIGTERM)
    assert code == 75
    assert err.count("\n") == 1
    assert "stopped by SIGTERM" in err
    assert "the last checkpoint stands. To go on: do this" in err
    assert seconds < 3


def test_a_second_ctrl_c_ends_at_once_even_while_a_checkpoint_is_written():
    code, err, seconds = start("saving", signal.SIGINT, signal.SIGINT)
    assert code == 130
    assert err == "decar: stopped by a second SIGINT\n"
    assert 1 < seconds < 3


def test_torchrun_passes_on_the_ctrl_c_of_the_terminal_which_is_no_second_one():
    with signals.stoppable():
        signals.defer(True)
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(0.05)
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(0.05)
        assert signals.asked() == signal.SIGINT


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGHUP"])
def test_a_signal_while_python_shuts_down_keeps_the_status(name):
    code = f"""
import os, signal, sys
from decar.signals import stoppable

class Last:
    def __del__(self, kill=os.kill, pid=os.getpid()):
        kill(pid, {int(getattr(signal, name))})

last = Last()  # deleted after Python has given up its signal handlers
with stoppable():
    pass
sys.exit(75)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (75, "")


@pytest.mark.skipif(sys.platform != "linux", reason="the child is forked")
def test_a_frozen_worker_does_not_hold_up_the_end_of_python():
    code = """
import multiprocessing, os, signal, time
from decar.signals import stoppable

with stoppable():
    worker = multiprocessing.get_context("fork").Process(target=time.sleep, args=(9,), daemon=True)
    worker.start()
    os.kill(worker.pid, signal.SIGSTOP)
print(worker.pid, flush=True)
"""
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as process:
        worker = int(process.stdout.readline())
        try:
            assert process.wait(5) == 0
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.kill(worker, signal.SIGKILL)


def test_exit_statuses_are_those_of_the_table_in_the_docs():
    text = (Path(__file__).parents[1] / "docs/security.md").read_text(encoding="utf-8")
    rows = dict(re.findall(r"^\| ([\d; ]+) \| (.*) \|$", text, re.MULTILINE))
    assert set(rows) == {"0", "1", "2", "3", "75", "129; 130"}
    of_signals = {name: exit_status(signal.Signals[name]) for name in ("SIGTERM", "SIGUSR1", "SIGHUP", "SIGINT")}
    assert of_signals == {"SIGTERM": 75, "SIGUSR1": 75, "SIGHUP": 129, "SIGINT": 130}
    assert (DecarError.status, LostProcessError.status) == (2, 3)
    assert "SIGTERM or SIGUSR1" in rows["75"]
    assert rows["129; 130"].startswith("SIGHUP; Ctrl-C")
    assert "process of the job was killed" in rows["3"]
