"""What the page of a run shows, from its folder and its clips, as plain values."""

import json
import logging
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import xxhash
from markupsafe import Markup
from numpy.typing import NDArray

from decar import __version__
from decar.audio import LogMelStore
from decar.audio.recorded import with_clock
from decar.errors import DecarError
from decar.models import Encoder, load_encoder
from decar.report import clusters as of
from decar.report.clips import sample
from decar.report.explorer import MAX_COLUMNS, show
from decar.report.final import MODEL, TABLE, cluster_store, few, with_places, write_clusters
from decar.report.folder import curves, read_environment, results_of
from decar.report.summary import bars, best, of_run, of_sounds

log = logging.getLogger(__name__)

FILE_NAME = "report.html"
MOST_BYTES = 2**26  # of a page
BEGIN, END = b'<script type="application/json" id="data">', b"</script>"
SECTIONS = {
    "summary": "Summary", "explorer": "Explorer", "recordings": "Recordings", "when": "Hours and sites", "map": "Map",
    "curves": "Curves", "clusters": "Epochs", "results": "Results", "options": "Options",
}  # fmt: skip
FORMAT = 3  # of the clips on a page; raise it when what is computed for them changes
OF_CLIPS = ("n_sounds", "explorer", "labels", "root", "frontend", "when", "clips")  # what `show` returns


@dataclass(frozen=True)
class RunFiles:
    """The sources of a page.

    Attributes:
        run: Folder of the run.
        config: All its options, as plain values.
        store: Its usable clips; or why there are none, for the page to say.
        label: The column that the run watched.
        seed: Of the sample and of the map.
        downstream: More folders to look for results in.
        network: The class of the encoder's network, where it is not one of decar's.
    """

    run: Path
    config: Mapping[str, Any]
    store: LogMelStore | str
    label: str | None = None
    seed: int = 0
    downstream: Sequence[Path] = ()
    network: Callable[..., Any] | None = None

    @cached_property
    def encoder(self) -> Encoder:
        """The run's encoder.

        Raises:
            BundleError: There is none, or it does not fit the log-mels of the clips.
        """
        frontend = self.store.frontend if isinstance(self.store, LogMelStore) else None
        return load_encoder(self.run, frontend=frontend, network=self.network)

    def last_clips(self) -> tuple[NDArray[np.int64], LogMelStore, pd.DataFrame]:
        """The clips that are clustered at the end of the run: their places in the store, they, and a table of them.

        Raises:
            DecarError: There are no clips.
        """
        if isinstance(self.store, str):
            raise DecarError(self.store)
        places = few(self.store, self.seed)
        store = self.store.take(places)
        return places, store, with_clock(with_places(store), store.manifest.files)


def gather(source: RunFiles, *, device: str = "cpu", progress: bool = True, keep: bool = False) -> dict[str, Any]:
    """All that the page shows, as plain values; `notes` has a line, by section, for what there is not.

    Args:
        source: The run.
        device: Where the encoder runs.
        progress: Show how far the embedding pass is.
        keep: Write the clusters of the final embedding to the folder of the run.
    """
    notes: dict[str, str] = {}
    source, run = replace(source), source.run  # a fresh copy: the encoder may have changed since the last page

    def attempt(section: str, make: Callable[[], Any]) -> Any:
        try:
            return make()
        except DecarError as error:
            notes[section] = str(error)
        except Exception as error:  # one section that cannot be made costs that section
            log.warning("report: section %s could not be made", section, exc_info=True)
            notes[section] = f"could not be made: {type(error).__name__}: {error}"
        return None

    assignments: list[of.Assignments] | None = attempt(
        "clusters", lambda: of.read_assignments(run / "clusters.parquet")
    )
    if assignments and assignments[0].damaged:
        notes["clusters"] = f"Damaged and left out: {', '.join(assignments[0].damaged)} of clusters.parquet."
    elif assignments and assignments[0].skipped:
        notes["clusters"] = f"The first {assignments[0].skipped} epochs of this long log of assignments are left out."
    store = source.store if isinstance(source.store, LogMelStore) else None
    known = attempt("map", lambda: made_of(source, store, assignments or [])) if store is not None else None
    clips = kept_clips(run, known) if keep and known else None
    clips = clips or attempt("map", lambda: look(source, assignments, device=device, progress=progress, keep=keep))
    judged = attempt("results", lambda: results(source, notes)) or []
    barred = attempt("results", lambda: bars(judged)) or []
    sounds = attempt("summary", lambda: of_sounds(with_places(store)) if store else {}) or {}
    return {
        "title": run.resolve().name,
        "kind": "decar run",
        "version": __version__,
        "summary": {**sounds, **(attempt("summary", lambda: of_run(run)) or {}), "best": best(barred)},
        "n_clips": len(store) if store else len(assignments[0].clips) if assignments else None,
        "curves": attempt("curves", lambda: curves(run)),
        "clusterings": [{"sizes": of.sizes(found), "flows": of.flows(found)} for found in assignments or []],
        **(
            {**clips, "made_of": known, "seal": seal(clips)} if clips else {"clips": None, "labels": [], "explorer": []}
        ),
        "results": judged,
        "bars": barred,
        "config": source.config,
        "environment": attempt("environment", lambda: read_environment(run)),
        "notes": notes,
        "sections": tuple(SECTIONS),
        "words": [],
        "suggested": False,
    }


def made_of(source: RunFiles, store: LogMelStore, assignments: list[of.Assignments]) -> str:
    """A digest of all that the clips on a page depend on."""
    facts = (
        FORMAT, source.encoder.hash(), store.fingerprint, os.path.abspath(store.manifest.root), source.label,
        source.seed, store.manifest.content_hash(), clustering_names(source.config, assignments),
    )  # fmt: skip
    digest = xxhash.xxh3_128(json.dumps(facts).encode())
    for found in assignments:
        digest.update(found.labels[-1].tobytes())
    return digest.hexdigest()


def kept_clips(run: Path, wanted: str) -> dict[str, Any] | None:
    """The clips of the page that a run has, if they were made of the same, are undamaged, and the tables are there."""
    if not all((run / name).is_file() for name in (FILE_NAME, TABLE, MODEL)):
        return None
    try:
        data = read_page(run / FILE_NAME)
        clips = {key: data[key] for key in OF_CLIPS}
    except (OSError, ValueError, KeyError):
        return None
    same = (data.get("made_of"), data.get("seal")) == (wanted, seal(clips))
    return clips if same else None


def seal(clips: Mapping[str, Any]) -> str:
    """A digest of the clips of a page, as they stand in it."""
    return xxhash.xxh3_128_hexdigest(as_script({key: clips[key] for key in OF_CLIPS}).encode())


def look(
    source: RunFiles, assignments: list[of.Assignments] | None, *, device: str, progress: bool, keep: bool
) -> dict[str, Any]:
    """The sampled clips with their places, labels and sounds, and the clusters with theirs.

    Raises:
        DecarError: There are no clips, or no encoder.
    """
    among, store, table = source.last_clips()
    assert isinstance(source.store, LogMelStore)  # or there were no such clips
    named = zip(clustering_names(source.config, assignments or []), assignments or [], strict=True)
    last = [(name, found.labels[-1][among]) for name, found in named if _same_clips(found, source.store)]
    vectors, model, placed = cluster_store(source.encoder, store, seed=source.seed, device=device, progress=progress)
    if keep:
        try:
            write_clusters(source.run, table, placed, model)
        except OSError as error:
            reason = error.strerror or error
            log.warning("%s: the clusters of the run are not written (%s)", error.filename or source.run, reason)
    chosen, names = sample(len(store), source.seed), of.label_columns(table, source.label)[:MAX_COLUMNS]
    return show(store.take(chosen), table, vectors, placed, chosen, names, source.seed, others=last)


def clustering_names(config: Mapping[str, Any], assignments: Sequence[of.Assignments]) -> list[str]:
    """What each clustering of a run is of: a descriptor, or the network's own vectors in an epoch.

    Args:
        config: The run's options; where they do not tell, as in those of an own `labels`, a number is the name.
        assignments: The run's clusterings.
    """
    labels = config.get("labels")
    labels = labels if isinstance(labels, Mapping) else {}
    first = labels.get("first", labels)
    found = first.get("descriptors") if isinstance(first, Mapping) else None
    descriptors = [str(name) for name in found] if isinstance(found, list) else []
    known = bool(descriptors) or str(labels.get("_target_")).endswith((".NetworkLabels", ".OnlineLabels"))
    return [
        descriptors[i]
        if i < len(descriptors)
        else f"own, epoch {one.epochs[-1] + 1}"
        if known
        else f"clustering {i + 1}"
        for i, one in enumerate(assignments)
    ]


def results(source: RunFiles, notes: dict[str, str]) -> list[dict[str, Any]]:
    """The downstream results of the run's encoder.

    Raises:
        DecarError: There is none.
    """
    found, note = results_of(source.run, lambda: source.encoder.hash(), source.downstream)
    if note:
        notes["results"] = note
    return found


def _same_clips(found: of.Assignments, store: LogMelStore) -> bool:
    """Whether an assignment is of the clips of this store, in this order."""
    listed, there = found.clips["clip"].tolist(), store.manifest.table["path"].tolist()
    same: bool = listed == there
    if not (same or set(listed) < set(there)):  # labels=online has clusters of a sample
        log.warning("report: clusters.parquet is of other clips than the manifest lists now")
    return same


def as_script(data: Any) -> Markup:
    """JSON that can stand in a script element: no `<`, no `&`, and null for what is not finite."""
    text = json.dumps(_plain(data), ensure_ascii=True, allow_nan=False, separators=(",", ":"))
    for sign in "<>&":
        text = text.replace(sign, f"\\u{ord(sign):04x}")
    return Markup(text)


def _plain(value: Any) -> Any:
    """Keys as text; NaN and infinities, which JSON has not, as null."""
    if isinstance(value, Mapping):
        return {str(key): _plain(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(entry) for entry in value]
    value = value.item() if isinstance(value, np.generic) else value
    if isinstance(value, float) and not np.isfinite(value):
        return None
    return value if isinstance(value, (str, int, float, bool, type(None))) else str(value)


def read_page(page: Path) -> dict[str, Any]:
    """The data in a page, as values; nothing else of it is looked at.

    Raises:
        OSError: It cannot be read.
        ValueError: It is no page of decar's, or a damaged one.
    """
    if page.stat().st_size > MOST_BYTES:
        raise ValueError(f"larger than {MOST_BYTES} bytes")
    content = page.read_bytes()
    begin = content.find(BEGIN)
    end = content.find(END, begin)
    try:
        data = json.loads(content[begin + len(BEGIN) : end]) if 0 <= begin < end else None
    except RecursionError:
        data = None
    if not isinstance(data, dict) or not isinstance(data.get("title"), str):
        raise ValueError("not a page of decar's, or a damaged one")
    return data
