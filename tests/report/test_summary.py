"""The figures of the summary and of the bars."""

import pandas as pd
import pytest

from decar.report.summary import bars, best, of_run, of_sounds

OWN, RANDOM, LOGMEL = "this encoder", "random weights", "log-mel statistics"


def row(title, encoder, value, **more):
    usual = {"mode": "frozen", "protocol": "search", "metric": "accuracy", "confusion": [[3, 0], [1, 0]]}
    return {"title": title, "task": title, "encoder": encoder, "value": value, "valid": value, **usual, **more}


def test_bars_are_means_over_seeds_and_folds_with_their_range():
    rows = [
        row("birds", OWN, 0.75, task="birds, fold 1"), row("birds", OWN, 0.5, task="birds, fold 2"),
        row("birds", LOGMEL, 0.25), row("birds", RANDOM, 0.5), row("birds", OWN, 0.875, mode="finetune"),
        row("tags", OWN, 0.375, metric="mAP", confusion=[]),
    ]  # fmt: skip
    frozen, tuned, tags = bars(rows)
    assert frozen["encoders"] == {OWN: [0.625, 0.5, 0.75], RANDOM: [0.5] * 3, LOGMEL: [0.25] * 3}
    assert [*frozen["encoders"]] == [OWN, RANDOM, LOGMEL]
    assert (frozen["how"], tuned["how"]) == ("frozen, search", "finetune, search")
    assert tuned["encoders"] == {OWN: [0.875] * 3}
    assert (frozen["chance"], tags["chance"]) == (0.75, None), "three of four test clips are of the first class"


def test_the_best_way_is_that_of_most_tasks_then_that_which_validation_likes():
    rows = [
        row("a", OWN, 0.5), row("a", RANDOM, 0.25), row("a", LOGMEL, 0.3), row("b", OWN, 1.0), row("b", RANDOM, 0.5),
        row("a", OWN, 0.625, valid=0.1, protocol="knn"), row("b", OWN, 0.875, valid=0.1, protocol="knn"),
        row("a", OWN, 1.0, mode="finetune"),
    ]  # fmt: skip
    found = best(bars(rows))
    assert found == {
        "how": "frozen, search", "metric": "accuracy", "tasks": ["a", "b"], "chance": 0.75,
        "encoders": {OWN: 0.75, RANDOM: 0.375},
    }, "log-mel has no result for b"  # fmt: skip
    assert best([]) is None


def test_how_a_run_ended(tmp_path):
    nothing = {"epochs": None, "trained": None, "figures": {}}
    assert of_run(tmp_path) == nothing
    (tmp_path / "metrics.csv").write_text("epoch,step,loss_epoch,nmi\n0,4,2.0,\n1,9,1.5,0.7\n1,12,,\n")
    assert of_run(tmp_path) == {"epochs": 2, "trained": None, "figures": {"loss_epoch": 1.5, "nmi": 0.7}}
    (tmp_path / "train.log").write_text(
        "[23:59:58] 12 clips, 1.0 minutes\n[23:59:59] epoch 1/2: 3+3 clusters (entropy 0.9), clustered in 4 s\n"
        "[00:00:09] epoch 1/2: loss 2.000, pseudo-label accuracy 0.263, 155 steps in 39 s\n"
        "[00:01:09] epoch 2/2: loss 1.500, pseudo-label accuracy nan, 3 of 9 steps in 20 s\n[00:02:00] done in 99 s\n"
    )
    assert of_run(tmp_path)["trained"] == 63
    (tmp_path / "metrics.csv").write_text("epoch,step,loss_epoch\nx,4,2.0\n")
    assert of_run(tmp_path)["epochs"] is None


def test_how_much_sound_there_is():
    table = pd.DataFrame({"path": ["a", "a", "b"], "start": [0, 5, 0], "duration": [5.0, 7.5, 2.5]})
    assert of_sounds(table) == {"recordings": 2, "seconds": pytest.approx(15.0), "clips": 3}
