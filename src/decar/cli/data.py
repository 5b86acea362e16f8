"""`decar prepare`, `doctor`, `cache`, `table1`: before training; `table2`, `table3`, `report`, `page`: results."""

from __future__ import annotations

import argparse
import contextlib
import logging
import os
import sys
import webbrowser
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from decar import downstream
from decar.audio import Manifest
from decar.audio.cache import KINDS, bytes_of, cached, check_cache, delete
from decar.audio.containers import folder_of
from decar.audio.doctor import examine
from decar.cli.eval import device_of
from decar.cli.runs import read_config
from decar.cli.terminal import say, say_lines, start_log
from decar.corpora import CORPORA, find_corpus
from decar.corpora.download import download
from decar.corpora.prepare import load_prepared
from decar.corpora.prepare import prepare as list_clips
from decar.corpora.prepare import table1 as compare
from decar.downstream import to_markdown
from decar.downstream.results import FILE_NAME
from decar.errors import ConfigError, CorpusError, DecarError, PreemptedError, check_positive
from decar.files import cache_home, write_table
from decar.report import FILE_NAME as PAGE
from decar.report import RunFiles, write_report
from decar.report.folder import clips_of
from decar.report.serve import PageServer
from decar.unpack import Bounds

log = logging.getLogger(__name__)


def prepare(args: argparse.Namespace) -> None:
    """Check a corpus, list its clips and compute their log-mels."""
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
    if not folder.is_dir():
        raise DecarError(f"{folder}: no such folder; give the cache as --cache DIR")
    damaged = 0
    for path, problem, cure in check_cache(folder):
        say(f"damaged: {path}: {problem}; {cure}")
        damaged += 1
    say(f"{folder}: {damaged or 'nothing'} damaged")
    return damaged > 0


def cache(args: argparse.Namespace) -> None:
    """Print what the cache holds; with `--clear` delete it."""
    if not args.folder.is_dir():
        say(f"{args.folder}: there is no cache")
        return
    kept = 0
    for kind, things in cached(args.folder).items():
        size = sum(map(bytes_of, things))
        say(f"{KINDS[kind]:20}{len(things):6d} {size / 1e6:10.1f} MB")
        for thing in things if args.clear else ():
            try:
                delete(thing)
            except OSError as error:
                kept += 1
                say(f"kept: {thing}: {error.strerror or error}")
    say(f"{args.folder}: " + ("deleted" if args.clear else "--clear deletes this; it is made again when needed"))
    sys.exit(int(kept > 0))


def table1(args: argparse.Namespace) -> None:
    """Print what has been prepared beside the paper's Table 1."""
    found = [(corpus, load_prepared(args.cache_dir, name)) for name, corpus in CORPORA.items()]
    table = compare([(corpus, prepared) for corpus, prepared in found if prepared])
    if not len(table):
        raise CorpusError(f"no corpus has been prepared in {args.cache_dir}: run `decar prepare CORPUS ROOT`")
    write_table(table, args.csv)
    say_lines(to_markdown(table.set_index("corpus")))


def table2(args: argparse.Namespace) -> None:
    """Print accuracy by task, encoder and mode."""
    results = downstream.collect(args.runs)
    if args.metric:
        results = downstream.by_metric(results, args.metric)
    write_table(downstream.table2(results), args.csv, index=True)
    say_lines(downstream.table2_markdown(results))


def table3(args: argparse.Namespace) -> None:
    """Print accuracy by task, clusterer and k."""
    results = downstream.collect(args.runs)
    text = downstream.table3_markdown(results)  # raises before anything is written
    write_table(downstream.table3_cells(results), args.csv)
    say_lines(text)


def report(args: argparse.Namespace) -> None:
    """Make the page of a run."""
    start_log(logging.WARNING)
    source = run_files(args.folder, args.downstream, args.network)
    page = write_report(source, args.out, device=device_of("auto"), progress=sys.stderr.isatty())
    say(f"{page}: {page.stat().st_size / 1e6:.1f} MB; open it in a browser")


def page(args: argparse.Namespace) -> None:
    """Show a page; with `--serve` from a server on this computer, until Ctrl-C."""
    start_log(logging.WARNING)
    file = args.page / PAGE if args.page.is_dir() else args.page
    if not file.is_file():
        how = "decar report RUN, decar cluster and decar suggest make one"
        raise DecarError(f"{file}: there is no page; {how}")
    if not args.serve:
        if args.port or args.root:
            raise ConfigError("--port and --root go with --serve")
        say(
            f"{file}: open it in a browser" + ("" if show(file.absolute().as_uri()) else "; none could be started here")
        )
        return
    with PageServer(file, args.port, folder_of(args.root) if args.root else None) as server:
        say(f"{server.url}")
        say(f"labels are saved to {server.labels.file}; Ctrl-C ends this")
        others, path = server.strangers()
        if others:
            say(f"{others} labels in there are of sounds that the page does not show, such as {path}: they are kept; "
                "if these have been moved, correct their paths in the file")  # fmt: skip
        sys.stdout.flush()
        show(server.url)
        with contextlib.suppress(PreemptedError):
            server.serve_forever()


def show(url: str) -> bool:
    """Open an address in a browser, where there is a desktop to do that on."""
    desktop = sys.platform in ("win32", "darwin") or {"DISPLAY", "WAYLAND_DISPLAY"} & os.environ.keys()
    return bool(desktop) and webbrowser.open(url)


def run_files(run: Path, downstream: Sequence[Path] = (), network: Callable[..., Any] | None = None) -> RunFiles:
    """What a finished run's page is made from; clips that cannot be found again are a note on it.

    Raises:
        DecarError: It is no folder of a run, or one of `downstream` does not exist.
    """
    if not (run / "config.yaml").is_file():
        raise DecarError(f"{run}: no config.yaml in there; give the folder of a run of decar-train")
    for folder in downstream:
        if not folder.exists():
            raise DecarError(f"--downstream {folder}: no such folder; give the one with the {FILE_NAME} files")
    config = read_config(run / "config.yaml")
    data, seed = config.get("data"), config.get("seed")
    if not isinstance(data, dict):
        raise DecarError(f"{run / 'config.yaml'}: not of a pre-training run; give the folder of a run of decar-train")
    label = data.get("label")
    return RunFiles(
        run, config, clips_of(config, cache_home()), label=label if isinstance(label, str) else None,
        seed=seed if isinstance(seed, int) else 0, downstream=tuple(downstream), network=network,
    )  # fmt: skip
