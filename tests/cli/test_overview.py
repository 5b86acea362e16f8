"""`decar runs` and `decar compare`: folders of runs as tables."""

import csv
from pathlib import Path

import pandas as pd
import pytest
from omegaconf import OmegaConf

from decar.cli.runs import write_config, write_finished
from decar.files import locked
from tests.report.test_page import result


def made(folder: Path, *, k=64, lr=0.001, epochs=3, finished=True, **figures):
    folder.mkdir(parents=True)
    options = {
        "k": k, "seed": 0, "optimizer": {"lr": lr}, "trainer": {"max_epochs": 4}, "progress": folder.name,
        "data": {"name": "folder", "manifest": {"_target_": "decar.audio.Manifest.from_folder", "root": "/s"}},
    }  # fmt: skip
    write_config(folder, OmegaConf.to_yaml(options))
    with open(folder / "metrics.csv", "w", newline="") as file:
        writer = csv.DictWriter(file, ["epoch", "step", "loss_step", "loss_epoch", *figures])
        writer.writeheader()
        for epoch in range(epochs):
            writer.writerow({"epoch": epoch, "step": 10 * epoch + 9, "loss_epoch": 2 - epoch / 2, **figures})
        writer.writerow({"epoch": epochs, "step": 10 * epochs + 5, "loss_step": 9})  # of an epoch that has not ended
    if finished:
        write_finished(folder, figures, epochs, 10 * epochs, {"options": {}, "content": "", "n_clips": 123})
    return folder


def test_runs_are_listed_with_their_state_and_last_figures(decar, tmp_path):
    made(tmp_path / "runs" / "pretrain" / "a", probe_accuracy=0.5)
    made(tmp_path / "runs" / "pretrain" / "sweep" / "b", k=8, epochs=2, finished=False, nmi=0.25)
    made(tmp_path / "runs" / "pretrain" / "c", finished=False)
    made(tmp_path / "runs" / "pretrain" / "d")
    (tmp_path / "runs" / "pretrain" / "d" / "config.yaml").write_text("a: [")
    judged = tmp_path / "runs" / "pretrain" / "judged"
    judged.mkdir()
    write_config(judged, "task:\n  name: kind\n")
    with locked(tmp_path / "runs" / "pretrain" / "c" / ".lock"):
        outcome = decar("runs", "--csv", "runs.csv")
    assert outcome.code == 0, outcome.err
    table = pd.read_csv(tmp_path / "runs.csv", index_col="run", dtype=str)
    assert table["state"].to_dict() == {"a": "finished", "c": "running", "d": "damaged", "sweep/b": "stopped"}
    assert table["epochs"].to_dict() == {"a": "3/4", "c": "3/4", "d": "0", "sweep/b": "2/4"}
    assert table.loc["a", ["data", "clips", "k", "loss_epoch", "probe_accuracy"]].tolist() == [
        "folder", "123", "64", "1", "0.5"
    ]  # fmt: skip
    assert table.loc["sweep/b", ["clips", "k", "nmi", "loss_epoch"]].tolist() == ["–", "8", "0.25", "1.5"]
    assert "| sweep/b |" in outcome.out


def test_two_runs_are_compared(decar, tmp_path):
    first = made(tmp_path / "a", probe_accuracy=0.5)
    second = made(tmp_path / "b", lr=0.01, probe_accuracy=0.75, nmi=0.5)
    for folder, value in ((first, 0.5), (second, 0.625)):
        (folder / "kind").mkdir()
        result("h", value=value).write(folder / "kind")
    outcome = decar("compare", "a", "b")
    assert outcome.code == 0, outcome.err
    lines = {line.split("|")[1].strip(): [cell.strip() for cell in line.split("|")[2:4]]
             for line in outcome.out.splitlines() if line.startswith("| ")}  # fmt: skip
    assert lines["optimizer.lr"] == ["0.001", "0.01"]
    assert "progress" not in lines
    assert "k" not in lines
    assert lines["probe_accuracy"] == ["0.5", "0.75"]
    assert lines["nmi"] == ["–", "0.5"]
    assert [cells for name, cells in lines.items() if name.startswith("kind, frozen")] == [["50.0", "62.5"]]
    assert "results, %: none" in decar("compare", str(made(tmp_path / "c")), str(made(tmp_path / "d"))).out
    (first / "config.yaml").write_text("a: [")
    assert "config.yaml" in decar("compare", "a", "b").errors[0]


def test_results_that_do_not_compare_are_in_rows_of_their_own(decar, tmp_path):
    """Few shots, another split, other numbers of the protocol, and an encoder that was trained again in its folder."""
    first, second = made(tmp_path / "a"), made(tmp_path / "b")
    given = {
        first: [{"value": 0.1}, {"value": 0.2, "shots": 1}, {"value": 0.3, "shots": 5}, {"value": 0.4, "task": "old"},
                {"value": 0.5, "task": "lr", "settings": {"lr": 0.1}}, {"value": 0.6, "task": "two"}],
        second: [{"value": 0.15}, {"value": 0.35, "shots": 5}, {"value": 0.45, "task": "old", "split_hash": "t"},
                 {"value": 0.55, "task": "lr", "settings": {"lr": 0.2}}, {"value": 0.65, "task": "two"}],
    }  # fmt: skip
    for folder, all_of_it in given.items():
        for i, changes in enumerate(all_of_it):
            (folder / str(i)).mkdir()
            result("h", **changes).write(folder / str(i))
    (first / "again").mkdir()
    result("g" * 64, value=0.7, task="two").write(first / "again")
    lines = {line.split("|")[1].strip(): [cell.strip() for cell in line.split("|")[2:4]]
             for line in decar("compare", "a", "b").out.splitlines() if line.startswith("| ")}  # fmt: skip
    end = "frozen, search, seed 0, decar"
    assert {name: cells for name, cells in lines.items() if end in name} == {
        f"kind, {end}": ["10.0", "15.0"], f"kind, 1 shot, {end}": ["20.0", "–"],
        f"kind, 5 shots, {end}": ["30.0", "35.0"], f"old, {end}, split s": ["40.0", "–"],
        f"old, {end}, split t": ["–", "45.0"], f"lr, {end}, lr 0.1": ["50.0", "–"],
        f"lr, {end}, lr 0.2": ["–", "55.0"], f"two, {end}, encoder h": ["60.0", "–"],
        f"two, {end}, encoder gggggggg": ["70.0", "–"], f"two, {end}": ["–", "65.0"],
    }  # fmt: skip


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["runs"], "runs/pretrain: no such folder"), (["runs", "empty"], "no run of train.py in there"),
        (["compare", "empty", "empty"], "empty: not the folder of a run"),
    ],
)  # fmt: skip
def test_what_is_not_there_is_said(decar, tmp_path, words, says):
    (tmp_path / "empty").mkdir()
    outcome = decar(*words)
    assert outcome.code == 2
    assert says in outcome.errors[0]
