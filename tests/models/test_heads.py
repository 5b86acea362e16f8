import pytest
import torch

from decar.models import Projection, PseudoLabelHeads


def test_paper_projection_is_linear_and_relu():
    g = Projection(8, 4, seed=0)
    x = torch.randn(5, 8)
    weight, bias = g.layers[0].weight, g.layers[0].bias
    expected = (x @ weight.T + bias).clamp(min=0)
    torch.testing.assert_close(g(x), expected)
    torch.testing.assert_close(g.features(x), expected)


def test_released_projection_clusters_before_the_last_relu():
    g = Projection(8, 4, kind="released", seed=0).eval()
    x = torch.randn(50, 8)
    assert (g.features(x) < 0).any()
    torch.testing.assert_close(g.features(x).clamp(min=0), g(x))


def test_reset_gives_the_asked_sizes_and_the_stated_distribution():
    heads = PseudoLabelHeads(512, [1])
    heads.reset([300, 7], seed=3)
    assert heads.sizes == [300, 7]
    assert [tuple(scores.shape) for scores in heads(torch.randn(2, 512))] == [(2, 300), (2, 7)]
    assert heads[0].weight.std().item() == pytest.approx(0.01, rel=0.02)
    assert heads[0].bias.abs().max() == 0


def test_reset_depends_on_the_seed_alone():
    one, two = PseudoLabelHeads(16), PseudoLabelHeads(16, [9])
    torch.manual_seed(1)
    one.reset([5], seed=4)
    torch.manual_seed(2)
    two.reset([5], seed=4)
    assert torch.equal(one[0].weight, two[0].weight)
    two.reset([5], seed=5)
    assert not torch.equal(one[0].weight, two[0].weight)
