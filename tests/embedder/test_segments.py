"""Recordings in segments: without a gap, the rest joined or its own, and each where it says it lies."""

import numpy as np
import pandas as pd
import pytest
import soundfile
from hypothesis import given
from hypothesis import strategies as st

from decar.audio import FrontEnd, Manifest
from decar.embedder import Embedder, Windows
from decar.errors import ConfigError

RATE = 16_000


def rows_of(windows, wave, block):
    blocks = (wave[i : i + block] for i in range(0, len(wave), block))
    return [np.concatenate(list(row)) for row in windows.rows(blocks)]


@given(st.integers(1, 60_000), st.sampled_from([0.05, 0.3, 1.0]), st.integers(500, 20_000))
def test_segments_are_gap_free_and_none_is_short(n, seconds, block):
    windows = Windows(None, None, FrontEnd(), 998, segment=seconds)
    wave = np.arange(n, dtype=np.float32)
    found, size = rows_of(windows, wave, block), round(seconds * RATE)
    np.testing.assert_array_equal(np.concatenate(found), wave)
    assert all(len(row) == size for row in found[:-1])
    assert len(found) == 1 or size / 2 <= len(found[-1]) < 1.5 * size
    places = windows.places(len(found), n) * RATE
    assert places.round().astype(int).tolist() == [[int(row[0]), len(row)] for row in found]


@pytest.mark.parametrize(
    ("seconds", "lengths"),
    [(3.0, [3]), (15.0, [15]), (15.1, [5, 5, 5.1]), (17.4, [5, 5, 7.4]), (17.6, [5, 5, 5, 2.6]), (20.0, [5] * 4)],
)
def test_auto_cuts_what_is_longer_than_15_s(seconds, lengths):
    windows = Windows(None, None, FrontEnd(), 998, segment="auto")
    n = round(seconds * RATE)
    found = sum(1 for row in windows.rows(iter([np.ones(n, np.float32)])) for _ in [list(row)])
    assert found == len(lengths)
    np.testing.assert_allclose(windows.places(found, n)[:, 1], lengths)


def test_options_that_make_no_sense():
    for segment, seconds, told in ((0.0, None, "--segment=0"), (0.03, None, "too short"), (5.0, 1.0, "one of the two")):
        with pytest.raises(ConfigError, match=told):
            Windows(seconds, None, FrontEnd(), 998, segment=segment)


def test_each_segment_has_the_vector_of_its_stretch(small_encoder, tmp_path):
    rng = np.random.default_rng(0)
    wave = (0.1 * rng.normal(size=round(17.6 * RATE)) * np.linspace(0.1, 1, round(17.6 * RATE))).astype(np.float32)
    soundfile.write(tmp_path / "long.wav", wave, RATE, "FLOAT")
    soundfile.write(tmp_path / "short.wav", wave[:RATE], RATE, "FLOAT")
    made = Embedder(small_encoder, segment="auto").files(Manifest.from_folder(tmp_path))
    assert made.table[["path", "start", "duration"]].to_numpy().tolist() == [
        ["long.wav", 0.0, 5.0], ["long.wav", 5.0, 5.0], ["long.wav", 10.0, 5.0], ["long.wav", 15.0, 2.6],
        ["short.wav", 0.0, 1.0],
    ]  # fmt: skip
    again = Embedder(small_encoder).files(Manifest(made.table, tmp_path))  # the same stretches, from a table
    np.testing.assert_allclose(again.vectors, made.vectors, atol=1e-5)


def test_stretches_of_a_table_are_cut_from_where_they_start(small_encoder, tmp_path):
    wave = np.random.default_rng(0).normal(size=30 * RATE).astype(np.float32) * 0.1
    soundfile.write(tmp_path / "a.wav", wave, RATE, "FLOAT")
    table = pd.DataFrame({"path": ["a.wav", "a.wav"], "start": [2.0, 20.0], "duration": [16.0, 4.0]})
    made = Embedder(small_encoder, segment="auto").files(Manifest(table, tmp_path)).table
    assert made[["start", "duration"]].to_numpy().tolist() == [[2, 5], [7, 5], [12, 6], [20, 4]]
    whole = Embedder(small_encoder, segment="none").files(Manifest(table, tmp_path)).table
    assert whole[["start", "duration"]].to_numpy().tolist() == [[2, 16], [20, 4]]
