import pytest
import torch

from decar.clustering.stats import effective_rank
from decar.models import Projection, PseudoLabelHeads


def test_paper_projection_is_linear_and_relu():
    g = Projection(8, 4, seed=0)
    x = torch.randn(5, 8)
    weight, bias = g.layers[0].weight, g.layers[0].bias
    expected = (x @ weight.T + bias).clamp(min=0)
    torch.testing.assert_close(g(x)[0], expected)
    torch.testing.assert_close(g(x)[1], expected)


def test_released_projection_clusters_before_the_last_relu():
    g = Projection(8, 4, kind="released", seed=0).eval()
    x = torch.randn(50, 8)
    assert (g(x)[1] < 0).any()
    torch.testing.assert_close(g(x)[1].clamp(min=0), g(x)[0])


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


def test_the_first_heads_can_be_kept():
    heads = PseudoLabelHeads(16)
    heads.reset([5, 6, 7], seed=1)
    kept = list(heads)[:2]
    heads.reset([5, 6, 9, 4], seed=2, keep=2)
    assert heads.sizes == [5, 6, 9, 4]
    assert list(heads)[:2] == kept
    assert heads[2].weight.std().item() == pytest.approx(0.01, rel=0.3)


def test_the_projection_with_batchnorm_is_clustered_before_its_relu():
    g = Projection(6, 4, kind="batchnorm", seed=0).eval()
    x = torch.randn(50, 6)
    linear, norm = g.layers
    assert linear.bias is None
    norm.running_mean.fill_(0.3)
    norm.running_var.fill_(4.0)
    expected = (x @ linear.weight.T - 0.3) / (4.0 + norm.eps) ** 0.5
    torch.testing.assert_close(g(x)[1], expected)
    torch.testing.assert_close(g(x)[0], expected.clamp(min=0))


@pytest.mark.parametrize("kind", ["paper", "batchnorm", "released"])
def test_under_autocast_the_last_layer_is_float32(kind):
    """Clips that differ by a hundredth of what they share: rounding of `z` must not look like further directions."""
    g = Projection(32, 64, kind=kind, seed=0).eval()
    torch.manual_seed(0)
    x = torch.rand(1, 32) * 10 + torch.randn(200, 3) @ torch.randn(3, 32) * 0.03
    plain = g(x)[1].detach()
    with torch.autocast("cpu", torch.bfloat16):
        projected, z = g(x)
    assert z.dtype == projected.dtype == torch.float32
    if kind != "released":
        assert torch.equal(z, plain)
        ranks = [effective_rank((v - v.mean(0)).numpy()) for v in (plain, z.detach())]
        assert ranks[1] == pytest.approx(ranks[0], rel=0.01)
        assert ranks[0] < 4
