"""Means that go into checkpoints; over several processes they are tried in tests/cli/test_ddp.py."""

import pytest
import torch

from decar.pretrain.ranks import EpochMeans


def test_means_of_all_steps_and_then_anew():
    means = EpochMeans("a", "b")
    for a, b in ((1.0, 4.0), (2.0, 5.0), (6.0, 0.0)):
        means.add(torch.tensor(a), torch.tensor(b))
    assert {name: float(value) for name, value in means.take().items()} == {"a": 3.0, "b": 3.0}
    means.add(torch.tensor(7.0), torch.tensor(8.0))
    assert {name: float(value) for name, value in means.take().items()} == {"a": 7.0, "b": 8.0}


@pytest.mark.parametrize("cut", [0, 1, 4])
def test_going_on_from_a_checkpoint_gives_the_same_bits(cut):
    torch.manual_seed(0)
    values = torch.rand(5)
    whole, first, second = (EpochMeans("a") for _ in range(3))
    for value in values:
        whole.add(value)
    for value in values[:cut]:
        first.add(value)
    second.load_state_dict(first.state_dict())
    for value in values[cut:]:
        second.add(value)
    assert torch.equal(whole.take()["a"], second.take()["a"])


def test_another_number_of_processes_takes_the_mean():
    means = EpochMeans("a")
    means.load_state_dict({"sums": torch.tensor([[2.0], [4.0]]), "steps": 2})
    means.add(torch.tensor(3.0))
    assert float(means.take()["a"]) == 2.0
