import dataclasses
import math

import numpy as np
import pytest
import torch

from decar.audio import FrontEnd, LogMel
from decar.audio import logmel as module
from decar.audio.logmel import waveform_to_frames, waveforms_to_frames
from decar.errors import AudioError, ConfigError
from tests.audio.sounds import tone


def slow_log_mel(wave: np.ndarray, spec: FrontEnd) -> np.ndarray:
    """(T,) → (F, M) with numpy and textbook formulas alone: Hann, DFT, |·|, HTK triangles, ln."""
    n = np.arange(spec.win_length)
    hann = 0.5 - 0.5 * np.cos(2 * np.pi * n / spec.win_length)  # periodic
    frames = np.stack(
        [wave[i : i + spec.win_length] * hann for i in range(0, len(wave) - spec.win_length + 1, spec.hop_length)]
    )
    magnitude = np.abs(np.fft.rfft(frames, spec.n_fft))
    mel = lambda hz: 2595 * np.log10(1 + hz / 700)  # noqa: E731
    edges = 700 * (10 ** (np.linspace(mel(spec.f_min), mel(spec.f_max), spec.n_mels + 2) / 2595) - 1)
    hz = np.linspace(0, spec.sample_rate / 2, spec.n_fft // 2 + 1)
    bands = []
    for low, centre, high in zip(edges, edges[1:], edges[2:], strict=False):
        bands.append(np.clip(np.minimum((hz - low) / (centre - low), (high - hz) / (high - centre)), 0, None))
    return np.log(np.maximum(magnitude @ np.stack(bands, axis=1), spec.floor))


@pytest.mark.parametrize(
    "spec", [FrontEnd(), FrontEnd(n_fft=512, win_length=321, hop_length=100, n_mels=24, f_max=4000.0)]
)
def test_equals_a_plain_dft(spec: FrontEnd) -> None:
    wave = (np.random.default_rng(0).normal(size=5_000) * 0.1 + tone(5_000 / 16_000)).astype(np.float32)
    fast = LogMel(spec)(torch.from_numpy(wave)[None])[0].T.numpy()
    np.testing.assert_allclose(fast, slow_log_mel(wave.astype(np.float64), spec), atol=2e-4)


@pytest.mark.parametrize(("samples", "frames"), [(16_000, 98), (160_000, 998), (400, 1), (559, 1), (560, 2)])
def test_frames(samples: int, frames: int) -> None:
    assert LogMel()(torch.zeros(2, samples)).shape == (2, 64, frames)
    assert FrontEnd().n_frames(samples) == frames


def test_silence_is_the_floor_exactly() -> None:
    out = LogMel()(torch.zeros(1, 16_000))
    assert torch.equal(out, torch.full_like(out, math.log(1e-5)))
    assert FrontEnd().silence == math.log(1e-5)


def test_a_tone_lands_in_its_band() -> None:
    out = LogMel()(torch.from_numpy(tone(1.0, hz=1000.0)).float()[None])[0]
    mel = lambda hz: 2595 * math.log10(1 + hz / 700)  # noqa: E731
    band = (mel(1000) - mel(60)) / (mel(7800) - mel(60)) * 65 - 1
    assert abs(int(out.mean(dim=1).argmax()) - band) <= 1


def test_a_frame_depends_on_its_own_400_samples() -> None:
    wave = torch.randn(1, 16_000)
    changed = wave.clone()
    changed[0, 160 * 40 + 400 :] = 0
    before, after = LogMel()(wave), LogMel()(changed)
    assert torch.equal(before[..., :41], after[..., :41])
    assert not torch.equal(before[..., 41], after[..., 41])


def test_a_clip_does_not_depend_on_its_batch() -> None:
    waves = torch.randn(3, 8_000)
    together = LogMel()(waves)
    for i in range(3):
        torch.testing.assert_close(LogMel()(waves[i : i + 1])[0], together[i], atol=1e-5, rtol=0)


def test_too_short_and_wrong_shape() -> None:
    with pytest.raises(AudioError, match=r"too short: 0.003 s, one window is 0.025 s"):
        LogMel()(torch.zeros(1, 48))
    with pytest.raises(AudioError, match=r"\(B, T\) is expected, got shape \(16000,\)"):
        LogMel()(torch.zeros(16_000))
    assert FrontEnd().n_frames(399) == 0


def test_half_precision_around_it_changes_nothing() -> None:
    wave = torch.randn(1, 8_000) * 1e-3
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = LogMel()(wave)
    assert inside.dtype == torch.float32
    assert torch.equal(inside, LogMel()(wave))


def test_it_has_no_state() -> None:
    assert LogMel().state_dict() == {}
    assert list(LogMel().parameters()) == []


def test_hash_and_dict() -> None:
    spec = FrontEnd(f_max=7000)
    assert FrontEnd(**spec.as_dict()) == spec  # type: ignore[arg-type]
    assert spec.hash() == FrontEnd(f_max=7000.0).hash()
    changed = {
        dataclasses.replace(FrontEnd(), **{f.name: getattr(FrontEnd(), f.name) * 0.5}).hash()
        for f in dataclasses.fields(FrontEnd)
        if isinstance(f.default, float)
    }
    assert len(changed | {FrontEnd().hash(), FrontEnd(n_mels=32).hash(), FrontEnd(hop_length=80).hash()}) == 6


@pytest.mark.parametrize(
    "numbers", [{"win_length": 2000}, {"f_max": 9000.0}, {"f_min": 8000.0}, {"hop_length": 0}, {"floor": 0.0}]
)
def test_impossible_numbers(numbers: dict[str, float]) -> None:
    with pytest.raises(ConfigError):
        FrontEnd(**numbers)  # type: ignore[arg-type]


def test_long_clips_in_blocks_equal_the_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    wave = (np.random.default_rng(3).normal(size=50_123) * 0.1).astype(np.float32)
    at_once = waveform_to_frames(LogMel(), wave)
    monkeypatch.setattr(module, "BLOCK_FRAMES", 37)
    in_blocks = waveform_to_frames(LogMel(), wave)
    assert in_blocks.dtype == np.float16
    assert in_blocks.shape == (FrontEnd().n_frames(50_123), 64)
    np.testing.assert_allclose(
        in_blocks.astype(np.float32), at_once.astype(np.float32), atol=0.008
    )  # a step of float16


@pytest.mark.parametrize("block", [37, 1000])
def test_several_at_once_are_bit_for_bit_what_each_gives_alone(monkeypatch: pytest.MonkeyPatch, block: int) -> None:
    rng = np.random.default_rng(4)
    lengths = [400, 559, 560, 561, 16_000, 401, 7999, *rng.integers(400, 30_000, 30)]
    waves = [(rng.normal(size=n) * 0.1).astype(np.float32) for n in lengths]
    alone = [waveform_to_frames(LogMel(), wave) for wave in waves]
    monkeypatch.setattr(module, "BLOCK_FRAMES", block)
    together = waveforms_to_frames(LogMel(), waves)
    assert [len(frames) for frames in together] == [FrontEnd().n_frames(n) for n in lengths]
    for a, b in zip(alone, together, strict=True):
        if block == 1000:
            np.testing.assert_array_equal(a, b)
        else:
            np.testing.assert_allclose(a.astype(np.float32), b.astype(np.float32), atol=0.008)  # a step of float16


def test_one_that_is_too_short_among_several() -> None:
    with pytest.raises(AudioError, match=r"too short: 0\.025 s"):
        waveforms_to_frames(LogMel(), [np.zeros(16_000, np.float32), np.zeros(399, np.float32)])


def test_without_l2_the_numbers_are_those_of_before() -> None:
    assert "l2" not in FrontEnd().as_dict()
    assert FrontEnd(l2=True).hash() != FrontEnd().hash() == FrontEnd(l2=False).hash()
    assert FrontEnd(**FrontEnd(l2=True).as_dict()) == FrontEnd(l2=True)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="l2=yes: give true or false"):
        FrontEnd(l2="yes")  # type: ignore[arg-type]


def test_l2_divides_a_clip_by_its_norm_whatever_its_blocks() -> None:
    rng = np.random.default_rng(0)
    wave = rng.normal(size=40_000).astype(np.float32)
    expected = wave / np.linalg.norm(wave.astype(np.float64))
    for cuts in ([], [17], [400, 16_000]):
        blocks = [*FrontEnd(l2=True).levelled(np.split(wave, cuts))]
        assert [len(block) for block in blocks] == [len(block) for block in np.split(wave, cuts)]
        np.testing.assert_allclose(np.concatenate(blocks), expected, rtol=1e-6)
    silent = np.zeros(500, np.float32)
    assert not np.concatenate([*FrontEnd(l2=True).levelled([silent])]).any()
    assert next(FrontEnd().levelled([wave])) is wave
