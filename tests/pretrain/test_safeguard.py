"""A run that is told to stop loses nothing, and reports its epochs as if nothing had happened."""

import contextlib
import math
import os
import signal

import pytest
import torch
from pytorch_lightning import Callback

from decar import signals
from decar.errors import PreemptedError
from decar.pretrain import EpochCheckpoint, EpochRow, ResumableCSVLogger, Safeguard
from decar.pretrain.checkpoint import TimeLimit, is_finished
from decar.pretrain.logger import read_rows
from decar.signals import SIGNALS
from tests.pretrain.helpers import build, fit

STATUS = {signal.SIGINT: 130, signal.SIGHUP: 129, signal.SIGTERM: 75, signal.SIGUSR1: 75}
LENGTHS = [20, 40, 33, 64, 100, 50, 31, 32] * 5


class Signals(Callback):
    """Sends a signal to this process in a certain step, or before an epoch's labels."""

    def __init__(self, number, *, step=None, epoch=None):
        self.number, self.step, self.epoch = number, step, epoch

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if trainer.global_step == self.step:
            os.kill(os.getpid(), self.number)

    def on_train_start(self, trainer, pl_module):
        if self.epoch is None:
            return
        source = pl_module.source

        class Killed:
            clusterers, needs_vectors = source.clusterers, source.needs_vectors

            def assign(_, z, situation):
                if situation.epoch == self.epoch:
                    os.kill(os.getpid(), self.number)
                return source.assign(z, situation)

        pl_module.source = Killed()


def run(store, folder, *extra, epochs=3, ckpt_path=None, minutes=10.0, **kwargs):
    model, data = build(store)
    callbacks = [Safeguard(folder / "last.ckpt", minutes), EpochRow(), *extra]
    logger = ResumableCSVLogger(folder)
    trainer, _ = fit(
        model, data, folder / "all", epochs=epochs, callbacks=callbacks, ckpt_path=ckpt_path, logger=logger, **kwargs
    )
    return trainer, model


@pytest.mark.parametrize("number", SIGNALS)
@pytest.mark.parametrize("step", [0, 13])
def test_a_signal_within_an_epoch_saves_and_stops_and_the_rest_is_the_same(make_store, tmp_path, number, step):
    store = make_store(LENGTHS)
    handlers = {n: signal.getsignal(n) for n in SIGNALS}
    _, whole = run(store, tmp_path / "whole")
    with pytest.raises(PreemptedError, match=f"{signal.Signals(number).name}.*resume=auto.*{STATUS[number]}"):
        run(store, tmp_path / "cut", Signals(number, step=step))
    assert {n: signal.getsignal(n) for n in SIGNALS} == handlers
    assert torch.load(tmp_path / "cut/last.ckpt", weights_only=True)["global_step"] == step + 1
    _, rest = run(store, tmp_path / "cut", ckpt_path=tmp_path / "cut/last.ckpt")
    assert all(torch.equal(value, rest.state_dict()[key]) for key, value in whole.state_dict().items())
    assert (tmp_path / "whole/metrics.csv").read_bytes() == (tmp_path / "cut/metrics.csv").read_bytes()


def test_a_run_that_logs_no_steps_is_saved_within_an_epoch_too(make_store, tmp_path):
    trainer, _ = run(make_store(LENGTHS), tmp_path, epochs=1, minutes=0, log_every_n_steps=0)
    assert 0 < torch.load(tmp_path / "last.ckpt", weights_only=True)["global_step"] < trainer.global_step


def test_a_signal_in_the_last_step_of_an_epoch_waits_for_the_epochs_own_checkpoint(make_store, tmp_path):
    with pytest.raises(PreemptedError):
        run(make_store(LENGTHS), tmp_path, Signals(signal.SIGTERM, step=9))
    assert not (tmp_path / "last.ckpt").exists()
    assert [path.name for path in (tmp_path / "all").glob("*.ckpt")] == ["epoch=0-step=10.ckpt"]


def test_a_signal_while_clustering_stops_at_once(make_store, tmp_path):
    with pytest.raises(PreemptedError):
        run(make_store(LENGTHS), tmp_path, Signals(signal.SIGTERM, epoch=1))
    assert not (tmp_path / "last.ckpt").exists()


def test_a_long_epoch_is_saved_within(make_store, tmp_path):
    trainer, _ = run(make_store(LENGTHS), tmp_path, epochs=1, minutes=0.0)
    kept = torch.load(tmp_path / "last.ckpt", weights_only=True)
    assert kept["global_step"] == trainer.global_step - 1, "after each step but the last, which the epoch saves"


def test_a_row_that_a_kill_has_kept_from_the_file_comes_back_from_the_checkpoint(make_store, tmp_path):
    store = make_store(LENGTHS)
    run(store, tmp_path / "whole")
    run(store, tmp_path / "cut", epochs=2)
    file = tmp_path / "cut/metrics.csv"
    lines = file.read_text().splitlines(keepends=True)
    assert "loss_epoch" in read_rows(file)[-1]
    file.write_text("".join(lines[:-1]))  # killed between the checkpoint of epoch 2 and its row
    run(store, tmp_path / "cut", ckpt_path=tmp_path / "cut/all/epoch=1-step=20.ckpt")
    assert file.read_bytes() == (tmp_path / "whole/metrics.csv").read_bytes()


@pytest.mark.parametrize("step", [2, 3, 14])
def test_a_kill_between_the_checkpoint_and_the_row_of_a_step_loses_no_row(make_store, tmp_path, step):
    class Killed(Callback):
        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
            if trainer.global_step == step:  # the safeguard has saved, the row comes after the callbacks
                raise KeyboardInterrupt

    store, often = make_store(LENGTHS), {"log_every_n_steps": 2}
    run(store, tmp_path / "whole", **often)
    with contextlib.suppress(SystemExit, KeyboardInterrupt):
        run(store, tmp_path / "cut", Killed(), minutes=0.0, **often)
    assert torch.load(tmp_path / "cut/last.ckpt", weights_only=True)["global_step"] == step
    run(store, tmp_path / "cut", ckpt_path=tmp_path / "cut/last.ckpt", **often)
    assert (tmp_path / "whole/metrics.csv").read_bytes() == (tmp_path / "cut/metrics.csv").read_bytes()


class Stop(Callback):
    """What a time limit does, at a step that does not depend on the machine."""

    def __init__(self, step):
        self.step = step

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        trainer.should_stop |= trainer.global_step == self.step


@pytest.mark.parametrize("step", [4, 10, 13, 29])
def test_an_epoch_cut_short_has_its_row_and_a_resume_repeats_the_whole_run(make_store, tmp_path, step):
    store = make_store(LENGTHS)

    def cut(*extra, **kwargs):
        last = EpochCheckpoint(tmp_path / "cut", "last", enable_version_counter=False)
        return run(store, tmp_path / "cut", *extra, last, log_every_n_steps=1, **kwargs)

    whole, model = run(store, tmp_path / "whole", log_every_n_steps=1)
    assert is_finished(whole)
    trainer, _ = cut(Stop(step))
    assert trainer.global_step == step
    assert not is_finished(trainer)
    row = read_rows(tmp_path / "cut/metrics.csv")[-1]
    assert int(row["step"]) == step - 1
    assert math.isfinite(float(row["loss_epoch"]))
    trainer, rest = cut(ckpt_path=tmp_path / "cut/last.ckpt")
    assert is_finished(trainer)
    assert all(torch.equal(value, rest.state_dict()[key]) for key, value in model.state_dict().items())
    assert (tmp_path / "whole/metrics.csv").read_bytes() == (tmp_path / "cut/metrics.csv").read_bytes()


def test_a_time_limit_counts_from_each_call_and_keeps_to_optimizer_steps(make_store, tmp_path):
    limit = TimeLimit({"seconds": 1})
    assert limit.state_dict() == {}
    limit.load_state_dict({"time_elapsed": {"train": 99.0}})
    assert limit.time_remaining() == 1.0
    limit._duration = 1e-9
    trainer, _ = run(make_store(LENGTHS), tmp_path, limit, accumulate_grad_batches=4)
    assert trainer.fit_loop.batch_idx == 3, "the gradients of four batches were used"


def test_no_checkpoint_is_made_while_gradients_wait(make_store, tmp_path):
    """Batches 4 and 8 of 10 end a step, and the last one, after which the epoch saves."""
    saved = []

    class Spy(Safeguard):
        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
            trainer.save_checkpoint = lambda path: saved.append(batch_idx + 1)
            super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)
            del trainer.save_checkpoint

    model, data = build(make_store(LENGTHS))
    fit(model, data, tmp_path, epochs=1, callbacks=[Spy(tmp_path / "x.ckpt", 0.0)], accumulate_grad_batches=4)
    assert saved == [4, 8]


def test_a_row_kept_in_a_checkpoint_has_no_figure_of_an_earlier_epoch(make_store, tmp_path):
    class Now(Callback):
        def on_train_epoch_end(self, trainer, pl_module):
            if trainer.current_epoch == 0:
                pl_module.log("rare", 1.0, batch_size=1)

    run(make_store(LENGTHS), tmp_path, Now(), epochs=2)
    rows = {n: torch.load(path, weights_only=True)["epoch_row"]["values"] for n in (0, 1)
            for path in (tmp_path / "all").glob(f"epoch={n}-*.ckpt")}  # fmt: skip
    assert "rare" in rows[0]
    assert rows[1].keys() == rows[0].keys() - {"rare"} | {"nmi"}


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGHUP])
def test_a_signal_that_was_ignored_stays_ignored(make_store, tmp_path, number):
    """SIGHUP under nohup; SIGINT in a job that a script has put in the background."""
    before = signal.signal(number, signal.SIG_IGN)
    try:
        trainer, _ = run(make_store(LENGTHS), tmp_path, Signals(number, step=3), epochs=1)
    finally:
        signal.signal(number, before)
    assert trainer.global_step == 10
    assert not signals.active()
