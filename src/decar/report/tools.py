"""Embeddings as other programs open them: Embedding Atlas, Spotlight, TensorFlow's projector, perch-hoplite.

What they expect was read in their source and tried: embedding-atlas 0.26.0, renumics-spotlight 1.8.2, the projector of
tensorboard 2.21, perch-hoplite 1.0.2. Letters: `N` clips, `D` embedding.
"""

import io
import logging
import os
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import soundfile
from numpy.typing import NDArray

from decar.audio import Manifest, decode
from decar.audio.columns import find_column, no_column
from decar.audio.progress import progress_bar
from decar.audio.recorded import AT, SITE
from decar.clustering import l2_normalize
from decar.clustering.model import NOISE
from decar.cores import cpu_count
from decar.downstream.classifier import NOT
from decar.embedder.output import ROWS_AT_ONCE, write_rows
from decar.errors import AudioError, ExportError, printable
from decar.files import whole, whole_folder
from decar.models.embed import half_standardised
from decar.report.clips import RATE, loud, tsne
from decar.report.final import PLACE
from decar.report.when import began, clip_names, texts_of

log = logging.getLogger(__name__)

LONGEST = 15.0  # s of a clip that can be heard in Embedding Atlas: the longest that `--segment auto` leaves whole
AUDIO = pa.struct({"bytes": pa.binary(), "path": pa.string()})  # which Embedding Atlas plays, as Hugging Face has it
PROJECTOR = 'embeddings {\n  tensor_path: "vectors.tsv"\n  metadata_path: "metadata.tsv"\n}\n'


@dataclass(frozen=True)
class Points:
    """Clips with their embeddings.

    Attributes:
        clips: `N` clips; all columns of their table are exported, `cluster` (-1: noise) as text.
        vectors: `(N, D)`.
        facts: Of the encoder: `encoder` (hash), `bundle`, `sample_rate` (Hz), `window` (s) where known.

    Raises:
        ExportError: A vector is not finite.
    """

    clips: Manifest
    vectors: NDArray[np.float32]
    facts: Mapping[str, Any]

    def __post_init__(self) -> None:
        bad = np.flatnonzero(~np.isfinite(self.vectors).all(axis=1))
        if len(bad):
            raise ExportError(f"{self.clips.table['path'][bad[0]]}: its embedding holds NaN or Inf; embed it anew")

    def table(self, **own: Any) -> pd.DataFrame:
        """A row a clip: `id`, `name`, `own` columns, `path`, `start`, `duration` (s), and those of the clips.

        A column of the clips that is called as one of ours gets `table_` before its name. Empty text becomes None, and
        a column with nothing in it is left out.
        """
        known, stretches = self.clips.table, self.clips.stretches
        ours = {
            "id": np.arange(len(known)), "name": clip_names(self.clips, known), **own, "path": known["path"],
            "start": [start for start, _ in stretches],
            "duration": np.array([seconds for _, seconds in stretches], float),
        }  # fmt: skip
        others = known.drop(columns=[*PLACE], errors="ignore")
        if "cluster" in others:
            others["cluster"] = ["noise" if number == NOISE else f"cluster {number}" for number in others["cluster"]]
        others = others.mask(others == "").rename(columns={name: f"table_{name}" for name in others if name in ours})
        made = pd.DataFrame(ours).join(others)
        return made.drop(columns=[name for name in made if name not in own and made[name].isna().all()])


def write_atlas(points: Points, out: Path) -> int:
    """A Parquet file for Embedding Atlas: places on a map (t-SNE, as on the page) and the sounds as Ogg Vorbis.

    Returns:
        How many clips cannot be read and have no sound.

    Raises:
        OSError: The file cannot be written.
    """
    places = tsne(half_standardised(points.vectors), seed=0)
    known = points.table(audio=None, x=places[:, 0], y=places[:, 1])
    table = pa.Table.from_pandas(known, preserve_index=False).replace_schema_metadata(None)
    place, silent, jobs = table.schema.get_field_index("audio"), 0, points.clips.jobs
    schema = table.schema.set(place, pa.field("audio", AUDIO))
    with (
        whole(out) as part, pq.ParquetWriter(part, schema) as writer, ThreadPoolExecutor(cpu_count()) as pool,
        progress_bar("sounds", len(table)) as advance,
    ):  # fmt: skip
        for first in range(0, len(table), ROWS_AT_ONCE):
            sounds = []
            for sound in pool.map(_sound, jobs[first : first + ROWS_AT_ONCE]):
                sounds.append(sound)
                advance(1)
            silent += sounds.count(None)
            piece = table.slice(first, len(sounds)).set_column(place, schema.field(place), pa.array(sounds, AUDIO))
            writer.write_table(piece)
    return silent


def _sound(job: tuple[Path, float, float | None]) -> dict[str, object] | None:
    """The first `LONGEST` seconds of a clip, None where it cannot be read.

    As Vorbis: Opus takes two thirds of the room and ten times as long (5 s: 12 kB, 170 ms on a busy machine).
    """
    file, start, seconds = job
    try:
        wave = decode(file, start=start, duration=min(seconds or LONGEST, LONGEST), sample_rate=RATE)
        sound = io.BytesIO()
        soundfile.write(sound, loud(wave), RATE, format="OGG", subtype="VORBIS", compression_level=0.9)
        return {"bytes": sound.getvalue(), "path": f"{file.stem}.ogg"} if len(wave) else None
    except (AudioError, OSError, RuntimeError) as error:  # soundfile's errors are RuntimeErrors
        log.debug("%s: %s", file, error)
        return None


def write_spotlight(points: Points, out: Path) -> None:
    """A Parquet file for Spotlight: `embedding`, `audio` (absolute path) and, of stretches, `window` [start, end] in s.

    Raises:
        OSError: The file cannot be written.
    """
    own: dict[str, Any] = {"audio": [str(file) for file in points.clips.files], "embedding": None}
    ends = [[start, start + seconds] for start, seconds in points.clips.stretches if seconds is not None]
    if len(ends) == len(points.vectors):
        own["window"] = ends
    write_rows(out, points.table(**own).drop(columns="embedding"), points.vectors, points.facts)


def write_projector(points: Points, out: Path) -> None:
    """A folder for TensorFlow's projector: `vectors.tsv`, `metadata.tsv`, and the file by which TensorBoard finds them.

    Raises:
        OSError: It cannot be written.
    """
    table = points.table().drop(columns=["id", "path"])
    rows = [[*table], *table.astype(object).where(table.notna(), "").to_numpy().tolist()]  # a head, as for two columns
    text = "".join("\t".join(map(printable, row)) + "\n" for row in rows)
    with whole_folder(out) as part:
        (part / "metadata.tsv").write_text(text, encoding="utf-8", newline="\n")
        np.savetxt(part / "vectors.tsv", points.vectors, fmt="%.7g", delimiter="\t")
        (part / "projector_config.pbtxt").write_text(PROJECTOR)


def write_hoplite(points: Points, out: Path, column: str | None = None) -> int:
    """A database of perch-hoplite: a deployment a site, recordings, windows with embeddings, annotations.

    Embeddings have length 1, so that its score, the inner product, is the cosine; it keeps them as float16. Names of
    files are relative to the folder in its metadata, from which its own tools read the sounds.

    Args:
        points: The clips, with durations.
        out: The folder of the database.
        column: The column of the labels: several with commas between, `-NAME` for one that a clip has not. None:
            `label`, if there is one.

    Returns:
        The number of annotations.

    Raises:
        ExportError: The package is missing, there is no such column, or a clip has no duration.
        OSError: It cannot be written.
    """
    sqlite, datatypes, config = _hoplite()
    labels, unit = _labels(points.clips.table, column), l2_normalize(points.vectors)
    if any(seconds is None for _, seconds in points.clips.stretches):
        raise ExportError("the clips have no durations: embed with --segment auto or none")
    offsets = [[start, start + (seconds or 0.0)] for start, seconds in points.clips.stretches]
    with whole_folder(out) as part:
        settings = sqlite.get_default_usearch_config(unit.shape[1])
        database = sqlite.SQLiteUSearchDB.create(db_path=str(part), usearch_cfg=settings)
        recordings = _insert_recordings(database, points, config)
        for first in range(0, len(unit), ROWS_AT_ONCE):
            rows = range(first, min(first + ROWS_AT_ONCE, len(unit)))
            windows = [{"recording_id": recordings[row], "offsets": offsets[row]} for row in rows]
            database.insert_windows_batch(windows, unit[rows.start : rows.stop], handle_duplicates="allow")
        for row, word in labels:
            kind = datatypes.LabelType.NEGATIVE if word.startswith(NOT) else datatypes.LabelType.POSITIVE
            place = (recordings[row], offsets[row])
            database.insert_annotation(*place, word.removeprefix(NOT), kind, "decar export", handle_duplicates="allow")
        database.commit()
        database.db.close()
    return len(labels)


def _hoplite() -> tuple[Any, Any, Any]:
    try:
        from ml_collections import config_dict
        from perch_hoplite.db import datatypes, sqlite_usearch_impl
    except ImportError as error:
        raise ExportError(f"--to hoplite needs perch-hoplite ({error}): pip install 'decar[hoplite]'") from error
    logging.getLogger("absl").setLevel(logging.WARNING)  # every SQL statement is logged there
    return sqlite_usearch_impl, datatypes, config_dict.ConfigDict


def _labels(table: pd.DataFrame, column: str | None) -> list[tuple[int, str]]:
    """The labels of a column, each with its row."""
    found = find_column(table.columns, column or "label")
    if found is None:
        if column:
            raise ExportError(f"{no_column(table.columns, column)}; name the column of the labels")
        return []
    cells = table[found].fillna("").astype(str).str.split(",")
    return [(row, word) for row, cell in enumerate(cells) for word in sorted({w.strip() for w in cell} - {"", NOT})]


def _insert_recordings(database: Any, points: Points, config: Callable[..., Any]) -> list[int]:
    """The number of each clip's recording in the database, which now has it, its deployment and where the sounds lie.

    A deployment is a site. Where none is known it is as in hoplite's own tools: the first folder of the name, or the
    project.
    """
    table, files = points.clips.table, points.clips.files
    root = Path(os.path.abspath(points.clips.root))
    if not all(file.is_relative_to(root) for file in files):
        root = Path(os.path.commonpath([file.parent for file in files]))
    project = root.name or "decar"
    sites, begun = texts_of(table, SITE), texts_of(table, AT)
    deployments, recordings = dict[str, int](), dict[Path, int]()
    for file, site, at, (start, _) in zip(files, sites, begun, points.clips.stretches, strict=True):
        if file not in recordings:
            name = file.relative_to(root).as_posix()
            site = site or (name.split("/")[0] if "/" in name else project)
            if site not in deployments:
                deployments[site] = database.insert_deployment(name=site, project=project)
            recordings[file] = database.insert_recording(name, began(at, start), deployments[site])
    sources = {"dataset_name": project, "base_path": str(root), "file_glob": "**/*"}
    model = {"window_size_s" if key == "window" else key: value for key, value in points.facts.items() if value}
    about = {"model_key": "decar", "embedding_dim": points.vectors.shape[1], "model_config": model}
    database.insert_metadata("audio_sources", config({"audio_globs": (config(sources),)}))
    database.insert_metadata("model_config", config(about))
    return [recordings[file] for file in files]
