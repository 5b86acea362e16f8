"""Samples that callers hand over: scaled by their type, or refused."""

import numpy as np
import pytest
import torch

from decar.audio.samples import mono_batch, resampled, scaled
from decar.errors import AudioError
from tests.conftest import make_encoder

WAVE = (0.4 * np.sin(np.arange(16_000) / 7)).astype(np.float32)


@pytest.mark.parametrize(
    ("kind", "given"),
    [
        ("int8", np.round(WAVE * 128)), ("int16", np.round(WAVE * 2**15)), ("int32", np.round(WAVE * 2.0**31)),
        ("uint8", np.round(WAVE * 128) + 128), ("uint16", np.round(WAVE * 2**15) + 2**15),
        ("float16", WAVE), ("float64", WAVE), (">f4", WAVE), (">i2", np.round(WAVE * 2**15)),
    ],
)  # fmt: skip
def test_every_type_has_its_scale(kind, given):
    found = scaled(given.astype(kind))
    assert found.dtype == np.float32
    step = {"int8": 2**-7, "uint8": 2**-7, "float16": 2**-11}.get(kind, 2**-14)
    np.testing.assert_allclose(found, WAVE, rtol=0, atol=step)


@pytest.mark.parametrize(
    ("given", "says"),
    [
        (np.round(WAVE * 2**15), r"peak of 1.311e\+04, full scale is ±1: divide by 32768"),
        (WAVE.astype(np.int64), "samples of type int64 have no known full scale"),
        (WAVE > 0, "type bool"),
        (WAVE.astype(np.complex64), "type complex64"),
        (WAVE.astype(object), "type object"),
        (np.where(WAVE > 0.3, np.nan, WAVE), "not finite"),
        (np.full(9, np.inf), "not finite"),
        (np.full(9, 1e300), "not finite"),
    ],
)
def test_what_has_no_scale_is_refused(given, says):
    with pytest.raises(AudioError, match=says):
        scaled(given)


@pytest.mark.parametrize("shape", [(), (2, 3, 4000)])
def test_a_batch_has_two_dimensions_at_most(shape):
    with pytest.raises(AudioError, match=r"\(T,\) or \(B, T\) are expected"):
        mono_batch(np.zeros(shape, np.float32), None, 16_000)


def test_channels_last_is_not_a_batch():
    with pytest.raises(AudioError, match=r"looks like \(T, channels\)"):
        mono_batch(np.zeros((48_000, 2), np.float32), None, 16_000)


@pytest.mark.parametrize("rate", [0, -1, float("nan")])
def test_a_rate_is_above_zero(rate):
    with pytest.raises(AudioError, match="give the rate of the samples in Hz"):
        resampled(WAVE, rate, 16_000)


def test_an_encoder_gives_one_vector_for_one_sound_however_it_is_handed_over():
    encoder = make_encoder("conv", widths=[4, 4], hidden=8, seed=0)
    expected = encoder.embed(torch.from_numpy(WAVE)[None])
    assert expected.shape == (1, encoder.dim)
    double = np.stack([WAVE, WAVE]).T[:, 0]  # not contiguous
    for given in (WAVE, torch.from_numpy(WAVE), WAVE[None], WAVE.tolist(), WAVE.astype(np.float64), double):
        torch.testing.assert_close(encoder.embed(given), expected, rtol=0, atol=1e-5)
    assert encoder.embed(np.stack([WAVE] * 3)).shape == (3, encoder.dim)
    high = np.repeat(WAVE, 3)  # not the same sound at 48 kHz, but of its length
    assert encoder.embed(high, sample_rate=48_000).shape == (1, encoder.dim)
    import soxr

    there = soxr.resample(WAVE, 16_000, 44_100)
    back = encoder.embed(there, sample_rate=44_100)[0]
    assert torch.nn.functional.cosine_similarity(back, expected[0], dim=0) > 0.999


def test_an_encoder_refuses_what_is_no_sound():
    encoder = make_encoder("conv", widths=[4, 4], hidden=8, seed=0)
    for given in (np.zeros(0, np.float32), np.zeros((2, 0)), np.full(16_000, np.nan), torch.zeros(16_000).long()):
        with pytest.raises(AudioError):
            encoder.embed(given)
