"""The arm of masked segments: benchmarks/masked.py against slow forms."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from benchmarks import masked
from decar.audio import FrontEnd
from decar.models import Encoder, build_network
from decar.pretrain.labels import DescriptorLabels


def test_a_patch_is_eight_frames_without_the_level_of_its_crop():
    crops = torch.randn(2, 1, 4, 19)
    found = masked.patches_of(crops)
    assert found.shape == (2, 2, 32)
    for b in range(2):
        level = crops[b].mean()
        for t in range(2):
            assert torch.allclose(found[b, t].reshape(4, 8), crops[b, 0, :, 8 * t : 8 * t + 8] - level)


def test_segments_have_the_lengths_that_were_asked_for():
    torch.manual_seed(0)
    source = masked.PatchLabels(DescriptorLabels(None), spans=1, shortest=5, longest=9)
    hidden = source.hidden(500, 40)
    lengths = hidden.sum(1)
    assert set(lengths.tolist()) == {5, 6, 7, 8, 9}
    assert (hidden.int().diff(dim=1).abs().sum(1) <= 2).all()  # each is one piece
    assert hidden.any(0).all()  # anywhere
    assert masked.PatchLabels(DescriptorLabels(None), spans=0).hidden(3, 40).sum() == 0
    assert source.hidden(3, 4).all()  # a crop that is shorter than a segment


def test_only_whole_patches_count_as_hidden():
    hidden = torch.zeros(1, 26, dtype=torch.bool)
    hidden[0, 7:16] = True
    assert masked.whole(hidden).tolist() == [[False, True, False]]


@pytest.fixture
def module():
    network = build_network("conv", "catavgmax", n_mels=16, hidden=8, widths=(4, 4, 4), stride=8, local=True)
    encoder = Encoder(network, FrontEnd(n_mels=16))
    projection = masked.FrameProjection(encoder.objective_dim, out=6, hidden=8, k=5, width=4, seed=0)
    source = masked.PatchLabels(DescriptorLabels(None), k=5, shortest=8, longest=16, weight=0.25)
    module = masked.Masked(encoder, projection, source, nn.Identity(), torch.optim.SGD)
    targets = torch.tensor([[0], [1], [0], [1]])
    data = SimpleNamespace(targets=lambda index: targets[index], labels=None)
    module._trainer = SimpleNamespace(num_training_batches=100, current_epoch=0, datamodule=None)
    type(module).data = property(lambda self: data)
    module.heads.reset([2], seed=0)
    module.log = lambda *args, **options: None
    yield module.eval()
    del type(module).data


def test_the_loss_is_of_hidden_patches_and_of_the_descriptors(module, monkeypatch):
    """Against a loop over patches; the network sees the mean of the set in place of what is hidden."""
    monkeypatch.setattr(module, "_augmented", lambda crops, step: crops)
    codes = np.random.default_rng(0).integers(0, 5, 12)
    module.fitted = lambda points: codes[: len(points), None]
    crops, index = torch.randn(4, 1, 16, 24), torch.arange(4)
    torch.manual_seed(1)
    hidden = module.source.hidden(4, 24)
    torch.manual_seed(1)
    loss = module.training_step((crops, index), 0)

    seen = crops.clone()
    seen.permute(0, 3, 1, 2)[hidden] = module.encoder.network.mean
    z = module.projection(module.encoder.for_objective(seen))[0]
    first = functional.cross_entropy(module.heads(z)[0], torch.tensor([0, 1, 0, 1]))
    maps = module.encoder.network.trunk((seen - module.encoder.network.mean) / module.encoder.network.std)
    frames = module.encoder.network.mlp(maps.permute(0, 3, 1, 2).flatten(2))
    scores = module.projection.over_time(frames.transpose(1, 2))
    terms = [
        functional.cross_entropy(scores[b, :, t][None], torch.tensor([codes[3 * b + t]]))
        for b in range(4)
        for t in range(3)
        if hidden[b, 8 * t : 8 * t + 8].all()
    ]
    assert 0 < len(terms) < 12
    assert torch.allclose(loss, 0.75 * first + 0.25 * torch.stack(terms).mean(), atol=1e-5)


def test_frames_of_a_network_are_those_of_its_mlp(module):
    crops = torch.randn(3, 1, 16, 24)
    found = masked.frames_of(module.encoder)(crops)
    network = module.encoder.network
    pooled = torch.cat([found.mean(1), found.amax(1)], dim=1)
    vector = network.vector(crops)
    local = vector.shape[1] // 2 - 8
    assert torch.allclose(pooled[:, :8], vector[:, :8], atol=1e-5)
    assert torch.allclose(pooled[:, 8:], vector[:, 8 + local : 16 + local], atol=1e-5)
