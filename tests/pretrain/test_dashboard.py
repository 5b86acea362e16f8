"""What dashboards are shown, read back from what wandb (offline) and TensorBoard have written."""

import csv
import json
import logging
import os
import socket

import numpy as np
import pandas as pd
import pytest
import torch
from pytorch_lightning import Trainer
from pytorch_lightning.loggers import TensorBoardLogger
from pytorch_lightning.strategies import DDPStrategy
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from decar.pretrain import Dashboard
from decar.pretrain.boards import TensorBoardBoard
from tests.conftest import FORK
from tests.pretrain.helpers import build, fit
from tests.pretrain.wandb_files import records

LENGTHS = [20, 40, 33, 64] * 4
SMALL = ["debug=fast", "trainer=cpu", "loader.batch_size=4", "labels.first.dim=4", "labels.network.dim=4"]


def read_wandb(path):
    """Config, summary, last row by key, and how the run is called."""
    config, summary, history, run, metrics = {}, {}, {}, None, {}
    for record in records(path):
        run = record.run if record.HasField("run") else run
        for update in (*record.run.config.update, *record.config.update):
            config[update.key or ".".join(update.nested_key)] = json.loads(update.value_json)
        for update in record.summary.update:
            summary[update.key or ".".join(update.nested_key)] = json.loads(update.value_json)
        for item in record.history.item:
            first, *others = [item.key] if item.key else item.nested_key
            if others:
                history.setdefault(first, {})[".".join(others)] = json.loads(item.value_json)
            else:
                history[first] = json.loads(item.value_json)
        if record.HasField("metric"):
            metrics[record.metric.name] = record.metric.summary
    return config, summary, history, run, metrics


def test_a_sweep_on_both_boards(train, sound_folder, tmp_path):
    frame = pd.DataFrame({"path": sorted(str(p.relative_to(sound_folder)) for p in sound_folder.rglob("*.wav"))})
    frame.assign(sort=frame["path"].str.split("/").str[0]).to_csv(sound_folder / "t.csv", index=False)
    done = train(
        "-m", *SMALL, "data=csv", f"data.path={sound_folder}/t.csv", "data.label=sort", "k=2,3", "seed=5",
        "labels.network_from=0", "logger=[csv,wandb,tensorboard]", f"hydra.sweep.dir={tmp_path}/my sweep/",
        "callbacks.dashboard.seconds=0.25",
    )  # fmt: skip
    assert done.code == 0, done.err
    assert "dashboard failed" not in done.out + done.err
    import wandb

    wandb.teardown()
    for k in (2, 3):
        [job] = (tmp_path / "my sweep").glob(f"*k={k}*")
        with open(job / "metrics.csv", newline="") as file:
            epochs = [row for row in csv.DictReader(file) if row["loss_epoch"]]
        rows = [row for row in epochs if row["nmi"]]
        [path] = job.glob("wandb/offline-run-*/*.wandb")
        config, summary, history, run, metrics = read_wandb(path)
        assert (config["k"], config["seed"], config["clusterer_name"], config["data_name"]) == (k, 5, "kmeans", "csv")
        assert (run.run_group, run.job_type, run.display_name) == ("my sweep", "pretrain", job.name)
        assert metrics["nmi"].max
        assert summary["final_nmi"] == pytest.approx(float(rows[-1]["nmi"]))
        assert summary["best_nmi"] == pytest.approx(max(float(row["nmi"]) for row in rows))
        assert summary["final_probe_accuracy"] == pytest.approx(float(rows[-1]["probe_accuracy"]))
        assert summary["best_loss_epoch"] == pytest.approx(min(float(row["loss_epoch"]) for row in epochs))
        for place in range(k):
            shown = history[f"clusters/rank_{place}"]
            heard = history[f"sounds/rank_{place}"]
            assert shown["count"] == heard["count"] == min(3, shown["count"])
            assert all((path.parent / "files" / name).is_file() for name in shown["filenames"])
            sizes = {(path.parent / "files" / sound["path"]).stat().st_size for sound in heard["audio"]}
            assert sizes == {44 + 2 * 4000}, "a quarter of a second, 16 bits"
        assert history["clusters/sizes"]["count"] == history["clusters/labels"]["count"] == 1
        table = json.loads((path.parent / "files" / history["clusters/table"]["path"]).read_text())
        assert table["columns"] == ["cluster", "size", "sort", "share", "nearest"]
        assert len(table["data"]) == k
        assert sum(row[1] for row in table["data"]) == 12
        events = EventAccumulator(str(job / "tensorboard"), size_guidance={"images": 0, "audio": 0, "tensors": 0})
        events.Reload()
        tags = events.Tags()
        assert {"clusters/rank_0/0", "clusters/sizes/0", "clusters/labels/0"} <= set(tags["images"])
        assert len(events.Images("clusters/sizes/0")) == 2, "one an epoch"
        assert events.Audio("sounds/rank_0/0")[0].sample_rate == 16000
        assert {"nmi", "loss_epoch", "probe_accuracy", "summary/best_nmi"} <= set(tags["scalars"])
        assert events.Scalars("summary/final_nmi")[-1].value == pytest.approx(float(rows[-1]["nmi"]))
        text = events.Tensors("clusters/table/text_summary")[-1].tensor_proto.string_val[0].decode()
        assert len(text.splitlines()) == k + 2


class Spy:
    """A board that writes down what it is shown."""

    def __init__(self):
        self.shown, self.summary = {}, {}

    def begin(self, facts, best):
        self.facts = facts

    def pictures(self, key, pictures, captions, step):
        self.shown.setdefault(key, []).append((pictures, captions, step))

    def sounds(self, key, waves, captions, rate, step):
        raise AssertionError("these clips have no files")

    def table(self, key, table, step):
        self.shown.setdefault(key, []).append((table, step))

    def end(self, facts, summary):
        self.summary = dict(summary)


@pytest.fixture
def spy(monkeypatch):
    board = Spy()
    monkeypatch.setattr("decar.pretrain.dashboard.boards_of", lambda loggers: [board])
    return board


def labelled(make_store):
    store = make_store(LENGTHS)
    store.manifest.table["sort"] = [f"kind{i % 4}" for i in range(len(LENGTHS))]
    return store


def test_what_is_shown_is_what_is_there_and_training_is_not_touched(make_store, tmp_path, spy):
    store = labelled(make_store)
    model, data = build(store)
    trainer, recorder = fit(model, data, tmp_path / "with", epochs=5,
                            callbacks=[Dashboard({"k": 4}, "sort", every_n_epochs=2, clips=2)])  # fmt: skip
    assert [step for _, step in spy.shown["clusters/table"]] == [7, 15, 19]  # epochs 2, 4 and the last, of 4 steps
    column = data.labels.labels[:, -1]
    table = spy.shown["clusters/table"][-1][0]
    assert table["size"].tolist() == sorted(np.bincount(column)[np.bincount(column) > 0], reverse=True)
    for cluster, name, share in table[["cluster", "sort", "share"]].itertuples(index=False):
        words = store.manifest.table["sort"][column == cluster]
        assert share == pytest.approx((words == name).mean())
        assert share == pytest.approx(words.value_counts(normalize=True).max())
    for place in range(len(table)):
        for caption in spy.shown[f"clusters/rank_{place}"][-1][1]:
            cluster, path = caption.removeprefix("cluster ").split(": ")
            assert column[store.manifest.table["path"].tolist().index(path)] == int(cluster)
    sizes = spy.shown["clusters/sizes"][-1][0][0]
    widths = (sizes[:, :, 0] == 60).sum(axis=0)
    assert (np.diff(widths) <= 0).all()
    assert widths.max() == 96
    model, data = build(labelled(make_store))
    _, without = fit(model, data, tmp_path / "without", epochs=5)
    assert recorder.losses == without.losses
    assert spy.summary["final_nmi"] == pytest.approx(float(trainer.callback_metrics["nmi"]))


def test_the_best_survives_a_resume(make_store, tmp_path, spy):
    model, data = build(labelled(make_store))
    fit(model, data, tmp_path / "whole", epochs=4, callbacks=[Dashboard()])
    whole = spy.summary
    model, data = build(labelled(make_store))
    fit(model, data, tmp_path / "cut", epochs=3, callbacks=[Dashboard()])
    [checkpoint] = (tmp_path / "cut").glob("epoch=2*.ckpt")
    model, data = build(labelled(make_store))
    fit(model, data, tmp_path / "cut", epochs=4, callbacks=[Dashboard()], ckpt_path=checkpoint)
    assert spy.summary == whole


def test_a_dashboard_that_fails_is_one_warning(make_store, tmp_path, spy, caplog):
    def refuse(*args):
        raise OSError("the service is gone")

    spy.table = refuse
    model, data = build(labelled(make_store))
    with caplog.at_level(logging.WARNING):
        trainer, _ = fit(model, data, tmp_path, epochs=3, callbacks=[Dashboard()])
    assert trainer.current_epoch == 3
    told = [r.getMessage() for r in caplog.records if "dashboard failed" in r.getMessage()]
    assert len(told) == 1
    assert "OSError: the service is gone" in told[0]


def test_without_a_board_nothing_is_embedded(make_store, tmp_path, monkeypatch):
    embedded = []
    monkeypatch.setattr("decar.pretrain.DecarModule.embed_store", lambda *a: embedded.append(a))
    model, data = build(labelled(make_store))
    fit(model, data, tmp_path, epochs=1, callbacks=[Dashboard()])
    assert not embedded


def test_names_cannot_break_a_table_of_tensorboard(tmp_path):
    logger = TensorBoardLogger(tmp_path, name="", version="")
    TensorBoardBoard(logger).table("t", pd.DataFrame({"a": ["x|y <b>"]}), 0)
    logger.experiment.flush()
    events = EventAccumulator(str(tmp_path)).Reload()
    last = events.Tensors("t/text_summary")[0].tensor_proto.string_val[0].decode().splitlines()[-1]
    assert last == "| x&#124;y &#60;b&#62; |"


def one_rank(rank, port, store, tmp_path, told):
    torch.set_num_threads(1)
    os.environ |= {
        "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": "2", "RANK": str(rank),
        "LOCAL_RANK": str(rank), "LOCAL_WORLD_SIZE": "2", "GROUP_RANK": "0", "TORCHELASTIC_RUN_ID": "test",
    }  # fmt: skip
    model, data = build(store)
    trainer = Trainer(
        max_epochs=3, accelerator="cpu", devices=2, enable_progress_bar=False, enable_checkpointing=False,
        logger=[TensorBoardLogger(tmp_path, name="tb", version="")] if rank == 0 else False,
        strategy=DDPStrategy(process_group_backend="gloo"), enable_model_summary=False,
        use_distributed_sampler=False, callbacks=[Dashboard()], default_root_dir=tmp_path,
    )  # fmt: skip
    if rank == 0:  # the second epoch's pictures fail here alone: the other process must not wait for ever
        show, seen = TensorBoardBoard.table, []
        TensorBoardBoard.table = lambda *args: show(*args) if not seen and not seen.append(1) else 1 / 0
    trainer.fit(model, datamodule=data)
    told.put((rank, trainer.current_epoch))


def test_two_processes_one_shows_and_its_failure_holds_nobody_up(make_store, tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    told = FORK.Queue()
    jobs = [FORK.Process(target=one_rank, args=(r, port, make_store(LENGTHS), tmp_path, told)) for r in range(2)]
    for job in jobs:
        job.start()
    assert {told.get(timeout=120) for _ in jobs} == {(0, 3), (1, 3)}
    for job in jobs:
        job.join(60)
        assert job.exitcode == 0
    events = EventAccumulator(str(tmp_path / "tb"), size_guidance={"images": 0}).Reload()
    assert len(events.Images("clusters/sizes/0")) == 2
