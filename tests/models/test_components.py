"""Embeddings of fewer numbers: what is kept of them, and who is refused them."""

import json

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from decar.errors import BundleError, ConfigError
from decar.models import Encoder, embed_store, load_encoder, save_bundle
from decar.models.bundle import read_directions
from decar.models.components import DIRECTIONS, principal_directions
from tests.conftest import make_encoder
from tests.models.test_bundle import Own


def vectors(n=200, dim=60, seed=0):
    """Of falling variance, away from the origin."""
    generator = np.random.default_rng(seed)
    return (generator.normal(size=(n, dim)) * 0.8 ** np.arange(dim) + 0.5).astype(np.float32)


@pytest.fixture
def encoder():
    return make_encoder("conv", "catavgmax", widths=(3, 4), hidden=8, seed=0, max_frames=128).eval()


@pytest.fixture
def bundle(encoder, tmp_path):
    directions = principal_directions(vectors(dim=16), 10)
    return save_bundle(encoder, tmp_path / "encoder.safetensors", directions=directions)


def test_directions_are_those_of_the_exact_svd():
    x = vectors()
    found = principal_directions(x, 10)
    exact = np.linalg.svd(x.astype(np.float64), full_matrices=False)[2][:10]
    exact *= np.sign(np.take_along_axis(exact, np.abs(exact).argmax(1)[:, None], 1))
    np.testing.assert_allclose(found.numpy(), exact, atol=1e-4)
    torch.testing.assert_close(found @ found.T, torch.eye(10), atol=1e-5, rtol=0)


def test_directions_leave_the_global_generator_alone_and_are_the_same_again():
    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    first = principal_directions(vectors(), 10)
    assert torch.equal(torch.rand(1), expected)
    assert torch.equal(principal_directions(vectors(), 10), first)


@pytest.mark.parametrize(("n", "dim", "asked", "kept"), [(5, 60, 10, 5), (200, 8, 10, 8), (200, 60, 10, 10)])
def test_there_are_no_more_directions_than_clips_and_numbers(n, dim, asked, kept):
    assert principal_directions(vectors(n, dim), asked).shape == (kept, dim)


def test_a_reduced_embedding_is_the_whole_one_projected_also_of_a_long_clip(bundle, encoder, make_store):
    reduced, directions = load_encoder(bundle, dim=7), read_directions(bundle)
    store = make_store([20, 98, 300])
    whole, found = (embed_store(e, store, progress=False) for e in (encoder, reduced))
    assert (reduced.dim, found.shape) == (7, (3, 7))
    np.testing.assert_allclose(found, whole @ directions[:7].numpy().T, rtol=1e-4, atol=1e-5)
    assert reduced.hash() not in (encoder.hash(), load_encoder(bundle, dim=6).hash())
    assert load_encoder(bundle, dim=7).hash() == reduced.hash()


def test_directions_change_nothing_of_the_encoder_itself(bundle, encoder):
    loaded = load_encoder(bundle)
    assert loaded.hash() == encoder.hash()
    x = torch.randn(2, 1, 64, 98)
    assert torch.equal(loaded(x), encoder(x))


@pytest.mark.parametrize("half", [False, True])
def test_directions_are_stored_in_half_precision(encoder, tmp_path, half):
    directions = principal_directions(vectors(dim=16), 10)
    file = save_bundle(encoder, tmp_path / "half.safetensors", half=half, directions=directions)
    assert torch.equal(read_directions(file), directions.half().float())
    assert load_encoder(file, dim=4).dim == 4


def format_of(file):
    with safe_open(file, framework="pt") as opened:
        return json.loads(opened.metadata()["decar"])["format"]


def test_only_bundles_that_earlier_versions_cannot_read_have_another_format(bundle, encoder, tmp_path):
    """They would take the directions for a weight, and know no option `readout`."""
    assert format_of(bundle) == 2
    assert format_of(save_bundle(encoder, tmp_path / "plain.safetensors")) == 1
    with_readout = make_encoder("conv", widths=(3, 4), hidden=8, readout=[1], seed=0)
    assert format_of(save_bundle(with_readout, tmp_path / "readout.safetensors")) == 2


@pytest.mark.parametrize(("dim", "error", "message"), [
    (11, BundleError, "dim=11, but it has 10 principal directions; give at most that"),
    (0, ConfigError, "dim=0: not allowed"),
])  # fmt: skip
def test_more_than_there_are_and_none_are_refused(bundle, dim, error, message):
    with pytest.raises(error, match=message) as caught:
        load_encoder(bundle, dim=dim)
    assert "\n" not in str(caught.value)


def test_bundles_without_directions_and_other_encoders_are_refused(encoder, tmp_path):
    plain = save_bundle(encoder, tmp_path / "encoder.safetensors")
    for path in (plain, None, "hear:decar.hear"):
        with pytest.raises(BundleError, match="has no principal directions, so dim=8 cannot be had"):
            load_encoder(path, dim=8)


@pytest.mark.parametrize("directions", [torch.zeros(10, 15), torch.zeros(160), torch.full((10, 16), torch.nan)])
def test_directions_that_do_not_fit_are_refused(bundle, directions):
    with safe_open(bundle, framework="pt") as file:
        header = json.loads(file.metadata()["decar"])
    header.pop("digest")
    weights = {**load_file(bundle), DIRECTIONS: directions}
    save_file(weights, bundle, metadata={"decar": json.dumps(header)})
    load_encoder(bundle)
    with pytest.raises(BundleError, match="principal directions do not fit embeddings of 16 numbers"):
        load_encoder(bundle, dim=4)


def test_a_reduced_encoder_is_not_saved(bundle, tmp_path):
    with pytest.raises(BundleError, match="this encoder is reduced to 4 numbers; save the whole one"):
        save_bundle(load_encoder(bundle, dim=4), tmp_path / "again.safetensors")


def test_a_network_of_ones_own_can_be_reduced_and_its_code_counts(tmp_path, monkeypatch):
    own = Encoder(Own(16), arguments={"width": 16}).eval()
    file = save_bundle(own, tmp_path / "own.safetensors", directions=principal_directions(vectors(dim=16), 10))
    reduced = load_encoder(file, network=Own, dim=4)
    assert (reduced.dim, load_encoder(file, network=Own).hash()) == (4, own.hash())
    before = reduced.hash()
    monkeypatch.setattr("inspect.getsource", lambda kind: "class Own: changed" if kind is Own else "")
    assert reduced.hash() != before
