"""The pass over a whole set, whose vectors may not fit into memory."""

import errno
import os
import threading
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from decar.clustering import base
from decar.models import embed, embed_store
from decar.models.embed import batches_by_length, embed_clips, evaluating, room_for, run_pass
from tests.conftest import make_encoder

LENGTHS = [20, 140, 33, 164, 100, 98, 131]


@pytest.fixture
def encoder():
    return make_encoder("conv", widths=[4, 4], hidden=8, seed=0)


def test_vectors_beyond_the_bound_lie_in_a_file_and_are_the_same(make_store, encoder, monkeypatch, tmp_path):
    store = make_store(LENGTHS)
    expected = embed_store(encoder, store, batch_size=2, progress=False)
    assert not isinstance(expected, np.memmap)
    monkeypatch.setattr(base, "IN_MEMORY", 0)
    found = embed_store(encoder, store, batch_size=2, progress=False)
    assert isinstance(found, np.memmap)
    np.testing.assert_array_equal(found, expected)
    found[0] = 0  # may be written to, as an array in memory


def test_the_file_has_no_name_and_its_room_is_taken(make_store, monkeypatch, tmp_path):
    monkeypatch.setattr(base, "IN_MEMORY", 0)
    monkeypatch.setattr(base.tempfile, "tempdir", str(tmp_path))
    taken = []
    real = os.posix_fallocate
    monkeypatch.setattr(os, "posix_fallocate", lambda *args: taken.append(args[1:]) or real(*args))
    made = room_for(5, 3, make_store(LENGTHS))
    assert isinstance(made, np.memmap)
    assert taken == [(0, 60)]
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_leaves_them_in_memory(make_store, encoder, monkeypatch, caplog):
    monkeypatch.setattr(base, "IN_MEMORY", 0)

    def full(*args):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "posix_fallocate", full)
    made = room_for(5, 3, make_store(LENGTHS))
    assert not isinstance(made, np.memmap)
    assert made.shape == (5, 3)
    assert "no room for them on disk" in caplog.text
    assert "No space left" in caplog.text


def passed(encoder, store, forward=None):
    """A pass in batches of two pieces."""
    return run_pass(forward or encoder, store, encoder, dim=encoder.dim, batch_size=2, title="", progress=False)


def test_reading_ahead_changes_no_bit(make_store, encoder):
    encoder.max_frames = 140  # so that some clips have several pieces
    store = make_store(LENGTHS * 3)
    with evaluating(encoder):
        expected = np.empty((len(store), encoder.dim), np.float32)
        for batch in batches_by_length(store, np.arange(len(store)), encoder, 2):
            expected[batch] = embed_clips(encoder, [store[i] for i in batch], encoder, 2).numpy()
        np.testing.assert_array_equal(passed(encoder, store), expected)


def test_no_batch_is_waited_for_that_has_only_just_begun(make_store, encoder, monkeypatch):
    """On a GPU, vectors are taken when later batches have been given to it, so that it is never without work."""
    events = []

    def leaving(vectors):
        number = sum(kind == "begun" for kind, _ in events)
        events.append(("begun", number))
        return lambda: events.append(("waited", number)) or vectors

    monkeypatch.setattr(embed, "_leaving", leaving)
    with evaluating(encoder):
        passed(encoder, make_store([100] * 12))
    last = 5
    assert [number for kind, number in events if kind == "waited"] == list(range(last + 1))
    for number in range(last + 1):
        before = events[: events.index(("waited", number))]
        assert ("begun", min(number + embed.BEGUN, last)) in before
        assert ("begun", number + embed.BEGUN + 1) not in before, "vectors must not pile up"


def test_a_pass_that_fails_leaves_no_thread_waiting(make_store, encoder, monkeypatch):
    monkeypatch.setattr(embed, "READ_AHEAD", 1)

    def full(logmel):
        raise torch.OutOfMemoryError("no room")

    with pytest.raises(torch.OutOfMemoryError) as caught:
        passed(encoder, make_store([100] * 40), full)
    assert caught.traceback
    assert not [thread.name for thread in threading.enumerate() if thread.name.startswith("decode")]


class Copies(TorchDispatchMode):
    """Writes down for each copy between CPU and GPU whether the CPU waits for it."""

    def __init__(self):
        super().__init__()
        self.waits = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out, kwargs = func(*args, **(kwargs or {})), kwargs or {}
        if func is torch.ops.aten._to_copy.default and out.is_cuda != args[0].is_cuda:
            self.waits.append(not kwargs.get("non_blocking"))
        if func is torch.ops.aten.copy_.default and args[0].is_cuda != args[1].is_cuda:
            self.waits.append(not (args[2] if len(args) > 2 else kwargs.get("non_blocking")))
        return out


def test_to_a_gpu_and_back_only_the_event_behind_a_batch_is_waited_for(monkeypatch):
    """On tensors that are CUDA's in all but their numbers: whatever needs a number raises."""
    events, pinned, empty = [], [], torch.empty
    event = SimpleNamespace(synchronize=lambda: events.append("waited"))
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: SimpleNamespace(record_event=lambda: event))
    monkeypatch.setattr(
        torch, "empty", lambda *args, pin_memory=False, **kwargs: pinned.append(pin_memory) or empty(*args, **kwargs)
    )
    with FakeTensorMode(), Copies() as copies:
        part = embed._Part(np.arange(3), torch.zeros(3, 98, 64, dtype=torch.float16), torch.ones(3, dtype=torch.int64))
        x = part.on(torch.device("cuda"), -11.5)
        assert (x.is_cuda, x.dtype, tuple(x.shape)) == (True, torch.float32, (3, 1, 64, 98))
        wait = embed._leaving(x.mean((1, 3)))
        assert pinned.count(True) == 1
        assert not events
        assert tuple(wait().shape) == (3, 64)
    assert events == ["waited"]
    assert copies.waits == [False, False, False]
