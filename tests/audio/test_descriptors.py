import numpy as np
import pytest

from decar.audio.descriptors import logmel_statistics


def test_mean_and_deviation_of_each_band() -> None:
    mel = np.random.default_rng(0).normal(size=(50, 64)).astype(np.float16)
    vector = logmel_statistics(mel)
    assert vector.dtype == np.float32
    assert vector.shape == (128,)
    band = mel[:, 7].astype(float)
    assert vector[7] == pytest.approx(sum(band) / 50, abs=1e-6)
    assert vector[64 + 7] == pytest.approx((sum((band - band.mean()) ** 2) / 50) ** 0.5, abs=1e-6)


def test_a_long_loud_clip_does_not_overflow_float16() -> None:
    assert np.isfinite(logmel_statistics(np.full((200_000, 4), -11.5, np.float16))).all()


def test_one_frame_and_none() -> None:
    assert logmel_statistics(np.ones((1, 3), np.float16)).tolist() == [1, 1, 1, 0, 0, 0]
    with pytest.raises(ValueError, match="usable"):
        logmel_statistics(np.ones((0, 3), np.float16))
