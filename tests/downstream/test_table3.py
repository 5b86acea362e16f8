"""Results by clusterer and number of clusters, beside the paper's."""

import math

import pytest

from decar.downstream import table2, table2_markdown, table3, table3_cells, table3_markdown
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


def trained(clips=100, **options):
    """Of a bundle: its facts, and options of its training."""
    facts = {"clusterer": "kmeans", "k": 512, "data": "audioset", "clips": clips}
    return {**facts, **({"options": options} if options else {})}


@pytest.mark.parametrize(
    ("first", "second", "message"),
    [
        (trained(lr=0.1, a=1), trained(lr=0.2, a=1), r"with lr=0\.1 and with lr=0\.2 are not seeds"),
        (trained(clips=10), trained(clips=11), "clips=10 and with clips=11"),
        (trained(lr=0.1), trained(lr=0.1, b=2), ""),  # a later version has brought it
        (trained(lr=0.1), trained(), ""),
    ],
)
@pytest.mark.parametrize("make", [lambda ours: table3(ours, "paper", "finetune"), table2])
def test_only_encoders_of_one_training_are_averaged(make, first, second, message):
    ours = [
        cell(pretrained=facts, seed=i, encoder_hash=f"h{i}")
        for i, facts in enumerate((trained(first["clips"]), first, second))
    ]
    if not message:
        assert "±" in make(ours).to_string()
    else:
        with pytest.raises(DecarError, match=message):
            make(ours)


def test_another_clusterer_is_no_seed_in_table_2():
    facts = [trained(), trained() | {"clusterer": "pic"}, trained() | {"k": 64}]
    for other in facts[1:]:
        with pytest.raises(DecarError, match="are not seeds of one experiment; give table2"):
            table2([cell(pretrained=facts[0]), cell(pretrained=other, seed=1, encoder_hash="other")])
    pic = [cell("pic", seed=i, encoder_hash=f"h{i}", pretrained=facts[1] | {"k": i}) for i in range(2)]
    assert "±" in table2(pic).to_string(), "PIC does not read k"


@pytest.mark.parametrize("make", [table2_markdown, table3_markdown])
def test_a_line_says_where_options_are_not_known(make):
    known = [cell(pretrained=trained(lr=0.1), seed=i, encoder_hash=f"h{i}") for i in range(2)]
    line = "is not known of 2 of the averaged encoders"
    assert line not in make(known)
    assert line not in make([cell(pretrained=trained()), cell(pretrained=trained(), task="birds")]), "one encoder"
    assert line in make([*known, *(cell(pretrained=trained(), seed=i, encoder_hash=f"h{i}") for i in (2, 3))])
