"""What a batch of 64 crops costs one core, by stages: as version 0.2 made it, and now. From a cold disk and a warm one.

Clips have 10 s, crops 1 s. "Cold" is a file whose pages have been dropped from memory; where the system keeps them, the
two lines are equal.
"""

import json
import mmap
import os
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from rig import Line, line, seconds, times
from speed_train import TEN_SECONDS, noise_store

from decar.audio import LogMelStore, Manifest
from decar.audio.crops import as_input, stack
from decar.pretrain.datamodule import CropDataset

CLIPS, BATCH, FRAMES, BATCHES = 2_000, 64, 98, 5
ON_GPU = Path(__file__).with_name("results-cuda.json")
FILES = 20_000  # of the line about opening
Work = Callable[[], object]


def measure(runs: int = 5) -> list[Line]:
    """All of them, in one thread."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with tempfile.TemporaryDirectory() as folder:
            return [*_batches(noise_store(CLIPS, TEN_SECONDS, Path(folder)), runs), *opening(Path(folder), runs)]
    finally:
        torch.set_num_threads(before)


def _batches(store: LogMelStore, runs: int) -> list[Line]:
    rng = np.random.default_rng(0)
    draws = np.stack([rng.integers(n, size=(BATCHES, BATCH)) for n in (CLIPS, TEN_SECONDS - FRAMES + 1)], axis=-1)
    seeds = rng.integers(2**62, size=(BATCHES, BATCH)).tolist()
    dataset, silence = CropDataset(store, FRAMES), store.frontend.silence
    made = [dataset.__getitems__(batch) for batch in draws]

    def old_places() -> None:
        for batch in seeds:
            for seed in batch:
                np.random.default_rng(seed).integers(TEN_SECONDS - FRAMES + 1)

    def new_places() -> None:
        np.random.default_rng(0).integers(np.full((BATCHES, BATCH), TEN_SECONDS - FRAMES + 1))

    def old_read() -> None:
        store.mel._mmap.madvise(mmap.MADV_NORMAL)  # type: ignore[attr-defined]
        for batch in draws:
            for i, first in batch.tolist():
                np.array(store[i][first : first + FRAMES])

    def new_read() -> None:
        for batch in draws:
            stack(store.crops(batch.tolist(), FRAMES), FRAMES)

    def old_batches() -> None:
        store.mel._mmap.madvise(mmap.MADV_NORMAL)  # type: ignore[attr-defined]
        for batch, keys in zip(draws, seeds, strict=True):
            for seed in keys:
                np.random.default_rng(seed).integers(TEN_SECONDS - FRAMES + 1)
            old_stack([store[i][first : first + FRAMES] for i, first in batch.tolist()])

    def in_worker() -> None:
        new_places()
        for batch in draws:
            dataset.__getitems__(batch)

    def new_batches() -> None:
        new_places()
        for batch in draws:
            crops, frames, _ = dataset.__getitems__(batch)
            as_input(crops, frames, silence)

    def convert() -> None:
        for crops, frames, _ in made:
            as_input(crops, frames, silence)

    def old_convert() -> None:
        for crops, _, _ in made:
            old_stack(list(crops.numpy()))

    for work in (new_batches, old_batches):
        work()
    read = _cold(store, new_read, old_read, runs)
    worker = _warm(in_worker, old_batches, runs)
    return [
        _line("where the crops begin", _warm(new_places, old_places, runs), "a generator a crop / one for all"),
        _line("reading, warm", _warm(new_read, old_read, runs), "pages in memory; now also put into one batch"),
        _line("reading, cold", [pair for pair, _ in read], "around each missing page / these pages, all at once"),
        line(
            "bytes read from a cold disk, KiB a crop of 12 KiB", [size for _, size in read],
            note="MADV_NORMAL / MADV_RANDOM",
        ),
        _line("float32 as the encoder takes it", _warm(convert, old_convert, runs), "numpy / torch; or a GPU does it"),
        _line("the whole batch, warm", _warm(new_batches, old_batches, runs), "as before / now, on a CPU"),
        _line("the whole batch, cold", [p for p, _ in _cold(store, new_batches, old_batches, runs)], "as before / now"),
        _line("the part of a GPU's loader worker, warm", worker, "as before / now, float16"),
        *cores([ours / BATCHES for ours, _ in worker]),
    ]  # fmt: skip


def old_stack(pieces: Sequence[NDArray[np.float16]]) -> torch.Tensor:
    """A batch as version 0.2 put it together: turned over and made float32 by numpy."""
    batch = np.empty((len(pieces), 1, pieces[0].shape[1], FRAMES), np.float32)
    for row, piece in zip(batch, pieces, strict=True):
        row[0] = piece.T
    return torch.from_numpy(batch)


def cores(batches: Sequence[float]) -> list[Line]:
    """CPU cores that keep one H100 busy, from its measured step of 512 crops."""
    steps = [x["ours"] for x in json.loads(ON_GPU.read_text())["paper"]["lines"]]
    rate = 512 / min(steps)
    note = f"{rate:,.0f} crops a second, the fastest of results-cuda.json; this machine's cores"
    return [times("loader cores that one H100 needs, EfficientNet-B0", [s / BATCH * rate for s in batches], note=note)]


def _line(stage: str, pairs: Sequence[tuple[float, float]], note: str) -> Line:
    return line(f"{stage}, a batch of {BATCH}", [(a / BATCHES, b / BATCHES) for a, b in pairs], note=note)


def _warm(ours: Work, before: Work, runs: int) -> list[tuple[float, float]]:
    ours(), before()
    return [(seconds(ours), seconds(before)) for _ in range(runs)]


def _cold(
    store: LogMelStore, ours: Work, before: Work, runs: int
) -> list[tuple[tuple[float, float], tuple[float, float]]]:
    """Seconds and KiB a crop of both, each from a file of which no page is in memory."""
    found = []
    for _ in range(runs):
        both = []
        for work in (ours, before):
            drop_pages(store)
            began = bytes_read()
            both.append((seconds(work), (bytes_read() - began) / 1024 / BATCHES / BATCH))
        (mine, my_bytes), (theirs, their_bytes) = both
        found.append(((mine, theirs), (my_bytes, their_bytes)))
    return found


def drop_pages(store: LogMelStore) -> None:
    """Have the kernel forget the file of a store, as after a start of the machine."""
    assert isinstance(store.mel, np.memmap)
    store.mel.flush()
    store.mel._mmap.madvise(mmap.MADV_DONTNEED)  # type: ignore[attr-defined]
    descriptor = os.open(str(store.mel.filename), os.O_RDWR)
    os.fsync(descriptor)
    os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
    os.close(descriptor)


def bytes_read() -> int:
    """What this process has had read from disks so far."""
    lines = Path("/proc/self/io").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("read_bytes"))


def opening(folder: Path, runs: int) -> list[Line]:
    """Opening a store in a further process of a job, which is given the identity of the sounds, and in the first."""
    from scale import make_hollow

    manifest, cache = make_hollow(FILES, folder / "hollow")
    for path in manifest.files:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    identity = manifest.identity(cache)
    _rename_to(manifest, cache)

    def opened(given: bool) -> None:
        LogMelStore.open_or_build(manifest, cache_dir=cache, identity=identity if given else None, progress=False)

    opened(True)
    pairs = [(seconds(lambda: opened(True)), seconds(lambda: opened(False))) for _ in range(runs)]
    return [line(f"opening a store of {FILES:,} clips in a further process", pairs, note="looking at each file / not")]


def _rename_to(manifest: Manifest, cache: Path) -> None:
    """Give the hollow store the name that the files, which are there now, ask for."""
    from decar.audio import FrontEnd
    from decar.audio.store import _folder
    from decar.digests import sealed, unsealed

    (place,) = (cache / "logmel").iterdir()
    wanted = _folder(manifest.identity(cache), FrontEnd(), cache)
    meta = unsealed((place / "meta.json").read_text())
    (place / "meta.json").write_text(sealed({**meta, "fingerprint": wanted.name}))
    place.rename(wanted)
