"""Which jobs hang, by the heartbeats of their processes; and real ones, stopped and hung."""

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import torch
from pytorch_lightning import Callback
from torch.distributed import HashStore, TCPStore

from decar.errors import LostProcessError
from decar.pretrain import liveness
from decar.pretrain.liveness import Watch, peers_named, training
from tests.conftest import FORK

ROOT = Path(__file__).resolve().parents[2]
LIMIT = 10


class Job:
    """Processes whose clocks and work are set by hand; a tick is a second."""

    def __init__(self, monkeypatch, size=2):
        store = HashStore()
        self.watches = [Watch(rank, size, LIMIT, "0", store) for rank in range(size)]
        self.cpu, self.step = dict.fromkeys(range(size), 100.0), dict.fromkeys(range(size), 0.0)
        monkeypatch.setattr(liveness.time, "process_time", lambda: self.cpu[self.now])
        monkeypatch.setattr(liveness.signals, "step_began", lambda: self.step[self.now])

    def tick(self, *ranks, busy=(), stepping=()):
        """One second of these processes; the verdicts of theirs that are not empty."""
        for rank in busy:
            self.cpu[rank] += 1
        for rank in stepping:
            self.step[rank] += 1
        for rank in ranks:
            self.now = rank
            self.watches[rank].look_at_myself(1)
            self.watches[rank].exchange(1)
        return {rank: line for rank in ranks if (line := self.watches[rank].verdict())}


@pytest.fixture
def job(monkeypatch):
    return Job(monkeypatch)


def ticks_until_verdict(step, most=100):
    for n in range(1, most):
        if verdicts := step():
            return n, verdicts
    return None


def test_a_process_without_a_heartbeat_ends_the_job(job):
    job.tick(0, 1, busy=(0, 1))
    n, verdicts = ticks_until_verdict(lambda: job.tick(0, busy=(0,)))
    assert LIMIT <= n <= LIMIT + 2
    assert f"process 1 (pid {os.getpid()} on " in verdicts[0]
    assert "has not answered for 10 s" in verdicts[0]


def test_rank_0_without_a_heartbeat_is_noticed_by_the_others(job):
    job.tick(0, 1, busy=(0, 1))
    n, verdicts = ticks_until_verdict(lambda: job.tick(1))
    assert n <= LIMIT + 3 * job.watches[1].tick + 2
    assert "process 0" in verdicts[1]


def test_a_process_has_time_to_start(job):
    n, verdicts = ticks_until_verdict(lambda: job.tick(0), 200)
    assert n == liveness.START_SECONDS
    assert verdicts[0].startswith("process 1 of this job has not answered")


def test_rank_0_may_cluster_for_hours_while_the_others_wait(job):
    with training():
        assert ticks_until_verdict(lambda: job.tick(0, 1, busy=(0,)), 2 * 3600) is None


def test_a_job_in_which_no_process_works_hangs(job):
    with training():
        job.tick(0, 1, busy=(0, 1))
        n, verdicts = ticks_until_verdict(lambda: job.tick(0, 1))
    assert LIMIT <= n <= LIMIT + 2
    assert "no process of this job has done any work for 10 s" in verdicts[0]
    assert "process 1 is at " in verdicts[0]
    assert 1 not in verdicts, "one process speaks"


def test_outside_of_training_a_job_may_wait_for_another_one(job):
    job.tick(0, 1, busy=(0, 1))
    assert ticks_until_verdict(lambda: job.tick(0, 1)) is None


def test_a_step_that_does_not_end_though_all_look_busy(job):
    """As with NCCL, where a process that waits spins."""
    with training():
        assert ticks_until_verdict(lambda: job.tick(0, 1, busy=(0, 1), stepping=(0, 1))) is None
        _, verdicts = ticks_until_verdict(lambda: job.tick(0, 1, busy=(0, 1)))
    assert "a training step has not ended for 10 s" in verdicts[0]


def test_a_process_that_has_done_its_part_may_be_silent(job):
    with training():
        job.tick(0, 1, busy=(0, 1))
        job.watches[1].leave(liveness.DONE)
        assert ticks_until_verdict(lambda: job.tick(0)) is None


@pytest.mark.parametrize("rank", [0, 1])
def test_one_process_prints_why_and_the_others_end_without_a_line(monkeypatch, rank):
    ends = []
    monkeypatch.setattr(liveness.signals, "end_now", lambda *words: ends.append(words))
    watch, other = (Watch(number, 2, 0.05, "0", HashStore()) for number in (rank, 1 - rank))
    other.store = watch.store
    other.exchange(0)
    other.leave(liveness.ENDED)
    watch.run(threading.Event())
    assert ends == [(3,)]
    ends.clear()
    monkeypatch.setattr(Watch, "verdict", lambda self: "one hangs")
    other.leave(liveness.DONE)
    watch.run(threading.Event())
    assert [status for status, _ in ends] == [3]
    other.exchange(0)
    assert other.beats[rank] == liveness.ENDED


def test_no_store_is_as_no_news(job):
    job.tick(0, 1, busy=(0, 1))
    job.watches[1].store = None
    assert ticks_until_verdict(lambda: job.tick(1)) is not None


def hold_store(report):
    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    report.send(store.port)
    time.sleep(60)


@pytest.mark.skipif(sys.platform != "linux", reason="the child is forked")
@pytest.mark.parametrize("connected", [True, False])
def test_rank_0_that_is_frozen_with_the_store_is_noticed(monkeypatch, connected):
    ends = []
    monkeypatch.setattr(liveness.signals, "end_now", lambda *words: ends.append(words))
    monkeypatch.setattr(liveness, "STORE_SECONDS", 0.1)
    here, there = FORK.Pipe(duplex=False)
    rank_0 = FORK.Process(target=hold_store, args=(there,), daemon=True)
    rank_0.start()
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    monkeypatch.setenv("MASTER_PORT", str(here.recv()))
    watch, other = (Watch(rank, 2, 0.2, "0") for rank in (1, 0))
    for each in (other, watch):
        each.exchange(0)
    if not connected:
        watch.store = None
    os.kill(rank_0.pid, signal.SIGSTOP)
    over = threading.Event()
    thread = threading.Thread(target=watch.run, args=(over,), daemon=True)
    thread.start()
    thread.join(5)
    over.set()
    rank_0.kill()
    [(status, line)] = ends
    assert status == 3
    assert "process 0 (pid" in line
    assert "has not answered for 0.2 s" in line


@pytest.mark.parametrize("error", [RuntimeError("[a/gloo/transport/tcp/pair.cc:5] Connection closed by peer"),
                                   torch.distributed.DistNetworkError("x")])  # fmt: skip
def test_the_error_of_an_exchange_becomes_a_line(error):
    with pytest.raises(LostProcessError, match="another process of this job has ended") as caught, peers_named():
        raise error
    assert caught.value.status == 3
    with pytest.raises(RuntimeError, match="ours"), peers_named():
        raise RuntimeError("ours")


class Wait(Callback):
    """A process without others waits, as for a frozen loader worker whose batch is half read."""

    ended = threading.Event()

    def on_train_batch_end(self, trainer, *args):
        self.ended.wait(5)


def test_a_job_of_one_process_that_hangs_ends(train, sound_folder, monkeypatch):
    ends = []
    monkeypatch.setattr(liveness.signals, "end_now", lambda *words: (ends.append(words), Wait.ended.set()))
    train("debug=fast", "trainer=cpu", "trainer.max_epochs=1", "data=folder", f"data.root={sound_folder}", "k=3",
          "stall_timeout=0.5", "+callbacks.wait={_target_: tests.pretrain.test_liveness.Wait}")  # fmt: skip
    [(status, line)] = ends
    assert status == 3
    assert "no process of this job has done any work for 0.5 s" in line
    assert "in threading.py:" in line


class Hang(Callback):
    """Process 1 waits for something that does not come."""

    def on_train_batch_end(self, trainer, *args):
        if trainer.global_rank == 1 and trainer.global_step == 3:
            time.sleep(10_000)


TORCHRUN = (sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2")


def second(pid):
    """The process of rank 1, a child of `pid`."""
    children = subprocess.run(["pgrep", "-P", str(pid)], capture_output=True, text=True, check=True).stdout.split()
    [found] = [int(n) for n in children if b"LOCAL_RANK=1" in Path(f"/proc/{n}/environ").read_bytes().split(b"\0")]
    return found


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="finds processes in /proc")
@pytest.mark.parametrize("runner", [(sys.executable,), TORCHRUN], ids=["own", "torchrun"])
@pytest.mark.parametrize("fault", ["stopped", "killed", "hung"])
def test_a_real_job_ends_with_one_line(tmp_path, runner, fault):
    words = ["debug=fast", "sampler.every_n_steps=2000", "trainer=ddp", "trainer.devices=2", "trainer.accelerator=cpu",
             "callbacks.inside.minutes=0", "stall_timeout=10", f"hydra.run.dir={tmp_path}/run"]  # fmt: skip
    if fault == "hung":
        words.append("+callbacks.hang={_target_: tests.pretrain.test_liveness.Hang}")
    with subprocess.Popen(
        [*runner, "train.py", *words], cwd=ROOT, stderr=subprocess.PIPE, text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
    ) as process:  # fmt: skip
        ends = time.monotonic() + 120
        while fault != "hung" and not (tmp_path / "run/checkpoints/last.ckpt").exists():
            assert process.poll() is None
            assert time.monotonic() < ends
            time.sleep(0.1)
        if fault != "hung":
            os.kill(second(process.pid), signal.SIGSTOP if fault == "stopped" else signal.SIGKILL)
        _, err = process.communicate(timeout=150)
    lines = [line for line in err.splitlines() if line.startswith("decar: error")]
    assert len(lines) == 1, err
    assert {"stopped": "process 1 (pid", "killed": "process", "hung": "in test_liveness.py:"}[fault] in lines[0]
    assert "To go on:" in lines[0] or "to go on:" in lines[0]
    assert process.returncode == (1 if "torch" in str(runner) else 3)
    assert err.count("Traceback") == ("torch" in str(runner)), err  # torchrun has one of its own
