"""`decar`: the commands before and after training, and all their options."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from decar import __version__
from decar.cli import bundles, data
from decar.cli.config import cache_home, named_class
from decar.cli.terminal import command
from decar.limits import Limits, set_limits

Option = tuple[str, dict[str, Any]]
CACHE_HOME = object()  # stands for `cache_home()`, which follows the environment


def main(argv: Sequence[str] | None = None) -> None:
    """Entry point; exits with 2 on a user's error, and when a signal stops it as `train.py` does."""
    with command("", "run the same command again"):
        args = _parser().parse_args(argv)
        set_limits(Limits(**{name: value for name, value in vars(args).items() if name in LIMITS}))
        args.run(args)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="decar", description="Deep clustering for audio. To pre-train: decar-train. To judge: decar-eval."
    )
    parser.add_argument("--version", action="version", version=f"decar {__version__}")
    commands, here = parser.add_subparsers(required=True, metavar="COMMAND"), cache_home()
    for name, (run, text, options) in COMMANDS.items():
        made = commands.add_parser(name, help=text, description=ABOUT.get(name))
        made.set_defaults(run=run)
        for flag, settings in options:
            known: dict[str, Any] = {key: here if value is CACHE_HOME else value for key, value in settings.items()}
            made.add_argument(flag, **known)
        if name in READS_SOUNDS:
            _add_limits(made)
    return parser


def _add_limits(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("limits", "what is beyond them is refused with a line; the job goes on")
    for field in fields(Limits):
        group.add_argument(
            f"--{field.name.replace('_', '-')}", type=type(field.default), default=field.default, metavar="N",
            help=f"{LIMITS[field.name]} (default: %(default)s)",
        )  # fmt: skip


def _option(name: str, text: str, **settings: Any) -> Option:
    return name, {"help": text, **settings}


def _file(name: str, text: str, **settings: Any) -> Option:
    return _option(name, text, **{"type": Path, "metavar": "FILE", **settings})


def _flag(name: str, text: str) -> Option:
    return _option(name, text, action="store_true")


RUNS = _option("runs", "folders that hold results, at any depth", nargs="+", metavar="RUNS")
CSV = _file("--csv", "write the table as CSV too")
CACHE = _file("--cache-dir", "%(default)s", default=CACHE_HOME, metavar="DIR")
ROOT = _file("--root", "where relative paths of a table or of stdin start from", metavar="DIR")
PATHS = _option("--path-column", "the column of a table that names the files", default="path", metavar="NAME")
BUNDLE = _option("bundle", "encoder.safetensors, or a run that holds it", metavar="BUNDLE")
NETWORK = _option(
    "--network", "of a bundle with a network of your own: its class", type=named_class, metavar="MODULE.CLASS"
)
METRIC = _option("--metric", "balanced_accuracy, macro_f1: in place of what each task has", metavar="NAME")

PREPARE = [
    _option("corpus", "librispeech, voxceleb1, …; a wrong name lists all; module.NAME: your own", metavar="CORPUS"),
    _file("root", "the folder that its archives are unpacked in", metavar="ROOT"),
    _flag("--download", "fetch and unpack its archives into ROOT first"),
    _option("--max-unpacked", "refuse an archive that has more (%(default)s)", type=float, default=200, metavar="GB"),
    _flag("--allow-missing", "go on without listed files that are not there"),
    _flag("--no-store", "leave the log-mels to the first job that needs them"),
    CACHE,
]
DOCTOR = [
    _file("source", "a folder, or a table with a column path", nargs="?", metavar="SOURCE"),
    _file(
        "--cache", "compare all that lies in the cache with its checksums (DIR: %(const)s)", metavar="DIR", nargs="?",
        const=CACHE_HOME,
    ),
    _option(
        "--apart", "columns of which no value may be in two splits (default: speaker, recording and the like)",
        nargs="+", default=[], metavar="COLUMN",
    ),
    _file("--out", "write the findings as .csv or .parquet"),
    ROOT,
    PATHS,
]  # fmt: skip
EMBED = [
    _option(
        "source", "a folder, a table with a column of paths (.csv, .tsv, .txt, .parquet; start and end or duration in "
        "seconds where stretches are meant), a quoted pattern, an audio file, or - for paths on stdin",
        metavar="SOURCE",
    ),
    _option(
        "--bundle", "encoder.safetensors, a run's folder, random, or small, which comes with decar (default)",
        default="small", metavar="NAME",
    ),
    _file(
        "--out", ".parquet, or .npy with FILE.paths.csv beside it (default: %(default)s)",
        default=Path("embeddings.parquet"),
    ),
    ROOT,
    PATHS,
    _option("--windows", "a row a window, with start and duration", type=float, metavar="SECONDS"),
    _option("--hop", "from window to window (default: end to end)", type=float, metavar="SECONDS"),
    _option("--device", "cpu, cuda (default: cuda where torch sees one)", metavar="NAME"),
    _option("--batch-size", "pieces at a time (default: %(default)s)", type=int, default=16, metavar="N"),
    _option("--workers", "threads that decode (default: one a core)", type=int, metavar="N"),
    NETWORK,
]  # fmt: skip
SEARCH = [
    _option("sounds", "a file, or, where there is no such file, a path of the table", nargs="+", metavar="SOUND"),
    _file("embeddings", "what `decar embed` wrote (.parquet)", metavar="EMBEDDINGS"),
    _flag("--row", "each SOUND is a path of the table, no file"),
    _option("-n", "how many (default: %(default)s)", type=int, default=10),
    _option("--bundle", "the encoder that made the table; where it does not say", metavar="PATH"),
    _option(
        "--measure", "cosine of the embeddings as they are, minus the table's mean, or standardised (default: "
        "%(default)s)", choices=("cosine", "centred", "standardised"), default="cosine",
    ),
    _file("--html", "write a page with players and spectrograms"),
    CSV,
    ROOT,
    NETWORK,
]  # fmt: skip
REPORT = [
    _file("folder", "the folder of a run of decar-train", metavar="RUN"),
    _file("--out", "RUN/report.html when not given"),
    _file(
        "--downstream", "folders with result.json files: those of this run's encoder are shown, beside RUN's own",
        nargs="+", default=[], metavar="DIR",
    ),
    NETWORK,
]  # fmt: skip
EXPORT = [
    BUNDLE,
    _option("--to", "onnx: needs 'decar[export]'", required=True, choices=("onnx", "torch")),
    _file("--out", "usually .onnx or .pt2", required=True),
    NETWORK,
]
PUSH = [
    BUNDLE,
    _option("repo", "made where there is none", metavar="USER/NAME"),
    _flag("--private", "a new repository is private"),
    _option("--revision", "a branch, in place of the main one", metavar="BRANCH"),
    NETWORK,
]
COMMANDS: dict[str, tuple[Callable[[argparse.Namespace], None], str, list[Option]]] = {
    "table2": (data.table2, "accuracy by task, encoder and mode, from result.json files", [RUNS, CSV, METRIC]),
    "table3": (data.table3, "accuracy by task, clusterer and k, from result.json files", [RUNS, CSV]),
    "prepare": (data.prepare, "a public corpus on disk: check it, list its clips, compute log-mels", PREPARE),
    "table1": (data.table1, "the prepared corpora beside the paper's Table 1", [CSV, CACHE]),
    "doctor": (data.doctor, "what is wrong with some audio, leaks between its splits; damage in the cache", DOCTOR),
    "search": (bundles.search, "the nearest clips to a sound in a table of embeddings", SEARCH),
    "embed": (bundles.embed, "embeddings of any audio: a row a clip, or a window", EMBED),
    "report": (data.report, "one HTML page of a run, self-contained, to be opened offline", REPORT),
    "export": (bundles.export, "the encoder with its front-end as ONNX or torch.export", EXPORT),
    "push": (bundles.push, "put a bundle on the Hugging Face hub, with a model card", PUSH),
}
READS_SOUNDS = ("prepare", "doctor", "search", "embed", "report")
ABOUT = {
    "embed": "A clip of up to 10 s is embedded whole, a longer one as the mean of its 10 s pieces. All columns of a "
    "table are kept. The same command goes on after a stop, and gives the same bytes."
}
LIMITS = {
    "min_rate": "lowest rate of a sound, in Hz",
    "max_rate": "highest rate of a sound, in Hz",
    "max_channels": "most channels of a sound",
    "max_hours": "longest clip, in hours; longer files are listed in stretches",
    "max_rows": "most rows of a table",
}


if __name__ == "__main__":
    main()
