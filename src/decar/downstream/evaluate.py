"""One cell of Table 2 from end to end: task, store, embeddings or fine-tuning, result.

Embeddings of a store are computed once, and kept under the hash of the encoder and the fingerprint of the store.
"""

import logging
import time
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

import decar
from decar.audio.descriptors import logmel_statistics
from decar.audio.logmel import FrontEnd
from decar.audio.store import LogMelStore
from decar.digests import ARRAY_SUFFIX, load_array, save_array
from decar.downstream.probe import fit_frozen
from decar.downstream.protocol import Protocol
from decar.downstream.results import Kind, Mode, Result
from decar.downstream.task import Task, TaskSpec, drop_unreadable, few_shot, load_task
from decar.errors import ConfigError, StoreError, check_whole, one_line
from decar.files import advice, whole
from decar.models import Encoder, embed_store
from decar.models.other import is_other

log = logging.getLogger(__name__)

FORMAT = 3  # raise it when padding, statistics or layout change: older files are then ignored
Source = Encoder | Literal["logmel"]


def judge(
    task: TaskSpec | Task,
    encoder: Source,
    *,
    bundle: str,
    mode: Mode,
    protocol: Protocol,
    seed: int,
    cache_dir: str | Path,
    frontend: FrontEnd | None = None,
    device: str = "cpu",
    num_workers: int = 0,
    trainer_kwargs: Mapping[str, Any] | None = None,
    progress: bool = True,
    pretrained: Mapping[str, Any] | None = None,
) -> Result:
    """Judge an encoder on a task.

    Store and frozen embeddings are of the whole source, so that tasks of one source share them.

    Args:
        task: The task, loaded or not.
        encoder: An encoder, or "logmel".
        bundle: As the user gave it; "random" and "logmel" are columns of the tables.
        mode: "frozen": linear classifier on embeddings; "finetune": the whole network learns.
        protocol: How the classifier is trained and which setting validation chooses.
        seed: Seed of the probe.
        cache_dir: Where stores and embeddings are kept.
        frontend: Front-end of the "logmel" baseline; an encoder brings its own.
        device: Where the embeddings are computed; that of fine-tuning is in `trainer_kwargs`.
        num_workers: Loader processes of fine-tuning.
        trainer_kwargs: For the trainer of fine-tuning.
        progress: Whether to show bars.
        pretrained: Facts about the encoder's pre-training, for the tables that compare settings of it.

    Raises:
        ConfigError: The log-mel baseline was to be fine-tuned, or a number of the mode is out of range.
        TaskError: The task cannot be set up.
        StoreError: The log-mels cannot be built.
    """
    began = time.perf_counter()
    if isinstance(encoder, str) and mode == "finetune":
        raise ConfigError("mode=finetune bundle=logmel: log-mel statistics have no weights to tune; take mode=frozen")
    spec = task.spec if isinstance(task, Task) else task
    check_whole("mode.crop_frames", spec.crop_frames, 1)
    check_whole("mode.num_workers", num_workers, 0)
    if spec.shots is not None:
        check_whole("task.shots", spec.shots, 1)
    numbers = (frontend or FrontEnd()) if isinstance(encoder, str) else encoder.frontend
    task = task if isinstance(task, Task) else load_task(spec)
    store = LogMelStore.open_or_build(task.source, numbers, cache_dir=cache_dir, progress=progress)
    readable = drop_unreadable(task, store.lengths[task.rows])
    task = few_shot(readable, seed)
    if isinstance(encoder, str) or mode == "frozen":
        good = np.flatnonzero(store.lengths > 0)
        x = cached_embeddings(encoder, store.take(good), cache_dir, device=device, progress=progress)
        outcome = fit_frozen(x[np.searchsorted(good, task.rows)], task, protocol, seed)
    else:
        from decar.downstream.finetune import fit_finetune  # and Lightning, which takes seconds

        outcome = fit_finetune(
            encoder, task, store.take(task.rows), protocol, seed, crop_frames=spec.crop_frames,
            num_workers=num_workers, trainer_kwargs=trainer_kwargs,
        )  # fmt: skip
    counts = task.counts()
    return Result(
        task=spec.name,
        mode=mode,
        protocol=protocol.name,
        bundle=bundle,
        encoder=kind_of(bundle),
        encoder_hash=encoder_hash(encoder),
        seed=seed,
        split_hash=readable.hash(),
        value=outcome.test_value,
        valid_value=outcome.valid_value,
        n_train=counts["train"],
        n_valid=counts["valid"],
        n_test=counts["test"],
        n_classes=len(task.classes),
        dropped=task.dropped,
        confusion=outcome.confusion.tolist(),
        metric=outcome.metric,
        metrics=outcome.metrics,
        fold=spec.fold,
        shots=spec.shots,
        classes=task.classes,
        chosen=outcome.chosen,
        version=decar.__version__,
        seconds=round(time.perf_counter() - began, 3),
        settings={key: list(v) if isinstance(v, tuple) else v for key, v in asdict(protocol).items()},
        network="" if isinstance(encoder, str) else encoder.description,
        pretrained=dict(pretrained or {}),
    )


def kind_of(bundle: str) -> Kind:
    """The kind of encoder that a bundle's name stands for.

    >>> kind_of("random"), kind_of("hear:decar.hear"), kind_of("runs/a")
    ('random', 'other', 'decar')
    """
    baselines: dict[str, Kind] = {"random": "random", "logmel": "logmel"}
    return baselines.get(bundle, "other" if is_other(bundle) else "decar")


def encoder_hash(encoder: Source) -> str:
    """The hash of an encoder; "logmel" for the baseline."""
    return encoder if isinstance(encoder, str) else encoder.hash()


def cached_embeddings(
    encoder: Source,
    store: LogMelStore,
    cache_dir: str | Path,
    *,
    device: str = "cpu",
    progress: bool = True,
) -> NDArray[np.float32]:
    """Embeddings of every clip of a store, from the cache when they are there.

    Several processes may call this at once: each writes its own file and renames it into place. A file whose digest or
    shape is wrong is computed again; a cache that cannot be written is a warning.

    Args:
        encoder: The encoder, always run in eval mode; or "logmel": mean and standard deviation of the log-mel over
            time.
        store: Log-mels of readable clips.
        cache_dir: Where caches live; the files go into its folder `embeddings`.
        device: Where the encoder runs.
        progress: Whether to show a bar on stderr.

    Returns:
        `(N, D)` float32 in the order of the store.

    Raises:
        StoreError: An embedding holds NaN or Inf; nothing is written.
    """
    name = f"{encoder_hash(encoder)[:24]}-{store.fingerprint[:24]}-v{FORMAT}{ARRAY_SUFFIX}"
    path = Path(cache_dir).expanduser() / "embeddings" / name
    dim = 2 * store.frontend.n_mels if isinstance(encoder, str) else encoder.dim
    found = _read(path, (len(store), dim))
    if found is not None:
        log.info("embeddings found in %s", path)
        return found
    if isinstance(encoder, str):
        made = np.stack([logmel_statistics(store[i]) for i in range(len(store))]).astype(np.float32)
    else:
        made = embed_store(encoder, store, device=device, progress=progress)
    bad = np.flatnonzero(~np.isfinite(made.sum(axis=1, dtype=np.float64)))  # float32 cannot overflow it
    if len(bad):
        raise StoreError(
            f"the embedding of {store.named(bad)} holds NaN or Inf: is the bundle from a run that diverged?"
        )
    _write(path, made)
    return made


def _read(path: Path, shape: tuple[int, int]) -> NDArray[np.float32] | None:
    """The array in a cache file, or None when there is none that can be used."""
    if not path.is_file():
        return None
    try:
        found = load_array(path)
        if found.shape == shape and found.dtype == np.float32:
            return found
        reason = "another shape than the store and the encoder have"
    except (OSError, ValueError) as error:
        reason = one_line(error)
    log.warning("%s is damaged (%s) and is computed again", path, reason)
    return None


def _write(path: Path, x: NDArray[np.float32]) -> None:
    """Write the file; a failure is a warning."""
    try:
        with whole(path) as part:
            save_array(part, x)
    except OSError as error:
        log.warning("%s: embeddings are not kept (%s): %s", path, error, advice(error))
