"""The pass over a whole set, whose vectors may not fit into memory."""

import errno
import os

import numpy as np
import pytest

from decar.models import embed, embed_store
from decar.models.embed import room_for
from tests.conftest import make_encoder

LENGTHS = [20, 140, 33, 164, 100, 98, 131]


@pytest.fixture
def encoder():
    return make_encoder("conv", widths=[4, 4], hidden=8, seed=0)


def test_vectors_beyond_the_bound_lie_in_a_file_and_are_the_same(make_store, encoder, monkeypatch, tmp_path):
    store = make_store(LENGTHS)
    expected = embed_store(encoder, store, batch_size=2, progress=False)
    assert not isinstance(expected, np.memmap)
    monkeypatch.setattr(embed, "IN_MEMORY", 0)
    found = embed_store(encoder, store, batch_size=2, progress=False)
    assert isinstance(found, np.memmap)
    np.testing.assert_array_equal(found, expected)
    found[0] = 0  # may be written to, as an array in memory


def test_the_file_has_no_name_and_its_room_is_taken(make_store, monkeypatch, tmp_path):
    monkeypatch.setattr(embed, "IN_MEMORY", 0)
    monkeypatch.setattr(embed.tempfile, "tempdir", str(tmp_path))
    taken = []
    real = os.posix_fallocate
    monkeypatch.setattr(os, "posix_fallocate", lambda *args: taken.append(args[1:]) or real(*args))
    made = room_for(5, 3, make_store(LENGTHS))
    assert isinstance(made, np.memmap)
    assert taken == [(0, 60)]
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_leaves_them_in_memory(make_store, encoder, monkeypatch, caplog):
    monkeypatch.setattr(embed, "IN_MEMORY", 0)

    def full(*args):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "posix_fallocate", full)
    made = room_for(5, 3, make_store(LENGTHS))
    assert not isinstance(made, np.memmap)
    assert made.shape == (5, 3)
    assert "no room for them on disk" in caplog.text
    assert "No space left" in caplog.text
