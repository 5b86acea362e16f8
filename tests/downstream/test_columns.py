import pytest

from decar.downstream.tables import CELL, bundle_names, columns, rows2
from decar.errors import DecarError
from tests.downstream.helpers import make_decar, make_result


def named(*bundles: str) -> list[str]:
    return list(
        bundle_names([make_decar(bundle=b, encoder_hash=f"{i}abcdefghij") for i, b in enumerate(bundles)]).values()
    )


@pytest.mark.parametrize(
    ("bundles", "names"),
    [
        (["runs/A"], []),
        (["runs/A", "runs/B"], ["A", "B"]),
        (["x/A/encoder.safetensors", "B/encoder.safetensors"], ["A/encoder.safetensors", "B/encoder.safetensors"]),
        (["/one/A/", "two/A", "two/B"], ["one/A", "two/A", "two/B"]),
        (["A", "x/A"], ["A", "x/A"]),
        (["runs/A", "runs/A"], ["runs/A 0abcdefg", "runs/A 1abcdefg"]),
    ],
)
def test_bundles_are_named_by_the_shortest_end_that_tells_them_apart(bundles: list[str], names: list[str]) -> None:
    assert named(*bundles) == names


def test_one_encoder_typed_in_two_ways_is_one() -> None:
    assert bundle_names([make_decar(bundle="runs/A"), make_decar(bundle="/home/x/runs/A", task="kind")]) == {}


def test_encoders_with_seeds_of_their_own_are_seeds_of_one() -> None:
    seeds = [make_decar(bundle=f"seed{s}/pretrain", encoder_hash=f"d{s}", seed=s) for s in range(3)]
    random = [make_result(encoder_hash=f"r{s}", seed=s) for s in range(3)]
    assert bundle_names(seeds + random) == {}
    assert columns(seeds + random) == columns([])
    assert sorted(rows2(seeds + random).groupby(CELL).size()) == [3, 3]
    other = make_decar(bundle="B", encoder_hash="b", seed=1, task="kind")
    assert len(set(bundle_names([*seeds, other]).values())) == 4


def test_different_splits_are_not_averaged() -> None:
    with pytest.raises(DecarError, match="task speaker: results on two different splits"):
        rows2([make_result(), make_result(seed=1, split_hash="other")])


def test_different_settings_are_not_averaged() -> None:
    short, long = {"lr": 1e-3, "max_epochs": 1}, {"lr": 1e-3, "max_epochs": 2}
    results = [make_result(settings=short), make_result(seed=1, settings=long)]
    words = (
        "task speaker, search random frozen: results with max_epochs=1 and with max_epochs=2 are.*give table2 the runs"
    )
    with pytest.raises(DecarError, match=words) as caught:
        rows2(results)
    assert "\n" not in str(caught.value)
    assert rows2([results[0], make_result(task="kind", settings=long)]).groupby(CELL).ngroups == 2


def test_different_networks_are_not_averaged() -> None:
    with pytest.raises(DecarError, match="network=a and with network=b"):
        rows2([make_result(network="a"), make_result(network="b", encoder_hash="other")])


def test_different_folds_are_not_averaged() -> None:
    folds = [make_result(fold=fold, split_hash=fold, seed=seed) for seed in (0, 1) for fold in ("1", "2")]
    assert len(rows2(folds)) == 4
    with pytest.raises(DecarError, match=r"search random frozen has fold 1, 2, .*\(seed 1\) has fold 1; judge all"):
        rows2(folds[:-1])
