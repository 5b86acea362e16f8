"""Ours beside the paper's figures."""

from decar.downstream import table2_markdown
from decar.downstream.tables import beside_table2, paper_cells
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


def test_only_where_a_task_of_the_paper_was_judged():
    assert "the paper's Table 2" in table2_markdown([make_result(task="nsynth")])
    assert "the paper's Table 2" not in table2_markdown([make_result(task="speaker")])
