"""wandb after a kill: one run, each row once. Read back from what it has written offline."""

import os
import signal

import pytest
import wandb  # before a test forks: it takes a second
from pytorch_lightning import Callback

from decar.metrics import read_rows
from decar.pretrain import Dashboard, EpochCheckpoint, EpochRow, ResumableCSVLogger, ResumableWandbLogger, Safeguard
from decar.pretrain.wandb_logger import count_offline, read_journal
from tests.conftest import FORK
from tests.pretrain.helpers import build, fit
from tests.pretrain.wandb_files import files, history, records, run_ids

LENGTHS = [20, 40, 33, 64] * 4  # 4 steps an epoch


class At(Callback):
    """Does something before a step."""

    def __init__(self, step, act):
        self.step, self.act = step, act

    def on_train_batch_start(self, trainer, *args):
        if trainer.global_step == self.step:
            self.act(trainer)


def kill(trainer):
    os.kill(os.getpid(), signal.SIGKILL)


def stop(trainer):
    trainer.should_stop = True


def fail(trainer):
    raise KeyError("something")


def training(folder, store, at=None, act=None, minutes=1e9, epochs=6, every=1):
    """A run, or its continuation, of which wandb has no more than the files of this folder."""
    last = folder / "checkpoints" / "last.ckpt"
    saver = EpochCheckpoint(last.parent, filename="last", enable_version_counter=False, save_on_train_epoch_end=True)
    callbacks = [Safeguard(last, minutes), EpochRow(), Dashboard({"k": 4}, every_n_epochs=2, seconds=0), saver]
    loggers = [ResumableCSVLogger(folder), ResumableWandbLogger(folder, offline=True, project="decar")]
    model, data = build(store)
    try:
        fit(
            model, data, folder / "all", epochs=epochs, callbacks=[*callbacks, At(at, act)], logger=loggers,
            log_every_n_steps=every, ckpt_path=last if last.is_file() else None,
        )  # fmt: skip
    finally:
        loggers[1].experiment.finish()
        wandb.teardown()  # its service writes the last records as it ends


def process(*args, **kwargs):
    job = FORK.Process(target=training, args=args, kwargs=kwargs)
    job.start()
    job.join(120)
    return job.exitcode


def figures(rows):
    """Without pictures and tables, of which a kill costs the latest."""
    plain = [{key: value for key, value in row.items() if "." not in key and key != "_step"} for row in rows]
    return [row for row in plain if len(row) > 1]


def steps_of(rows, name):
    return [row["trainer/global_step"] for row in rows if name in row]


@pytest.mark.parametrize("minutes", [0, pytest.param(1e9, marks=pytest.mark.slow)], ids=["each step", "each epoch"])
def test_a_killed_and_resumed_run_is_one_run_without_gap_or_double(make_store, tmp_path, minutes):
    """With a checkpoint after each step, or one an epoch: then steps are trained, and logged, again."""
    store = make_store(LENGTHS)
    assert process(tmp_path / "whole", store, minutes=minutes) == 0
    cut = tmp_path / "cut"
    for step in (6, 20):  # within an epoch, and before the first step of one
        assert process(cut, store, at=step, act=kill, minutes=minutes) == -signal.SIGKILL
    assert process(cut, store, minutes=minutes) == 0
    assert len(run_ids(cut)) == 1
    rows = history(cut)
    numbers = [row["_step"] for row in rows]
    assert numbers == sorted(set(numbers))
    assert figures(rows) == figures(history(tmp_path / "whole"))
    assert steps_of(rows, "loss_step") == list(range(24))
    assert [(row["trainer/global_step"], row["epoch"]) for row in rows if "loss_epoch" in row] == [
        (3, 0), (7, 1), (11, 2), (15, 3), (19, 4), (23, 5),
    ]  # fmt: skip
    logged = [float(row["loss_epoch"]) for row in read_rows(cut / "metrics.csv") if "loss_epoch" in row]
    assert [row["loss_epoch"] for row in rows if "loss_epoch" in row] == logged


def test_rows_that_wandb_has_of_steps_behind_the_checkpoint_are_not_logged_again(make_store, tmp_path):
    store = make_store(LENGTHS)
    with pytest.raises(KeyError):
        training(tmp_path, store, at=6, act=fail, epochs=2)
    assert steps_of(history(tmp_path), "loss_step") == list(range(6)), "the checkpoint is of step 4"
    training(tmp_path, store, epochs=2)
    rows = history(tmp_path)
    assert len(files(tmp_path)) == 2
    assert len(run_ids(tmp_path)) == 1
    assert [row["_step"] for row in rows] == list(range(len(rows)))
    assert steps_of(rows, "loss_step") == list(range(8))
    assert steps_of(rows, "loss_epoch") == [3, 7]
    assert steps_of(rows, "clusters/table._type") == [7]


def test_an_epoch_that_is_cut_short_gets_one_row_at_its_end(make_store, tmp_path):
    store = make_store(LENGTHS)
    training(tmp_path, store, at=5, act=stop, epochs=2)
    assert steps_of(history(tmp_path), "loss_epoch") == [3]
    training(tmp_path, store, epochs=2)
    assert steps_of(history(tmp_path), "loss_epoch") == [3, 7]


class Server:
    """Stands in for a run of wandb that is online; it has kept some of the rows."""

    offline, id, project, entity, dir = False, "abc", "decar", "me", "/nowhere/files"

    def __init__(self, starting_step=0):
        self.starting_step, self.rows, self.artifacts = starting_step, [], []

    def log(self, row, step, commit):
        assert commit
        self.rows.append((step, row))

    def log_artifact(self, path, **words):
        self.artifacts.append((path, words))


def logged(folder, server, *rows):
    logger = ResumableWandbLogger(folder, experiment=server)
    for step, values in rows:
        logger.log_metrics(values, step)
    return logger


@pytest.mark.parametrize("kept", [0, 1, 3, 5])
def test_online_the_server_says_what_it_has(tmp_path, kept):
    """Of five rows before a kill the server has `kept`; the checkpoint is of step 20, its row of the epoch was lost."""
    before = [(step, {"loss_step": step / 7, "epoch": step // 20}) for step in (9, 19)]
    epoch = (19, {"loss_epoch": 2.5, "epoch": 0})
    after = [(step, {"loss_step": step / 7, "epoch": 1}) for step in (29, 39)]
    first = Server()
    logged(tmp_path, first, *before, epoch, *after)
    second = Server(kept)
    logger = ResumableWandbLogger(tmp_path, experiment=second)
    logger.put_back(epoch[1], 19)
    for step, values in [*after, (49, {"loss_step": 7.0, "epoch": 1})]:
        logger.log_metrics(values, step)
    rows = [*first.rows[:kept], *second.rows]
    assert [row for _, row in rows[:5]] == [row for _, row in first.rows]
    assert [number for number, _ in rows] == list(range(6))
    assert [row["trainer/global_step"] for _, row in rows] == [9, 19, 19, 29, 39, 49]
    assert read_journal(tmp_path / "wandb.jsonl")[0] == {"id": "abc", "project": "decar", "entity": "me"}


def test_a_kill_while_lost_rows_are_logged_again_costs_none(tmp_path):
    logged(tmp_path, Server(), *((step, {"loss_step": 1.0 + step}) for step in range(5)))

    class Dies(Server):
        def log(self, row, step, commit):
            if step == 2:
                raise SystemExit
            super().log(row, step, commit)

    first, second = Dies(), Server(2)
    with pytest.raises(SystemExit):
        logged(tmp_path, first, (5, {"loss_step": 6.0}))
    logged(tmp_path, second, (5, {"loss_step": 6.0}))
    assert [(n, row["loss_step"]) for n, row in [*first.rows, *second.rows]] == [(n, 1.0 + n) for n in range(6)]


def test_a_line_that_is_cut_or_damaged_ends_the_journal(tmp_path, caplog):
    logged(tmp_path, Server(), *((step, {"loss_step": 1.0}) for step in range(5)))
    file = tmp_path / "wandb.jsonl"
    lines = file.read_bytes().splitlines(keepends=True)
    file.write_bytes(b"".join(lines)[:-5])
    assert len(read_journal(file)[1]) == 4
    logged(tmp_path, Server(4), (4, {"loss_step": 2.0}))
    assert [row["figures"]["loss_step"] for row in read_journal(file)[1]] == [1.0, 1.0, 1.0, 1.0, 2.0]
    assert not caplog.records
    file.write_bytes(b"".join([*lines[:3], lines[3].replace(b"1.0", b"1.5"), *lines[4:]]))
    assert len(read_journal(file)[1]) == 2
    assert "wandb.jsonl: damaged from line 4 on" in caplog.text


def test_files_that_a_kill_has_cut_end_with_a_whole_record(tmp_path):
    """Cut anywhere, as blocks of 32 KiB are written."""
    run = wandb.init(mode="offline", dir=tmp_path, project="p", id="my-run")
    for i in range(400):
        run.log({"x": i, "text": "a" * 100})
    run.finish()
    wandb.teardown()
    [file] = files(tmp_path)
    data, found = file.read_bytes(), [record.SerializeToString() for record in records(file)]
    assert len(data) > 3 * 32768
    for size in (32768, 2 * 32768, 2 * 32768 + 3, len(data) - 1):
        file.write_bytes(data[:size])
        count = count_offline(tmp_path / "wandb" / "offline-run-now-my-run", "my-run")
        left = [record.SerializeToString() for record in records(file)]
        assert left == found[: len(left)]
        rows = history(tmp_path)
        assert count == len(rows) == rows[-1]["_step"] + 1
        assert file.stat().st_size > size - 3000
    file.write_bytes(data[:7])
    assert count_offline(tmp_path / "wandb" / "offline-run-now-my-run", "my-run") == 0
    assert not file.exists(), "`wandb sync` would give up at it"
