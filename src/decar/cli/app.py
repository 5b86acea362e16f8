"""`decar`: what is done before and after training."""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from decar import __version__
from decar.cli import embed, export, push, report, search
from decar.cli.config import cache_home
from decar.cli.limits import add_limits, use_limits
from decar.cli.terminal import complain, say, say_lines, start_log, terminal
from decar.errors import CorpusError, DecarError, PreemptedError, check_positive, printable
from decar.files import whole, write_csv
from decar.signals import stoppable

if TYPE_CHECKING:
    import pandas as pd


def main(argv: Sequence[str] | None = None) -> None:
    """Entry point; exits with 2 on a user's error, and when a signal stops it as `train.py` does."""
    try:
        with terminal(), stoppable("run the same command again"):
            args = _parser().parse_args(argv)
            use_limits(args)
            args.run(args)
    except PreemptedError as stopped:
        print(printable(f"decar: {stopped}"), file=sys.stderr)
        sys.exit(stopped.status)
    except DecarError as error:
        complain(error)
        sys.exit(2)
    except OSError as error:  # a private folder, say; without a file name it is an internal error
        if error.filename is None:
            raise
        complain(f"{error.filename}: {error.strerror}")
        sys.exit(2)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="decar", description="Deep clustering for audio. To pre-train: decar-train. To judge: decar-eval."
    )
    parser.add_argument("--version", action="version", version=f"decar {__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    table2 = commands.add_parser("table2", help="accuracy by task, encoder and mode, from result.json files")
    table2.add_argument("runs", nargs="+", metavar="RUNS", help="folders that hold results, at any depth")
    table2.add_argument("--csv", type=Path, metavar="FILE", help="write the table as CSV too")
    table2.add_argument("--metric", metavar="NAME", help="balanced_accuracy, macro_f1: in place of what each task has")
    table2.set_defaults(run=_table2)
    table3 = commands.add_parser("table3", help="accuracy by task, clusterer and k, from result.json files")
    table3.add_argument("runs", nargs="+", metavar="RUNS", help="folders that hold results, at any depth")
    table3.add_argument("--csv", type=Path, metavar="FILE", help="write the cells as CSV too, a row a cell")
    table3.set_defaults(run=_table3)
    prepare = commands.add_parser("prepare", help="a public corpus on disk: check it, list its clips, compute log-mels")
    prepare.add_argument(
        "corpus", metavar="CORPUS", help="librispeech, voxceleb1, …; a wrong name lists all; module.NAME: your own"
    )
    prepare.add_argument("root", type=Path, metavar="ROOT", help="the folder that its archives are unpacked in")
    prepare.add_argument("--download", action="store_true", help="fetch and unpack its archives into ROOT first")
    prepare.add_argument(
        "--max-unpacked", type=float, default=200, metavar="GB", help="refuse an archive that has more (%(default)s)"
    )
    prepare.add_argument("--allow-missing", action="store_true", help="go on without listed files that are not there")
    prepare.add_argument("--no-store", action="store_true", help="leave the log-mels to the first job that needs them")
    prepare.set_defaults(run=_prepare)
    table1 = commands.add_parser("table1", help="the prepared corpora beside the paper's Table 1")
    table1.add_argument("--csv", type=Path, metavar="FILE", help="write the table as CSV too")
    table1.set_defaults(run=_table1)
    doctor = commands.add_parser(
        "doctor", help="what is wrong with some audio, leaks between its splits; damage in the cache"
    )
    doctor.add_argument(
        "source", nargs="?", type=Path, metavar="SOURCE", help="a folder, or a table with a column path"
    )
    doctor.add_argument(
        "--cache", nargs="?", type=Path, const=Path(cache_home()), metavar="DIR",
        help="compare all that lies in the cache with its checksums (DIR: %(const)s)",
    )  # fmt: skip
    doctor.add_argument("--root", type=Path, metavar="DIR", help="where relative paths of a table start from")
    doctor.add_argument(
        "--path-column", default="path", metavar="NAME", help="the column of a table that names the files"
    )
    doctor.add_argument(
        "--apart",
        nargs="+",
        default=[],
        metavar="COLUMN",
        help="columns of which no value may be in two splits (default: speaker, recording and the like)",
    )
    doctor.add_argument("--out", type=Path, metavar="FILE", help="write the findings as .csv or .parquet")
    doctor.set_defaults(run=_doctor)
    add_limits(prepare)
    add_limits(doctor)
    search.add_parser(commands)
    embed.add_parser(commands)
    report.add_parser(commands)
    for command in (prepare, table1):
        command.add_argument("--cache-dir", type=Path, default=Path(cache_home()), metavar="DIR", help="%(default)s")
    export.add_parser(commands)
    push.add_parser(commands)
    return parser


def _prepare(args: argparse.Namespace) -> None:
    from decar.corpora import find_corpus
    from decar.corpora.download import download
    from decar.corpora.prepare import prepare, table1
    from decar.corpora.unpack import Bounds
    from decar.downstream import to_markdown

    check_positive("--max-unpacked", args.max_unpacked)
    corpus = find_corpus(args.corpus)
    start_log(logging.INFO)
    if args.download:
        download(corpus, args.root, bounds=Bounds(size=int(args.max_unpacked * 1e9)))
    prepared = prepare(
        corpus, args.root, args.cache_dir, allow_missing=args.allow_missing, store=not args.no_store,
        progress=sys.stderr.isatty(),
    )  # fmt: skip
    say_lines(to_markdown(table1([(corpus, prepared)]).set_index("corpus")))
    say()
    say(f"manifest: {prepared.file}, {prepared.unreadable} clips cannot be used")
    say(f"judge:     python eval.py task={corpus.name} bundle=RUN")
    say(f"pre-train: python train.py data=corpus data.name={corpus.name}")


def _doctor(args: argparse.Namespace) -> None:
    """Exit status: 0 nothing but warnings, 1 errors or a damaged cache."""
    if args.source is None and args.cache is None:
        raise DecarError("doctor: give a SOURCE, or --cache")
    damaged = args.cache is not None and _doctor_cache(args.cache)
    if args.source is None:
        sys.exit(int(damaged))
    from decar.audio import Manifest
    from decar.audio.doctor import examine

    start_log(logging.INFO)
    clips = Manifest.from_path(args.source, root=args.root, path_column=args.path_column)
    found = examine(clips, apart=args.apart)
    _write_table(found, args.out)
    for severity, path, problem, detail in found[["severity", "path", "problem", "detail"]].to_numpy():
        say(f"{severity}: {path}: {problem}: {detail}")
    told = [f"{count} {problem}" for problem, count in found["problem"].value_counts().items()]
    say(f"{len(clips)} clips, {', '.join(told) or 'nothing wrong'}; hash of the list {clips.content_hash()[:16]}")
    sys.exit(int(damaged or (found["severity"] == "error").any()))


def _doctor_cache(folder: Path) -> bool:
    """Whether something in a cache is damaged, which is printed."""
    from decar.audio.cache import check_cache

    if not folder.is_dir():
        raise DecarError(f"{folder}: no such folder; give the cache as --cache DIR")
    n_damaged = 0
    for path, problem, cure in check_cache(folder):
        say(f"damaged: {path}: {problem}; {cure}")
        n_damaged += 1
    say(f"{folder}: {n_damaged or 'nothing'} damaged")
    return n_damaged > 0


def _table1(args: argparse.Namespace) -> None:
    from decar.corpora import CORPORA
    from decar.corpora.prepare import load_prepared, table1
    from decar.downstream import to_markdown

    found = [(corpus, load_prepared(args.cache_dir, name)) for name, corpus in CORPORA.items()]
    table = table1([(corpus, prepared) for corpus, prepared in found if prepared])
    if not len(table):
        raise CorpusError(f"no corpus has been prepared in {args.cache_dir}: run `decar prepare CORPUS ROOT`")
    _write_table(table, args.csv)
    say_lines(to_markdown(table.set_index("corpus")))


def _write_table(table: pd.DataFrame, file: Path | None, *, index: bool = False) -> None:
    """Write a table where one was asked for: CSV, or Parquet by its name."""
    if file is None:
        return
    try:
        with whole(file) as part:
            if file.suffix.lower() in (".parquet", ".pq"):
                table.to_parquet(part, index=index)
            else:
                write_csv(table, part, index=index)
    except OSError as error:
        raise DecarError(f"{file}: the table could not be written ({error.strerror or error})") from error


def _table2(args: argparse.Namespace) -> None:
    from decar.downstream import by_metric, collect, table2, table2_markdown

    results = collect(args.runs)
    if args.metric:
        results = by_metric(results, args.metric)
    _write_table(table2(results), args.csv, index=True)
    say_lines(table2_markdown(results))


def _table3(args: argparse.Namespace) -> None:
    from decar.downstream import collect, table3_cells, table3_markdown

    results = collect(args.runs)
    text = table3_markdown(results)  # raises before anything is written
    _write_table(table3_cells(results), args.csv)
    say_lines(text)


if __name__ == "__main__":
    main()
