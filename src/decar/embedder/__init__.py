"""Files or waveforms → embeddings: what `decar embed` does, for Python too.

A clip has the vector of `models.embed.embed_clips`; of windows, each has its own. A recording is read piece by piece,
so its length does not matter to the memory.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from copy import copy
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from numpy.typing import ArrayLike, NDArray

import decar
from decar.audio import Manifest
from decar.audio.arrival import arriving
from decar.audio.clips import ClipEnd, Event, Frames, Job, Piece, RowEnd, Segment, Windows, one_torch_thread, read_clips
from decar.audio.crops import padded_frames
from decar.audio.decode import NOT_FOUND
from decar.audio.identity import Records
from decar.audio.journal import Journal
from decar.audio.progress import progress_bar
from decar.audio.recorded import AT, later
from decar.audio.samples import CANCEL_NOTE, as_array, mixed, resampled, scaled, warn_if_lost
from decar.cores import cpu_count
from decar.embedder.output import check_out, deliver, name_beside, places_of, write_bad, write_rows
from decar.embedder.shards import KEY, Crew, Engine, Memory, Parts, VanishedError
from decar.errors import AudioError, DecarError, check_whole
from decar.files import locked
from decar.limits import limits
from decar.models import Encoder, load_encoder
from decar.models.embed import embed_pieces, evaluating

log = logging.getLogger(__name__)

FORMAT = 4  # of the unfinished rows; raise it when what is computed into them changes
BLOCK_FRAMES = 64 * 998  # ten minutes of sound: what is in memory at once, and what a kill costs at most
NAMED_IN_LOG = 20
VECTORS = "vectors.f32"

__all__ = ["Embedded", "Embedder", "Windows", "log_left_out"]

Vectors = NDArray[np.float32]


@dataclass(frozen=True)
class Embedded:
    """Embeddings of files.

    Attributes:
        table: A row an embedding: the columns of the source; of windows and segments, `start` and `duration` (s).
        vectors: `(R, D)` float32.
        bad: Columns path, reason: the clips without an embedding.
    """

    table: pd.DataFrame
    vectors: Vectors
    bad: pd.DataFrame


class Embedder:
    """An encoder with the options that embeddings depend on.

    Args:
        bundle: An encoder; a bundle, the folder of a run, or the name `small`, which None stands for.
        windows: Seconds: a row every so often, with `start` and `duration`, in place of one a clip.
        hop: Seconds from window to window; as long as a window when None.
        segment: Seconds: long recordings are cut into segments, each a row; `auto`: 5 s for those over 15 s; `none`: a
            row a clip, with `start` and `duration`. See `Windows`.
        device: Where the network runs; None: on a GPU when torch sees one.
        batch_size: Pieces at a time.
        num_workers: Threads that decode; as many as there are cores when None.
        engine: Other machines, on which `write` embeds; see `decar.embedder.engines`. None: this process.
    """

    def __init__(
        self,
        bundle: Encoder | str | Path | None = None,
        *,
        windows: float | None = None,
        hop: float | None = None,
        segment: Segment | None = None,
        device: str | None = None,
        batch_size: int = 16,
        num_workers: int | None = None,
        engine: Engine | None = None,
    ) -> None:
        check_whole("batch_size", batch_size, 1)
        self.encoder = bundle if isinstance(bundle, Encoder) else load_encoder(bundle)
        self.windows = Windows(windows, hop, self.encoder.frontend, self.encoder.max_frames, segment=segment)
        self.engine = engine
        self.device = device or (engine and engine.device) or ("cuda" if torch.cuda.is_available() else "cpu")
        self.batch_size, self.num_workers = batch_size, num_workers or cpu_count()

    def waveforms(self, waveforms: Sequence[torch.Tensor | ArrayLike], sample_rate: int | None = None) -> Vectors:
        """Embeddings `(N, D)` of waveforms, each `(T,)` or `(T, C)`, whatever the windows are.

        Args:
            waveforms: Floats have full scale at ±1, integers are scaled by their type; channels are mixed
                as those of files (`audio.samples.mixed`).
            sample_rate: Hz; the encoder's own when None, else resampled.

        Raises:
            AudioError: A waveform is too short, not finite or of an unknown scale; the message gives its number.
        """
        out, rate = np.empty((len(waveforms), self.encoder.dim), np.float32), self.encoder.sample_rate
        for i, given in enumerate(waveforms):
            try:
                wave = scaled(as_array(given))
                if wave.ndim not in (1, 2) or not wave.size:
                    raise AudioError(f"samples of shape (T,) or (T, C) are expected, got {wave.shape}")
                if wave.ndim == 2:
                    wave, cancelled = mixed(wave, int(sample_rate or rate))
                    if cancelled:
                        log.warning("waveform %d: %s", i, CANCEL_NOTE)
                if sample_rate not in (None, rate):
                    whole, wave = wave, resampled(wave, sample_rate, rate)
                    warn_if_lost(i, whole, wave, rate)
                if len(wave) < self.encoder.frontend.win_length:
                    raise AudioError(f"too short, {len(wave) / rate:.3f} s")
            except AudioError as error:
                raise AudioError(f"waveform {i}: {error}") from None
            out[i] = self.encoder.embed(wave)[0].cpu().numpy()
        return out

    def files(self, clips: Manifest | Sequence[str | Path], *, progress: bool = False) -> Embedded:
        """Embeddings of files, in memory.

        Raises:
            DecarError: An embedding is not finite.
        """
        if not isinstance(clips, Manifest):
            clips = Manifest(pd.DataFrame({"path": [str(path) for path in clips]}), Path.cwd())
        memory = Memory(self.encoder.dim)
        self.into(clips, memory, progress)
        return Embedded(*self._tables(clips, memory))

    def write(self, clips: Manifest, out: str | Path, *, name: str = "small", progress: bool = True) -> Embedded:
        """Embeddings of files into `out`: Parquet, or npy with `OUT.paths.csv`; `OUT.bad.csv` lists what was left out.

        After a kill the same call continues, and writes the same bytes. It continues from `.OUT.parts` beside the
        output, unless encoder, clips, files or options are others.

        Args:
            clips: What to embed.
            out: Ends in .parquet or .npy. Of an address, such as s3://bucket/e.parquet, the parts lie in the cache, and
                the complete file is copied there.
            name: Name of the encoder for the file's metadata.
            progress: Whether to show progress.

        Raises:
            DecarError: Nothing could be embedded, the file cannot be written, or another process is writing it.
        """
        check_out(out)
        (file, folder), records = places_of(out), clips.records()
        key = self.key(clips, records)
        facts = {**self._facts(name), "root": os.path.abspath(clips.root), "key": key}
        if clips.origin is not None:
            facts["address"] = clips.origin.address
        try:
            folder.parent.mkdir(parents=True, exist_ok=True)
            with locked(f"{folder}.lock"):
                _prepare(folder, key)
                with Journal(folder / VECTORS, "<f4", self.encoder.dim, len(clips)) as journal:
                    if journal.committed:
                        log.info("going on with %s at clip %d of %d", out, journal.committed, len(clips))
                    if self.engine:
                        parts = Parts(folder.absolute(), key, self.encoder.dim)
                        self._spread(self.engine, clips, records, journal, parts, progress)
                    else:
                        self.into(clips, journal, progress)
                    made = Embedded(*self._tables(clips, journal))
                write_bad(file, made.bad)
                if len(made.vectors):
                    write_rows(file, made.table, made.vectors, facts)
                _log_silent(journal.ends, clips)
                log_left_out(made.bad, len(clips), out)
                deliver(file, out)
                shutil.rmtree(folder)  # with the lock: another call may wait for it, and begin in there at once
        except BlockingIOError as error:
            raise DecarError(f"{out}: {error.strerror}; wait until it has ended, or give another --out") from None
        except OSError as error:
            raise DecarError(
                f"{error.filename or out}: cannot be written ({error.strerror or error}); mend that and run the same "
                "command, it goes on where it stopped"
            ) from error
        if not len(made.vectors):
            first = "; ".join(_lines(made.bad[:3]))
            raise DecarError(f"none of the {len(clips)} clips can be embedded: {first}")
        return made

    def key(self, clips: Manifest, records: Records | None = None) -> str:
        """SHA-256 (hex) of all that the bytes of an output depend on: encoder, clips with columns, files, options.

        Args:
            clips: What is embedded.
            records: What `clips.records()` has just found; None: the files are looked at.
        """
        options = [FORMAT, BLOCK_FRAMES, self.batch_size, self.device, self.windows.as_dict(), self.windows.placed]
        options += [decar.__version__, limits().changed()]
        options += [AT] if AT in clips.table and self.windows.size is not None else []  # once that of whole recordings
        files = clips.identity(records=records).fingerprint
        words = [self.encoder.hash(), files, clips.content_hash(), json.dumps(options)]
        return hashlib.sha256(" ".join(words).encode()).hexdigest()

    def _spread(
        self, engine: Engine, clips: Manifest, records: Records, journal: Journal, parts: Parts, progress: bool
    ) -> None:
        """As `into`, on other machines."""
        own = copy(self)
        own.engine = None
        clips = replace(clips, root=Path(os.path.abspath(clips.root)))
        with engine.pool(own, parts.folder) as pool, progress_bar("embed", len(clips), enabled=progress) as advance:
            advance(journal.committed)
            Crew(pool, clips, records, parts, journal).run(advance)

    def into(self, clips: Manifest, sink: Memory | Journal, progress: bool = False) -> None:
        """Embed the clips that the sink has not got, the encoder on its device and in eval mode meanwhile."""
        encoder, home, done = self.encoder, self.encoder.device, len(sink.ends)
        with progress_bar("embed", len(clips), enabled=progress) as advance, one_torch_thread():
            advance(done)
            encoder.to(self.device)
            try:
                with evaluating(encoder), arriving(clips, done) as (batches, faults):
                    fetched = clips.origin is not None
                    events = _events(batches, faults, self.windows, self.num_workers, fetched=fetched)
                    _embed(events, encoder, sink, self.batch_size, self.device, advance)
            except _NotFiniteError:
                raise DecarError(
                    f"{clips.table['path'][len(sink.ends)]}: its embedding holds NaN or Inf; no row is written: "
                    "is the bundle damaged, or from a run that diverged?"
                ) from None
            finally:
                encoder.to(home)

    def _tables(self, clips: Manifest, sink: Memory | Journal) -> tuple[pd.DataFrame, Vectors, pd.DataFrame]:
        """Table, vectors and bad clips, as in `Embedded`."""
        table = clips.table.drop(columns="embedding", errors="ignore")
        rows = table.iloc[np.repeat(np.arange(len(table)), sink.counts)].reset_index(drop=True)
        if self.windows.placed:
            ends = zip(sink.counts, sink.ends, strict=True)
            places = [self.windows.places(n, end.n_samples) for n, end in ends if n]
            where = np.concatenate([np.zeros((0, 2)), *places])
            begin = np.repeat([start for start, _ in clips.stretches], sink.counts)
            rows = rows.drop(columns=["start", "duration"], errors="ignore")
            rows.insert(1, "start", begin + where[:, 0])
            rows.insert(2, "duration", where[:, 1])
            if AT in rows:
                rows[AT] = later(rows[AT], where[:, 0])
        reasons = pd.Series([end.reason for end in sink.ends], dtype=str)
        stretch = [column for column in ("path", "start", "duration") if column in table]
        bad = table[stretch].assign(reason=reasons)[(reasons != "").to_numpy()].reset_index(drop=True)
        return rows, sink.matrix(), bad

    def _facts(self, name: str) -> dict[str, object]:
        rate, dim = self.encoder.sample_rate, self.encoder.settings().get("dim")
        return {
            "encoder": self.encoder.hash(), "bundle": name, **({} if dim is None else {"dim": dim}),
            "sample_rate": rate, "version": decar.__version__,
            **{key: n / rate if n else None for key, n in self.windows.as_dict().items()},
        }  # fmt: skip


def _events(
    batches: Iterable[list[Job]], faults: Mapping[Path, str], windows: Windows, num_workers: int, *, fetched: bool
) -> Iterator[Event]:
    """What `read_clips` makes of the batches; the reason why a file was not fetched, where that is known.

    Raises:
        VanishedError: A file that was fetched is not there any more, or a file is missing and the one that was read
            before it is too, as on a disk that was unmounted: not one sound is missing then but all.
    """
    before: Path | None = None  # on this disk, and read
    for batch in batches:
        files = iter(batch)
        for event in read_clips(batch, windows, num_workers):
            if isinstance(event, ClipEnd):
                file = next(files)[0]
                if reason := faults.get(file):
                    event = replace(event, reason=reason)
                elif event.reason == NOT_FOUND and (fetched or (before and not before.exists())):
                    raise VanishedError(
                        f"{file if fetched else before}: was there a moment ago and is gone: was the cache cleaned, or "
                        "the disk unmounted? What is done is kept; run the same command again once it is there"
                    )
                before = before if event.reason else file
            yield event


def _prepare(folder: Path, key: str) -> None:
    """Empty the folder of unfinished rows unless they were made with the same key."""
    try:
        if (folder / KEY).read_text() == key:
            return
    except (OSError, ValueError):
        pass
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    (folder / KEY).write_text(key)


def log_left_out(bad: pd.DataFrame, n_clips: int, out: str | Path) -> None:
    """Log which clips have no embedding, and where all of them are listed."""
    _log_some(_lines(bad))
    if len(bad):
        log.warning("%d of %d clips left out, listed in %s", len(bad), n_clips, name_beside(out, "bad"))


def _log_silent(ends: list[ClipEnd], clips: Manifest) -> None:
    _log_some([f"{clips.table['path'][i]}: silent, embedded all the same" for i, e in enumerate(ends) if e.silent])


def _lines(bad: pd.DataFrame) -> list[str]:
    return [f"{path}: left out: {reason}" for path, reason in bad[["path", "reason"]].to_numpy()]


def _log_some(lines: list[str]) -> None:
    for line in lines[:NAMED_IN_LOG]:
        log.warning("%s", line)
    if len(lines) > NAMED_IN_LOG:
        log.warning("… and %d more", len(lines) - NAMED_IN_LOG)


class _NotFiniteError(ValueError):
    """The encoder made NaN or Inf of the clip at hand."""


class _Mean:
    """The vector of a row whose pieces come one by one, as `embed_clips` has it: a row may be ten hours long."""

    def __init__(self, dim: int) -> None:
        self.total, self.weight = np.zeros(dim, np.float64), 0

    def add(self, vector: Vectors, frames: int) -> None:
        self.total += frames * vector.astype(np.float64)
        self.weight += frames

    def take(self) -> Vectors:
        """The mean `(1, D)`, or `(0, D)` of no piece; start the next row.

        Raises:
            _NotFiniteError: It is not finite.
        """
        made = (self.total[None] / self.weight if self.weight else np.zeros((0, len(self.total)))).astype(np.float32)
        self.total[:], self.weight = 0.0, 0
        if not np.isfinite(made).all():
            raise _NotFiniteError
        return made


def _embed(
    events: Iterable[Event],
    encoder: Encoder,
    sink: Memory | Journal,
    batch_size: int,
    device: str,
    advance: Callable[[int], object],
) -> None:
    """Rows of pieces into the sink. A row that is not finite is not given to it.

    Which pieces share a batch depends only on what came since the last commit. So a run that continues from a commit
    makes the same batches, and the same bits, as one that was never stopped.
    """
    mean = _Mean(encoder.dim)
    for block in _blocks(events, encoder):
        vectors = iter(_forward([e.mel for e in block if isinstance(e, Piece)], encoder, batch_size, device))
        for event in block:
            if isinstance(event, Piece):
                mean.add(next(vectors), len(event.mel))
            elif isinstance(event, RowEnd):
                sink.rows(mean.take())
            else:
                sink.end(event)
                mean = _Mean(encoder.dim)  # a clip that broke off has left pieces of a row
                advance(1)
        if block and isinstance(block[-1], ClipEnd):
            sink.commit()


def _blocks(events: Iterable[Event], encoder: Encoder) -> Iterator[list[Event]]:
    """Events by ten minutes of sound, up to the end of a clip; a long clip is cut within."""
    block: list[Event] = []
    held = since = 0  # frames of the block, and since a block ended with a clip
    for event in events:
        block.append(event)
        if isinstance(event, Piece):
            frames = padded_frames(len(event.mel), min_frames=encoder.min_frames, max_frames=encoder.max_frames)
            held, since = held + frames, since + frames
        full = since >= BLOCK_FRAMES and isinstance(event, ClipEnd)
        if full or held >= 2 * BLOCK_FRAMES:
            yield block
            block, held, since = [], 0, 0 if full else since
    yield block


def _forward(mels: list[Frames], encoder: Encoder, batch_size: int, device: str) -> Vectors:
    """`(n, D)`, a vector a piece."""
    if not mels:
        return np.empty((0, encoder.dim), np.float32)
    vectors: Vectors = embed_pieces(lambda x: encoder(x.to(device)), mels, encoder, batch_size).numpy()
    return vectors
