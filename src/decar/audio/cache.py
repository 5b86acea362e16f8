"""What lies in the cache: the files of a finished store, read and checked; all that is there, listed and deleted.

`docs/security.md`, section Damage, says which digests there are.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from decar.audio.blocks import Blocks
from decar.audio.build import INDEX_FILE, MEL_FILE, META_FILE
from decar.digests import ARRAY_SUFFIX, DamagedError, check_array, digest_of, unsealed
from decar.errors import one_line
from decar.files import locked

DAMAGE_FILE = "damaged.txt"  # why a store must not be used any more
KINDS = {
    "logmel": "log-mel stores",
    "embeddings": "embeddings of tasks",
    "identity": "digests of sounds",
    "sources": "unpacked and fetched",
    "outputs": "unsent outputs",
    "artifacts": "bundles from wandb",
}
STORE_NAME = re.compile(r"[0-9a-f]{64}(\.partial)?")
SOURCE_NAME = re.compile(r"[0-9a-f]{40}(\.part)?|fetched")  # see `containers` and `remote`
OUTPUT_NAME = re.compile(r"[0-9a-f]{40}")  # see `embedder.output`
WITHOUT_DIGESTS = {"format", "fingerprint", "frontend", "n_clips", "n_frames"}  # in a meta.json of an earlier version


@dataclass(frozen=True, eq=False)
class StoreFiles:
    """The files of a finished store; see `LogMelStore` for the arrays.

    Attributes:
        fingerprint: Of the store.
        offsets: (N,) int64.
        lengths: (N,) int64.
        reasons: What is wrong with each clip.
        mel: (ΣF, M) float16 memory map.
        blocks: What compares it; None for a store of an earlier version, which has no digests.
    """

    fingerprint: str
    offsets: npt.NDArray[np.int64]
    lengths: npt.NDArray[np.int64]
    reasons: list[str]
    mel: npt.NDArray[np.float16]
    blocks: Blocks | None


def read_store(folder: Path, check_bytes: int | None = None) -> StoreFiles:
    """Read a finished store.

    Args:
        folder: Of the store.
        check_bytes: How much of the log-mels is compared with its digests; None: all.

    Raises:
        DamagedError: A file is missing, damaged or contradicts another.
    """
    try:
        if (folder / DAMAGE_FILE).exists():
            raise DamagedError((folder / DAMAGE_FILE).read_text(encoding="utf-8", errors="replace"))
        meta = _read_meta((folder / META_FILE).read_text(encoding="utf-8"))
        if "index" in meta and digest_of(folder / INDEX_FILE) != meta["index"]:
            raise DamagedError(f"{INDEX_FILE}: its checksum is wrong")
        index = pd.read_parquet(folder / INDEX_FILE, columns=["offset", "frames", "reason"])
        lengths, offsets = index["frames"].to_numpy(np.int64), index["offset"].to_numpy(np.int64)
        shape = int(meta["n_frames"]), int(meta["frontend"]["n_mels"])
        if (lengths < 0).any() or (offsets != np.cumsum(lengths) - lengths).any() or lengths.sum() != shape[0]:
            raise DamagedError("the index contradicts itself")
        mel, blocks = _open_mel(folder / MEL_FILE, shape, meta.get("blocks"), check_bytes)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DamagedError(one_line(error)) from error
    return StoreFiles(meta["fingerprint"], offsets, lengths, index["reason"].astype(str).tolist(), mel, blocks)


def _read_meta(text: str) -> dict[str, Any]:
    facts = json.loads(text)
    return facts if set(facts) == WITHOUT_DIGESTS else unsealed(text)


def _open_mel(
    file: Path, shape: tuple[int, int], digests: str | None, check_bytes: int | None
) -> tuple[npt.NDArray[np.float16], Blocks | None]:
    row_bytes = shape[1] * np.dtype(np.float16).itemsize
    size, expected = file.stat().st_size, shape[0] * row_bytes
    if size != expected:
        raise DamagedError(f"{MEL_FILE} has {size} bytes, {expected} are expected")
    blocks = None if digests is None else Blocks(file, digests, row_bytes)
    bad = [] if blocks is None else list(blocks.damaged(check_bytes))
    if bad:
        raise DamagedError(f"{MEL_FILE}: {len(bad)} of {len(blocks or ())} blocks, number {bad[0][0] + 1}: {bad[0][1]}")
    return np.memmap(file, np.float16, "r", shape=shape), blocks


def mark_damaged(folder: Path, reason: str) -> None:
    """Have a store built anew when it is opened next; where nothing can be written, the damage is found again."""
    with contextlib.suppress(OSError):
        (folder / DAMAGE_FILE).write_text(reason, encoding="utf-8")


def check_cache(cache_dir: str | os.PathLike[str]) -> Iterator[tuple[Path, str, str]]:
    """Read all of a cache and compare it with its digests.

    Unfinished stores are checked when their build goes on.

    Yields:
        Of each damaged thing its path, what is wrong, and what will be done about it.
    """
    cache = Path(cache_dir).expanduser()
    for folder in sorted(path for path in (cache / "logmel").glob("*") if path.is_dir() and not path.suffix):
        try:
            read_store(folder)
        except DamagedError as error:
            mark_damaged(folder, str(error))
            yield folder, str(error), "the log-mels are computed anew from their sounds when they are needed next"
    for file in sorted(cache.glob(f"*/*{ARRAY_SUFFIX}")):
        try:
            check_array(file)
        except (OSError, DamagedError) as error:
            yield file, str(error), "computed anew when it is needed next"


def cached(cache_dir: str | os.PathLike[str]) -> dict[str, list[Path]]:
    """What decar has put into a cache and can make again: for each of `KINDS`, folders or files."""
    cache = Path(cache_dir).expanduser()
    found = {kind: sorted((cache / kind).glob(f"*{ARRAY_SUFFIX}")) for kind in KINDS}
    for kind, name in (("logmel", STORE_NAME), ("sources", SOURCE_NAME), ("outputs", OUTPUT_NAME)):
        found[kind] = sorted(path for path in (cache / kind).glob("*") if name.fullmatch(path.name))
    found["artifacts"] = sorted(path for path in (cache / "artifacts").glob("*/*/*/v*") if path.is_dir())
    return found


def bytes_of(path: Path) -> int:
    """Bytes of a file, or of all files in a folder."""
    return sum(file.stat().st_size for file in [path, *path.rglob("*")] if file.is_file())


def delete(path: Path) -> None:
    """Delete something that `cached` found.

    Raises:
        BlockingIOError: Another process is making it.
        OSError: It cannot be deleted.
    """
    if not path.is_dir():
        path.unlink()
        return
    with locked(path.with_name(f"{path.name.partition('.')[0]}.lock"), wait=0):
        shutil.rmtree(path)
        path.with_suffix(".json").unlink(missing_ok=True)  # of unpacked sounds, see `containers`
