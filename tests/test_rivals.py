"""What stands beside the recipe in a trial: benchmarks/rivals.py against slow forms."""

import itertools
import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from benchmarks import rivals
from decar.audio import FrontEnd
from decar.models import Encoder, build_network


def test_background_is_added_to_the_magnitudes():
    strong = rivals.Strong(mix=0.4)
    x = torch.log(torch.tensor([1.0, 3.0])).reshape(2, 1, 1, 1).expand(2, 1, 4, 5)
    torch.manual_seed(0)
    share = 0.4 * torch.rand(2, 1, 1, 1)
    torch.manual_seed(0)
    mixed = strong._mixed(x).exp()
    assert torch.allclose(mixed[0], (1 - share[0]) * 1.0 + share[0] * 3.0)
    assert torch.allclose(mixed[1], (1 - share[1]) * 3.0 + share[1] * 1.0)


def test_a_window_as_large_as_the_crop_changes_nothing():
    x = torch.randn(3, 1, 16, 20)
    assert torch.allclose(rivals.Strong(low=1.0, high=1.0)._resized(x), x, atol=1e-5)


def test_a_window_twice_as_long_has_the_crop_in_its_middle_or_at_a_side():
    """Half of its frames are the crop's, squeezed; the others repeat an edge, and bands stay as they are."""
    ramp = torch.arange(40.0).expand(1, 1, 8, 40)
    strong = rivals.Strong(low=2.0, high=2.0)
    for seed in range(5):
        torch.manual_seed(seed)
        row = strong._resized(ramp)[0, 0]
        assert torch.allclose(row, row[:1].expand_as(row), atol=1e-4)
        steps = row[0].diff()
        assert ((steps - 2).abs() < 1e-3).sum() in (18, 19, 20)  # two frames of the crop to one of the window
        assert row.min() >= 0
        assert row.max() <= 39


def test_levels_run_along_a_line():
    torch.manual_seed(3)
    lines = rivals.Strong(fade=1.0)._faded(torch.zeros(50, 1, 2, 11))
    assert lines.diff(n=2, dim=-1).abs().max() < 1e-5
    assert 0.9 < lines.abs().max() <= 1


def test_evaluation_changes_nothing():
    x = torch.randn(2, 1, 8, 8)
    assert rivals.Strong().eval()(x) is x


def test_clusters_keep_the_names_that_keep_most_clips():
    rng = np.random.default_rng(0)
    for _ in range(20):
        new, old = rng.integers(0, 4, (2, 30))
        names = rivals.matched(new, old, 4)
        best = max(sum(np.array(order)[new] == old) for order in itertools.permutations(range(4)))
        assert sorted(names) == [0, 1, 2, 3]
        assert (names[new] == old).sum() == best


def test_random_codes_are_the_nearest_directions():
    x = np.random.default_rng(1).standard_normal((20, 6)).astype(np.float32)
    found = rivals.RandomCodes(5, seed=2).fit_predict(x)
    codes = np.random.default_rng(2).standard_normal((6, 5))
    slow = [max(range(5), key=lambda c: row @ codes[:, c] / math.sqrt(codes[:, c] @ codes[:, c])) for row in x]
    assert found.labels.tolist() == slow
    assert found.n_clusters == 5


def test_the_average_is_lent_for_the_pass_and_given_back():
    module = nn.ModuleDict({"encoder": nn.Linear(2, 2), "projection": nn.Linear(2, 2), "heads": nn.Linear(2, 2)})
    ema = rivals.EmaPass(decay=0.9)
    weights = [module["encoder"].weight.detach().clone()]
    ema.on_train_batch_end(None, module, None, None, 0)
    for _ in range(3):
        with torch.no_grad():
            module["encoder"].weight.add_(1.0)
        weights.append(module["encoder"].weight.detach().clone())
        ema.on_train_batch_end(None, module, None, None, 1)
    mean = weights[0]
    for now in weights[1:]:
        mean = 0.9 * mean + 0.1 * now
    heads = module["heads"].weight.detach().clone()
    ema.on_train_epoch_start(None, module)
    assert torch.allclose(module["encoder"].weight, mean)
    assert torch.equal(module["heads"].weight, heads)
    ema.on_train_batch_start(None, module, None, 0)
    ema.on_train_batch_start(None, module, None, 1)
    assert torch.equal(module["encoder"].weight, weights[-1])


@pytest.fixture
def byol():
    network = build_network("conv", "catavgmax", n_mels=16, hidden=8, widths=(4, 4), stride=4, local=True)
    encoder = Encoder(network, FrontEnd(n_mels=16))
    projection = rivals.ByolProjection(encoder.objective_dim, out=6, hidden=10, numbers=5, seed=0)
    module = rivals.Byol(encoder, projection, rivals.NoLabels(), nn.Identity(), torch.optim.SGD, decay=0.9)
    module._trainer = SimpleNamespace(num_training_batches=100, current_epoch=0)
    module.log = lambda *args, **options: None
    return module


def test_the_loss_is_the_distance_of_predictions_from_the_other_view(byol, monkeypatch):
    crops, other = torch.randn(4, 1, 16, 24), torch.randn(4, 1, 16, 24)
    views = iter([crops, other])
    monkeypatch.setattr(byol, "_view", lambda x: next(views))
    byol.eval()  # no dropout, and BatchNorm by what it has seen: a row does not depend on its batch
    loss = byol.training_step((crops, torch.arange(4)), 0)
    terms = []
    for seen, wanted in ((crops, other), (other, crops)):
        for a, b in zip(seen, wanted, strict=True):
            online = byol.projection.predictor(byol.projection.projector(byol.encoder.for_objective(a[None])))[0]
            target = byol.projection.projector(byol.encoder.for_objective(b[None]))[0]  # equal before any step
            terms.append(((online / online.norm() - target / target.norm()) ** 2).sum())
    assert torch.allclose(loss, torch.stack(terms).mean(), atol=1e-5)
    loss.backward()
    assert all(p.grad is None for p in byol.target.parameters())
    assert byol.projection.predictor[0].weight.grad.abs().sum() > 0


def test_the_target_follows(byol, monkeypatch):
    monkeypatch.setattr(rivals.DecarModule, "on_train_batch_end", lambda *args: None)
    before = [p.detach().clone() for p in byol.target.parameters()]
    with torch.no_grad():
        for p in (*byol.encoder.parameters(), *byol.projection.projector.parameters()):
            p.add_(1.0)
    byol.on_train_batch_end(None, None, 0)
    for old, new in zip(before, byol.target.parameters(), strict=True):
        assert torch.allclose(new, old + 0.1, atol=1e-6)


def test_a_view_has_the_mean_and_deviation_that_the_network_takes_away(byol):
    byol.encoder.network.set_input_statistics(-4.0, 2.5)
    view = byol._view(7 * torch.randn(4, 1, 16, 24) + 3)
    assert float(view.mean()) == pytest.approx(-4.0, abs=1e-4)
    assert float(view.std()) == pytest.approx(2.5, abs=1e-4)
