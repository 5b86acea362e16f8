"""Results by clusterer and number of clusters, beside the paper's."""

import math

import pytest

from decar.downstream import table3, table3_cells, table3_markdown
from decar.downstream.tables import PAPER3, column_of, paper_cells
from decar.errors import DecarError
from tests.downstream.helpers import make_decar, make_result


def cell(clusterer="kmeans", k=512, **changes):
    facts = {"clusterer": clusterer, "k": k, "data": "audioset"}
    usual = {"task": "nsynth", "mode": "finetune", "protocol": "paper", "encoder_hash": f"{clusterer}{k}",
             "bundle": f"runs/{clusterer}_{k}"}  # fmt: skip
    return make_decar(**{**usual, "pretrained": facts, **changes})


def test_ours_and_the_papers_in_one_cell():
    table = table3([cell(value=0.25), cell("pic", 512, value=0.75)], "paper", "finetune")
    theirs = paper_cells(3)
    assert list(table.columns) == list(PAPER3)
    assert len(table) == 9
    assert table.loc["nsynth", "kmeans_512"] == f"25.0 / {theirs['nsynth', 'kmeans_512']:.1f}"
    assert table.loc["nsynth", "pic"] == f"75.0 / {theirs['nsynth', 'pic']:.1f}", "PIC has no k, whatever k= was"
    assert table.loc["iemocap", "kmeans_256"] == f"– / {theirs['iemocap', 'kmeans_256']:.1f}"


def test_the_paper_has_no_frozen_table_3_and_no_other_protocol():
    ours = [cell(mode="frozen", value=0.5), cell(protocol="search", value=0.5)]
    for protocol, mode in (("paper", "frozen"), ("search", "finetune")):
        table = table3(ours, protocol, mode)
        assert table.loc["nsynth", "kmeans_512"] == "50.0"
        assert not table.map(lambda text: "/" in text).to_numpy().any()


def test_seeds_are_averaged_other_k_and_tasks_come_last():
    ours = [cell(value=v, seed=s, encoder_hash=f"h{s}") for s, v in enumerate((0.4, 0.6))]
    ours += [cell(k=64), cell(k=1024), cell(k=128), cell(task="birds", k=64)]
    table = table3(ours, "paper", "finetune")
    assert list(table.columns) == [*PAPER3, "kmeans_64", "kmeans_128"]
    assert list(table.index)[-1] == "birds"
    # Student's t with one degree of freedom: 12.706 × 14.142 / √2
    assert table.loc["nsynth", "kmeans_512"].startswith("50.0 ± 127.1 / ")


def test_readings_of_the_papers_tasks():
    table = table3(
        [cell(task="librispeech", value=0.5), cell(task="nsynth_train_valid", value=0.5)], "paper", "finetune"
    )
    theirs = paper_cells(3)
    assert table.loc["librispeech_585", "kmeans_512"] == f"– / {theirs['librispeech', 'kmeans_512']:.1f}"
    assert table.loc["librispeech", "kmeans_512"] == "50.0"
    assert table.loc["nsynth_train_valid", "kmeans_512"] == f"50.0 / {theirs['nsynth', 'kmeans_512']:.1f}"


def test_the_cells_as_numbers():
    [row] = table3_cells([cell(value=0.25), make_result()]).to_dict("records")
    assert math.isnan(row.pop("interval"))
    assert row == {"task": "nsynth", "column": "kmeans_512", "protocol": "paper", "mode": "finetune", "ours": 25.0,
                   "seeds": 1, "paper": paper_cells(3)["nsynth", "kmeans_512"]}  # fmt: skip


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"split_hash": "other"}, "split"),
        ({"network": "other"}, "network"),
        ({"settings": {"lr": 2}}, "lr"),
        ({"pretrained": {"clusterer": "kmeans", "k": 512, "data": "mini"}}, "data"),
    ],
)
def test_a_cell_holds_one_experiment(change, named):
    with pytest.raises(DecarError, match=named):
        table3([cell(), cell(seed=1, **change)], "paper", "finetune")


def test_results_that_do_not_say_their_clusterer():
    assert column_of(make_result()) is None
    with pytest.raises(DecarError, match="clusterer and k"):
        table3_markdown([make_result()])
