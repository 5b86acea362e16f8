import math

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from decar.downstream.tables import (
    COLUMNS,
    EMPTY,
    interval,
    missing_commands,
    table2,
    table2_markdown,
    to_markdown,
)
from decar.errors import DecarError
from tests.downstream.helpers import make_result


def decar(**changes: object):
    return make_result(
        **{"encoder": "decar", "bundle": "runs/my run/encoder.safetensors", "encoder_hash": "d", **changes}
    )


def test_interval_is_students() -> None:
    values = [0.5, 0.6, 0.8]
    mean, half = interval(values)
    low, high = stats.ttest_1samp(values, 0).confidence_interval(0.95)
    assert (mean - half, mean + half) == pytest.approx((low, high))
    assert math.isnan(interval([0.5])[1])


def test_cells_seeds_and_empty_ones() -> None:
    results = [
        *(make_result(seed=s, value=v, encoder_hash=f"r{s}") for s, v in enumerate([0.5, 0.6, 0.8])),
        decar(task="kind", protocol="paper", value=0.912),
    ]
    frame = table2(results)
    mean, half = interval([0.5, 0.6, 0.8])
    assert list(frame.columns) == [str(c) for c in COLUMNS]
    assert frame.loc["speaker", "search random frozen"] == f"{100 * mean:.1f} ± {100 * half:.1f}"
    assert frame.loc["kind", "paper DECAR frozen"] == "91.2"
    assert (frame.loc[["kind", "speaker"]].to_numpy() == EMPTY).sum() == 2 * len(COLUMNS) - 2
    assert "paper log-mel fine-tuned" not in frame.columns


def test_means_are_over_tasks_that_their_columns_share() -> None:
    results = [
        make_result(task="a", value=0.2), make_result(task="b", value=0.4), make_result(task="c", value=0.9),
        decar(task="a", value=0.6), decar(task="b", value=0.8),
        decar(task="a", value=0.7, mode="finetune"),
    ]  # fmt: skip
    frame = table2(results)
    assert list(frame.index) == ["a", "b", "c", "mean of 2 tasks", "mean of 1 task"]
    two, one = frame.loc["mean of 2 tasks"], frame.loc["mean of 1 task"]
    assert (two["search random frozen"], two["search DECAR frozen"]) == ("30.0", "70.0")  # c is not in it
    assert two["search DECAR fine-tuned"] == ""
    assert (one["search random frozen"], one["search DECAR fine-tuned"]) == ("20.0", "70.0")


def test_mean_over_seeds_is_of_the_mean_of_each_seed() -> None:
    values = {"a": [0.1, 0.2, 0.4], "b": [0.5, 0.5, 0.8]}
    results = [make_result(task=t, seed=s, value=v) for t, vs in values.items() for s, v in enumerate(vs)]
    mean, half = interval(np.mean(list(values.values()), axis=0))
    assert table2(results).loc["mean of 2 tasks", "search random frozen"] == f"{100 * mean:.1f} ± {100 * half:.1f}"
    uneven = table2(results[:-1])  # one task lacks a seed: no interval can be said
    assert uneven.loc["mean of 2 tasks", "search random frozen"] == f"{100 * np.mean([0.7 / 3, 0.5]):.1f}"


def test_commands_fill_every_empty_cell_and_no_other() -> None:
    results = [make_result(task="a"), make_result(task="b"), decar(task="a")]
    commands = missing_commands(results)
    frame = table2(results).loc[["a", "b"]]
    asked = sum(len(c.split("task=")[1].split()[0].split(",")) for c in commands)
    assert asked == (frame == EMPTY).to_numpy().sum()
    assert "python eval.py -m task=a,b mode=frozen bundle=random protocol=paper" in commands
    own = "python eval.py task=b mode=frozen bundle=\"'runs/my run/encoder.safetensors'\" protocol=search"
    assert own in commands
    assert not any("mode=frozen bundle=random protocol=search" in c for c in commands)
    assert not any("bundle=logmel" in c and "finetune" in c for c in commands)


def test_full_table_has_no_commands() -> None:
    kinds = {"random": "random", "logmel": "logmel", "decar": "x"}
    results = [
        make_result(encoder=c.encoder, bundle=kinds[c.encoder], mode=c.mode, protocol=c.protocol) for c in COLUMNS
    ]
    assert missing_commands(results) == []
    assert "To fill" not in table2_markdown(results)


def test_different_splits_are_not_averaged() -> None:
    with pytest.raises(DecarError, match="task speaker: results on two different splits"):
        table2([make_result(), make_result(seed=1, split_hash="other")])


def test_markdown() -> None:
    frame = pd.DataFrame(
        {"one": ["1.0", EMPTY], "b|b": ["22.0 ± 1.0", ""]}, index=pd.Index(["x", "long name"], name="task")
    )
    assert to_markdown(frame).splitlines() == [
        "| task      | one |       b\\|b |",
        "| --------- | --: | ---------: |",
        "| x         | 1.0 | 22.0 ± 1.0 |",
        "| long name |   – |            |",
    ]
    text = table2_markdown([make_result(), decar(seed=1), decar(value=0.7)])
    assert text.index("protocol=paper") < text.index("protocol=search") < text.index("To fill the empty cells")
    assert "95 % interval" in text
    assert "95 % interval" not in table2_markdown([make_result()])


def test_results_made_with_other_numbers_than_the_protocols_are_told() -> None:
    usual = {"lr": 1e-3, "batch_size": 64, "max_epochs": 50}
    plain = table2_markdown([make_result(protocol="paper", settings=usual)])
    short = table2_markdown([make_result(protocol="paper", mode="finetune", settings={**usual, "max_epochs": 12})])
    assert "usually" not in plain
    assert "Fine-tuned, paper: max_epochs=12, usually 50." in short


def test_different_networks_are_told() -> None:
    assert "networks" not in table2_markdown([make_result(network="a"), decar(network="a")])
    assert "Different networks are mixed here: a, b." in table2_markdown([make_result(network="a"), decar(network="b")])
