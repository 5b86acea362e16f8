"""The parts of a page from the folder of a run: curves, downstream results, environment, clips."""

import inspect
import logging
import math
import platform
import sys
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from decar import __version__
from decar.audio import FrontEnd, LogMelStore, Manifest
from decar.audio.clips import as_segment
from decar.cores import cpu_count
from decar.corpora import prepared_manifest
from decar.digests import DamagedError, read_json, write_json
from decar.downstream import Result
from decar.downstream.results import by_age, latest, result_files
from decar.errors import ConfigError, DecarError, check_whole
from decar.files import whole
from decar.metrics import read_rows

log = logging.getLogger(__name__)

Plain = str | int | float | bool | None
FRONT_END = "decar.audio.FrontEnd"
KNOWN = {  # curves by their name in metrics.csv: a title, and what to look for
    "loss_epoch": ("Loss", "cross-entropy of the pseudo-labels; starts again where the heads are renewed"),
    "pseudo_accuracy": ("Pseudo-label accuracy", "share of crops whose cluster is predicted"),
    "nmi": ("NMI to the assignment before", "1: nothing moves any more; only where both epochs were clustered"),
    "probe_accuracy": ("Online probe", "nearest-neighbour accuracy on the watched label; should rise"),
    "n_clusters": ("Clusters", "non-empty ones, of all clusterings"),
    "entropy": ("Entropy of the cluster sizes", "1: all of one size; near 0: one cluster has swallowed the rest"),
    "effective_rank": ("Effective rank of what is clustered", "dimensions in use; a fall to 1 is collapse"),
    "embedding_rank": ("Effective rank of the embedding", "dimensions in use; should rise"),
}
MAX_POINTS = 2000  # of a curve; of a longer one every n-th
ENVIRONMENT = "environment.json"
PACKAGES = (
    "torch", "torchaudio", "pytorch-lightning", "hydra-core", "timm", "faiss-cpu", "faiss-gpu", "numpy", "scipy",
    "scikit-learn", "pandas", "pyarrow", "soundfile", "plotly",
)  # fmt: skip
ENCODERS = {"decar": "this encoder", "random": "random weights", "logmel": "log-mel statistics"}


def curves(run: Path) -> list[dict[str, Any]]:
    """The curves of a run, known ones first; `loss_step` is drawn with the loss.

    Raises:
        DecarError: There is no metrics file, or there is nothing in it.
    """
    file = run / "metrics.csv"
    try:
        rows = read_rows(file)
    except (OSError, ValueError) as error:
        raise DecarError(f"{file}: cannot be read ({error})") from error
    if not rows:
        raise DecarError(f"{file}: {'holds no figures' if file.is_file() else 'not there'}; was logger=csv left out?")
    names = {name for row in rows for name in row} - {"epoch", "step", "loss_step"}
    order = [name for name in KNOWN if name in names] + sorted(names - set(KNOWN))
    found = []
    for name in order:
        title, hint = KNOWN.get(name, (name.replace("_", " "), ""))
        series: dict[str, Any] = {"name": name, "title": title, "hint": hint, **_series(rows, name)}
        if name == "loss_epoch":
            series["fine"] = _series(rows, "loss_step")
        if max(len(series["y"]), len(series.get("fine", series)["y"])) > 1:  # one point is no curve
            found.append(series)
    return found


def _series(rows: list[dict[str, Any]], name: str) -> dict[str, list[Any]]:
    """Steps, epochs and values where there is a finite one."""
    points = []
    for row in rows:
        try:
            value = float(row[name])
        except (KeyError, ValueError):
            continue
        if math.isfinite(value):
            points.append((int(row["step"]) + 1, int(float(row.get("epoch", 0))) + 1, value))
    points = points[::-1][:: max(1, math.ceil(len(points) / MAX_POINTS))][::-1]  # the last one stays
    steps, epochs, values = ([point[i] for point in points] for i in range(3))
    return {"x": steps, "epoch": epochs, "y": values}


def results_of(
    run: Path, encoder_hash: Callable[[], str], others: Sequence[Path] = ()
) -> tuple[list[dict[str, Any]], str]:
    """The results of an encoder, and of random weights and log-mels on the same tasks, splits and seeds.

    Of results for the same question the newest file counts, as in `collect`; of a task that was judged on several
    splits the newest one.

    Args:
        run: Folder of the run, searched at any depth.
        encoder_hash: Returns the hash of the encoder; called where there are results.
        others: More folders with results.

    Returns:
        A row a result, with its confusion matrix, for JSON; and a line about results that are left out, or "".

    Raises:
        DecarError: There is no result of this encoder, or one of `others` does not exist.
    """
    found, faults = _read_all([run, *others])
    notes = [f"{len(faults)} cannot be read: {'; '.join(faults[:3])}"] if faults else []
    wanted = encoder_hash() if found else ""
    own = [result for result in found if result.encoder_hash == wanted]
    if not own:
        other = f"{len(found)} results there are of other encoders; " if found else ""
        raise DecarError(
            f"no results of this encoder: {other}judge it with decar-eval -m 'task=glob(*)' bundle=RUN, then "
            f"decar report RUN --downstream DIR{''.join(f'; {note}' for note in notes)}"
        )
    splits = {(result.task, result.fold): result.split_hash for result in own}  # of the newest
    older = sorted({result.title for result in own if splits[result.task, result.fold] != result.split_hash})
    if older:
        notes.append(f"results of {', '.join(older)} on older splits are left out: they do not compare")
        own = [result for result in own if splits[result.task, result.fold] == result.split_hash]
    questions, networks = {_question(result) for result in own}, {result.network for result in own}
    own += [
        result
        for result in found
        if result.encoder != "decar"
        and _question(result) in questions
        and (result.encoder != "random" or _alike(result.network, networks))
    ]
    rows = [_row(result) for result in own]
    order = ("task", "mode", "protocol", "encoder", "seed")
    return sorted(rows, key=lambda row: [row[key] for key in order]), "; ".join(notes)


def _alike(network: str, networks: set[str]) -> bool:
    """Whether untrained weights are of one of these networks, as far as that is known."""
    return not network or network in networks or "" in networks


def _read_all(folders: Sequence[Path]) -> tuple[list[Result], list[str]]:
    """The results in some folders, the oldest first, and what is wrong with those that cannot be read."""
    found, faults = [], []
    for folder in folders:
        if not folder.exists():
            raise DecarError(f"--downstream {folder}: no such folder; give the one that eval.py wrote its runs to")
    for file in by_age({file.resolve() for folder in folders for file in result_files(folder)}):
        try:
            found.append((file, Result.read(file)))
        except DecarError as error:
            faults.append(str(error))
    return [result for _, result in latest(found)], faults


def _question(r: Result) -> tuple[object, ...]:
    return r.task, r.mode, r.protocol, r.seed, r.split_hash, r.shots


def _row(r: Result) -> dict[str, Any]:
    return {
        "task": r.title + (f", fold {r.fold}" if r.fold else ""), "title": r.title,
        "mode": r.mode, "protocol": r.protocol, "encoder": ENCODERS.get(r.encoder, r.bundle), "seed": r.seed,
        "metric": r.metric, "value": r.value, "valid": r.valid_value, "n_train": r.n_train, "n_test": r.n_test,
        "n_classes": r.n_classes, "classes": r.classes, "confusion": r.confusion,
    }  # fmt: skip


def environment(command: Sequence[str]) -> dict[str, str]:
    """Versions, hardware, date and command of this process; no names of machines or people."""
    import torch

    cards = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return {
        "date": datetime.now().astimezone().isoformat(sep=" ", timespec="seconds"),
        "command": " ".join(command),
        "decar": __version__,
        "python": platform.python_version(),
        "system": platform.platform(),
        "processor": f"{_processor()}, {cpu_count()} cores, {torch.get_num_threads()} torch threads",
        "accelerators": ", ".join(cards) or "none",
        **{name: found for name in PACKAGES if (found := _version(name))},
    }


def write_environment(run: Path) -> None:
    """Write `environment.json` into the folder of a run."""
    with whole(run / ENVIRONMENT) as part:
        command = [Path(sys.argv[0]).name, *sys.argv[1:]]
        write_json(part, environment(command))


def read_environment(run: Path) -> dict[str, str]:
    """The environment of a run.

    Raises:
        DecarError: The file does not exist, or is damaged.
    """
    file = run / ENVIRONMENT
    if not file.is_file():  # a named pipe would block
        raise DecarError(f"{file}: not there: the run was made without a report")
    try:
        return {str(key): str(value) for key, value in read_json(file).items()}
    except (OSError, DamagedError) as error:
        raise DecarError(f"{file}: damaged ({error}): nothing says what the run was made with") from error


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return ""


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(errors="replace").splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def clips_of(config: Mapping[str, Any], cache_dir: str) -> LogMelStore | str:
    """The usable clips of a run by its `config.yaml`, or why they cannot be loaded.

    Such a file may come from anybody, so what it names is not instantiated: clips and front-end are built from a fixed
    table of decar's own functions with plain values. See docs/security.md.

    Raises:
        ConfigError: The configuration names something that is not decar's own.
    """
    frontend, data = frontend_of(config), config.get("data")
    cut = data.get("segment") if isinstance(data, Mapping) and not data.get("stream") else None
    segment = as_segment(cut, "config.yaml: data.segment")
    try:
        clips = watched(config, manifest_of(config))
        log.warning("reading the sounds of %s", clips.root)
        return LogMelStore.open_or_build(clips, frontend, cache_of(config, cache_dir)).segmented(segment).usable()
    except ConfigError:
        raise
    except Exception as error:  # the files have moved, the table has changed, the cache is read-only
        return f"cannot load the run's clips: {' '.join(str(error).split())[:300]}"


def watched(config: Mapping[str, Any], clips: Manifest) -> Manifest:
    """The clips that a run has clusters of: of a stream only its sample.

    Raises:
        ConfigError: The sample's numbers are no whole numbers.
    """
    data, labels = config.get("data"), config.get("labels")
    if not (isinstance(data, Mapping) and data.get("stream")):
        return clips
    n, seed = labels.get("sample") if isinstance(labels, Mapping) else None, config.get("seed")
    check_whole("config.yaml: labels.sample", n, 1)
    check_whole("config.yaml: seed", seed, 0)
    from decar.pretrain.stream import sample_of  # imports Lightning, which takes seconds

    return sample_of(clips, int(n or 0), int(seed or 0))


def manifest_of(config: Mapping[str, Any]) -> Manifest:
    """The clips of a found run: `data.manifest` must name one of decar's own readers, with plain values.

    Raises:
        ConfigError: It names something else, an unknown argument, or a value that is not plain.
        ManifestError: The folder or table is not there any more, or has changed.
    """
    known: dict[str, Callable[..., Manifest]] = {
        "decar.audio.Manifest.from_folder": Manifest.from_folder,
        "decar.audio.Manifest.from_csv": Manifest.from_csv,
        "decar.audio.Manifest.from_parquet": Manifest.from_parquet,
        "decar.corpora.prepared_manifest": prepared_manifest,
    }
    data = config.get("data")
    made: Manifest = _call(known, data.get("manifest") if isinstance(data, Mapping) else None, "data.manifest")
    return made


def frontend_of(config: Mapping[str, Any]) -> FrontEnd:
    """The front-end of a found run, from its numbers.

    Raises:
        ConfigError: As `manifest_of`, or the numbers contradict one another.
    """
    numbers = config.get("frontend")
    made: FrontEnd = _call({FRONT_END: FrontEnd}, numbers, "frontend")
    for key, value in made.as_dict().items():
        if key != "l2" and (isinstance(value, bool) or not isinstance(value, int | float)):  # l2: FrontEnd looks itself
            raise ConfigError(f"config.yaml: frontend.{key}={value!r} is not a number; correct it")
    return made


def cache_of(config: Mapping[str, Any], own: str) -> str:
    """Where the log-mels of a found run are looked for: its `cache_dir` if decar has kept log-mels there, else `own`.

    A folder that the reader never used as a cache is not written to.
    """
    theirs = config.get("cache_dir")
    return theirs if isinstance(theirs, str) and (Path(theirs).expanduser() / "logmel").is_dir() else own


def _call(known: Mapping[str, Callable[..., Any]], node: Any, key: str) -> Any:
    """Call the function that a node's `_target_` names in `known`, with the node's other entries."""
    target = node.get("_target_") if isinstance(node, Mapping) else None
    if not isinstance(target, str) or target not in known:
        raise ConfigError(
            f"config.yaml: {key}._target_={target!r}: a found configuration is never run; only {', '.join(known)} "
            "can be loaded from one; correct it"
        )
    arguments = {str(name): value for name, value in node.items() if name != "_target_"}
    unknown = set(arguments) - set(inspect.signature(known[target]).parameters)
    if unknown:
        raise ConfigError(f"config.yaml: {key}.{min(unknown)} is no option of {target}; remove it")
    for name, value in arguments.items():
        if not isinstance(value, Plain):
            raise ConfigError(f"config.yaml: {key}.{name} is a {type(value).__name__}, not a plain value; correct it")
    try:
        return known[target](**arguments)
    except TypeError as error:  # text where a number belongs
        raise ConfigError(f"config.yaml: {key}: {error}") from error
