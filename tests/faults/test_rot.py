"""Random damage to each kind of file that stores and caches consist of: no result changes, and damage is told.

Bundles, checkpoints and the files of a run: tests/faults/test_rot_weights.py.
"""

import logging
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from decar.audio import LogMelStore, Manifest, cache, identity, store
from decar.audio.build import PartialStore
from decar.audio.logmel import FrontEnd
from decar.downstream.embeddings import cached_embeddings
from decar.embedder.output import write_rows
from decar.embedder.partial import Parts
from decar.embedder.reading import ClipEnd
from decar.errors import DecarError
from decar.search.table import EmbeddingTable
from tests.audio.sounds import tone, write
from tests.faults.damage import KINDS, damage

FRAMES = [np.random.default_rng(i).normal(size=(30, 64)).astype(np.float16) for i in range(4)]
ROWS = np.random.default_rng(0).normal(size=(3000, 8)).astype(np.float32)


@dataclass(frozen=True)
class Kind:
    """A kind of file: how it comes to be, and what is read from it.

    Attributes:
        file: A pattern below the folder, of the file that is damaged.
        use: Makes what is missing below a folder, reads it, returns the result.
        begin: Makes the files, where `use` alone would not leave them.
        always: Whether every damage is told; a journal whose last line is torn is what a kill leaves.
    """

    file: str
    use: Callable[[Path], Any]
    begin: Callable[[Path], Any] | None = None
    always: bool = True


def sounds(folder: Path) -> Manifest:
    root = folder.parent / "sounds"
    if not root.exists():
        for i in range(4):
            write(root / f"{i}.wav", tone(0.3, hz=300 + 500 * i))
    return Manifest.from_folder(root)


def log_mels(folder: Path) -> list[Any]:
    opened = LogMelStore.open_or_build(sounds(folder), cache_dir=folder, progress=False)
    assert not cache_is_damaged(folder)
    return [opened.lengths, opened.reasons, *map(np.array, (opened[i] for i in range(len(opened))))]


def cache_is_damaged(folder: Path) -> list[Any]:
    return list(cache.check_cache(folder))


def fingerprint(folder: Path) -> str:
    return sounds(folder).fingerprint(folder)


def embeddings(folder: Path) -> Any:
    lengths = np.array([len(mel) for mel in FRAMES])
    made = LogMelStore(
        Manifest(pd.DataFrame({"path": list("abcd")}), Path("/nowhere")), FrontEnd(), np.concatenate(FRAMES),
        np.cumsum(lengths) - lengths, lengths, [""] * 4, "synthetic",
    )  # fmt: skip
    return cached_embeddings("logmel", made, folder)


def half_built(folder: Path) -> None:
    with PartialStore(folder, n_mels=64, n_clips=4) as partial:
        partial.append(FRAMES[:1], [""])
        partial.append(FRAMES[1:3], ["", "silent"])


def built(folder: Path) -> Any:
    with PartialStore(folder, n_mels=64, n_clips=4) as partial:
        done = len(partial.lengths)
        reasons = ["", "", "silent", ""]
        partial.append(FRAMES[done:], reasons[done:])
        return [(folder / "mel.f16").read_bytes(), partial.lengths, partial.reasons, partial.blocks.hexdigest()]


def half_embedded(folder: Path) -> None:
    with Parts(folder, "key", 8) as parts:
        embed(parts, range(100), 10)


def embedded(folder: Path) -> Any:
    with Parts(folder, "key", 8) as parts:
        embed(parts, range(parts.committed, 120), 10)
        return [np.array(parts.matrix()), parts.counts, parts.ends]


def embed(parts: Parts, clips: range, commit_every: int) -> None:
    for i in clips:
        parts.rows(ROWS[i : i + 2])
        parts.clip(ClipEnd(i, "cut short" if i % 7 == 3 else "", i % 5 == 0))
        if i % commit_every == commit_every - 1:
            parts.commit()


def table_written(folder: Path) -> None:
    paths = pd.DataFrame({"path": [f"{i}.wav" for i in range(len(ROWS))], "label": "a"})
    write_rows(folder / "e.parquet", paths, ROWS, {"encoder": "a" * 64, "bundle": "small"})


def table_read(folder: Path) -> Any:
    table = EmbeddingTable.open(folder / "e.parquet")
    return [table.rows.to_csv(), table.facts, np.concatenate([block for _, block in table.blocks()])]


FILES = {
    "log-mels": Kind("logmel/*/mel.f16", log_mels),
    "index of a store": Kind("logmel/*/index.parquet", log_mels),
    "facts of a store": Kind("logmel/*/meta.json", log_mels),
    "identities": Kind("identity/*", fingerprint),
    "cached embeddings": Kind("embeddings/*", embeddings),
    "log-mels of a half-built store": Kind("mel.f16", built, half_built),
    "journal of a half-built store": Kind("journal.jsonl", built, half_built, always=False),
    "rows of a stopped decar embed": Kind("vectors.f32", embedded, half_embedded),
    "journal of a stopped decar embed": Kind("journal.jsonl", embedded, half_embedded, always=False),
    "key of a stopped decar embed": Kind("key.txt", embedded, half_embedded, always=False),
    "table of embeddings": Kind("e.parquet", table_read, table_written),
}


@pytest.fixture
def try_damage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> Any:
    """Damages a file of a kind many times."""
    monkeypatch.setattr(identity, "FRESH_NS", 0)
    monkeypatch.setattr(identity, "SPOT_CHECKS", 0)  # which would find a wrong digest of one of a few files

    def run(kind: Kind, damages: list[str | None], seed: int) -> None:
        rng, good, bad = np.random.default_rng(seed), tmp_path / "good", tmp_path / "bad"
        good.mkdir()
        (kind.begin or kind.use)(good)
        shutil.copytree(good, bad)
        expected = kind.use(bad)
        for wanted in damages:
            shutil.rmtree(bad)
            shutil.copytree(good, bad)
            (file,) = bad.glob(kind.file)
            done = damage(file, rng, wanted)
            caplog.clear()
            with caplog.at_level(logging.INFO):
                told = read_damaged(kind, bad, expected, done)
            assert told or not kind.always, f"{done}: not a line"

    def read_damaged(kind: Kind, bad: Path, expected: Any, done: str) -> bool:
        try:
            found = kind.use(bad)
        except DecarError as error:
            assert "damaged" in str(error), done
            assert str(bad) in str(error), done
            return True
        assert equal(found, expected), f"{done}: another result, {caplog.text or 'not a line'}"
        return "is damaged" in caplog.text and str(bad) in caplog.text

    return run


def equal(a: Any, b: Any) -> bool:
    if isinstance(a, list):
        return len(a) == len(b) and all(map(equal, a, b))
    return bool(np.array_equal(a, b)) if isinstance(a, np.ndarray) else bool(a == b)


@pytest.mark.parametrize("name", FILES)
def test_damage_changes_no_result_and_is_told(name: str, try_damage: Any) -> None:
    try_damage(FILES[name], [*KINDS], seed=0)


@pytest.mark.slow
@pytest.mark.parametrize("name", FILES)
def test_two_hundred_damages_change_no_result_and_are_told(name: str, try_damage: Any) -> None:
    try_damage(FILES[name], [None] * 200, seed=1)


@pytest.mark.parametrize("kind", KINDS[:2])
def test_damage_in_a_large_store_stops_the_reader_and_is_mended_at_the_next_opening(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Beyond what is checked at opening, a block is checked as it is first read."""
    monkeypatch.setattr(store, "CHECKED_AT_OPEN", 0)
    folder = tmp_path / "cache"
    expected = log_mels(folder)
    (file,) = folder.glob("logmel/*/mel.f16")
    damage(file, np.random.default_rng(0), kind)
    opened = LogMelStore.open_or_build(sounds(folder), cache_dir=folder, progress=False)
    with pytest.raises(DecarError, match=r"mel\.f16 is damaged \(block 1 of 1: .*; 0\.wav, 1\.wav.* and 1 more clips"):
        opened[0]
    assert "is damaged" not in caplog.text
    assert equal(log_mels(folder), expected)
    assert "block 1 of 1: its checksum is wrong): building it anew" in caplog.text
