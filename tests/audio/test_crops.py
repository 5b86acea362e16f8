import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from decar.audio.crops import as_input, collate, length_batches, padded_frames, pieces, random_crop, stack

SILENCE = -11.5


def ramp(frames: int, mels: int = 4) -> np.ndarray:
    """(F, M) float16 whose rows tell their own number."""
    return np.repeat(np.arange(frames, dtype=np.float16)[:, None], mels, axis=1)


@pytest.mark.parametrize(
    ("frames", "padded"),
    [(1, 98), (96, 98), (98, 98), (99, 128), (128, 128), (129, 160), (990, 992), (993, 998), (5000, 998)],
)
def test_padded_frames(frames: int, padded: int) -> None:
    assert padded_frames(frames) == padded
    assert padded_frames(np.array([frames])).tolist() == [padded]


def test_random_crops_come_from_everywhere_equally() -> None:
    rng = np.random.default_rng(0)
    firsts = [int(random_crop(ramp(12), 8, rng, silence=SILENCE)[0, 0]) for _ in range(2_000)]
    counts = np.bincount(firsts)
    assert len(counts) == 5  # places 0 to 4
    assert counts.min() > 330  # 400 each, 18 standard deviations wide would be 0
    crop = random_crop(ramp(12), 8, rng, silence=SILENCE)
    np.testing.assert_array_equal(crop[:, 0], crop[0, 0] + np.arange(8))


def test_random_crop_is_a_function_of_its_generator() -> None:
    crops = [random_crop(ramp(500), 98, np.random.default_rng(5), silence=SILENCE) for _ in range(2)]
    np.testing.assert_array_equal(*crops)


@pytest.mark.parametrize("frames", [0, 3, 5])
def test_short_clips_are_padded_with_silence_at_the_end(frames: int) -> None:
    rng = np.random.default_rng(0)
    stacked = as_input(*stack([ramp(frames)], 5), SILENCE)[0, 0].numpy().T
    for crop in (random_crop(ramp(frames), 5, rng, silence=SILENCE), stacked):
        assert crop.dtype == np.float32
        assert crop.shape == (5, 4)
        assert crop[:, 0].tolist() == [*range(frames), *[SILENCE] * (5 - frames)]


@settings(deadline=None)
@given(st.integers(1, 5_000), st.integers(1, 1_200))
def test_pieces_lie_end_to_end(frames: int, size: int) -> None:
    cuts = pieces(frames, size)
    assert np.concatenate([np.arange(frames)[cut] for cut in cuts]).tolist() == list(range(frames))
    assert [cut.stop - cut.start for cut in cuts[:-1]] == [size] * (len(cuts) - 1)


@given(st.lists(st.integers(1, 2_000), max_size=60), st.integers(1, 9))
def test_length_batches(lengths: list[int], batch_size: int) -> None:
    array = np.array(lengths, np.int64)
    batches = length_batches(array, batch_size, min_frames=98, max_frames=998)
    assert sorted(np.concatenate([np.zeros(0, int), *batches]).tolist()) == list(range(len(lengths)))
    for batch in batches:
        assert 1 <= len(batch) <= batch_size
        assert len(set(padded_frames(array[batch]).tolist())) == 1
    again = length_batches(array, batch_size, min_frames=98, max_frames=998)
    assert [b.tolist() for b in again] == [b.tolist() for b in batches]


def test_length_batches_refuses_size_zero() -> None:
    with pytest.raises(ValueError, match="batch_size"):
        length_batches(np.array([1]), 0)


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
def test_a_batch_is_shipped_as_stored_and_becomes_float32_later(dtype: type) -> None:
    rng = np.random.default_rng(0)
    clips = [rng.normal(size=(n, 4)).astype(dtype) for n in (7, 3, 0, 7)]
    mels, frames = stack(clips, 7)
    assert (mels.shape, mels.numpy().dtype, frames.tolist()) == ((4, 7, 4), dtype, [7, 3, 0, 7])
    before = mels.clone()
    made = as_input(mels, frames, SILENCE)
    assert made.dtype == torch.float32
    assert made.is_contiguous()
    assert torch.equal(mels, before)
    for row, clip in zip(made, clips, strict=True):
        np.testing.assert_array_equal(row[0, :, : len(clip)].numpy(), clip.T.astype(np.float32))
        assert (row[0, :, len(clip) :] == SILENCE).all()


def test_collate() -> None:
    crops = [np.random.default_rng(i).normal(size=(7, 4)).astype(np.float16) for i in range(3)]
    batch = collate(crops)
    assert batch.shape == (3, 1, 4, 7)
    assert batch.dtype == torch.float32
    assert batch.is_contiguous()
    for i, crop in enumerate(crops):
        np.testing.assert_array_equal(batch[i, 0].numpy(), crop.T)
    with pytest.raises(ValueError, match=r"one shape, got \[\(7, 4\), \(8, 4\)\]"):
        collate([ramp(7), ramp(8)])
