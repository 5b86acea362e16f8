"""`decar`: the commands before and after training, and all their options."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from dataclasses import fields
from importlib import import_module
from pathlib import Path
from typing import Any

from decar import __version__
from decar.cli.config import named_class
from decar.cli.terminal import command
from decar.errors import ConfigError
from decar.files import cache_home
from decar.limits import Limits, set_limits
from decar.objects import is_address

Option = tuple[str, dict[str, Any]]
READ = ("source", "labels", "classifier", "sounds", "embeddings", "bundle")  # arguments that are files to read
WRITTEN = ("out", "csv", "html")  # and to write
CACHE_HOME = object()  # stands for `cache_home()`, which follows the environment


def main(argv: Sequence[str] | None = None) -> None:
    """Entry point; exits with 2 on a user's error, and when a signal stops it as `train.py` does."""
    words = sys.argv[1:] if argv is None else [*argv]
    if words and words[0] in HYDRA:
        sys.argv = [f"decar-{words[0]}", *words[1:]]  # as typed, for the line that says how to go on
        import_module(f"decar.cli.{words[0]}").main()
        return
    with command("", "run the same command again"):
        args = _parser().parse_args(words or ["--help"])
        set_limits(Limits(**{name: value for name, value in vars(args).items() if name in LIMITS}))
        _keep_what_is_read(args)
        module, function = args.run.split(".")
        getattr(import_module(f"decar.cli.{module}"), function)(args)  # torch and the like are imported here


def _keep_what_is_read(args: argparse.Namespace) -> None:
    """Refuse an output that is a file which the command reads: a table of labels, say, would be lost."""
    for name in WRITTEN:
        out = str(getattr(args, name, None) or "")
        for key in READ if os.path.isfile(out) else ():
            value = getattr(args, key, None) or []
            for file in value if isinstance(value, list) else [value]:
                if os.path.isfile(file) and os.path.samefile(file, out):
                    raise ConfigError(f"--{name} {out}: this command reads that file; give another name")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="decar", description="Deep clustering for audio: an embedding learned from sounds without labels.",
        epilog=_overview(), formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument("--version", action="version", version=f"decar {__version__}")
    commands, here = parser.add_subparsers(required=True, metavar="COMMAND", help="see below"), cache_home()
    for name, (run, text, options) in COMMANDS.items():
        made = commands.add_parser(name, description=ABOUT.get(name, f"{text[0].upper()}{text[1:]}."))
        made.set_defaults(run=run)
        for flag, settings in options:
            known: dict[str, Any] = {key: here if value is CACHE_HOME else value for key, value in settings.items()}
            made.add_argument(flag, **known)
        if name in READS_SOUNDS:
            _add_limits(made)
    return parser


def _overview() -> str:
    """All commands, by what they are for."""
    texts = HYDRA | {name: text for name, (_, text, _) in COMMANDS.items()}
    lines = [
        f"  {title if name == names[0] else '':8}{name:10}{texts[name]}"
        for title, names in GROUPS.items()
        for name in names
    ]
    return "\n".join([*lines, "", "decar COMMAND --help lists its options."])


def _add_limits(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("limits", "what exceeds them is refused with a line; the job continues")
    for field in fields(Limits):
        group.add_argument(
            f"--{field.name.replace('_', '-')}", type=type(field.default), default=field.default, metavar="N",
            help=f"{LIMITS[field.name]} (default: %(default)s)",
        )  # fmt: skip


def _option(name: str, text: str, **settings: Any) -> Option:
    return name, {"help": text, **settings}


def _file(name: str, text: str, **settings: Any) -> Option:
    return _option(name, text, **{"type": as_path, "metavar": "FILE", **settings})


def _flag(name: str, text: str) -> Option:
    return _option(name, text, action="store_true")


def as_path(text: str) -> Path:
    """A path of this disk; of an address `Path` would make one."""
    if is_address(text):
        raise argparse.ArgumentTypeError(f"{text} is an address, and a path on this disk is expected here")
    return Path(text)


def as_out(text: str) -> str | Path:
    """An address or a path."""
    return text if is_address(text) else Path(text)


def as_k(text: str) -> int | str:
    """The value of `-k`; argparse names the option when it is a wrong one."""
    return text if text == "auto" else int(text)


RUNS = _option("runs", "folders that hold results, at any depth", nargs="+", metavar="RUNS")
CSV = _file("--csv", "write the table as CSV too")
CACHE = _file("--cache-dir", "default: %(default)s", default=CACHE_HOME, metavar="DIR")
ROOT = _file("--root", "the folder or archive that relative paths of the table or of stdin start from", metavar="DIR")
FETCH = _flag(
    "--fetch", "fetch what is at addresses (https://…, s3://…), as SOURCE or in a table; without it they are refused"
)
PATHS = _option("--path-column", "the column of a table that names the files", default="path", metavar="NAME")
PLACES = [ROOT, PATHS, FETCH]
BUNDLE = _option("bundle", "encoder.safetensors, or a run that holds it", metavar="BUNDLE")
NETWORK = _option(
    "--network", "class of the network, if it is one of your own", type=named_class, metavar="MODULE.CLASS"
)
SEED = _option("--seed", "of all that is random (default: %(default)s)", type=int, default=0, metavar="N")
METRIC = _option("--metric", "balanced_accuracy or macro_f1, instead of the metric of each task", metavar="NAME")

PREPARE = [
    _option("corpus", "librispeech, … (a wrong name lists all), or module.NAME for your own", metavar="CORPUS"),
    _file("root", "the folder with its unpacked archives", metavar="ROOT"),
    _flag("--download", "fetch and unpack its archives into ROOT first"),
    _option("--max-unpacked", "refuse larger archives (default: %(default)s)", type=float, default=200, metavar="GB"),
    _flag("--allow-missing", "leave out listed files that are missing"),
    _flag("--no-store", "do not compute log-mels now; the first job that needs them does"),
    CACHE,
]
DOCTOR = [
    _file("source", "a folder, or a table with a column path", nargs="?", metavar="SOURCE"),
    _file(
        "--cache", "compare everything in the cache with its checksums (default: %(const)s)", metavar="DIR", nargs="?",
        const=CACHE_HOME,
    ),
    _option(
        "--apart", "columns whose values must not occur in two splits (default: speaker, recording and the like)",
        nargs="+", default=[], metavar="COLUMN",
    ),
    _file("--out", "write the findings as .csv or .parquet"),
    ROOT,
    PATHS,
]  # fmt: skip
CACHED = [
    _file("folder", "(default: %(default)s)", nargs="?", default=CACHE_HOME, metavar="DIR"),
    _flag("--clear", "delete what is listed; end trainings first, those that run need it"),
]
SOURCE = _option(
    "source", "a folder, or a zip or tar archive of one; a table with a column of paths (.csv, .tsv, .txt, .parquet; "
    "start and end or duration in seconds select stretches); .parquet files that hold the sounds; a quoted pattern; an "
    "audio file; - for paths on stdin; or, with --fetch, such things at an address, or a prefix s3://BUCKET/PREFIX",
    metavar="SOURCE",
)  # fmt: skip
ENCODER = (
    "encoder.safetensors, a run's folder, random, small, which comes with decar (default), or hear:MODULE[:WEIGHTS], "
    "torch:MODULE.FUNCTION for another encoder"
)
FORWARD = [
    _option("--device", "cpu or cuda (default: cuda if torch finds one)", metavar="NAME"),
    _option("--batch-size", "pieces in a batch (default: %(default)s)", type=int, default=16, metavar="N"),
    _option("--workers", "decoding threads (default: one for each core)", type=int, metavar="N"),
    NETWORK,
]
MACHINES = [
    _option(
        "--engine", "embed on many machines, by Ray or as SLURM jobs (docs/machines.md); --workers is then the number "
        "of cores of each process", choices=("ray", "slurm"),
    ),
    _option(
        "--address", "the Ray cluster, HOST:PORT or auto (default: RAY_ADDRESS, else this machine)", metavar="ADDRESS"
    ),
    _option("--jobs", "number of SLURM jobs (default: 8)", type=int, metavar="N"),
    _option("--slurm", "options of the SLURM jobs, such as partition=gpu account=me", nargs="+", metavar="NAME=VALUE"),
]  # fmt: skip
EMBED = [
    SOURCE,
    _option("--bundle", ENCODER, default="small", metavar="NAME"),
    _file(
        "--out", ".parquet, or .npy with FILE.paths.csv beside it; may be an address, s3://… (default: %(default)s)",
        default=Path("embeddings.parquet"), type=as_out,
    ),
    *PLACES,
    _option("--windows", "one row for each such window, with start and duration", type=float, metavar="SECONDS"),
    _option("--hop", "from the start of a window to the next (default: end to end)", type=float, metavar="SECONDS"),
    _option(
        "--dim", "embeddings of so many numbers, for search: 512 at most, of a run that learned them (default: all)",
        type=int, metavar="N",
    ),
    _option(
        "--segment", "cut recordings into segments of so many seconds, one row each; auto: 5 s, for those over 15 s",
        metavar="SECONDS",
    ),
    *FORWARD,
    *MACHINES,
]  # fmt: skip
CLUSTER = [
    SOURCE,
    _option("--bundle", ENCODER, metavar="NAME"),
    _option(
        "-k", "number of clusters for kmeans (default: auto, by the silhouette)", type=as_k, default="auto",
        metavar="N",
    ),
    _option(
        "--clusterer", "pic and hdbscan find the number of clusters themselves; hdbscan has noise (default: "
        "%(default)s)", choices=("kmeans", "pic", "hdbscan"), default="kmeans",
    ),
    _option(
        "--max-points", "learn the centres of kmeans from so many segments; all are assigned (default: two million)",
        type=int, metavar="N",
    ),
    _file(
        "--like", "put the sounds into the clusters of an earlier call: its folder, or clusters.npz", metavar="CLUSTERS"
    ),
    _file("--out", "folder for the results (default: %(default)s)", default=Path("clusters"), metavar="DIR"),
    _option(
        "--segment", "cut recordings into segments of so many seconds; auto (default): 5 s, for those over 15 s; none: "
        "a clip is one row", metavar="SECONDS",
    ),
    *PLACES,
    SEED,
    *FORWARD,
    *MACHINES,
]  # fmt: skip
LABELS = (
    "tables with path and label, and start and duration (s) where a stretch is labelled; several labels with commas "
    "between, -NAME for a label that a clip has not; or a folder, whose folders are the labels"
)
COLUMN = _option("--column", "the column of the labels (default: %(default)s)", default="label", metavar="NAME")
FIT = [
    _file("labels", LABELS, nargs="+", metavar="LABELS"),
    COLUMN,
    _option("--bundle", ENCODER, metavar="NAME"),
    _file("--out", "(default: %(default)s)", default=Path("classifier.safetensors")),
    _option(
        "--segment", "segments that recordings are cut into when it is used (default: as long as the labelled "
        "stretches)", metavar="SECONDS",
    ),
    _option(
        "--group", "validate on clips of other values of this column, beside other recordings (default: auto, speaker, "
        "site and the like)", default="auto", metavar="COLUMN",
    ),
    ROOT,
    PATHS,
    SEED,
    *FORWARD,
]  # fmt: skip
SEGMENTS = _option(
    "source", f"{SOURCE[1]['help']}; or the embeddings.parquet of `decar cluster` or `decar embed --segment`",
    metavar="SOURCE",
)  # fmt: skip
PREDICT = [
    SEGMENTS,
    _file("--classifier", "what `decar fit` wrote", required=True),
    _file("--out", "table, .csv or .parquet (default: %(default)s)", default=Path("predictions.csv")),
    _option("--segment", "segments of another length than the classifier says", metavar="SECONDS"),
    _option("--bundle", "the encoder, if the classifier does not say where it lies", metavar="NAME"),
    *PLACES,
    *FORWARD,
    *MACHINES,
]
SUGGEST = [
    SEGMENTS,
    _file("--classifier", "what `decar fit` wrote; without one, typical clips are suggested"),
    _file("--labels", f"clips that have a label already: {LABELS}", nargs="+", default=[]),
    COLUMN,
    _option("-n", "number of clips to suggest (default: %(default)s)", type=int, default=20),
    _file("--out", ".csv or .parquet; a page lies beside it (default: %(default)s)", default=Path("suggest.csv")),
    _option("--segment", "segments of another length than the classifier says", metavar="SECONDS"),
    _option("--bundle", ENCODER, metavar="NAME"),
    *PLACES,
    SEED,
    *FORWARD,
    *MACHINES,
]
SEARCH = [
    _option("sounds", "a file, or a path of the table if there is no such file", nargs="+", metavar="SOUND"),
    _file("embeddings", "what `decar embed` wrote (.parquet)", metavar="EMBEDDINGS"),
    _flag("--row", "read each SOUND as a path of the table, not as a file"),
    _option("-n", "number of clips to list (default: %(default)s)", type=int, default=10),
    _option("--bundle", "the encoder that made the table, if the table does not name it", metavar="PATH"),
    _option(
        "--measure", "cosine of the embeddings as they are, less the table's mean, or standardised (default: "
        "%(default)s)", choices=("cosine", "centred", "standardised"), default="cosine",
    ),
    _file("--html", "write a page with players and spectrograms"),
    CSV,
    ROOT,
    NETWORK,
]  # fmt: skip
REPORT = [
    _file("folder", "the output folder of a training", metavar="RUN"),
    _file("--out", "default: RUN/report.html"),
    _file(
        "--downstream", "folders with result.json files; those of this run's encoder are shown, besides RUN's own",
        nargs="+", default=[], metavar="DIR",
    ),
    NETWORK,
]  # fmt: skip
RUN_LIST = [_file("folder", "(default: %(default)s)", nargs="?", default=Path("runs/pretrain"), metavar="DIR"), CSV]
COMPARE = [_file(name, "the output folder of a training", metavar="RUN") for name in ("first", "second")]
PAGE = [
    _file("page", "the page, or the folder with its report.html", metavar="PAGE"),
    _flag("--serve", "on 127.0.0.1: every clip plays in full, and labels are saved to labels.csv beside the page"),
    _option("--port", "default: any that is free", type=int, default=0, metavar="N"),
    _file("--root", "the folder or archive of the sounds, if they have been moved", metavar="DIR"),
]
EXPORT = [
    _option(
        "source", "for onnx and torch encoder.safetensors, or a run; for the others a run, a folder of `decar "
        "cluster`, or the embeddings.parquet of `decar embed`", metavar="SOURCE",
    ),
    _option(
        "--to", "%(choices)s; onnx needs pip install 'decar[export]', hoplite 'decar[hoplite]'", required=True,
        choices=("onnx", "torch", "embedding-atlas", "spotlight", "projector", "hoplite"), metavar="FORMAT",
    ),
    _file(
        "--out", "usually .onnx or .pt2; .parquet for embedding-atlas and spotlight; a folder for projector and "
        "hoplite", required=True,
    ),
    _file("--root", "the folder that relative paths of embeddings start from, if not where they lay", metavar="DIR"),
    _option("--column", "for hoplite: the column of the labels (default: label, if there is one)", metavar="NAME"),
    NETWORK,
]  # fmt: skip
PUSH = [
    BUNDLE,
    _option("repo", "the repository; it is created if it does not exist", metavar="USER/NAME"),
    _flag("--private", "make a new repository private"),
    _option("--revision", "a branch other than the main one", metavar="BRANCH"),
    NETWORK,
]
COMMANDS: dict[str, tuple[str, str, list[Option]]] = {  # the function in `decar.cli`, what it does, its options
    "table2": ("data.table2", "accuracy by task, encoder and mode, from result.json files", [RUNS, CSV, METRIC]),
    "table3": ("data.table3", "accuracy by task, clusterer and k, from result.json files", [RUNS, CSV]),
    "prepare": ("data.prepare", "check a public corpus on disk, list its clips, compute log-mels", PREPARE),
    "table1": ("data.table1", "the prepared corpora beside the paper's Table 1", [CSV, CACHE]),
    "doctor": ("data.doctor", "find bad files and leaks between splits, or damage in the cache", DOCTOR),
    "cache": ("data.cache", "how much the cache holds of what; --clear deletes it", CACHED),
    "search": ("bundles.search", "the clips most similar to a sound, from a table of embeddings", SEARCH),
    "embed": ("bundles.embed", "embeddings of any audio, one row for each clip or window", EMBED),
    "cluster": ("clusters.cluster", "clusters of a folder of recordings, as tables, labels and a page", CLUSTER),
    "fit": ("classify.fit", "a classifier from labelled stretches of recordings", FIT),
    "predict": ("classify.predict", "its labels on recordings, as tables and for Audacity and Raven", PREDICT),
    "suggest": ("classify.suggest", "the clips whose labels would teach a classifier most", SUGGEST),
    "runs": ("overview.runs", "list the trainings below a folder: state, data, last figures", RUN_LIST),
    "compare": ("overview.compare", "how two trainings differ: options, last figures, results", COMPARE),
    "report": ("data.report", "make the HTML page of a run, which opens offline", REPORT),
    "page": ("data.page", "open a page, or serve it on this computer to label its clips", PAGE),
    "export": ("exports.export", "an encoder as ONNX or torch.export; embeddings for other programs", EXPORT),
    "push": ("bundles.push", "put a bundle on the Hugging Face hub, with a model card", PUSH),
}
HYDRA = {  # commands with Hydra's grammar of options
    "train": "pre-train an encoder: as decar-train, python train.py",
    "eval": "evaluate an encoder on a task: as decar-eval, python eval.py",
}
GROUPS = {
    "start": ("cluster", "train"),
    "look": ("page", "report", "search", "runs", "compare"),
    "use": ("embed", "fit", "predict", "suggest", "export", "push"),
    "judge": ("eval", "table2", "table3"),
    "data": ("doctor", "prepare", "table1", "cache"),
}
READS_SOUNDS = ("prepare", "doctor", "search", "embed", "cluster", "fit", "predict", "suggest", "report")
ABOUT = {
    "embed": "A clip of up to 10 s is embedded whole, a longer one as the mean of its 10 s pieces. All columns of a "
    "table are kept. After a stop the same command continues, and writes the same bytes.",
    "cluster": "Nothing is trained. Recordings are cut into segments, embedded, whitened and clustered. DIR gets "
    "clusters.csv, labels for Audacity and Raven, report.html, and clusters.npz for --like.",
    "export": "onnx and torch write an encoder with its front-end, waveform in, embedding out. The other formats take "
    "embeddings, with clusters and labels, to Embedding Atlas, Spotlight, TensorFlow's projector or perch-hoplite.",
}
LIMITS = {
    "min_rate": "lowest rate of a sound, in Hz",
    "max_rate": "highest rate of a sound, in Hz",
    "max_channels": "most channels of a sound",
    "max_hours": "longest clip, in hours; list stretches of longer files",
    "max_rows": "most rows of a table",
}


if __name__ == "__main__":
    main()
