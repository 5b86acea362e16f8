"""The probe on labelled sounds of its own: what it says, when, in several processes and over a resume."""

import csv
import os
import shutil
import socket

import numpy as np
import pandas as pd
import pytest
import torch
from pytorch_lightning import Callback, Trainer
from pytorch_lightning.strategies import DDPStrategy

from decar.audio import LogMelStore, Manifest
from decar.errors import ConfigError, TrainingError
from decar.models import embed_store
from decar.pretrain import EmbeddingHealth, OnlineProbe, ResumableCSVLogger
from decar.pretrain.logger import read_rows
from tests.conftest import FORK
from tests.pretrain.helpers import build, fit

LENGTHS = [20, 40, 33, 64] * 4


@pytest.fixture
def table(sound_folder, tmp_path):
    """The twelve sounds: three kinds, two of four in train, one in valid, one in test; one more without a label."""
    parts = ["train", "train", "valid", "test"]
    rows = [(f"{kind}/{i + 3 * j}.wav", kind, parts[j]) for i, kind in enumerate(("low", "high", "noise"))
            for j in range(4)]  # fmt: skip
    frame = pd.DataFrame([*rows, ("low/0.wav", "", "valid")], columns=["path", "sort", "split"])
    frame.to_csv(sound_folder / "labels.csv", index=False)
    return sound_folder / "labels.csv"


def probe(table, tmp_path, **options):
    return OnlineProbe(table, "sort", cache_dir=tmp_path / "cache", **{"every_n_epochs": 2, "neighbours": 1, **options})


def by_hand(encoder, table, tmp_path):
    """One nearest neighbour in loops: half standardised by train, cosine."""
    frame = pd.read_csv(table)
    store = LogMelStore.open_or_build(Manifest.from_csv(table), encoder.frontend, tmp_path / "cache", progress=False)
    vectors = embed_store(encoder, store, progress=False).astype(np.float64)
    train = np.flatnonzero(frame["split"] == "train")
    valid = np.flatnonzero((frame["split"] == "valid") & frame["sort"].notna())
    variance = vectors[train].var(0)
    unit = (vectors - vectors[train].mean(0)) / np.sqrt(variance + variance.mean())
    unit /= np.linalg.norm(unit, axis=1, keepdims=True)
    hits = [frame["sort"][train[np.argmax(unit[train] @ unit[v])]] == frame["sort"][v] for v in valid]
    return np.mean(hits)


def test_it_says_what_a_loop_says_when_it_is_time_to_and_training_is_not_touched(
    make_store, table, tmp_path, monkeypatch
):
    watch, health = probe(table, tmp_path), EmbeddingHealth("sort")
    model, data = build(make_store(LENGTHS))
    before = by_hand(model.encoder, table, tmp_path)
    trainer, recorder = fit(model, data, tmp_path / "with", epochs=5, callbacks=[health, watch])
    assert watch.found.keys() == {0, 2, 4, 5}, "every second epoch, and the last"
    assert watch.found[0] == pytest.approx(before)
    assert watch.found[5] == pytest.approx(by_hand(model.encoder, table, tmp_path))
    assert float(trainer.callback_metrics["probe_accuracy"]) == pytest.approx(watch.found[5])
    assert set(health.start) == {"embedding_rank"}, "one probe a run"
    model, data = build(make_store(LENGTHS))
    _, without = fit(model, data, tmp_path / "without", epochs=5)
    assert recorder.losses == without.losses


@pytest.mark.parametrize("kind", ["knn", "linear"])
def test_what_is_plain_to_see_is_seen_and_what_is_noise_is_not(make_store, table, tmp_path, kind):
    watch = probe(table, tmp_path, kind=kind, split=None)
    model, data = build(make_store(LENGTHS))
    fit(model, data, tmp_path, epochs=1, callbacks=[watch])
    rng = np.random.default_rng(0)
    assert watch.accuracy(np.eye(3, dtype=np.float32)[watch._classes]) == 1.0
    noise = np.mean([watch.accuracy(rng.normal(size=(12, 8)).astype(np.float32)) for _ in range(200)])
    assert noise == pytest.approx(1 / 3, abs=0.1)


def test_neighbours_are_half_standardised_by_the_clips_to_fit(make_store, table, tmp_path):
    """Standardised, they are others: one column is larger than 60 of noise."""
    watch = probe(table, tmp_path, split=None)
    model, data = build(make_store(LENGTHS))
    fit(model, data, tmp_path, epochs=1, callbacks=[watch])
    rng = np.random.default_rng(0)
    for _ in range(20):
        vectors = 0.5 * rng.normal(size=(12, 60))
        vectors[:, 0] = 3.0 * watch._classes + 0.5 * rng.normal(size=12)
        variance = vectors[watch._train].var(0)
        unit = (vectors - vectors[watch._train].mean(0)) / np.sqrt(variance + variance.mean())
        unit /= np.linalg.norm(unit, axis=1, keepdims=True)
        nearest = watch._train[(unit[watch._valid] @ unit[watch._train].T).argmax(1)]
        expected = np.mean(watch._classes[nearest] == watch._classes[watch._valid])
        assert watch.accuracy(vectors) == pytest.approx(expected)


@pytest.mark.parametrize(("column", "group"), [("herd", "herd"), ("Speaker", "auto")])
def test_groups_are_not_divided(make_store, table, tmp_path, column, group):
    frame = pd.read_csv(table).assign(herd=[f"h{i // 2}" for i in range(13)])
    frame.rename(columns={"herd": column}).to_csv(table, index=False)
    watch = probe(table, tmp_path, split=None, group=group)
    model, data = build(make_store(LENGTHS))
    fit(model, data, tmp_path, epochs=1, callbacks=[watch])
    herd = frame["herd"].to_numpy()
    assert len(watch._train) + len(watch._valid) == 12
    assert not set(herd[watch._train]) & set(herd[watch._valid])


def test_a_resumed_run_ends_with_the_same_findings(make_store, table, tmp_path):
    whole, first, second = (probe(table, tmp_path) for _ in range(3))
    model, data = build(make_store(LENGTHS))
    fit(model, data, tmp_path / "whole", epochs=4, callbacks=[whole])
    model, data = build(make_store(LENGTHS))
    fit(model, data, tmp_path / "cut", epochs=3, callbacks=[first])
    [checkpoint] = (tmp_path / "cut").glob("epoch=2*.ckpt")
    model, data = build(make_store(LENGTHS))
    fit(model, data, tmp_path / "cut", epochs=4, callbacks=[second], ckpt_path=checkpoint)
    assert {done: second.found[done] for done in (0, 2, 4)} == whole.found


def resumed(make_store, tmp_path, watch, *, begun=(), epochs=2, between=lambda: None):
    """A run of one epoch with the callbacks `begun`, gone on with `watch`."""
    model, data = build(make_store(LENGTHS))
    fit(model, data, tmp_path / "a", epochs=1, callbacks=begun)
    [checkpoint] = (tmp_path / "a").glob("*.ckpt")
    between()
    model, data = build(make_store(LENGTHS))
    fit(model, data, tmp_path / "b", epochs=epochs, callbacks=[watch], ckpt_path=checkpoint)


def other_labels(table, name="other.csv"):
    frame = pd.read_csv(table, keep_default_na=False)
    frame["sort"] = frame["sort"].where(frame["sort"] == "", ["x", "y"] * 6 + ["x"])
    frame.to_csv(table.with_name(name), index=False)
    return table.with_name(name)


def test_a_resumed_run_is_not_compared_with_the_figure_of_another_table(make_store, table, tmp_path, caplog):
    watch = probe(other_labels(table), tmp_path)
    with caplog.at_level("INFO"):
        resumed(make_store, tmp_path, watch, begun=[probe(table, tmp_path)])
    assert watch.found.keys() == {2}
    assert "earlier figures of this run are of other clips or labels" in caplog.text
    assert "(untrained" not in caplog.text.partition("probe after epoch 2")[2]


def test_the_same_clips_in_another_place_are_the_same(make_store, table, tmp_path):
    moved = table.rename(table.with_name("moved.csv"))
    moved.rename(table)
    watch = probe(moved, tmp_path)
    shutil.copy(table, moved)
    resumed(make_store, tmp_path, watch, begun=[probe(table, tmp_path)], epochs=1)
    assert watch.found.keys() == {0, 1}


def test_a_probe_that_begins_after_a_resume_knows_nothing_of_the_untrained_embedding(make_store, table, tmp_path):
    watch = probe(table, tmp_path)
    resumed(make_store, tmp_path, watch)
    assert watch.found.keys() == {2}


def test_a_complete_run_does_not_pass_its_figure_off_as_that_of_another_table(make_store, table, tmp_path):
    with pytest.raises(TrainingError, match=r"callbacks\.probe\.path=.*other\.csv: this run is complete"):
        resumed(make_store, tmp_path, probe(other_labels(table), tmp_path), begun=[probe(table, tmp_path)], epochs=1)
    with pytest.raises(TrainingError, match="this run is complete"):  # the figure there is of the training clips
        resumed(make_store, tmp_path / "none", probe(table, tmp_path), begun=[EmbeddingHealth("path")], epochs=1)
    watch, begun = probe(table, tmp_path), probe(table, tmp_path)
    resumed(make_store, tmp_path / "again", watch, begun=[begun], epochs=1,
            between=lambda: other_labels(table, table.name))  # fmt: skip
    assert watch.found.keys() == {0, 1}, "labels were corrected in the table meanwhile: that asks for no other figure"


def test_a_run_that_ends_early_is_probed_at_its_end(make_store, table, tmp_path):
    class Stop(Callback):
        def on_train_batch_end(self, trainer, *args):
            trainer.should_stop |= trainer.global_step == 9

    watch = probe(table, tmp_path)
    answers = iter([0.1, 0.2, 0.3, 0.4])
    real = watch.accuracy
    watch.accuracy = lambda z: real(z) - next(answers)  # no two measurements are equal
    model, data = build(make_store(LENGTHS), draws_per_clip=1.0)
    logger = ResumableCSVLogger(tmp_path)
    trainer, _ = fit(model, data, tmp_path / "run", epochs=9, callbacks=[watch, Stop()], logger=logger)
    last = trainer.current_epoch
    assert last % 2 == 1, "this epoch's turn had not come"
    assert watch.found[last] == pytest.approx(by_hand(model.encoder, table, tmp_path) - 0.1 * len(watch.found))
    assert float(read_rows(tmp_path / "metrics.csv")[-1]["probe_accuracy"]) == pytest.approx(watch.found[last])
    assert float(trainer.callback_metrics["probe_accuracy"]) == pytest.approx(watch.found[last]), (
        "also where nothing writes a file"
    )


def one_rank(rank, size, port, store, table, tmp_path, told):
    torch.set_num_threads(1)
    os.environ |= {
        "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(size), "RANK": str(rank),
        "LOCAL_RANK": str(rank), "LOCAL_WORLD_SIZE": str(size), "GROUP_RANK": "0", "TORCHELASTIC_RUN_ID": "test",
    }  # fmt: skip
    model, data = build(store)
    watch = probe(table, tmp_path)
    trainer = Trainer(
        max_epochs=2, accelerator="cpu", devices=size, logger=False, enable_progress_bar=False,
        strategy=DDPStrategy(process_group_backend="gloo"), enable_checkpointing=False,
        enable_model_summary=False, use_distributed_sampler=False, callbacks=[watch], default_root_dir=tmp_path,
    )  # fmt: skip
    trainer.fit(model, datamodule=data)
    told.put((rank, watch.found, by_hand(model.encoder, table, tmp_path)))


def test_two_processes_find_the_same(make_store, table, tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    told, store = FORK.Queue(), make_store(LENGTHS)
    jobs = [FORK.Process(target=one_rank, args=(r, 2, port, store, table, tmp_path, told)) for r in range(2)]
    for job in jobs:
        job.start()
    found = {rank: (values, hand) for rank, values, hand in (told.get(timeout=120) for _ in jobs)}
    for job in jobs:
        job.join(60)
        assert job.exitcode == 0
    assert found[0][0] == found[1][0]
    assert found[0][0].keys() == {0, 2}
    assert found[0][0][2] == pytest.approx(found[0][1])
    assert len(list((tmp_path / "cache/logmel").glob("*/meta.json"))) == 1


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (
            {"label": "animal"},
            r"callbacks\.probe\.label=animal: .*labels\.csv has no such column; there are path, sort",
        ),
        ({"group": "herd"}, r"callbacks\.probe\.group=herd"),
        ({"split": "part"}, r"callbacks\.probe\.split=part: .* no such column"),
        ({"split": "sort"}, "column 'sort' has 0 labelled clips in train and 0 in valid"),
        ({"kind": "tree"}, r"callbacks\.probe\.kind=tree: choose one of knn, linear"),
        ({"every_n_epochs": 0}, r"callbacks\.probe\.every_n_epochs=0"),
    ],
)
def test_what_cannot_be_probed_is_said_before_training(make_store, table, tmp_path, options, told):
    model, data = build(make_store(LENGTHS))
    with pytest.raises(ConfigError, match=told):
        fit(model, data, tmp_path, callbacks=[OnlineProbe(table, **{"label": "sort", **options})])


def test_from_the_command_line_a_folder_per_class(train, sound_folder, tmp_path):
    done = train(
        "debug=fast", "data=folder", f"data.root={sound_folder}", "trainer=cpu", "k=3", "hydra.run.dir=run",
        f"callbacks.probe.path={sound_folder}", "callbacks.probe.kind=linear", "callbacks.probe.every_n_epochs=2",
        "loader.batch_size=4", "labels.first.dim=4", "labels.network.dim=4",
    )  # fmt: skip
    assert done.code == 0, done.err
    with open(tmp_path / "run/metrics.csv", newline="") as file:
        values = [row["probe_accuracy"] for row in csv.DictReader(file) if row["loss_epoch"]]
    assert values[0] == ""
    assert 0 <= float(values[1]) <= 1
    assert "probe before training" in (tmp_path / "run/train.log").read_text()
