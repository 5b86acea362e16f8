import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from decar.audio import FrontEnd
from decar.audio.logmel import cut
from decar.embedder import Windows
from decar.errors import ConfigError


def slowly(wave, size, hop, least):
    """The rule in words: a full window each hop; a shorter one that brings `least` samples; the first always."""
    out, covered, start = [], 0, 0
    while start == 0 or start + size <= len(wave) or len(wave) - max(covered, start) >= least:
        out.append(wave[start : start + size])
        covered = start + size
        start += hop
        if covered >= len(wave):
            break
    return out


@given(st.integers(0, 60), st.integers(1, 20), st.integers(1, 30), st.integers(1, 5), st.integers(1, 17))
def test_cut_gives_every_window_whatever_the_blocks(n, size, hop, least, block):
    wave = np.arange(n, dtype=np.float32)
    found = list(cut((wave[i : i + block] for i in range(0, n, block)), size, hop, least))
    expected = slowly(wave, size, hop, least)
    assert [w.tolist() for w in found] == [w.tolist() for w in expected]


def test_options_that_make_no_sense():
    for seconds, hop, told in ((0.0, None, "--windows=0"), (1.0, -1.0, "--hop=-1"), (None, 1.0, "without"),
                               (0.01, None, "too short, give at least 0.025 s")):  # fmt: skip
        with pytest.raises(ConfigError, match=told):
            Windows(seconds, hop, FrontEnd(), 998)
