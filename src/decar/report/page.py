"""`report.html`: one self-contained page of a run, for any browser, offline.

The charts are plotly's. Compared by what a page has to carry: bokeh 1.3 MB (1.5 with WebGL), vega with vega-lite and
embed 0.8 MB, plotly 4.8 MB (its partial bundles of 1.2 and 1.5 MB are on npm only, which a wheel cannot depend on).
Plotly was chosen because one call re-draws a chart for another column, colour scheme or width without a server, because
touch, zoom and hover are in it, and because its PyPI package holds the script and needs nothing but narwhals and
packaging, which are there already. altair ships no script; bokeh needs tornado, contourpy and xyzservices.
Embedding-atlas was not tried: it is an application of its own, beside which the curves would need another library.

Names and labels never become HTML: they are embedded as JSON and shown as text nodes. A content security policy forbids
the page any request.
"""

import json
import logging
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
import pandas as pd
import xxhash
from markupsafe import Markup
from numpy.typing import NDArray

from decar import __version__
from decar.audio import FrontEnd, LogMelStore, Manifest
from decar.audio.recorded import with_clock
from decar.clustering import Placed
from decar.errors import DecarError
from decar.files import whole
from decar.models import load_encoder
from decar.report import clusters as of
from decar.report.clips import Decoded, sample
from decar.report.explorer import FINAL, show
from decar.report.final import MODEL, TABLE, cluster_store, few, write_run_clusters
from decar.report.folder import curves, read_environment, read_page, results_of
from decar.report.summary import bars, best, of_run, of_sounds

log = logging.getLogger(__name__)

FILE_NAME = "report.html"
STATIC = files("decar.report") / "static"
SCRIPTS = ("base.js", "charts.js", "labels.js", "clips.js", "summary.js", "when.js", "tables.js")
SECTIONS = {
    "summary": "Summary", "explorer": "Explorer", "recordings": "Recordings", "when": "Hours and sites", "map": "Map",
    "curves": "Curves", "clusters": "Epochs", "results": "Results", "options": "Options",
}  # fmt: skip
FORMAT = 2  # of the clips on a page; raise it when what is computed for them changes
OF_CLIPS = ("n_sounds", "explorer", "labels", "root", "frontend", "when", "clips")  # what `show` returns
OF_CLUSTERS = ("summary", "explorer", "recordings", "when", "map", "options")  # the sections of a page without a run
POLICY = (
    "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src data: blob:; "
    "media-src data: blob:; form-action 'none'; base-uri 'none'"
)
SERVED_POLICY = POLICY.replace("data: blob:", "'self' data: blob:") + "; connect-src 'self'"
MAX_COLUMNS = 16  # label columns that travel with the clips


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


def write_report(source: RunFiles, out: Path | None = None, *, device: str = "cpu", progress: bool = True) -> Path:
    """Make the page of a run; what is missing or damaged becomes a note on it.

    Args:
        source: The run.
        out: Where to; None: `report.html` in the run's folder, and beside it `clusters.csv` and `clusters.npz`.
        device: Where the encoder runs.
        progress: Show how far the embedding pass is, on stderr.

    Raises:
        DecarError: The page cannot be written.
    """
    data = gather(source, device=device, progress=progress, keep=out is None)
    return _write(data, out or source.run / FILE_NAME)


def write_cluster_page(
    out: Path,
    clips: Manifest,
    vectors: NDArray[np.float32],
    placed: Placed,
    *,
    frontend: FrontEnd,
    title: str,
    options: Mapping[str, Any],
    seed: int = 0,
    words: Sequence[str] = (),
    suggested: bool = False,
) -> Path:
    """Make the page of clusters that no training made.

    Args:
        out: Where to.
        clips: `N` clips, with `start` and `duration` where they are segments.
        vectors: `(N, D)` their embeddings.
        placed: Their clusters.
        frontend: The numbers of the spectrograms.
        title: Heading.
        options: How they were made, for the last section.
        seed: Of the sample and of the map.
        words: Labels that the page offers, beside those that are typed on it.
        suggested: The clips are all of one list, to be labelled in their order.

    Raises:
        DecarError: The page cannot be written.
    """
    chosen, table = sample(len(clips), seed), clips.table
    names = of.label_columns(table)[:MAX_COLUMNS]
    some, name = Decoded(clips.take(chosen), frontend), "suggested clips" if suggested else FINAL
    shown = show(some, table, vectors, placed, chosen, names, seed, called=name)
    data = {
        "title": title, "kind": "decar clusters", "version": __version__, "n_clips": len(clips), "curves": [],
        "clusterings": [], "summary": of_sounds(table), **shown, "results": [], "bars": [], "config": options,
        "environment": None, "notes": {}, "sections": OF_CLUSTERS, "words": [*words], "suggested": suggested,
    }  # fmt: skip
    return _write(data, out)


def _write(data: Mapping[str, Any], target: Path) -> Path:
    try:
        with whole(target) as part:
            part.write_bytes(render(data).encode("utf-8", "replace"))
    except OSError as error:
        raise DecarError(f"{target}: the page could not be written ({error.strerror or error})") from error
    return target


def gather(source: RunFiles, *, device: str = "cpu", progress: bool = True, keep: bool = False) -> dict[str, Any]:
    """All that the page shows, as plain values; `notes` has a line, by section, for what there is not.

    Args:
        source: The run.
        device: Where the encoder runs.
        progress: Show how far the embedding pass is.
        keep: Write the clusters of the final embedding to the folder of the run.
    """
    notes: dict[str, str] = {}
    run = source.run

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
    barred = bars(judged)
    return {
        "title": run.resolve().name,
        "kind": "decar run",
        "version": __version__,
        "n_clips": len(store) if store else len(assignments[0].clips) if assignments else None,
        "curves": attempt("curves", lambda: curves(run)),
        "clusterings": [clustering(found) for found in assignments or []],
        **(
            {**clips, "made_of": known, "seal": seal(clips)} if clips else {"clips": None, "labels": [], "explorer": []}
        ),
        "results": judged,
        "bars": barred,
        "config": source.config,
        "environment": attempt("environment", lambda: read_environment(run)),
        "notes": notes,
        "summary": {**(of_sounds(_lengths(store)) if store else {}), **of_run(run), "best": best(barred)},
        "sections": tuple(SECTIONS),
        "words": [],
        "suggested": False,
    }


def made_of(source: RunFiles, store: LogMelStore, assignments: list[of.Assignments]) -> str:
    """A digest of all that the clips on a page depend on."""
    encoder = load_encoder(source.run, frontend=store.frontend, network=source.network)
    facts = (
        FORMAT, encoder.hash(), store.fingerprint, os.path.abspath(store.manifest.root), source.label, source.seed,
        store.manifest.content_hash(), clustering_names(source.config, assignments),
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


def clustering(found: of.Assignments) -> dict[str, Any]:
    """Sizes and flows of one clustering."""
    return {"sizes": of.sizes(found), "flows": of.flows(found)}


def look(
    source: RunFiles, assignments: list[of.Assignments] | None, *, device: str, progress: bool, keep: bool
) -> dict[str, Any]:
    """The sampled clips with their places, labels and sounds, and the clusters with theirs.

    Raises:
        DecarError: There are no clips, or no encoder.
    """
    if not isinstance(source.store, LogMelStore):
        raise DecarError(source.store)
    encoder = load_encoder(source.run, frontend=source.store.frontend, network=source.network)
    among = few(source.store, source.seed)
    store = source.store.take(among)
    named = zip(clustering_names(source.config, assignments or []), assignments or [], strict=True)
    last = [(name, found.labels[-1][among]) for name, found in named if _same_clips(found, source.store)]
    table = with_clock(_lengths(store), store.manifest.files)
    final = cluster_store(encoder, store, seed=source.seed, device=device, progress=progress)
    if keep:
        write_run_clusters(source.run, table, final)
    chosen, names = sample(len(store), source.seed), of.label_columns(table, source.label)[:MAX_COLUMNS]
    return show(store.take(chosen), table, final.vectors, final.placed, chosen, names, source.seed, others=last)


def _lengths(store: LogMelStore) -> pd.DataFrame:
    """The clips of a store with `start` and `duration` (s) of each."""
    return store.manifest.table.assign(start=[start for start, _ in store.manifest.stretches], duration=store.seconds)


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
    known = bool(descriptors) or "NetworkLabels" in str(labels.get("_target_"))
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
    found, note = results_of(
        source.run, lambda: load_encoder(source.run, network=source.network).hash(), source.downstream
    )
    if note:
        notes["results"] = note
    return found


def render(data: Mapping[str, Any], served: Mapping[str, str] | None = None) -> str:
    """The page as HTML.

    Args:
        data: What `gather` returns, or what `data_of` read.
        served: What a page that is served needs beside it: the server's token, and its `labels.csv`.
    """
    text = {name: (STATIC / name).read_text(encoding="utf-8") for name in ("page.html", "page.css", *SCRIPTS)}
    plotly = (files("plotly") / "package_data" / "plotly.min.js").read_text(encoding="utf-8")
    page = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined).from_string(text["page.html"])
    data = {**data, "served": served}
    return page.render(
        data=data, sections=[(id, SECTIONS[id]) for id in sections_of(data)], css=Markup(text["page.css"]),
        json=as_script(data), plotly=Markup(plotly), js=Markup("\n".join(text[name] for name in SCRIPTS)),
        policy=Markup(SERVED_POLICY if served else POLICY),
    )  # fmt: skip


def sections_of(data: Mapping[str, Any]) -> list[str]:
    """The sections of a page that have something in them, or a note why not."""
    when = data.get("when") or {}
    empty = {
        "recordings": data["suggested"] or not when.get("lines", {}).get("recordings"),
        "when": not (when.get("hours") or when.get("sites")),
        "curves": not (data["curves"] or "curves" in data["notes"]),
    }
    return [name for name in data["sections"] if not empty.get(name)]


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


def _same_clips(found: of.Assignments, store: LogMelStore) -> bool:
    """Whether an assignment is of the clips of this store, in this order."""
    same = len(found.clips) == len(store) and found.clips["clip"].tolist() == store.manifest.table["path"].tolist()
    if not same:
        log.warning("report: clusters.parquet is of other clips than the manifest lists now")
    return same
