"""The arm of two networks: benchmarks/pair.py."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from benchmarks import pair
from decar.audio import FrontEnd
from decar.clustering import KMeans
from decar.models import Encoder, Projection, build_network
from decar.pretrain import EpochLabels, NetworkLabels, Situation, Vectors
from decar.pretrain.labels import DescriptorLabels


@pytest.fixture
def labels(monkeypatch):
    first = DescriptorLabels(KMeans(2), ["spectrum"])
    known = EpochLabels(np.zeros((40, 1), np.int64), [2], 0)
    monkeypatch.setattr(DescriptorLabels, "assign", lambda self, z, situation: known.again(situation.epoch))
    return pair.PairLabels(first, NetworkLabels([KMeans(3)], dim=4), network_from=1)


def test_each_network_has_a_column_of_clusters(labels):
    rng = np.random.default_rng(0)
    groups = np.stack([np.arange(40) % 3, np.arange(40) // 14])
    centres = 9 * rng.standard_normal((2, 3, 6))
    halves = [centres[i][groups[i]] + 0.01 * rng.standard_normal((40, 6)) for i in range(2)]
    z = Vectors(np.concatenate(halves, axis=1).astype(np.float32), np.arange(40))
    situation = Situation(range(40), epoch=1, seed=0)  # a store that has a length
    made = labels.assign(z, situation)
    assert (made.sizes, made.kept, made.epoch) == ([2, 3, 3], 1, 1)
    for column, wanted in zip(made.labels.T[1:], groups, strict=True):
        assert len(set(zip(column.tolist(), wanted.tolist(), strict=True))) == 3  # the same parts
    assert labels.assign(None, situation).sizes == [2]


@pytest.fixture
def module(labels):
    network = build_network("conv", "catavgmax", n_mels=16, hidden=8, widths=(4, 4), stride=4, local=True)
    encoder = Encoder(network, FrontEnd(n_mels=16))
    projection = Projection(encoder.objective_dim, out=6, kind="batchnorm", seed=0)
    module = pair.Pair(encoder, projection, labels, nn.Identity(), torch.optim.SGD)
    module._trainer = SimpleNamespace(num_training_batches=100, current_epoch=0)
    module.log = lambda *args, **options: None
    return module.eval()


def test_the_second_network_starts_from_other_weights(module):
    for mine, theirs in zip(module.encoder.parameters(), module.other.encoder.parameters(), strict=True):
        assert mine is not theirs
        if mine.ndim > 1:
            assert not torch.allclose(mine, theirs)
    assert torch.equal(module.encoder.network.mean, module.other.encoder.network.mean)


def test_neither_predicts_its_own_clusters(module, monkeypatch):
    columns = torch.tensor([[0, 0, 2], [1, 1, 1], [0, 2, 0]])
    monkeypatch.setattr(type(module), "data", SimpleNamespace(targets=lambda index: columns[index]))
    monkeypatch.setattr(module, "_augmented", lambda crops, step: crops)
    module.heads.reset([2, 3, 3], seed=1)
    module.other.heads.reset([2, 3, 3], seed=2)
    crops = torch.randn(3, 1, 16, 24)
    found = module.training_step((crops, torch.arange(3)), 0)

    def of(encoder, projection, heads, asked):
        scores = heads(projection(encoder.for_objective(crops))[0])
        return sum(functional.cross_entropy(scores[h], columns[:, h]) for h in asked) / len(asked)

    first = of(module.encoder, module.projection, module.heads, [0, 2])
    second = of(module.other.encoder, module.other.projection, module.other.heads, [0, 1])
    assert torch.allclose(found, first + second)


def test_one_pass_gives_the_vectors_of_both(module):
    crops = torch.randn(3, 1, 16, 24)
    both = pair._SideBySide(module)(crops)
    assert torch.allclose(both[:, :6], module(crops))
    assert torch.allclose(both[:, 6:], module.other(crops)[1])


def test_all_weights_of_both_are_trained(module):
    module.schedule, module.warmup_steps = "constant", 0
    module.make_optimizer = lambda groups: torch.optim.SGD(groups, lr=0.1)
    optimizer = module.configure_optimizers()
    held = {id(p) for group in optimizer.param_groups for p in group["params"]}
    other = [*module.other.encoder.parameters(), *module.other.projection.parameters()]
    assert {id(p) for p in (*module.encoder.parameters(), *other)} <= held


def test_heads_are_renewed_with_their_state(module):
    """A checkpoint holds the optimizer's state: none may be left of heads that are gone."""
    module.schedule, module.warmup_steps = "constant", 0
    module.make_optimizer = lambda groups: torch.optim.AdamW(groups, lr=0.1)
    optimizer = module.configure_optimizers()
    module.optimizers = lambda use_pl_optimizer: optimizer
    for sizes, kept in (([2], 0), ([2, 3, 3], 1), ([2, 3, 3], 1)):
        module._renew_heads(sizes, kept)
        views = torch.randn(2, 3, 1, 16, 24)
        scores = [*module.heads(module._project(views[0])[0]), *module.other.heads(module.other(views[1])[0])]
        sum(logits.square().sum() for logits in scores).backward()
        optimizer.step()
        held = {p for group in optimizer.param_groups for p in group["params"]}
        assert {*module.heads.parameters(), *module.other.heads.parameters()} <= held
        assert set(optimizer.state) <= held
        assert len(optimizer.state_dict()["state"]) == len(optimizer.state)
