import numpy as np
import pytest

from decar.audio import FrontEnd
from decar.audio.descriptors import DESCRIPTORS, describe, input_statistics, logmel_statistics, resize
from decar.errors import ConfigError


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


def clip(n_frames: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(-3, 2, (n_frames, 64)).cumsum(axis=0) / 5


def slow_resize(mel: np.ndarray, n_frames: int) -> np.ndarray:
    """Each frame cut into `n_frames` slices of equal length, as many slices averaged as the clip has frames."""
    return np.repeat(mel, n_frames, axis=0).reshape(n_frames, len(mel), -1).mean(axis=1)


def slow_dct(x: np.ndarray) -> np.ndarray:
    """2-D orthonormal DCT-II by its cosines."""

    def matrix(n: int) -> np.ndarray:
        rows = np.cos(np.pi / n * np.outer(np.arange(n), np.arange(n) + 0.5)) * np.sqrt(2 / n)
        rows[0] /= np.sqrt(2)
        return rows

    return matrix(x.shape[0]) @ x @ matrix(x.shape[1]).T


@pytest.mark.parametrize("frames", [1, 2, 7, 31, 32, 33, 48, 100, 501])
@pytest.mark.parametrize("wanted", [32, 48])
def test_resizing_averages_equal_stretches(frames: int, wanted: int) -> None:
    np.testing.assert_allclose(resize(clip(frames), wanted), slow_resize(clip(frames), wanted), atol=1e-9)


@pytest.mark.parametrize("frames", [1, 40, 95, 96, 97, 300])
def test_each_descriptor_is_what_it_says(frames: int) -> None:
    mel, front = clip(frames), FrontEnd()
    found = {name: function(mel, front) for name, function in DESCRIPTORS.items()}
    bands = [mel[:, m] for m in range(64)]
    means = np.array([sum(band) / frames for band in bands])
    np.testing.assert_allclose(found["spectrum"], means - sum(means) / 64)
    np.testing.assert_allclose(
        found["variation"], [np.sqrt(sum((b - m) ** 2) / frames) for b, m in zip(bands, means, strict=True)], atol=1e-12
    )
    np.testing.assert_allclose(found["envelope"], slow_resize(mel, 32).mean(axis=1), atol=1e-9)
    steps = [sum(abs(b[i + 1] - b[i]) for i in range(frames - 1)) / max(frames - 1, 1) for b in bands]
    np.testing.assert_allclose(found["change"], [*steps, means.mean()], atol=1e-9)
    np.testing.assert_allclose(found["shape"], slow_dct(slow_resize(mel, 48).T)[:14, :10].ravel(), atol=1e-8)
    middle = [mel[i + max(frames - 96, 0) // 2] if i < frames else np.full(64, front.silence) for i in range(96)]
    np.testing.assert_allclose(found["centre"], slow_dct(np.array(middle).T)[:16, :12].ravel(), atol=1e-8)


def test_a_store_is_described_in_its_order(make_store) -> None:
    store = make_store([30, 5, 120, 64]).take(np.array([3, 0, 2]))
    found = describe(store, ["change", "shape"], progress=False)
    assert list(found) == ["change", "shape"]
    for i in range(3):
        for name, rows in found.items():
            expected = DESCRIPTORS[name](np.asarray(store[i], np.float64), store.frontend)
            np.testing.assert_allclose(rows[i], expected, rtol=1e-5, atol=1e-5)
    assert found["shape"].shape == (3, 140)
    assert found["shape"].dtype == np.float32


def test_an_unknown_descriptor_is_named_with_those_there_are(make_store) -> None:
    with pytest.raises(
        ConfigError, match=r"^labels\.descriptors: .*'envelop'; did you mean envelope\? there are spectrum, "
    ):
        describe(make_store([30]), ["envelop"])
    with pytest.raises(ConfigError, match=r"'qqq'; there are spectrum, variation, envelope, change, shape, centre$"):
        describe(make_store([30]), ["shape", "qqq"])


def test_a_descriptor_is_named_once(make_store) -> None:
    with pytest.raises(ConfigError, match=r"labels\.descriptors: 'shape' is there twice"):
        describe(make_store([30]), ["shape", "centre", "shape"])


def test_a_clip_without_frames_is_not_described(make_store) -> None:
    with pytest.raises(ValueError, match="usable"):
        describe(make_store([30, 0]), ["shape"], progress=False)


def test_few_bands_give_fewer_coefficients() -> None:
    mel = clip(50)[:, :8]
    assert DESCRIPTORS["shape"](mel, FrontEnd()).shape == (8 * 10,)
    assert DESCRIPTORS["centre"](mel, FrontEnd()).shape == (8 * 12,)


def test_statistics_are_of_the_clips_of_a_store_and_no_others(make_store) -> None:
    store = make_store([30, 5, 120, 64]).take(np.array([3, 1]))
    values = np.concatenate([np.asarray(store[i], np.float64).ravel() for i in range(2)])
    assert input_statistics(store) == pytest.approx((values.mean(), values.std()))


def test_statistics_do_not_depend_on_the_size_of_the_blocks(make_store, monkeypatch) -> None:
    store = make_store([30, 5, 120])
    expected = (np.asarray(store.mel, np.float64).mean(), np.asarray(store.mel, np.float64).std())
    monkeypatch.setattr("decar.audio.descriptors._ROWS_AT_ONCE", 7)
    assert input_statistics(store) == pytest.approx(expected)


def test_statistics_of_sounds_that_never_vary(make_store) -> None:
    store = make_store([30, 5])
    store.mel[:] = -11.5
    assert input_statistics(store) == (-11.5, 1.0)
