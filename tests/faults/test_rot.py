"""Random damage to each kind of file that decar writes and reads again: no result changes without a line.

Bundles and checkpoints: tests/faults/test_rot_weights.py.
"""

import errno
import json
import logging
import multiprocessing
import os
import pickle
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from omegaconf import OmegaConf
from torch.utils.data import DataLoader

from benchmarks.damage import KINDS, NAMED, damage
from decar import embedder
from decar.audio import LogMelStore, Manifest, cache, identity, store
from decar.audio.blocks import BLOCK_BYTES, BlockHasher, Blocks
from decar.audio.clips import ClipEnd
from decar.audio.journal import Journal
from decar.audio.logmel import FrontEnd
from decar.cli.eval import judged_before
from decar.cli.runs import flat_options, read_config, read_finished, write_finished
from decar.cli.terminal import explain
from decar.corpora import prepare
from decar.digests import DamagedError, sealed_lines, write_json, write_parquet
from decar.downstream.evaluate import cached_embeddings
from decar.downstream.results import Result
from decar.embedder import Embedder
from decar.embedder.output import write_rows
from decar.errors import DecarError, StoreError
from decar.neighbours.index import EmbeddingTable
from decar.pretrain.datamodule import CropDataset
from decar.pretrain.logger import COPY, ResumableCSVLogger, read_rows
from decar.report.clusters import read_assignments
from decar.report.folder import read_environment, write_environment
from tests.audio.sounds import tone, write
from tests.cli.helpers import decar
from tests.conftest import make_encoder
from tests.downstream.helpers import TinyEncoder, make_result

__all__ = ["decar"]

FRAMES = [np.random.default_rng(i).normal(size=(30, 64)).astype(np.float16) for i in range(4)]
ROWS = np.random.default_rng(0).normal(size=(3000, 8)).astype(np.float32)


@dataclass(frozen=True)
class Kind:
    """A kind of file: how it comes to be, and what is read from it.

    Attributes:
        file: A pattern below the folder, of the file that is damaged.
        use: Makes what is missing below a folder, reads it, returns the result.
        begin: Makes the files, where `use` alone would not leave them.
        always: Whether every damage is named; a journal whose last line is torn is what a kill leaves, and some bytes
            of a file mean nothing.
        healed: Whether the result is the same all the same; otherwise what is damaged is left out.
    """

    file: str
    use: Callable[[Path], Any]
    begin: Callable[[Path], Any] | None = None
    always: bool = True
    healed: bool = True


def sounds(folder: Path) -> Manifest:
    root = folder.parent / "sounds"
    if not root.exists():
        for i in range(4):
            write(root / f"{i}.wav", tone(0.3, hz=300 + 500 * i))
    return Manifest.from_folder(root)


def log_mels(folder: Path) -> list[Any]:
    opened = LogMelStore.open_or_build(sounds(folder), cache_dir=folder, progress=False)
    assert not [path for path, _, _ in cache.check_cache(folder) if path.parent.name == "logmel"]
    return [opened.lengths, opened.reasons, *map(np.array, (opened[i] for i in range(len(opened))))]


def fingerprint(folder: Path) -> str:
    return sounds(folder).fingerprint(folder)


def embeddings(folder: Path) -> Any:
    lengths = np.array([len(mel) for mel in FRAMES])
    made = LogMelStore(
        Manifest(pd.DataFrame({"path": list("abcd")}), Path("/nowhere")), FrontEnd(), np.concatenate(FRAMES),
        np.cumsum(lengths) - lengths, lengths, [""] * 4, "synthetic",
    )  # fmt: skip
    return cached_embeddings("logmel", made, folder)


def log_mel_journal(folder: Path) -> Journal:
    return Journal(folder / "mel.f16", np.float16, width=64, n_clips=4)


def half_built(folder: Path) -> None:
    with log_mel_journal(folder) as journal:
        append(journal, range(1))
        append(journal, range(1, 3))


def built(folder: Path) -> Any:
    with log_mel_journal(folder) as journal:
        append(journal, range(journal.committed, 4))
        return [(folder / "mel.f16").read_bytes(), journal.counts, journal.ends, journal.blocks.hexdigest()]


def append(journal: Journal, clips: range) -> None:
    for i in clips:
        journal.rows(FRAMES[i])
        journal.end(ClipEnd(100 * i, silent=i == 2))
    journal.commit()


def rows_journal(folder: Path) -> Journal:
    embedder._prepare(folder, "key")
    return Journal(folder / embedder.VECTORS, "<f4", width=8, n_clips=120)


def half_embedded(folder: Path) -> None:
    with rows_journal(folder) as journal:
        embed(journal, range(100), 10)


def embedded(folder: Path) -> Any:
    with rows_journal(folder) as journal:
        embed(journal, range(journal.committed, 120), 10)
        return [np.array(journal.matrix()), journal.counts, journal.ends]


def embed(journal: Journal, clips: range, commit_every: int) -> None:
    for i in clips:
        journal.rows(ROWS[i : i + 2])
        journal.end(ClipEnd(i, "cut short" if i % 7 == 3 else "", i % 5 == 0))
        if i % commit_every == commit_every - 1:
            journal.commit()


def table_written(folder: Path) -> None:
    paths = pd.DataFrame({"path": [f"{i}.wav" for i in range(len(ROWS))], "label": "a"})
    write_rows(folder / "e.parquet", paths, ROWS, {"encoder": "a" * 64, "bundle": "small"})


def table_read(folder: Path) -> Any:
    table = EmbeddingTable.open(folder / "e.parquet")
    return [table.rows.to_csv(), table.facts, np.concatenate([block for _, block in table.blocks()])]


def listed(folder: Path) -> str:
    return Manifest.from_parquet(folder / "e.parquet").table.to_csv()


N_EPOCHS, N_CLIPS = 4, 50
CONFIG = OmegaConf.create({"k": 3, "seed": 0, "labels": {"k": 3}, "data": {"root": "/nowhere"}, "lr": 0.05})
HASHES = {"encoder": "a" * 64, "sounds": "b" * 64, "labels and splits": "c" * 64}


def run_written(run: Path) -> None:
    """What training and judging leave in a folder beside weights."""
    rng = np.random.default_rng(0)
    for epoch in range(N_EPOCHS):
        (run / "clusters.parquet").mkdir(exist_ok=True, parents=True)
        labels = rng.integers(0, 5, N_CLIPS).astype(np.int32)
        table = pd.DataFrame({"clip": [f"{i}.wav" for i in range(N_CLIPS)], "epoch": epoch, "clustering": 0})
        write_parquet(run / f"clusters.parquet/epoch_{epoch:05d}.parquet", table.assign(pseudo_label=labels))
    logger = ResumableCSVLogger(run)
    for step in range(30):
        logger.log_metrics({"loss": float(rng.normal()), "epoch": step // 10}, step)
    (run / "config.yaml").write_text(sealed_lines(OmegaConf.to_yaml(CONFIG)))
    write_finished(run, {"loss": 0.1}, N_EPOCHS, 40, {"options": dict(flat_options(CONFIG)), "content": "d" * 64})
    (run / "encoder.safetensors").touch()
    write_environment(run)
    make_result(bundle="small").write(run / "result.json")
    write_json(run / "judged.json", HASHES)


def assigned(run: Path) -> list[Any]:
    (found,) = read_assignments(run / "clusters.parquet")
    return [found.epochs, found.labels, found.clips.to_csv()]


def resumed(run: Path) -> list[Any]:
    """`metrics.csv` after a run has gone on."""
    ResumableCSVLogger(run).log_metrics({"loss": 1.0, "epoch": 3}, 30)
    return [(run / "metrics.csv").read_bytes(), read_rows(run / "metrics.csv")]


def judged(run: Path) -> Result:
    """What `decar-eval resume=auto` gives: a result that is there, or the same one judged again."""
    return judged_before(CONFIG, run, HASHES) or make_result(bundle="small")


def corpus_written(cache_dir: Path) -> None:
    table = pd.DataFrame({"path": [f"{i}.wav" for i in range(60)], "fold": [str(i % 5) for i in range(60)]})
    clips = Manifest(table, Path("/nowhere"))
    prepare._write(prepare.Prepared(clips, clips.root, prepare.manifest_file(cache_dir, "esc50"), 3, 4.987, 1))


def corpus_read(cache_dir: Path) -> list[Any]:
    found = prepare.load_prepared(cache_dir, "esc50")
    assert found is not None
    return [found.manifest.table.to_csv(), found.root, found.missing, found.seconds, found.unreadable]


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
    "table of embeddings as a list of clips": Kind("e.parquet", listed, table_written, always=False),
    "pseudo-labels of an epoch": Kind("clusters.parquet/*2.parquet", assigned, run_written, always=False, healed=False),
    "figures of a run": Kind("metrics.csv", lambda run: read_rows(run / "metrics.csv"), run_written),
    "copy of the figures": Kind(COPY, lambda run: read_rows(run / "metrics.csv"), run_written, always=False),
    "figures of a run that goes on": Kind("metrics.csv", resumed, run_written, always=False),
    "copy of the figures of a run that goes on": Kind(COPY, resumed, run_written, always=False),
    "last figures of a run": Kind(
        "finished.json", lambda run: read_finished(CONFIG, run, "d" * 64), run_written, always=False, healed=False
    ),
    "options of a run": Kind("config.yaml", lambda run: read_config(run / "config.yaml"), run_written, always=False),
    "versions": Kind("environment.json", read_environment, run_written, always=False),
    "result": Kind("result.json", lambda run: Result.read(run / "result.json"), run_written, always=False),
    "result of a cell that is asked for again": Kind("result.json", judged, run_written, always=False),
    "hashes of what was judged": Kind("judged.json", judged, run_written, always=False),
    "options of a cell": Kind("config.yaml", judged, run_written, always=False),
    "clips of a corpus": Kind("corpora/esc50/manifest.csv", corpus_read, corpus_written),
    "facts of a corpus": Kind("corpora/esc50/facts.json", corpus_read, corpus_written, always=False),
}
COUNTED = ("damages", "noticed", "harmless")


@pytest.fixture
def try_damage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> Any:
    """Damages a file of a kind many times."""
    monkeypatch.setattr(identity, "FRESH_NS", 0)
    monkeypatch.setattr(identity, "SPOT_CHECKS", 0)  # which would find a wrong digest of one of a few files

    def run(kind: Kind, damages: list[str | None], seed: int) -> dict[str, int]:
        rng, good, bad, noticed = np.random.default_rng(seed), tmp_path / "good", tmp_path / "bad", 0
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
                line = read_damaged(kind, bad, expected, done)
            assert line or not kind.always, f"{done}: not a line"
            noticed += bool(line)
        return dict(zip(COUNTED, (len(damages), noticed, len(damages) - noticed), strict=True))

    def read_damaged(kind: Kind, bad: Path, expected: Any, done: str) -> str:
        """The line that names the damage; without one, the result is the same."""
        refused = ""
        try:
            found = kind.use(bad)
        except DecarError as error:
            refused = str(error)
        lines = [line for line in [refused, *caplog.messages] if str(bad) in line and NAMED.search(line)]
        if refused:
            assert lines, f"{done}: {refused}"
            return lines[0]
        assert equal(found, expected) or (lines and not kind.healed), f"{done}: another result, {lines or 'not a line'}"
        return lines[0] if lines else ""

    return run


def equal(a: Any, b: Any) -> bool:
    if isinstance(a, list):
        return len(a) == len(b) and all(map(equal, a, b))
    return bool(np.array_equal(a, b)) if isinstance(a, np.ndarray) else bool(a == b)


@pytest.mark.parametrize("name", FILES)
def test_no_damage_changes_a_result_without_a_line(name: str, try_damage: Any) -> None:
    try_damage(FILES[name], [*KINDS], seed=0)


@pytest.mark.slow
@pytest.mark.parametrize("name", FILES)
def test_of_two_hundred_damages_none_changes_a_result_without_a_line(name: str, try_damage: Any) -> None:
    counts = try_damage(FILES[name], [None] * 200, seed=1)
    print(f"{name}: {counts}, 0 changed without a line")  # `pytest -s` shows it


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
    opened = pickle.loads(pickle.dumps(LogMelStore.open_or_build(sounds(folder), cache_dir=folder, progress=False)))
    with pytest.raises(DecarError, match=r"mel\.f16 is damaged \(block 1 of 1: .*; 0\.wav, 1\.wav.* and 1 more clips"):
        opened[0]
    assert "is damaged" not in caplog.text
    assert equal(log_mels(folder), expected)
    assert "block 1 of 1: its checksum is wrong): building it anew" in caplog.text


def test_damage_found_by_a_loader_worker_is_told_in_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store, "CHECKED_AT_OPEN", 0)
    folder = tmp_path / "cache"
    log_mels(folder)
    (file,) = folder.glob("logmel/*/mel.f16")
    damage(file, np.random.default_rng(0), "zeros")
    crops = CropDataset(LogMelStore.open_or_build(sounds(folder), cache_dir=folder, progress=False), 10)
    loader = DataLoader(crops, batch_sampler=[np.array([[0, 0], [3, 0]])], collate_fn=lambda x: x, num_workers=1)
    batches: Any = iter(loader)
    with pytest.raises(StoreError) as caught:
        next(batches)
    batches._shutdown_workers()  # left to the garbage collector it waits 5 s
    line = explain(caught.value, "train")
    assert line is not None
    assert line.startswith(f"{file} is damaged (block 1 of 1: its checksum is wrong; 0.wav")
    assert line.endswith(
        "run the command again, train.py with resume=auto; the log-mels are then computed anew from the sounds"
    )
    assert (file.parent / cache.DAMAGE_FILE).read_text() == "mel.f16: block 1 of 1: its checksum is wrong"


def test_forked_processes_share_what_has_been_compared(tmp_path: Path) -> None:
    """Loader workers do not read again what the pass over the whole set has read."""
    file = tmp_path / "f"
    file.write_bytes(bytes(3 * BLOCK_BYTES + 5))
    hasher = BlockHasher()
    for piece in (file.read_bytes()[:100], file.read_bytes()[100:]):
        hasher.update(piece)
    blocks = Blocks(file, hasher.hexdigest(), 128)
    assert len(blocks) == 4
    process = multiprocessing.get_context("fork").Process(target=blocks.check_rows, args=(0, 2 * BLOCK_BYTES // 128))
    process.start()
    process.join()
    assert process.exitcode == 0
    file.write_bytes(b"\1" * (3 * BLOCK_BYTES + 5))
    blocks.check_rows(0, 2 * BLOCK_BYTES // 128)
    blocks.check_rows(5, 5)
    with pytest.raises(DamagedError, match=r"block 3 of 4: its checksum is wrong") as caught:
        blocks.check_rows(0, 2 * BLOCK_BYTES // 128 + 1)
    assert blocks.rows(caught.value.args[1]) == range(2 * BLOCK_BYTES // 128, 3 * BLOCK_BYTES // 128)
    assert [number for number, _ in blocks.damaged()] == [0, 1, 2, 3]
    with pytest.raises(DamagedError, match="another length"):
        Blocks(file, hasher.hexdigest()[:-16], 128)


def test_a_block_that_the_disk_cannot_read_is_an_error_and_not_the_end_of_the_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "cache"
    expected = log_mels(folder)
    monkeypatch.setattr(store, "CHECKED_AT_OPEN", 0)
    opened = LogMelStore.open_or_build(sounds(folder), cache_dir=folder, progress=False)

    def failing(*_: object) -> bytes:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    with monkeypatch.context() as patch:
        patch.setattr(os, "pread", failing)
        with pytest.raises(StoreError, match="block 1 of 1: Input/output error"):
            opened[2]
    assert equal(log_mels(folder), expected)


def test_a_store_of_an_earlier_version_is_opened_with_a_line(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = tmp_path / "cache"
    expected = log_mels(folder)
    (file,) = folder.glob("logmel/*/meta.json")
    meta = json.loads(file.read_text())
    file.write_text(json.dumps({key: meta[key] for key in cache.WITHOUT_DIGESTS}))
    with caplog.at_level(logging.INFO):
        assert equal(log_mels(folder), expected)
    assert f"{file.parent} is of an earlier version and has no checksums: delete it" in caplog.text
    file.write_text(json.dumps({key: meta[key] for key in cache.WITHOUT_DIGESTS | {"blocks"}}))
    with caplog.at_level(logging.INFO):
        assert equal(log_mels(folder), expected)
    assert "is damaged (no JSON object with a checksum" in caplog.text


def test_the_doctor_finds_damage_anywhere_in_the_cache(decar: Any, tmp_path: Path) -> None:
    folder = tmp_path / "cache"
    expected = [log_mels(folder), embeddings(folder), fingerprint(folder)]
    well = decar("doctor", "--cache", str(folder))
    assert (well.code, well.out.strip()) == (0, f"{folder}: nothing damaged")
    files = [next(folder.glob(pattern)) for pattern in ("logmel/*/mel.f16", "embeddings/*", "identity/*")]
    for file in files:
        damage(file, np.random.default_rng(0), "flipped bit")
    ill = decar("doctor", "--cache", str(folder))
    assert ill.code == 1
    log_mel, vectors, identities, total = ill.out.splitlines()
    assert log_mel.startswith(f"damaged: {files[0].parent}: mel.f16: 1 of 1 blocks, number 1: its checksum is wrong; ")
    assert vectors == f"damaged: {files[1]}: its checksum is wrong; computed anew when it is needed next"
    assert identities == f"damaged: {files[2]}: its checksum is wrong; computed anew when it is needed next"
    assert total == f"{folder}: 3 damaged"
    assert equal([log_mels(folder), embeddings(folder), fingerprint(folder)], expected)
    assert decar("doctor", "--cache", str(folder)).code == 0
    assert decar("doctor", "--cache", str(tmp_path / "nowhere")).code == 2
    assert decar("doctor").code == 2


class Broken(TinyEncoder):
    """Makes NaN of clips of 50 frames and more."""

    def forward(self, mel: torch.Tensor) -> torch.Tensor:
        x: torch.Tensor = super().forward(mel)
        return torch.where(torch.tensor(mel.shape[-1] > 98), x * torch.nan, x)


def test_embeddings_that_are_not_finite_are_not_kept(make_store: Any, tmp_path: Path) -> None:
    clips = make_store([40, 200, 60, 300])
    with pytest.raises(StoreError, match=r"embedding of clip1\.wav, clip3\.wav holds NaN or Inf"):
        cached_embeddings(Broken(), clips, tmp_path, progress=False)
    assert not (tmp_path / "embeddings").exists()


@pytest.mark.parametrize("windows", [None, 0.2])
def test_rows_that_are_not_finite_are_not_written(
    windows: float | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, hz in (("a", 300), ("b", 400), ("high", 4000), ("later", 4000)):
        write(tmp_path / "in" / f"{name}.wav", tone(0.7, hz=hz))
    forward = embedder._forward

    def broken(mels: list[Any], *args: Any) -> Any:
        high = np.array([mel.mean(axis=0).argmax() > 40 for mel in mels])
        return np.where(high[:, None], np.nan, forward(mels, *args)).astype(np.float32)

    monkeypatch.setattr(embedder, "_forward", broken)
    windowed = Embedder(make_encoder("conv", seed=0, hidden=8, widths=(4, 4)), windows=windows, num_workers=1)
    clips, out = Manifest.from_folder(tmp_path / "in"), tmp_path / "o.parquet"
    for act in (lambda: windowed.write(clips, out, progress=False), lambda: windowed.files(clips)):
        with pytest.raises(DecarError, match=r"^high\.wav: its embedding holds NaN or Inf; no row is written"):
            act()
    assert not out.exists()
