from collections.abc import Callable

import numpy as np
import pytest
import torch

from decar.audio import LogMelStore
from decar.audio.crops import padded_frames
from decar.downstream.finetune import EpochBatches, TaskData
from tests.downstream.helpers import make_task

LENGTHS = [40, 98, 200, 300] * 5
SPLIT = ["train"] * 11 + ["valid"] * 4 + ["test"] * 5


@pytest.fixture
def data(make_store: Callable[..., LogMelStore]) -> TaskData:
    return TaskData(make_task(np.arange(20) % 4, SPLIT), make_store(LENGTHS), batch_size=4, seed=1)


def epoch(data: TaskData, number: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
    loader = data.train_dataloader()
    loader.sampler.set_epoch(number)
    return list(loader)


def test_batches_are_a_function_of_seed_and_epoch(data: TaskData) -> None:
    first, again, later = epoch(data, 0), epoch(data, 0), epoch(data, 1)
    assert all(torch.equal(a, b) for one, two in zip(first, again, strict=True) for a, b in zip(one, two, strict=True))
    assert not all(torch.equal(a[1], b[1]) for a, b in zip(first, later, strict=True))
    data.seed = 2
    assert not all(torch.equal(a[0], b[0]) for a, b in zip(first, epoch(data, 0), strict=True))


def test_workers_change_nothing(data: TaskData) -> None:
    alone = epoch(data, 3)
    data.num_workers = 2
    assert all(torch.equal(a[0], b[0]) for a, b in zip(alone, epoch(data, 3), strict=True))


def test_an_epoch_has_every_training_clip_once_with_its_own_class(data: TaskData) -> None:
    batches = epoch(data, 0)
    assert [x.shape for x, _ in batches] == [(4, 1, 64, 98), (4, 1, 64, 98), (3, 1, 64, 98)]
    assert torch.cat([y for _, y in batches]).sort().values.tolist() == sorted(i % 4 for i in range(11))
    for x, y in batches:
        for crop, label in zip(x[:, 0].numpy(), y.tolist(), strict=True):
            assert is_a_stretch(crop.T, data.store, [i for i in range(11) if i % 4 == label])


def is_a_stretch(crop: np.ndarray, store: LogMelStore, clips: list[int]) -> bool:
    """Whether a crop stands somewhere in one of some clips, padded with silence."""
    for i in clips:
        mel = store[i].astype(np.float32)
        length = min(98, len(mel))
        places = [p for p in range(len(mel) - length + 1) if np.array_equal(mel[p : p + length], crop[:length])]
        if places and (crop[length:] == np.float32(store.frontend.silence)).all():
            return True
    return False


@pytest.mark.parametrize(("n", "sizes"), [(8, [4, 4]), (9, [4, 5]), (10, [4, 4, 2]), (1, [1]), (3, [3])])
def test_no_batch_of_one_clip_is_left_over(n: int, sizes: list[int]) -> None:
    batches = EpochBatches(np.arange(n), 4, seed=0)
    assert [len(batch) for _, batch in batches] == sizes
    assert len(batches) == len(sizes)


def test_validation_and_test_see_whole_clips_in_a_fixed_order(data: TaskData) -> None:
    for loader, clips in ((data.val_dataloader(), range(11, 15)), (data.test_dataloader(), range(15, 20))):
        batches, again = list(loader), list(loader)
        for (mels, _), (same, _) in zip(batches, again, strict=True):
            assert all(np.array_equal(a, b) for a, b in zip(mels, same, strict=True))
        assert sorted(torch.cat([y for _, y in batches]).tolist()) == sorted(i % 4 for i in clips)
        for mels, y in batches:
            assert len({padded_frames(len(mel)) for mel in mels}) == 1
            assert all(is_whole(mel, data.store, int(c), clips) for mel, c in zip(mels, y, strict=True))


def is_whole(clip: np.ndarray, store: LogMelStore, label: int, clips: range) -> bool:
    return any(np.array_equal(clip, store[i]) for i in clips if i % 4 == label)


def test_unreadable_clips_are_left_out(make_store: Callable[..., LogMelStore]) -> None:
    lengths = [0, *LENGTHS[1:14], 0, *LENGTHS[15:]]
    data = TaskData(make_task(np.arange(20) % 4, SPLIT), make_store(lengths), batch_size=4)
    assert data.task.dropped == {"train": 1, "valid": 1, "test": 0}
    assert len(data.task) == len(data.store) == 18
    assert (data.store.lengths > 0).all()
    assert sum(len(y) for _, y in data.train_dataloader()) == 10


def test_a_store_of_other_clips_is_refused(make_store: Callable[..., LogMelStore]) -> None:
    with pytest.raises(ValueError, match="take"):
        TaskData(make_task([0, 1], ["train", "train"]), make_store([98] * 3))
