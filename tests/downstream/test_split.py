import numpy as np

from decar.downstream.split import by_fold, draw_shots, hold_out


def test_hold_out_never_takes_all_of_a_class() -> None:
    labels = np.array(["a", "b", "b", "c", "c", "c"])
    mask = hold_out(labels, np.arange(6).astype(str), 0.9, np.random.default_rng(0))
    assert [mask[labels == c].sum() for c in "abc"] == [0, 1, 2]


def test_draw_does_not_hang_on_the_order_of_the_table() -> None:
    labels, names = np.repeat(["a", "b"], 20), np.arange(40).astype(str)
    order = np.random.default_rng(1).permutation(40)
    mask = hold_out(labels, names, 0.3, np.random.default_rng(0))
    shuffled = hold_out(labels[order], names[order], 0.3, np.random.default_rng(0))
    assert (mask[order] == shuffled).all()


def test_folds_test_on_one_and_validate_on_the_next():
    folds = np.array(["1", "2", "3", "10", "", "1"])
    assert by_fold(folds, "3", "t.csv").tolist() == ["train", "train", "test", "valid", "", "train"]
    assert by_fold(folds, "10", "t.csv").tolist() == ["valid", "train", "train", "test", "", "valid"]


def test_shots_are_drawn_a_class_and_never_from_test():
    labels = np.array(["a"] * 20 + ["b"] * 20 + ["c"] * 3)
    split = np.array((["train"] * 10 + ["valid"] * 5 + ["test"] * 5) * 2 + ["train", "valid", "test"])
    drawn = [draw_shots(labels, split, 4, np.random.default_rng(seed)) for seed in (0, 0, 1)]
    for keep in drawn:
        for part in ("train", "valid"):
            counts = {label: int((keep & (split == part) & (labels == label)).sum()) for label in "abc"}
            assert counts == {"a": 4, "b": 4, "c": 1}
        assert not keep[split == "test"].any()
    assert (drawn[0] == drawn[1]).all()
    assert (drawn[0] != drawn[2]).any()
