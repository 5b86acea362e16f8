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

from collections.abc import Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
from markupsafe import Markup
from numpy.typing import NDArray

from decar import __version__
from decar.audio import FrontEnd, Manifest
from decar.clustering import Placed
from decar.errors import DecarError
from decar.files import whole
from decar.report import clusters as of
from decar.report.clips import Decoded, sample
from decar.report.explorer import FINAL, MAX_COLUMNS, show
from decar.report.run import FILE_NAME, SECTIONS, RunFiles, as_script, gather
from decar.report.summary import of_sounds

STATIC = files("decar.report") / "static"
SCRIPTS = ("base.js", "charts.js", "labels.js", "clips.js", "summary.js", "when.js", "tables.js")
OF_CLUSTERS = ("summary", "explorer", "recordings", "when", "map", "options")  # the sections of a page without a run
POLICY = (
    "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src data: blob:; "
    "media-src data: blob:; form-action 'none'; base-uri 'none'"
)
SERVED_POLICY = POLICY.replace("data: blob:", "'self' data: blob:") + "; connect-src 'self'"


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
