import math

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from decar.downstream.results import by_metric
from decar.downstream.tables import EMPTY, columns, heading, interval, table2, table2_markdown, to_markdown
from decar.errors import DecarError
from tests.downstream.helpers import make_decar, make_result


def test_interval_is_students() -> None:
    values = [0.5, 0.6, 0.8]
    mean, half = interval(values)
    low, high = stats.ttest_1samp(values, 0).confidence_interval(0.95)
    assert (mean - half, mean + half) == pytest.approx((low, high))
    assert math.isnan(interval([0.5])[1])


def test_cells_seeds_and_empty_ones() -> None:
    results = [
        *(make_result(seed=s, value=v, encoder_hash=f"r{s}") for s, v in enumerate([0.5, 0.6, 0.8])),
        make_decar(task="kind", protocol="paper", value=0.912),
    ]
    frame = table2(results)
    mean, half = interval([0.5, 0.6, 0.8])
    assert list(frame.columns) == [str(c) for c in columns([])]
    assert frame.loc["speaker", "search random frozen"] == f"{100 * mean:.1f} ± {100 * half:.1f}"
    assert frame.loc["kind", "paper DECAR frozen"] == "91.2"
    assert (frame.loc[["kind", "speaker"]].to_numpy() == EMPTY).sum() == 2 * len(columns([])) - 2
    assert "paper log-mel fine-tuned" not in frame.columns


def test_means_are_over_tasks_that_their_columns_share() -> None:
    results = [
        make_result(task="a", value=0.2), make_result(task="b", value=0.4), make_result(task="c", value=0.9),
        make_decar(task="a", value=0.6), make_decar(task="b", value=0.8),
        make_decar(task="a", value=0.7, mode="finetune"),
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


def test_bundles_have_columns_of_their_own() -> None:
    results = [
        *(make_decar(bundle="runs/A", encoder_hash="a", seed=s, value=v) for s, v in enumerate([0.6, 0.8])),
        make_decar(bundle="runs/B", encoder_hash="b", value=0.5), make_result(value=0.4),
    ]  # fmt: skip
    row = table2(results).loc["speaker"]
    mean, half = interval([0.6, 0.8])
    assert row["search DECAR A frozen"] == f"{100 * mean:.1f} ± {100 * half:.1f}"
    assert (row["search DECAR B frozen"], row["search random frozen"]) == ("50.0", "40.0")
    assert "search DECAR frozen" not in row
    text = table2_markdown(results)
    assert "DECAR A frozen | DECAR A fine-tuned | DECAR B frozen | DECAR B fine-tuned |" in " ".join(text.split())


def test_seeds_of_pretraining_pool_into_one_column_beside_random() -> None:
    values = {"a": [0.5, 0.6], "b": [0.7, 0.9]}
    results = [
        make(task=task, seed=s, value=v, encoder_hash=f"{make.__name__}{s}", bundle=f"runs/seed{s}/pretrain")
        for make in (make_result, make_decar)
        for task, vs in values.items()
        for s, v in enumerate(vs)
    ]
    frame = table2(results)
    assert list(frame.columns) == [str(c) for c in columns([])]
    mean, half = interval(np.mean(list(values.values()), axis=0))
    for name in ("random", "DECAR"):
        assert frame.loc["mean of 2 tasks", f"search {name} frozen"] == f"{100 * mean:.1f} ± {100 * half:.1f}"


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
    text = table2_markdown([make_result(), make_decar(seed=1), make_decar(value=0.7), make_result(protocol="paper")])
    assert text.index("protocol=paper") < text.index("protocol=search") < text.index("–: not judged yet")
    assert "95 % interval" in text
    assert "protocol=knn" not in text
    assert "protocol=paper" not in table2_markdown([make_result()]), "a table of dashes"
    assert "95 % interval" not in table2_markdown([make_result()])


def test_results_made_with_other_numbers_than_the_protocols_are_told() -> None:
    usual = {"lr": 1e-3, "batch_size": 64, "max_epochs": 50}
    plain = table2_markdown([make_result(protocol="paper", settings=usual)])
    short = table2_markdown([make_result(protocol="paper", mode="finetune", settings={**usual, "max_epochs": 12})])
    assert "usually" not in plain
    assert "Fine-tuned, paper: max_epochs=12, usually 50." in short


def test_different_networks_are_told() -> None:
    assert "networks" not in table2_markdown([make_result(network="a"), make_decar(network="a")])
    assert "Different networks are mixed here: a, b." in table2_markdown(
        [make_result(network="a"), make_decar(network="b")]
    )


def test_another_measure_of_the_same_results() -> None:
    ours = [make_result(task="nsynth", protocol="paper", metrics={"accuracy": 0.5, "balanced_accuracy": 0.4})]
    text = table2_markdown(by_metric(ours, "balanced_accuracy"))
    assert text.startswith("Balanced accuracy on the test split, %.")
    assert "40.0" in text
    assert "the paper's Table 2" not in text, "the paper has accuracy only"
    with pytest.raises(DecarError, match=r"no measure 'mAP' \(there is: accuracy, balanced_accuracy\)"):
        by_metric(ours, "mAP")


def test_the_heading_names_tasks_with_another_measure() -> None:
    assert heading([make_result(), make_result(task="many", metric="mAP")]).endswith("%; many: mAP.")
    assert heading([make_result(metric="macro_f1")]) == "Macro F1 on the test split, %."
