"""Ours beside the paper's figures."""

import pytest

from decar.downstream import table2_markdown
from decar.downstream.tables import beside_table2, paper_cells
from decar.errors import DecarError
from tests.downstream.helpers import make_result


def test_ours_stand_beside_the_papers():
    ours = [
        make_result(task="nsynth", protocol="paper", value=value, seed=seed) for seed, value in enumerate((0.5, 0.6))
    ]
    ours.append(make_result(task="nsynth", protocol="search", value=0.9))  # another protocol does not compare
    table = beside_table2(ours)
    assert list(table.columns) == ["random_frozen", "random_finetune", "decar_frozen", "decar_finetune"]
    assert len(table) == 9
    known = paper_cells(2)
    assert table.loc["nsynth", "random_frozen"] == f"55.0 / {known['nsynth', 'random_frozen']:.1f} (n=2)"
    assert table.loc["iemocap", "decar_frozen"] == f"– / {known['iemocap', 'decar_frozen']:.1f}"


def test_bundles_that_are_compared_are_not_averaged_beside_the_paper_and_folds_are_no_seeds():
    usual = {"task": "nsynth", "protocol": "paper", "encoder": "decar"}
    ours = [
        make_result(**usual, bundle="a", encoder_hash="1", value=0.2),
        make_result(**usual, bundle="b", encoder_hash="2", value=0.6),
        *[make_result(task="iemocap", protocol="paper", fold=str(i), split_hash=str(i)) for i in range(5)],
    ]
    paper = f" / {paper_cells(2)['nsynth', 'decar_frozen']:.1f}"
    text = table2_markdown(ours)
    for name, value in (("a", "20.0"), ("b", "60.0")):
        part = text.split(f"Ours, {name}, / the paper's Table 2")[1].split("Ours")[0]
        assert f"{value}{paper} |" in part
    assert "40.0" not in text
    assert "(n=" not in text


def test_only_where_a_task_of_the_paper_was_judged():
    assert "the paper's Table 2" in table2_markdown([make_result(task="nsynth")])
    assert "the paper's Table 2" not in table2_markdown([make_result(task="speaker")])


def test_the_reading_with_the_classes_of_table_1_stands_beside_the_paper():
    """LibriSpeech's 251 speakers are another task than the paper's 585 classes; of others the release may stand in."""
    known = paper_cells(2)["librispeech", "random_frozen"]
    ours = [
        make_result(task="librispeech", protocol="paper", value=0.9),
        make_result(task="voxceleb1", protocol="paper"),
    ]
    table = beside_table2(ours)
    assert table.loc["librispeech_585", "random_frozen"] == f"– / {known:.1f}"
    assert "librispeech" not in table.index
    assert table.loc["voxceleb1", "random_frozen"].startswith("50.0 / ")
    ours += [make_result(task=task, protocol="paper", value=0.25) for task in ("librispeech_585", "voxceleb1_1211")]
    table = beside_table2(ours)
    assert table.loc["librispeech_585", "random_frozen"] == f"25.0 / {known:.1f}"
    assert table.loc["voxceleb1_1211", "random_frozen"].startswith("25.0 / ")
    assert len(table) == 9


def test_results_of_before_there_was_refit_are_those_without():
    before = make_result(protocol="paper", settings={"lr": 0.001, "batch_size": 64, "max_epochs": 50})
    now = make_result(protocol="paper", settings={**before.settings, "refit": False}, seed=1)
    assert "±" in table2_markdown([before, now])
    with pytest.raises(DecarError, match="refit=False and with refit=True"):
        table2_markdown([before, make_result(protocol="paper", settings={**before.settings, "refit": True}, seed=2)])
