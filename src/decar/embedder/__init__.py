"""Files or waveforms → embeddings: what `decar embed` does, for Python too.

A clip gets what `Encoder.embed` makes of its decoded waveform: see `models.embed.embed_clips`. A recording is read as
it goes, so that its length does not matter to the memory.
"""

from __future__ import annotations

import hashlib
import json
import logging
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from numpy.typing import ArrayLike, NDArray

import decar
from decar.audio import LogMel, Manifest
from decar.audio.build import one_torch_thread
from decar.audio.progress import progress_bar
from decar.audio.samples import CANCEL_NOTE, as_array, mixed, resampled, scaled
from decar.cores import cpu_count
from decar.embedder.engine import BLOCK_FRAMES, Memory, NotFiniteError, run
from decar.embedder.output import beside, check_out, write_bad, write_rows
from decar.embedder.partial import Parts
from decar.embedder.reading import ClipEnd, events
from decar.embedder.windows import Windows
from decar.errors import AudioError, DecarError, check_whole
from decar.files import locked
from decar.limits import limits
from decar.models import Encoder, load_encoder

log = logging.getLogger(__name__)

FORMAT = 3  # of the parts; raise it when what is computed into them changes
NAMED_IN_LOG = 20

__all__ = ["Embedded", "Embedder", "Windows"]


@dataclass(frozen=True)
class Embedded:
    """What came out.

    Attributes:
        table: A row an embedding: the columns of the source; of windows, their `start` and `duration` (s).
        vectors: `(R, D)` float32.
        bad: Columns path, reason: what could not be embedded.
    """

    table: pd.DataFrame
    vectors: NDArray[np.float32]
    bad: pd.DataFrame


class Embedder:
    """An encoder with all it takes to feed it.

    Args:
        bundle: An encoder; a bundle, the folder of a run, or the name `small`, which None stands for.
        windows: Seconds: a row every so often, with `start` and `duration`, in place of one a clip.
        hop: Seconds from window to window; as long as a window when None.
        device: Where the network runs; None: on a GPU when torch sees one.
        batch_size: Pieces at a time.
        num_workers: Threads that decode; as many as there are cores when None.
    """

    def __init__(
        self,
        bundle: Encoder | str | Path | None = None,
        *,
        windows: float | None = None,
        hop: float | None = None,
        device: str | None = None,
        batch_size: int = 16,
        num_workers: int | None = None,
    ) -> None:
        check_whole("batch_size", batch_size, 1)
        self.encoder = bundle if isinstance(bundle, Encoder) else load_encoder(bundle)
        self.windows = Windows(windows, hop, self.encoder.frontend, self.encoder.max_frames)
        self.device = device or ("cuda" if torch.cuda.is_available() else "cpu")
        self.batch_size, self.num_workers = batch_size, num_workers or cpu_count()

    def waveforms(
        self, waveforms: Sequence[torch.Tensor | ArrayLike], sample_rate: int | None = None
    ) -> NDArray[np.float32]:
        """Embeddings `(N, D)` of waveforms, each `(T,)` or `(T, C)`, whatever the windows are.

        Args:
            waveforms: Floats have full scale at ±1, integers are scaled by their type; channels are mixed
                as those of files (`audio.samples.mixed`).
            sample_rate: Hz; the encoder's own when None, else resampled.

        Raises:
            AudioError: One is too short, not finite or of an unknown scale; the message says which.
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
                wave = resampled(wave, sample_rate, rate)
                if len(wave) < self.encoder.frontend.win_length:
                    raise AudioError(f"too short, {len(wave) / rate:.3f} s")
            except AudioError as error:
                raise AudioError(f"waveform {i}: {error}") from None
            out[i] = self.encoder.embed(wave)[0].cpu().numpy()
        return out

    def files(self, clips: Manifest | Sequence[str | Path], *, progress: bool = False) -> Embedded:
        """Embeddings of files, in memory."""
        if not isinstance(clips, Manifest):
            clips = Manifest(pd.DataFrame({"path": [str(path) for path in clips]}), Path.cwd())
        sink = Memory()
        self._run(clips, sink, done=0, progress=progress)
        empty = np.zeros((0, self.encoder.dim), np.float32)
        return Embedded(*self._tables(clips, sink.counts, sink.ends, np.concatenate([empty, *sink.vectors])))

    def write(self, clips: Manifest, out: str | Path, *, name: str = "small", progress: bool = True) -> Embedded:
        """Embeddings of files into `out`: Parquet, or npy with `OUT.paths.csv`; `OUT.bad.csv` says what was left out.

        A killed call goes on where it stopped, and gives the same bytes. `.OUT.parts` beside the output is what it goes
        on from; that is thrown away when encoder, clips, files or options are others.

        Args:
            clips: What to embed.
            out: Ends in .parquet or .npy.
            name: What to call the encoder in the file's metadata.
            progress: Whether to show how far it is.

        Raises:
            DecarError: Nothing could be embedded, the file cannot be written, or another process is writing it.
        """
        out = Path(out)
        check_out(out)
        folder = out.with_name(f".{out.name}.parts")
        try:
            out.parent.mkdir(parents=True, exist_ok=True)
            with (
                locked(f"{folder}.lock"),
                Parts(folder, self.key(clips), self.encoder.dim) as parts,
            ):
                if parts.committed:
                    log.info("going on with %s at clip %d of %d", out, parts.committed, len(clips))
                self._run(clips, parts, done=parts.committed, progress=progress)
                made = Embedded(*self._tables(clips, parts.counts, parts.ends, parts.matrix()))
                write_bad(out, made.bad)
                if len(made.vectors):
                    write_rows(out, made.table, made.vectors, self._facts(name))
                told = self._tell(made, parts.ends, clips, out)
            shutil.rmtree(folder)
        except BlockingIOError as error:
            raise DecarError(f"{out}: {error.strerror}; wait until it has ended, or give another --out") from None
        except OSError as error:
            raise DecarError(
                f"{error.filename or out}: cannot be written ({error.strerror or error}); mend that and run the same "
                "command, it goes on where it stopped"
            ) from error
        if not len(made.vectors):
            raise DecarError(f"none of the {len(clips)} clips can be embedded: {told}")
        return made

    def key(self, clips: Manifest) -> str:
        """What the bytes of an output depend on, in one hash: encoder, clips with their columns, files, options."""
        options = [FORMAT, BLOCK_FRAMES, self.batch_size, self.device, self.windows.as_dict(), decar.__version__]
        options.append(limits().changed())
        words = [self.encoder.hash(), clips.fingerprint(), clips.content_hash(), json.dumps(options)]
        return hashlib.sha256(" ".join(words).encode()).hexdigest()

    def _run(self, clips: Manifest, sink: Memory | Parts, *, done: int, progress: bool) -> None:
        jobs = [(file, *stretch) for file, stretch in zip(clips.files, clips.stretches, strict=True)][done:]
        with progress_bar("embed", len(clips), enabled=progress) as advance, one_torch_thread():
            advance(done)
            stream = events(jobs, self.windows, LogMel(self.encoder.frontend), self.num_workers)
            try:
                run(stream, self.encoder, sink, batch_size=self.batch_size, device=self.device, advance=advance)
            except NotFiniteError:
                raise DecarError(
                    f"{clips.table['path'][len(sink.ends)]}: its embedding holds NaN or Inf; no row is written: "
                    "is the bundle damaged, or from a run that diverged?"
                ) from None

    def _tables(
        self, clips: Manifest, counts: list[int], ends: list[ClipEnd], vectors: NDArray[np.float32]
    ) -> tuple[pd.DataFrame, NDArray[np.float32], pd.DataFrame]:
        table = clips.table.drop(columns="embedding", errors="ignore")
        rows = table.iloc[np.repeat(np.arange(len(table)), counts)].reset_index(drop=True)
        if self.windows.size is not None:
            places = [self.windows.places(n, end.n_samples) for n, end in zip(counts, ends, strict=True) if n]
            where = np.concatenate([np.zeros((0, 2)), *places])
            begin = np.repeat([start for start, _ in clips.stretches], counts)
            rows = rows.drop(columns=["start", "duration"], errors="ignore")
            rows.insert(1, "start", begin + where[:, 0])
            rows.insert(2, "duration", where[:, 1])
        reasons = pd.Series([end.reason for end in ends], dtype=str)
        stretch = [column for column in ("path", "start", "duration") if column in table]
        bad = table[stretch].assign(reason=reasons)[(reasons != "").to_numpy()].reset_index(drop=True)
        return rows, vectors, bad

    def _facts(self, name: str) -> dict[str, object]:
        rate = self.encoder.sample_rate
        return {
            "encoder": self.encoder.hash(), "bundle": name, "sample_rate": rate, "version": decar.__version__,
            **{key: n / rate if n else None for key, n in self.windows.as_dict().items()},
        }  # fmt: skip

    def _tell(self, made: Embedded, ends: list[ClipEnd], clips: Manifest, out: Path) -> str:
        """What was wrong, in the log; the first reasons, for a message."""
        silent = [f"{clips.table['path'][i]}: silent, embedded all the same" for i, e in enumerate(ends) if e.silent]
        bad = [f"{path}: left out: {reason}" for path, reason in made.bad[["path", "reason"]].to_numpy()]
        for lines in (bad, silent):
            for line in lines[:NAMED_IN_LOG]:
                log.warning("%s", line)
            if len(lines) > NAMED_IN_LOG:
                log.warning("… and %d more", len(lines) - NAMED_IN_LOG)
        if bad:
            log.warning("%d of %d clips left out, listed in %s", len(bad), len(clips), beside(out, "bad"))
        return "; ".join(bad[:3])
