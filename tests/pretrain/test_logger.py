import csv

from decar.pretrain import ResumableCSVLogger


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
