"""`decar prepare`, `doctor`, `table1`: sounds before training; `table2`, `table3`: results after it."""

from __future__ import annotations

import argparse
import logging
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from decar.cli.terminal import say, say_lines, start_log
from decar.errors import CorpusError, DecarError, check_positive
from decar.files import whole, write_csv

if TYPE_CHECKING:
    import pandas as pd


def prepare(args: argparse.Namespace) -> None:
    """Check a corpus, list its clips and compute their log-mels."""
    from decar.corpora import find_corpus
    from decar.corpora.download import download
    from decar.corpora.prepare import prepare as list_clips
    from decar.corpora.prepare import table1 as compare
    from decar.corpora.unpack import Bounds
    from decar.downstream import to_markdown

    check_positive("--max-unpacked", args.max_unpacked)
    corpus = find_corpus(args.corpus)
    start_log(logging.INFO)
    if args.download:
        download(corpus, args.root, bounds=Bounds(size=int(args.max_unpacked * 1e9)))
    prepared = list_clips(
        corpus, args.root, args.cache_dir, allow_missing=args.allow_missing, store=not args.no_store,
        progress=sys.stderr.isatty(),
    )  # fmt: skip
    say_lines(to_markdown(compare([(corpus, prepared)]).set_index("corpus")))
    say()
    say(f"manifest: {prepared.file}, {prepared.unreadable} clips cannot be used")
    say(f"judge:     python eval.py task={corpus.name} bundle=RUN")
    say(f"pre-train: python train.py data=corpus data.name={corpus.name}")


def doctor(args: argparse.Namespace) -> None:
    """Exit status: 0 nothing but warnings, 1 errors or a damaged cache."""
    from decar.audio import Manifest
    from decar.audio.doctor import examine

    if args.source is None and args.cache is None:
        raise DecarError("doctor: give a SOURCE, or --cache")
    bad = args.cache is not None and _is_damaged(args.cache)
    if args.source is not None:
        start_log(logging.INFO)
        clips = Manifest.from_path(args.source, root=args.root, path_column=args.path_column)
        found = examine(clips, apart=args.apart)
        write_table(found, args.out)
        for severity, path, problem, detail in found[["severity", "path", "problem", "detail"]].to_numpy():
            say(f"{severity}: {path}: {problem}: {detail}")
        counts = ", ".join(f"{count} {problem}" for problem, count in found["problem"].value_counts().items())
        say(f"{len(clips)} clips, {counts or 'nothing wrong'}; hash of the list {clips.content_hash()[:16]}")
        bad = bad or bool((found["severity"] == "error").any())
    sys.exit(int(bad))


def _is_damaged(folder: Path) -> bool:
    """Whether a cache holds damaged files; prints each of them."""
    from decar.audio.cache import check_cache

    if not folder.is_dir():
        raise DecarError(f"{folder}: no such folder; give the cache as --cache DIR")
    damaged = 0
    for path, problem, cure in check_cache(folder):
        say(f"damaged: {path}: {problem}; {cure}")
        damaged += 1
    say(f"{folder}: {damaged or 'nothing'} damaged")
    return damaged > 0


def table1(args: argparse.Namespace) -> None:
    """Print what has been prepared beside the paper's Table 1."""
    from decar.corpora import CORPORA
    from decar.corpora.prepare import load_prepared
    from decar.corpora.prepare import table1 as compare
    from decar.downstream import to_markdown

    found = [(corpus, load_prepared(args.cache_dir, name)) for name, corpus in CORPORA.items()]
    table = compare([(corpus, prepared) for corpus, prepared in found if prepared])
    if not len(table):
        raise CorpusError(f"no corpus has been prepared in {args.cache_dir}: run `decar prepare CORPUS ROOT`")
    write_table(table, args.csv)
    say_lines(to_markdown(table.set_index("corpus")))


def table2(args: argparse.Namespace) -> None:
    """Print accuracy by task, encoder and mode."""
    from decar import downstream

    results = downstream.collect(args.runs)
    if args.metric:
        results = downstream.by_metric(results, args.metric)
    write_table(downstream.table2(results), args.csv, index=True)
    say_lines(downstream.table2_markdown(results))


def table3(args: argparse.Namespace) -> None:
    """Print accuracy by task, clusterer and k."""
    from decar import downstream

    results = downstream.collect(args.runs)
    text = downstream.table3_markdown(results)  # raises before anything is written
    write_table(downstream.table3_cells(results), args.csv)
    say_lines(text)


def write_table(table: pd.DataFrame, file: Path | None, *, index: bool = False) -> None:
    """Write a table where one was asked for: Parquet if the name says so, else CSV.

    Raises:
        OSError: It cannot be written.
    """
    if file is None:
        return
    with whole(file) as part:
        if file.suffix.lower() in (".parquet", ".pq"):
            table.to_parquet(part, index=index)
        else:
            write_csv(table, part, index=index)
