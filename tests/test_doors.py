"""One sound has one vector, whichever door it comes in by, also where it is longer than the encoder takes at once."""

import numpy as np
import pytest
import soundfile
import torch

from decar.audio import LogMelStore, Manifest
from decar.audio.crops import padded_frames
from decar.downstream.evaluate import cached_embeddings
from decar.embedder import Embedder
from decar.hear import HearModel, get_scene_embeddings
from decar.models import embed_store, load_encoder
from decar.models.embed import evaluating
from decar.neighbours.query import _embed

RATE = 16_000
SECONDS = [0.02, 0.7, 3.3, 10.0, 10.01, 19.99, 25.0, 60.0]


@pytest.fixture(scope="module")
def encoder():
    return load_encoder()  # the one that comes with decar


def sound(seconds: float) -> np.ndarray:
    """A sweep and noise that grow: the middle is unlike the ends."""
    time = np.arange(round(seconds * RATE)) / RATE
    noise = np.random.default_rng(0).normal(size=len(time))
    wave = np.linspace(0.05, 0.5, len(time)) * (np.sin(2 * np.pi * (200 + 30 * time) * time) + 0.3 * noise)
    return (np.round(wave / 2 * 32768) / 32768).astype(np.float32)  # as 16 bits hold it


def by_hand(encoder, wave: np.ndarray) -> np.ndarray:
    """The definition, slowly: pieces of 998 frames end to end, each alone, weighted by their frames."""
    mel = encoder.logmel(torch.from_numpy(wave)[None])[0].half().float()
    total = 0.0
    for start in range(0, mel.shape[1], 998):
        piece = mel[:, start : start + 998]
        frames = piece.shape[1]
        padded = torch.full((64, padded_frames(frames)), encoder.frontend.silence)
        padded[:, :frames] = piece
        with evaluating(encoder):
            total = total + frames * encoder(padded[None, None])[0].double()
    return (total / mel.shape[1]).float().numpy()


@pytest.mark.parametrize("seconds", SECONDS[1:])
def test_all_doors_give_the_same_vector(seconds, encoder, tmp_path):
    wave, file = sound(seconds), tmp_path / "a.wav"
    soundfile.write(file, wave, RATE, "PCM_16")
    clips = Manifest.from_folder(tmp_path)
    store = LogMelStore.open_or_build(clips, encoder.frontend, tmp_path / "cache", progress=False)
    doors = {
        "Encoder.embed": encoder.embed(wave)[0],
        "of integers": encoder.embed((wave * 32768).astype(np.int16))[0],
        "the clustering pass, the map": embed_store(encoder, store, progress=False)[0],
        "the probe": cached_embeddings(encoder, store, tmp_path / "cache", progress=False)[0],
        "decar embed": Embedder(encoder).files(clips).vectors[0],
        "Embedder.waveforms": Embedder(encoder).waveforms([wave])[0],
        "decar search": _embed(encoder, str(file)),
        "decar.hear": get_scene_embeddings(torch.from_numpy(wave)[None], HearModel(encoder))[0],
    }
    expected = by_hand(encoder, wave)
    for door, vector in doors.items():
        np.testing.assert_allclose(vector, expected, rtol=0, atol=1e-5, err_msg=door)


def test_the_trainers_pass_gives_it_too_and_g_is_averaged(encoder, tmp_path):
    from pytorch_lightning import Trainer

    from decar.pretrain.vectors import embed_dataset

    soundfile.write(tmp_path / "a.wav", sound(25.0), RATE, "PCM_16")
    store = LogMelStore.open_or_build(Manifest.from_folder(tmp_path), encoder.frontend, tmp_path / "c", progress=False)
    trainer = Trainer(accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False)
    found = embed_dataset(trainer, encoder, encoder, store, dim=encoder.dim, batch_size=2).gather()
    np.testing.assert_allclose(found[0], by_hand(encoder, sound(25.0)), rtol=0, atol=1e-5)


@pytest.mark.parametrize("asked", [3, 1024])
def test_the_trainers_pass_holds_a_bounded_number_of_pieces(asked, encoder, make_store):
    from pytorch_lightning import Trainer

    from decar.models.embed import PIECES_AT_ONCE
    from decar.pretrain.vectors import embed_dataset

    sizes = []

    class Network(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            sizes.append(len(x))
            return x.mean(dim=(1, 3))

    store = make_store([98] * 130 + [5000] * 2)
    trainer = Trainer(accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False)
    embed_dataset(trainer, Network(), encoder, store, dim=64, batch_size=asked)
    assert max(sizes) == min(asked, PIECES_AT_ONCE)
    assert sum(sizes) == 130 + 2 * 6


def test_long_and_short_clips_in_one_pass_do_not_touch_each_other(encoder, make_store):
    lengths = [998, 2500, 20, 1000, 998, 5000, 300, 997]
    store = make_store(lengths)
    together = embed_store(encoder, store, batch_size=3, progress=False)
    for i in range(len(lengths)):
        alone = embed_store(encoder, store.take([i]), batch_size=3, progress=False)[0]
        np.testing.assert_allclose(together[i], alone, rtol=0, atol=1e-5)


def test_an_ending_of_one_frame_counts_in_every_door(encoder, tmp_path):
    wave = sound(30.0)[: 998 * 160 + 400]  # 999 frames
    soundfile.write(tmp_path / "a.wav", wave, RATE, "PCM_16")
    files = Embedder(encoder).files(Manifest.from_folder(tmp_path)).vectors[0]
    np.testing.assert_allclose(files, by_hand(encoder, wave), rtol=0, atol=1e-5)


def test_a_fine_tuned_encoder_judges_long_clips_by_the_same_vector(encoder, make_store):
    from decar.downstream.finetune import FineTuner

    store = make_store([2500, 400])
    module = FineTuner(encoder, 3, 1e-3).eval()
    with torch.no_grad():
        module.validation_step(([np.asarray(store[0]), np.asarray(store[1])], torch.tensor([0, 1])), 0)
        expected = module.head(torch.from_numpy(embed_store(encoder, store, progress=False)))
    torch.testing.assert_close(module.answers[0][0], expected, rtol=0, atol=1e-5)
