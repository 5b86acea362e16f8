"""Nothing that is loaded runs code, and no name leads out of a folder.

Elsewhere: bundles with other shapes, missing tensors, cut files and broken headers, tests/models/test_bundle.py.
"""

import os
import pickle
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from decar.audio import LogMelStore, Manifest
from decar.errors import DecarError
from decar.models import load_encoder
from decar.pretrain.checkpoint import readable
from tests.audio.sounds import tone, write


class Evil:
    """Makes a file when it is unpickled."""

    def __init__(self, mark):
        self.mark = mark

    def __reduce__(self):
        return os.mkdir, (str(self.mark),)


@pytest.mark.parametrize("load", [readable, load_encoder])
def test_a_pickle_is_not_run(tmp_path, load):
    file, mark = tmp_path / "evil.ckpt", tmp_path / "ran"
    file.write_bytes(pickle.dumps(Evil(mark)))
    with pytest.raises(DecarError, match=r"evil.ckpt: not a"):
        load(file)
    assert not mark.exists()
    pickle.loads(file.read_bytes())  # it would have
    assert mark.exists()


def test_odd_paths_in_a_manifest_write_nothing_outside_the_cache(tmp_path):
    outside, cache = tmp_path / "outside", tmp_path / "deep" / "cache"
    outside.mkdir()
    write(outside / "a.wav", tone(0.5))
    names = ["../outside/a.wav", str(outside / "a.wav"), "../../etc/x.wav", "new\nline.wav", "~/x.wav", "-rf.wav"]
    root = tmp_path / "root"
    root.mkdir()
    before = {path for path in tmp_path.rglob("*") if cache not in path.parents}
    store = LogMelStore.open_or_build(Manifest(pd.DataFrame({"path": names}), root), cache_dir=cache, progress=False)
    assert len(store.usable()) == 2
    assert len(store.bad) == 4
    after = {path for path in tmp_path.rglob("*") if cache not in path.parents and path not in (cache, cache.parent)}
    assert after == before
    assert all(cache in Path(path).parents for path in (tmp_path / "deep").rglob("*") if path.is_file())


def test_a_nul_in_a_path_is_refused_by_row():
    with pytest.raises(DecarError, match=r"row 2: the path 'b\\x00.wav' holds a NUL byte"):
        Manifest(pd.DataFrame({"path": ["a.wav", "b\0.wav"]}), Path())


def test_a_row_with_a_comma_in_a_bare_name_is_refused(tmp_path):
    (tmp_path / "t.csv").write_text("path,label\nb,c.wav,cat\na.wav,dog\n")
    with pytest.raises(DecarError, match=r"has 2 columns, but a row of 3 cells \(b,c.wav,cat\): put names"):
        Manifest.from_csv(tmp_path / "t.csv")
    (tmp_path / "t.csv").write_text("path,label\na.wav,dog,\nb.wav,cat,\n")
    assert Manifest.from_csv(tmp_path / "t.csv").table["label"].tolist() == ["dog", "cat"]


def test_a_file_that_goes_after_the_store_was_built_costs_only_itself(tmp_path):
    for name in "abc":
        write(tmp_path / "sounds" / f"{name}.wav", tone(0.5, hz=300 + 100 * ord(name)))
    clips = Manifest(pd.DataFrame({"path": ["a.wav", "b.wav", "c.wav"]}), tmp_path / "sounds")
    store = LogMelStore.open_or_build(clips, cache_dir=tmp_path / "cache", progress=False)
    before = [np.array(store[i]) for i in range(3)]
    (tmp_path / "sounds" / "b.wav").unlink()
    (tmp_path / "sounds" / "c.wav").write_bytes(b"")
    assert all(np.array_equal(store[i], before[i]) for i in range(3)), "a run that is under way does not notice"
    again = LogMelStore.open_or_build(clips, cache_dir=tmp_path / "cache", progress=False)
    reasons = dict(again.bad.itertuples(index=False))
    assert reasons.keys() == {"b.wav", "c.wav"}
    assert "file not found" in reasons["b.wav"]
    assert np.array_equal(again.usable()[0], before[0])
