"""Encoders that are not decar's: `hear:` and `torch:` names, through every door that takes a bundle."""

import sys

import numpy as np
import pandas as pd
import pytest
import soundfile
import torch

from decar.audio import Manifest
from decar.audio.logmel import Samples, waveform_to_frames
from decar.downstream.results import collect
from decar.downstream.tables import table2
from decar.embedder import Embedder
from decar.errors import BundleError, ExportError, SearchError
from decar.models import load_encoder, read_facts
from decar.models.export import export_encoder
from decar.neighbours.index import EmbeddingTable
from decar.neighbours.query import find_queries
from tests.cli.helpers import evaluate

__all__ = ["evaluate"]

RATE = 8_000
MODULE = f'''
import torch

class Loudness(torch.nn.Module):
    """Mean square, peak and the number of samples, scaled by a parameter."""

    sample_rate = {RATE}
    scene_embedding_size = timestamp_embedding_size = 3

    def __init__(self, scale=1.0):
        super().__init__()
        self.scale = torch.nn.Parameter(torch.tensor(scale))

    def forward(self, x):
        length = torch.full((len(x),), x.shape[1] / {RATE})
        return self.scale * torch.stack([(x * x).mean(1), x.abs().amax(1), length.to(x)], 1)

def load_model(path=""):
    return Loudness(float(open(path).read()) if path else 1.0)

def get_scene_embeddings(audio, model):
    with torch.no_grad():
        return model(audio)

def make():
    return Loudness()

def not_a_module():
    return 3

def fails():
    raise KeyError("no such checkpoint")

def rateless():
    return torch.nn.Identity()
'''


@pytest.fixture(autouse=True)
def _module(tmp_path, monkeypatch):
    (tmp_path / "loudness.py").write_text(MODULE)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "loudness", raising=False)


def pcm(seconds: float, seed: int = 0, rate: int = RATE) -> np.ndarray:
    """16-bit noise, as floats of full scale 1."""
    noise = np.random.default_rng(seed).integers(-(2**15), 2**15, int(seconds * rate))
    return (noise / 2**15).astype(np.float32)


def test_frames_of_samples_hold_16_bit_sound_exactly():
    wave = np.concatenate([np.arange(-(2**15), 2**15) / 2**15, [0.5] * 7]).astype(np.float32)
    spec = Samples.of(44_100)
    frames = waveform_to_frames(spec.transform(), wave)
    assert frames.shape == (len(wave) // 441, 882)
    back = spec.waveform(torch.from_numpy(frames.T.astype(np.float32))[None])
    np.testing.assert_array_equal(back[0].numpy(), wave[: len(frames) * 441])


def test_frames_of_samples_hold_floats_to_22_bits():
    wave = (np.random.default_rng(0).normal(size=16_000) / 4).astype(np.float32)
    spec = Samples.of(16_000)
    back = spec.waveform(torch.from_numpy(waveform_to_frames(spec.transform(), wave).T.astype(np.float32))[None])
    np.testing.assert_allclose(back[0].numpy(), wave, rtol=2**-21, atol=2**-24)


def test_front_ends_of_samples_and_log_mels_are_never_one():
    spec = Samples.of(16_000)
    twin = type(spec).__mro__[1](**spec.as_dict())
    assert spec.as_dict() == twin.as_dict()
    assert spec.hash() != twin.hash()
    assert spec != twin


@pytest.mark.parametrize("name", ["hear:loudness", "torch:loudness.make"])
def test_a_clip_gets_what_the_model_gives_for_it(name):
    encoder = load_encoder(name)
    assert (encoder.sample_rate, encoder.dim, encoder.training) == (RATE, 3, False)
    wave = pcm(2.5)
    vector = encoder.embed(wave)[0]
    expected = [np.mean(wave.astype(np.float64) ** 2), np.abs(wave).max(), 2.5]
    np.testing.assert_allclose(vector, expected, rtol=1e-5)


def test_a_long_clip_is_the_mean_of_its_ten_seconds_and_a_short_one_is_padded_to_one():
    encoder, wave = load_encoder("hear:loudness"), pcm(25)
    parts = [wave[begin * RATE : (begin + 10) * RATE] for begin in (0, 10, 20)]
    by_hand = np.average([[np.mean(p**2), np.abs(p).max(), len(p) / RATE] for p in parts], axis=0, weights=[2, 2, 1])
    np.testing.assert_allclose(encoder.embed(wave)[0], by_hand, rtol=1e-5)
    np.testing.assert_allclose(encoder.embed(pcm(0.5))[0, 2], 1.0)


def test_decars_own_hear_api_gives_decars_vectors():
    """What stands between, frames of samples and padding, changes nothing that float16 log-mels would not."""
    wave = pcm(2, rate=16_000)
    ours, theirs = load_encoder(), load_encoder("hear:decar.hear")
    np.testing.assert_allclose(theirs.embed(wave), ours.embed(wave), rtol=1e-3, atol=1e-4)


def test_weights_of_the_user(tmp_path):
    (tmp_path / "two.txt").write_text("2")
    one, two = load_encoder("hear:loudness"), load_encoder(f"hear:loudness:{tmp_path}/two.txt")
    np.testing.assert_allclose(two.embed(pcm(1)), 2 * one.embed(pcm(1)))
    assert one.hash() != two.hash()
    assert one.hash() == load_encoder("hear:loudness").hash() != load_encoder("torch:loudness.make").hash()
    assert read_facts("hear:loudness") == {}


@pytest.mark.parametrize(
    ("name", "parts"),
    [
        ("hear:no_such_module", ["no_such_module", "PYTHONPATH"]),
        ("hear:json", ["json has no 'load_model'"]),
        ("torch:loudness", ["torch:MODULE.FUNCTION"]),
        ("torch:loudness.absent", ["no 'absent'"]),
        ("torch:loudness.not_a_module", ["gave int, not an nn.Module"]),
        ("torch:loudness.fails", ["no such checkpoint"]),
        ("torch:loudness.rateless", ["no 'sample_rate'"]),
        ("hear:loudness:/no/such/file", ["/no/such/file"]),
    ],
)
def test_what_is_no_encoder_is_refused_by_name(name, parts):
    with pytest.raises(BundleError) as error:
        load_encoder(name)
    assert all(part in str(error.value) for part in [name, *parts])


def test_it_cannot_be_exported(tmp_path):
    with pytest.raises(ExportError, match="hear:loudness"):
        export_encoder(load_encoder("hear:loudness"), tmp_path / "x.onnx", "torch")


def test_files_are_embedded_and_searched_for_but_a_table_imports_nothing(tmp_path):
    paths = []
    for i in range(4):
        paths.append(tmp_path / f"{i}.wav")
        soundfile.write(paths[-1], pcm(1 + i, seed=i) / (i + 1), RATE, subtype="PCM_16")
    embedder = Embedder(load_encoder("hear:loudness"))
    out = tmp_path / "e.parquet"
    embedder.write(Manifest.from_folder(tmp_path), out, name="hear:loudness", progress=False)
    table = pd.read_parquet(out)
    np.testing.assert_allclose(np.stack(table["embedding"])[:, 2], [1, 2, 3, 4], rtol=1e-6)
    found = EmbeddingTable.open(out)
    sys.modules.pop("loudness")
    with pytest.raises(SearchError, match="imported because a file says so"):
        find_queries([str(paths[0])], found, None)
    assert "loudness" not in sys.modules
    query = find_queries([str(paths[0])], found, "hear:loudness")[0]
    np.testing.assert_allclose(query.vector, np.stack(table["embedding"])[0], rtol=1e-6)


def labelled(tmp_path):
    """Two classes that loudness tells apart."""
    for kind, factor in (("loud", 1.0), ("quiet", 0.1)):
        for i in range(12):
            path = tmp_path / "sounds" / kind / f"{i}.wav"
            path.parent.mkdir(parents=True, exist_ok=True)
            soundfile.write(path, factor * pcm(1, seed=i), RATE, subtype="PCM_16")
    return tmp_path / "sounds"


def test_one_command_judges_it_beside_the_others_in_one_table(tmp_path, evaluate):
    sounds = labelled(tmp_path)
    done = evaluate(
        "-m", "task=folder", f"task.path={sounds}", "bundle=logmel,hear:loudness,torch:loudness.make",
        "protocol=search", f"hydra.sweep.dir={tmp_path}/eval", f"cache_dir={tmp_path}/cache",
    )  # fmt: skip
    assert done.code == 0, done.err
    results = {result.bundle: result for result in collect([tmp_path / "eval"])}
    assert {result.encoder for result in results.values()} == {"logmel", "other"}
    assert results["hear:loudness"].value == results["torch:loudness.make"].value == 1.0
    columns = [str(column) for column in table2(list(results.values())).columns]
    assert [c for c in columns if c.startswith("search") and "loudness" in c] == [
        "search hear:loudness frozen", "search hear:loudness fine-tuned",
        "search torch:loudness.make frozen", "search torch:loudness.make fine-tuned",
    ]  # fmt: skip


def test_the_hear_api_is_not_fine_tuned_and_a_torch_module_is(tmp_path, evaluate):
    sounds = labelled(tmp_path)
    words = [
        "task=folder", f"task.path={sounds}", "mode=finetune", "protocol=search", "protocol.max_epochs=1",
        "mode.crop_frames=50", f"cache_dir={tmp_path}/cache",
    ]  # fmt: skip
    refused = evaluate(*words, "bundle=hear:loudness")
    assert refused.code == 2
    assert "gives no gradients" in refused.errors[0]
    assert evaluate(*words, "bundle=torch:loudness.make").code == 0
