"""`decar cluster`: a folder of recordings to clusters, with tables, labels for Audacity and Raven, and a page."""

from __future__ import annotations

import argparse
import logging
import os
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from decar.audio import Manifest, ffmpeg
from decar.audio.annotations import check_annotations, write_annotations
from decar.audio.clips import Segment, as_segment
from decar.audio.progress import progress_bar
from decar.audio.recorded import with_clock
from decar.cli.bundles import check_numbers, embedder_of, source_of
from decar.cli.terminal import say, start_log
from decar.clustering import Clusters, Placed, make_clusters
from decar.clustering.choose import plausible
from decar.clustering.model import MAX_POINTS
from decar.digests import digest_of
from decar.embedder import Embedder, log_left_out
from decar.embedder.output import read_bad, write_rows
from decar.errors import ConfigError, DecarError, SearchError, check_whole
from decar.files import advice, locked, whole
from decar.models.bundle import REMOTE, exact_name
from decar.models.other import PREFIXES
from decar.neighbours.index import EmbeddingTable
from decar.report import write_cluster_page
from decar.report.final import FOUND, MODEL, TABLE, write_clusters

log = logging.getLogger(__name__)

EMBEDDINGS = "embeddings.parquet"
NOISE = "noise"


def cluster(args: argparse.Namespace) -> None:
    """Embed, cluster or place in clusters that there are, write what was found."""
    start_log(logging.INFO)
    check_numbers(args)
    _check_kmeans(args)
    like, bundle = _clusters_of(args.like, args) if args.like else (None, args.bundle or "small")
    segment = as_segment(args.segment or (like.facts["segment"] if like else "auto"))
    clips = source_of(args)
    embedder = embedder_of(args, bundle, segment)
    if like:
        like.require_encoder(embedder.encoder.hash())
    with claimed(args.out, args.out / ".lock"):
        check_annotations(args.out)
        check_ours(args.out / TABLE)
        _cluster(args, clips, embedder, bundle, segment, like)


def _cluster(
    args: argparse.Namespace, clips: Manifest, embedder: Embedder, bundle: str, segment: Segment, like: Clusters | None
) -> None:
    table, vectors = embedded(clips, embedder, args.out, bundle)
    files = recordings_of(clips.root, table)
    table = with_clock(table, files.tolist())
    log.info("%d recordings, %s → %d %s", files.nunique(), _hours(table["duration"].sum()), len(table), _rows(segment))
    if like:
        model, placed = like, like.place(vectors)
    else:
        facts = {"encoder": embedder.encoder.hash(), "bundle": bundle_named(bundle), "segment": segment}
        steps = len(plausible(len(vectors))) if args.clusterer == "kmeans" and args.k == "auto" else 0
        with progress_bar("choose k", steps, enabled=steps > 0 and sys.stderr.isatty()) as advance:
            model, placed = make_clusters(
                vectors, files.to_numpy(), method=args.clusterer, k=args.k, seed=args.seed,
                max_points=args.max_points or MAX_POINTS, facts=facts, advance=advance,
            )  # fmt: skip
    with writing(args.out):
        with remade(args.out / TABLE):
            table = write_clusters(args.out, table, placed, model)
        labels = [NOISE if number < 0 else f"cluster {number}" for number in table["cluster"]]
        write_annotations(args.out, table.assign(file=files), labels, embedder.encoder.sample_rate / 2)
    page = _page(args, table, clips, vectors, placed, embedder, model)
    say(summary(model, placed, args))
    say(f"{args.out / TABLE}: a row a segment with cluster, distance, novelty; labels for Audacity and Raven beside it")
    say(f"look at it: {page}")
    say(f"new sounds: decar cluster FOLDER --like {args.out} --out NEW")


def _check_kmeans(args: argparse.Namespace) -> None:
    """Refuse the options of K-Means where they are no numbers of clusters and segments, or nothing reads them."""
    given = {"-k": None if args.k == "auto" else args.k, "--max-points": args.max_points}
    others = {"-k": "finds their number itself", "--max-points": "takes all segments"}
    for name, value in given.items():
        if value is None:
            continue
        check_whole(name, value, 2)
        if args.clusterer != "kmeans" or args.like:
            own = f"{args.clusterer} {others[name]}"
            raise ConfigError(
                f"{name} {value}: {'--like takes the clusters that there are' if args.like else own}; leave it out"
            )


def summary(model: Clusters, placed: Placed, args: argparse.Namespace) -> str:
    """What was found, in a line."""
    noise = int((placed.labels < 0).sum())
    used = len(np.unique(placed.labels[placed.labels >= 0]))
    if args.like:
        novelty = f"median novelty {np.median(placed.novelty):.2f}"
        text = f"in {used} of the {len(model.centres)} clusters of {args.like}; {novelty}"
    else:
        chosen = model.method == "kmeans" and args.k == "auto"
        text = f"{used} clusters by {model.method}" + (" (k chosen)" if chosen else "")
    return text + (f", {noise / len(placed.labels):.0%} of the clips are noise" if noise else "")


def _clusters_of(place: Path, args: argparse.Namespace) -> tuple[Clusters, str]:
    """The clusters that `--like` names, a file or a folder that holds `clusters.npz`, and their encoder.

    Raises:
        ConfigError: An option contradicts them.
        DecarError: There are none, or nothing is known of their encoder that may be loaded unasked.
    """
    if args.clusterer != "kmeans":
        raise ConfigError(f"--clusterer {args.clusterer} with --like: the clusters are there already; leave it out")
    file = place / MODEL if place.is_dir() else place
    if place.is_dir() and not file.is_file():
        raise DecarError(f"{place}: no {MODEL} in there; `decar cluster SOURCE --out {place}` writes one")
    if args.out.is_dir() and file.is_file() and file.parent.samefile(args.out):
        raise ConfigError(f"--out {args.out}: holds the clusters of --like and what they were made from; give another")
    found = Clusters.load(file)
    wanted, bundle, segment = (found.facts.get(key) for key in ("encoder", "bundle", "segment"))
    if not (isinstance(wanted, str) and isinstance(bundle, str) and isinstance(segment, str | float)):
        raise DecarError(f"{file}: does not say which encoder it was made with; `decar cluster` writes that")
    return found, may_load(file, bundle, args.bundle) or str(file.parent)


def bundle_named(bundle: str) -> str:
    """The name of a bundle as files keep it: of one that lies here, where."""
    return str(Path(bundle).resolve()) if bundle != "small" and Path(bundle).exists() else exact_name(bundle)


def may_load(file: Path, bundle: str, given: str | None) -> str:
    """The bundle to load: the one that the user names, else the one that a file was made with.

    Raises:
        DecarError: The file names one that would have to be downloaded or imported.
    """
    if given is None and bundle.startswith((*REMOTE, *PREFIXES)):
        raise DecarError(
            f"{file} was made with {bundle}: nothing is downloaded or imported because a file says so; if you trust "
            f"it, pass --bundle {bundle}"
        )
    return given or bundle


@contextmanager
def claimed(out: Path, lock: Path) -> Iterator[None]:
    """Keep other calls out of the results `out`: files of two calls would make one set of them.

    Raises:
        DecarError: Another call writes them, or the folder of the lock file cannot be made.
    """
    with ExitStack() as stack:
        try:
            with writing(out):
                lock.parent.mkdir(parents=True, exist_ok=True)
            stack.enter_context(locked(lock))
        except BlockingIOError as error:
            raise DecarError(f"{out}: {error.strerror}; wait until it has ended, or give another --out") from None
        yield


def check_ours(file: Path) -> None:
    """Refuse to write over results that somebody has corrected, or that are somebody else's, as `check_annotations`.

    Raises:
        DecarError: The file is not as `remade` left it; where a call was killed, nothing is known of it.
    """
    mark = _mark(file)
    if not file.is_file():
        return
    if not mark.is_file():
        raise DecarError(f"--out {file}: is not of an earlier call: rename it, or give another --out")
    known = mark.read_text()
    if known and known != digest_of(file):
        raise DecarError(
            f"--out {file}: has been changed since decar wrote it, and would be overwritten: rename it, or give "
            "another --out"
        )


@contextmanager
def remade(file: Path) -> Iterator[None]:
    """Note what is in a file of results once the block has written it, in a hidden file beside it."""
    mark = _mark(file)
    with whole(mark) as part:
        part.write_text("")  # of a call that is killed
    yield
    with whole(mark) as part:
        part.write_text(digest_of(file))


def _mark(file: Path) -> Path:
    return file.with_name(f".{file.name}.decar")


@contextmanager
def writing(out: Path) -> Iterator[None]:
    """What cannot be written is an error that says what to do."""
    try:
        yield
    except OSError as error:
        raise DecarError(
            f"{error.filename or out}: cannot be written ({error.strerror or error}): {advice(error)}"
        ) from error


def embedded(clips: Manifest, embedder: Embedder, out: Path, bundle: str) -> tuple[pd.DataFrame, NDArray[np.float32]]:
    """A row a segment, with `start` and `duration`, and the vectors; of the last call, where nothing has changed."""
    file = out / EMBEDDINGS
    if file.is_file():
        try:
            known, bad = EmbeddingTable.open(file), read_bad(file)
            if known.facts.get("key") == embedder.key(clips) and not ffmpeg.would_help(bad["reason"].astype(str)):
                vectors, root = known.vectors(), os.path.abspath(clips.root)
                if known.root != Path(root):  # the sounds have been moved
                    write_rows(file, known.rows, vectors, {**known.facts, "root": root})
                log_left_out(bad, len(clips), file)
                log.info("%s: of these sounds, taken again", file)
                return known.rows, vectors
        except SearchError as error:
            log.warning("%s; the sounds are embedded anew", error)
    made = embedder.write(clips, file, name=bundle)
    return made.table, made.vectors


def recordings_of(root: Path, table: pd.DataFrame) -> pd.Series:
    """The absolute path of each row's recording; relative ones start from `root`."""
    root = Path(os.path.abspath(root))
    return table["path"].map(lambda path: os.path.normpath(os.path.join(root, path)))


def root_of(known: EmbeddingTable, given: Path | None) -> Path:
    """The folder that relative paths of a table start from.

    Raises:
        ConfigError: It is not given, and the table does not say.
    """
    root = given or known.root
    if root is None and not all(map(os.path.isabs, known.rows["path"])):
        raise ConfigError(f"{known.file}: its paths are relative: pass --root, the folder that they start from")
    return root or Path.cwd()


def _page(
    args: argparse.Namespace,
    table: pd.DataFrame,
    clips: Manifest,
    vectors: NDArray[np.float32],
    placed: Placed,
    embedder: Embedder,
    model: Clusters,
) -> Path:
    options: dict[str, Any] = {
        "source": str(args.source), "bundle": model.facts["bundle"], "segment": model.facts["segment"],
        "clusterer": model.method, "k": args.k, "like": str(args.like) if args.like else None, "seed": args.seed,
    }  # fmt: skip
    source = Path(args.source)
    return write_cluster_page(
        args.out / "report.html", Manifest(table.drop(columns=[*FOUND]), clips.root), vectors,
        placed, frontend=embedder.encoder.frontend, title=source.resolve().name if source.exists() else args.out.name,
        options=options, seed=args.seed,
    )  # fmt: skip


def _hours(seconds: float) -> str:
    return (
        f"{seconds / 3600:.1f} h"
        if seconds >= 3600
        else f"{seconds / 60:.1f} min"
        if seconds >= 60
        else f"{seconds:.1f} s"
    )


def _rows(segment: Segment) -> str:
    """What a row of the table is, for the log."""
    if segment == "none":
        return "clips"
    return "segments of 5 s, or whole clips of up to 15 s" if segment == "auto" else f"segments of {segment:g} s"
