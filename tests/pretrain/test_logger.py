import csv
import os

import pytest

from decar.pretrain import ResumableCSVLogger
from decar.pretrain.logger import COPY, read_rows


def steps(folder):
    with open(folder / "metrics.csv", newline="") as file:
        return [int(row["step"]) for row in csv.DictReader(file)]


def run(folder, *rows):
    logger = ResumableCSVLogger(folder)
    logger.log_hyperparams({"k": 1})
    for step in rows:
        logger.log_metrics({"loss": 1.0}, step)
    logger.finalize("success")


def test_a_resumed_run_keeps_the_rows_before_its_checkpoint_and_writes_the_others_anew(tmp_path):
    run(tmp_path, 9, 19, 29)
    run(tmp_path, 19, 29, 39)
    assert steps(tmp_path) == [9, 19, 29, 39]


def test_a_resume_that_logs_nothing_loses_nothing(tmp_path):
    run(tmp_path, 9, 19)
    run(tmp_path)
    assert steps(tmp_path) == [9, 19]


def test_a_resume_that_is_killed_before_its_first_row_loses_nothing(tmp_path):
    run(tmp_path, 9, 19)
    ResumableCSVLogger(tmp_path).log_hyperparams({"k": 1})  # and gone
    run(tmp_path, 29)
    assert steps(tmp_path) == [9, 19, 29]


def test_a_row_that_a_kill_has_cut_is_left_out(tmp_path):
    run(tmp_path, 9, 19)
    path = tmp_path / "metrics.csv"
    path.write_text(path.read_text() + "0.")
    run(tmp_path, 29)
    assert steps(tmp_path) == [9, 19, 29]


def test_rows_that_a_power_cut_has_filled_with_nuls_are_left_out(tmp_path):
    run(tmp_path, 9, 19)
    path = tmp_path / "metrics.csv"
    path.write_text(path.read_text() + "\0" * 50 + "\n")
    run(tmp_path, 29)
    assert steps(tmp_path) == [9, 19, 29]


@pytest.mark.parametrize("tail", [b"0,29,0.", b"0,29,\xff\xfe\r\n", b"\0" * 50 + b"\n"])
@pytest.mark.parametrize("copy", [True, False], ids=["", "of an earlier version"])
def test_a_damaged_tail_is_cut_with_a_line(copy, tail, tmp_path, caplog):
    run(tmp_path, 9, 19)
    path = tmp_path / "metrics.csv"
    good = path.read_bytes()
    path.write_bytes(good + tail)
    if not copy:
        (tmp_path / COPY).unlink()
    assert [row["step"] for row in read_rows(path)] == ["9", "19"]
    assert f"{path}: 1 of 4 lines are damaged or cut short, and left out" in caplog.text
    caplog.clear()
    run(tmp_path, 29)
    assert path.read_bytes().startswith(good)
    assert steps(tmp_path) == [9, 19, 29]
    assert str(path) in caplog.text
    caplog.clear()
    assert [row["step"] for row in read_rows(path)] == ["9", "19", "29"]
    assert not caplog.text


def test_a_row_that_only_the_copy_has_comes_back(tmp_path, caplog):
    """A kill came between the two."""
    run(tmp_path, 9, 19)
    path = tmp_path / "metrics.csv"
    good = path.read_bytes()
    os.truncate(path, len(good) - 5)
    assert [row["step"] for row in read_rows(path)] == ["9", "19"]
    ResumableCSVLogger(tmp_path).put_back({"loss": 1.0}, 19)
    assert path.read_bytes() == good
    assert "differs from its copy" in caplog.text
