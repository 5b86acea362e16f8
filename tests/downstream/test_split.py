import numpy as np

from decar.downstream.split import hold_out


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
