"""`decar fit`, `predict`, `suggest`: labels to a classifier, its scores on recordings, and what to label next."""

from __future__ import annotations

import argparse
import contextlib
import logging
import os
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from decar.audio import FrontEnd, Manifest, decode
from decar.audio.annotations import check_annotations, write_annotations
from decar.audio.clips import Segment, as_segment
from decar.audio.columns import beside_ours, find_column, no_column, normal
from decar.audio.remote import refuse_addresses
from decar.cli.bundles import as_text, check_numbers, embedder_of, source_of
from decar.cli.clusters import (
    bundle_named,
    check_ours,
    claimed,
    embedded,
    may_load,
    recordings_of,
    remade,
    root_of,
    writing,
)  # fmt: skip
from decar.cli.terminal import say, say_lines, start_log
from decar.clustering import Placed
from decar.downstream import to_markdown
from decar.downstream.classifier import Classifier, Examples, fit_classifier, read_examples, words_of
from decar.downstream.suggest import suggest as choose
from decar.errors import AudioError, ConfigError, DecarError, SearchError, TaskError, check_whole, require
from decar.files import whole, write_table
from decar.neighbours.index import EmbeddingTable
from decar.report import write_cluster_page

log = logging.getLogger(__name__)

Place = tuple[str, float, float | None]  # file, start and duration (s) of a labelled stretch
ROW = "row"  # column of the number of an example
SCORE = "score_"  # before a label, as the name of a column
MEASURES = ("average_precision", "precision", "recall", "f1")
# options that say how sounds are embedded
OF_SOUNDS = ("segment", "bundle", "network", "device", "workers", "engine", "address", "jobs", "slurm", "fetch")
LIKE_AUTO = (2.5, 7.5)  # s: labelled stretches for which segments of 5 s will do
LONG = 15.0  # s: a clip that is labelled as a whole and longer than that deserves a warning


def fit(args: argparse.Namespace) -> None:
    """Write the classifier and its card."""
    start_log(logging.INFO)
    check_numbers(args)
    card = args.out.with_suffix(".md")
    require(card != args.out, f"--out {args.out}: that is the name of the card; give one in .safetensors")
    check_ours(card)
    examples = _examples(args).for_fit()
    bundle = args.bundle or "small"
    embedder = embedder_of(args, bundle, "none")
    numbered = examples.clips.table.assign(**{ROW: range(len(examples.clips))})
    made = embedder.files(Manifest(numbered, examples.clips.root), progress=True)
    for path, reason in made.bad[["path", "reason"]].to_numpy():
        log.warning("%s: left out: %s", path, reason)
    if not len(made.vectors):
        raise DecarError(f"none of the {len(examples.clips)} labelled clips can be embedded; the lines above say why")
    if len(made.bad):
        names, examples = examples.names, examples.take(made.table[ROW].to_numpy())
        for name in sorted({*names} - {*examples.names}):
            log.warning("%s: none of its clips can be embedded, so the classifier does not know it", name)
    segment = as_segment(args.segment) if args.segment else _segment_for(examples.clips, made.table)
    facts = {"encoder": embedder.encoder.hash(), "bundle": bundle_named(bundle), "segment": segment}
    classifier = fit_classifier(made.vectors, examples, group=args.group, seed=args.seed, facts=facts)
    with writing(args.out):
        classifier.save(args.out)
        with remade(card), whole(card) as part:
            part.write_text(card_of(classifier, args.out.name), encoding="utf-8")
    say_lines(_table(classifier, str))
    say()
    say(f"{args.out}: fitted to {classifier.facts['clips']} clips; its card: {card}")
    say(f"use it: decar predict SOURCE --classifier {args.out}")


def predict(args: argparse.Namespace) -> None:
    """Write a row a segment with scores, and labels for Audacity and Raven."""
    start_log(logging.INFO)
    check_numbers(args)
    classifier = Classifier.load(args.classifier)
    with claimed(args.out, args.out.with_name(f".{args.out.name}.lock")):
        check_annotations(args.out.with_suffix(""))
        check_ours(args.out)
        _predict(args, classifier)


def _predict(args: argparse.Namespace, classifier: Classifier) -> None:
    table, files, vectors, rate = _segments(args, classifier, args.out.with_suffix(""))
    scores = classifier.scores(vectors)
    columns = _score_columns(classifier, scores)
    place = ["path", "start", "duration"]
    found = table[place].assign(label=classifier.labels(scores), **columns)
    found = found.join(beside_ours(table.drop(columns=place), ("label", *columns)))
    with writing(args.out):
        with remade(args.out):
            write_table(found, args.out)
        write_annotations(args.out.with_suffix(""), found.assign(file=files), found["label"].tolist(), rate / 2)
    say(f"{args.out}: {len(found)} rows, {int((found['label'] != '').sum())} with a label; "
        f"for Audacity and Raven: {args.out.with_suffix('')}")  # fmt: skip
    for name in classifier.names:
        n = int(found["label"].str.split(",").map(lambda words, name=name: name in words).sum())
        say(f"  {name}: {n}")


def suggest(args: argparse.Namespace) -> None:
    """Write the clips to label next, and a page on which to label them."""
    start_log(logging.INFO)
    check_numbers(args)
    check_whole("-n", args.n, 1)
    classifier = Classifier.load(args.classifier) if args.classifier else None
    with claimed(args.out, args.out.with_name(f".{args.out.name}.lock")):
        check_ours(args.out)
        _suggest(args, classifier)


def _suggest(args: argparse.Namespace, classifier: Classifier | None) -> None:
    table, files, vectors, _ = _segments(args, classifier, args.out.with_suffix(""))
    examples = _examples(args) if args.labels else None
    labelled = _overlapping(table, files, examples.clips) if examples else np.empty(0, np.int64)
    if examples:
        _say_missing(set(examples.clips.table["path"]), set(files), args.source)
    known = classifier.names if classifier else examples.names if examples else []
    rows = choose(vectors, labelled, classifier, args.n, args.seed)
    if not len(rows):
        raise DecarError("every clip has a label already: nothing to suggest")
    found = table.iloc[rows][["start", "duration"]].reset_index(drop=True)
    found.insert(0, "path", files.iloc[rows].to_numpy())
    if classifier:
        scores = classifier.scores(vectors[rows])
        found = found.assign(guess=classifier.labels(scores), **_score_columns(classifier, scores))
    nothing = np.zeros(len(rows), np.float32)
    with writing(args.out), remade(args.out):
        write_table(found, args.out)
    home = os.path.commonpath([os.path.dirname(file) for file in found["path"]])
    shown = found.assign(path=[os.path.relpath(file, home) for file in found["path"]])
    page = write_cluster_page(
        args.out.with_suffix(".html"), Manifest(shown, home), vectors[rows],
        Placed(np.zeros(len(rows), np.int64), nothing, nothing), frontend=FrontEnd(), title="Clips to label",
        options={"source": str(args.source), "classifier": str(args.classifier or "")}, seed=args.seed,
        words=known, suggested=True,
    )  # fmt: skip
    say(f"{args.out}: {len(rows)} clips to label next. Label them on {page}, or in a column `label` of the table")
    say(f"decar page {shlex.quote(str(page))} --serve plays them in full, and saves the labels as you give them")
    say(f"then: decar fit {shlex.join(dict.fromkeys([*map(str, args.labels), str(args.out.parent / 'labels.csv')]))}")


def _say_missing(labelled: set[str], there: set[str], source: object) -> None:
    """Count and name labelled recordings that SOURCE does not have: they may be of elsewhere, or have been moved."""
    missing = sorted(labelled - there)
    if len(missing) == len(labelled):
        log.warning(
            "none of the labelled recordings is in %s, so any of its clips may be suggested; %s is one of them",
            source, missing[0],
        )  # fmt: skip
    elif missing:
        log.info(
            "%d of %d labelled recordings are not in %s, such as %s", len(missing), len(labelled), source, missing[0]
        )


def card_of(classifier: Classifier, name: str) -> str:
    """The card of a classifier, as Markdown."""
    facts = {key: value for key, value in classifier.facts.items() if key != "encoder"}
    lines = [f"| {as_text(key)} | {as_text(value)} |" for key, value in facts.items()]
    return "\n".join([
        f"# {as_text(name)}", "",
        "A classifier of sounds, fitted by `decar fit` to labelled stretches of recordings.", "",
        *_table(classifier, as_text).splitlines(), "",
        _validated(classifier), "",
        "| | |", "|---|---|", *lines, "",
    ])  # fmt: skip


def _validated(classifier: Classifier) -> str:
    """What its figures were measured on."""
    same = "The thresholds were chosen on the same clips, so the last three are somewhat too good."
    measures = "Average precision, precision, recall and F1 are of clips"
    if valid := classifier.facts.get("valid"):
        measures = measures.replace("of clips", f"of the {valid} clips of split valid")
        return f"{measures}, to which the classifier was not fitted. {same}"
    if classifier.facts.get("recordings") == 1:
        return (
            f"All labelled clips are of one recording. {measures} of it that the classifier had not seen, so all are "
            f"too good for other recordings. {same}"
        )
    return f"{measures} whose recordings the classifier had not seen. {same}"


def _table(classifier: Classifier, written: Callable[[str], str]) -> str:
    """A row a label, its name as `written` gives it, with what validation says."""
    rows = {
        written(name): {
            **{key: f"{value:.0f}" for key, value in found.items() if key not in MEASURES},
            **{key.replace("_", " "): f"{found[key]:.2f}" if key in found else "–" for key in MEASURES},
            "threshold": f"{threshold:.2f}",
        }
        for (name, found), threshold in zip(classifier.validation.items(), classifier.thresholds, strict=True)
    }
    return to_markdown(pd.DataFrame.from_dict(rows, orient="index").rename_axis("label"))


def _examples(args: argparse.Namespace) -> Examples:
    """What the tables of labels hold, by absolute paths.

    A column is called as in the first table that has it: `Site` of one table and `site` of another are one. A stretch
    that is in several tables has the labels of all of them.

    Raises:
        TaskError: A table has no column of labels, or the labels make no sense.
    """
    parts, spelled = list[pd.DataFrame](), dict[str, str]()
    for source in args.labels:
        clips = Manifest.from_path(source, root=args.root, path_column=args.path_column)
        refuse_addresses(clips.table["path"])
        label = find_column(clips.table, args.column)
        if label is None:
            raise TaskError(f"{source}: {no_column(clips.table, args.column)}; name the column of the labels")
        table = clips.table.rename(columns={label: args.column})
        others = {name: spelled.setdefault(normal(name), name) for name in map(str, table) if name != args.column}
        if len({*others.values(), args.column}) == len(table.columns):
            table = table.rename(columns=others)
        parts.append(table.assign(path=recordings_of(clips.root, clips.table)))
    if split := spelled.get("split"):  # a table without splits beside one that has some
        parts = [part if split in part else part.assign(**{split: "train"}) for part in parts]
    _say_differences(parts, [*map(str, args.labels)], args.column)
    try:
        return read_examples(Manifest(pd.concat(parts, ignore_index=True), Path.cwd()), args.column)
    except TaskError as error:
        raise TaskError(f"{', '.join(map(str, args.labels))}: {error}") from None


def _say_differences(tables: list[pd.DataFrame], names: list[str], column: str) -> None:
    """Count the stretches to which tables give different labels, and name the first of them."""
    known, found = dict[Place, tuple[str, set[str]]](), dict[Place, str]()
    for table, name in zip(tables, names, strict=True):
        here = dict[Place, set[str]]()
        stretches = Manifest(table, Path.cwd(), understood=True).stretches
        for path, stretch, cell in zip(table["path"], stretches, table[column].fillna(""), strict=True):
            here.setdefault((path, *stretch), set()).update(words_of(cell))
        for place, words in here.items():
            before, others = known.setdefault(place, (name, words)) if words else (name, words)
            if words != others:
                one, two = (",".join(sorted(labels)) for labels in (others, words))
                found.setdefault(place, f"{place[0]} at {place[1]:g} s has '{one}' in {before} and '{two}' in {name}")
    if found:
        log.warning(
            "%d labelled stretches have other labels in another table, and get those of all tables: %s",
            len(found), next(iter(found.values())),
        )  # fmt: skip


def _segment_for(clips: Manifest, table: pd.DataFrame) -> Segment:
    """How recordings are cut for this classifier: as the labelled stretches were, if stretches were labelled."""
    starts = np.array([start for start, _ in clips.stretches])
    stretched = (starts > 0) | np.array([seconds is not None for _, seconds in clips.stretches])
    if not (starts > 0).any():
        stretched &= _go_on(clips, np.flatnonzero(stretched))
    seconds = table["duration"].to_numpy(float)
    whole_clips = seconds[~stretched]
    if len(whole_clips) and np.median(whole_clips) > LONG:
        log.warning(
            "clips of %.0f s are labelled as a whole; recordings are judged by segments of 5 s: label stretches, with "
            "start and duration", np.median(whole_clips),
        )  # fmt: skip
    if not stretched.any():
        return "auto"
    usual = float(np.median(seconds[stretched]))
    if LIKE_AUTO[0] <= usual <= LIKE_AUTO[1]:
        return "auto"
    log.info("the labelled stretches are of %.1f s, so recordings will be cut into segments of that length", usual)
    return round(usual, 1)


def _go_on(clips: Manifest, rows: NDArray[np.int64]) -> NDArray[np.bool_]:
    """`(N,)`: which of some clips are of files that have more than one segment of their length.

    A start of 0 and a duration may also be all of the file.
    """
    found = np.zeros(len(clips), np.bool_)
    for row in rows:
        [(file, start, seconds)] = clips.take([row]).jobs
        with contextlib.suppress(AudioError):
            rest = decode(file, start=start + 1.5 * (seconds or 0.0), duration=0.1, note=lambda _: None)
            found[row] = seconds is not None and len(rest) > 0
    return found


def _segments(
    args: argparse.Namespace, classifier: Classifier | None, folder: Path
) -> tuple[pd.DataFrame, pd.Series, NDArray[np.float32], int]:
    """A row a segment of SOURCE, its recording, its embedding, and the rate of the encoder (Hz).

    SOURCE may be what `decar embed` or `decar cluster` has written: its embeddings are taken.
    """
    known = _written(args.source)
    if known is not None:
        return _taken(known, args, classifier)
    bundle = args.bundle or "small"
    segment = as_segment(args.segment or "auto")
    if classifier:
        bundle = may_load(args.classifier, str(classifier.facts.get("bundle")), args.bundle)
        segment = as_segment(args.segment or classifier.facts.get("segment", "auto"))
    embedder = embedder_of(args, bundle, segment)
    if classifier:
        classifier.require_encoder(embedder.encoder.hash())
    clips = source_of(args)
    table, vectors = embedded(clips, embedder, folder, bundle)
    return table, recordings_of(clips.root, table), vectors, embedder.encoder.sample_rate


def _written(source: str) -> EmbeddingTable | None:
    """The embeddings that SOURCE holds, if it is a table of them with a row a segment."""
    if not source.endswith((".parquet", ".pq")):
        return None
    try:
        return EmbeddingTable.open(source)
    except SearchError:
        return None  # a table of sounds, which `read_source` reads or refuses


def _taken(
    known: EmbeddingTable, args: argparse.Namespace, classifier: Classifier | None
) -> tuple[pd.DataFrame, pd.Series, NDArray[np.float32], int]:
    if given := [f"--{name}" for name in OF_SOUNDS if getattr(args, name)]:
        raise ConfigError(
            f"{given[0]}: {known.file} holds embeddings, which are taken as they are; give the sounds, or leave it out"
        )
    if "start" not in known.rows or "duration" not in known.rows:
        raise ConfigError(f"{known.file}: has no start and duration: embed with --segment auto, or give the sounds")
    if classifier:
        classifier.require_encoder(str(known.facts.get("encoder")))
    rate = known.facts.get("sample_rate")
    files = recordings_of(root_of(known, args.root), known.rows)
    vectors = known.vectors()
    return known.rows, files, vectors, rate if isinstance(rate, int) else 16_000


def _overlapping(table: pd.DataFrame, files: pd.Series, labelled: Manifest) -> NDArray[np.int64]:
    """Rows of segments that share more than half of their sound with a labelled clip."""
    stretches: dict[str, list[tuple[float, float]]] = {}
    for path, (start, seconds) in zip(labelled.table["path"], labelled.stretches, strict=True):
        stretches.setdefault(path, []).append((start, np.inf if seconds is None else start + seconds))
    rows = zip(files, table["start"], table["duration"], strict=True)
    found = [
        any(min(end, start + seconds) - max(begin, start) > seconds / 2 for begin, end in stretches.get(file, ()))
        for file, start, seconds in rows
    ]
    return np.flatnonzero(found)


def _score_columns(classifier: Classifier, scores: NDArray[np.float64]) -> dict[str, Any]:
    return {f"{SCORE}{name}": scores[:, c].round(4) for c, name in enumerate(classifier.names)}
