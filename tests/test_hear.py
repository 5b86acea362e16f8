"""The HEAR 2021 API: by its own validator, and against `Encoder.embed` one sound and one window at a time."""

import subprocess
import sys
from importlib.util import find_spec

import pytest
import torch

import decar.hear
from decar.errors import AudioError, BundleError
from decar.hear import get_scene_embeddings, get_timestamp_embeddings, load_model
from decar.models import save_bundle
from tests.conftest import make_encoder

# all that the validator asks of tensorflow before it knows that a model is torch's
STAND_IN = "class Module: pass\n"


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    encoder = make_encoder("conv", widths=[4, 8], hidden=16, pool="catavgmax", local=True, max_frames=160, seed=0)
    return save_bundle(encoder, tmp_path_factory.mktemp("hear") / "encoder.safetensors")


@pytest.fixture
def model(bundle):
    return load_model(str(bundle))


@pytest.mark.skipif(find_spec("hearvalidator") is None, reason="no hearvalidator here; make test-hear installs it")
def test_the_official_validator_passes(bundle, tmp_path):
    (tmp_path / "tensorflow.py").write_text(STAND_IN)
    code = (
        f"import sys; sys.path.insert(0, {str(tmp_path)!r})\n"
        "from hearvalidator.validate import ValidateModel\n"
        f"ValidateModel('decar.hear', {str(bundle)!r}, device='cpu')(); print('Looks good!')"
    )
    done = subprocess.run([sys.executable, "-W", "error:We suggest", "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "Looks good!" in done.stdout
    assert "Interval between timestamps is 50.0ms" in done.stdout


def test_attributes_and_flags(model):
    assert model.sample_rate == 16000
    assert model.scene_embedding_size == model.timestamp_embedding_size == model.encoder.dim
    assert not model.training
    model.train()
    audio = (0.1 * torch.randn(2, 8000)).requires_grad_()
    scenes = get_scene_embeddings(audio, model)
    embeddings, _ = get_timestamp_embeddings(audio, model)
    assert all(part.training for part in model.modules())
    assert not scenes.requires_grad
    assert not embeddings.requires_grad


@pytest.mark.parametrize("samples", [1, 5000, 16000, 25700])
def test_a_scene_that_fits_is_embedded_as_ever(model, samples):
    audio = 0.1 * torch.randn(3, samples)
    torch.testing.assert_close(get_scene_embeddings(audio, model), model.encoder.embed(audio), rtol=1e-4, atol=1e-5)


def test_a_long_scene_is_covered_to_its_ends(model):
    samples = 239 * 160 + 400  # 240 frames: pieces of 160 and 80
    audio = 0.1 * torch.randn(2, samples)
    window = 159 * 160 + 400
    slow = (160 * model.encoder.embed(audio[:, :window]) + 80 * model.encoder.embed(audio[:, 160 * 160 :])) / 240
    torch.testing.assert_close(get_scene_embeddings(audio, model), slow, rtol=1e-4, atol=1e-5)
    for place in (slice(0, 2000), slice(samples - 2000, samples)):  # either end would be cut
        louder = audio.clone()
        louder[:, place] *= 10
        assert not torch.allclose(get_scene_embeddings(louder, model), slow, rtol=1e-3)


def test_timestamps_are_embeddings_of_the_second_around_them(model, monkeypatch):
    monkeypatch.setattr(decar.hear, "BATCH_FRAMES", 98 * 7)  # several batches that end within a sound
    audio = 0.1 * torch.randn(2, 20000)
    embeddings, times = get_timestamp_embeddings(audio, model)
    assert embeddings.shape == (2, 26, model.timestamp_embedding_size)
    assert torch.equal(times, torch.arange(26).mul(50.0).expand(2, -1))
    half = (97 * 160 + 400) // 2
    silence = torch.zeros(2, half)
    padded = torch.cat([silence, audio, silence], dim=1)
    for i in (0, 7, 13, 25):
        middle = half + i * 800
        slow = model.encoder.embed(padded[:, middle - half : middle + half])
        torch.testing.assert_close(embeddings[:, i], slow, rtol=1e-4, atol=1e-5)


def test_an_onset_is_seen_where_it_is(model):
    audio = torch.zeros(1, 64000)
    audio[:, 32000:32160] = 0.5
    embeddings, times = get_timestamp_embeddings(audio, model)
    changed = (embeddings[0] - embeddings[0, 0]).abs().amax(1) > 1e-4
    heard = times[0, changed]
    assert 2000 - 550 < heard.min() < heard.max() < 2000 + 550


def test_memory_is_bounded_by_batches(model, monkeypatch):
    seen = []
    monkeypatch.setattr(model.encoder, "embed", lambda wave: seen.append(wave.shape) or torch.zeros(len(wave), 64))
    monkeypatch.setattr(model.encoder, "dim", 64)
    get_timestamp_embeddings(torch.zeros(3, 160000), model)
    assert max(batch for batch, _ in seen) <= 6400 // 98
    assert sum(batch for batch, _ in seen) == 3 * 201


def test_what_is_no_batch_of_sounds_is_refused(model):
    with pytest.raises(AudioError, match=r"got shape \(16000,\)"):
        get_scene_embeddings(torch.zeros(16000), model)
    with pytest.raises(AudioError, match=r"got shape \(16000,\)"):
        get_timestamp_embeddings(torch.zeros(16000), model)
    with pytest.raises(AudioError, match=r"shape \(3, 0\) hold no samples"):
        get_scene_embeddings(torch.zeros(3, 0), model)
    assert get_scene_embeddings(torch.zeros(0, 16000), model).shape == (0, model.scene_embedding_size)


def test_a_missing_bundle_is_told():
    with pytest.raises(BundleError, match="no such bundle"):
        load_model("nothing.safetensors")
