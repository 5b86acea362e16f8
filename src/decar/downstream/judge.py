"""One cell of Table 2 from end to end: task, store, embeddings or fine-tuning, result."""

import logging
import time
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

import decar
from decar.audio.logmel import FrontEnd
from decar.audio.store import LogMelStore
from decar.downstream.embeddings import Source, cached_embeddings, encoder_hash
from decar.downstream.finetune import fit_finetune
from decar.downstream.probe import fit_frozen
from decar.downstream.protocol import Protocol
from decar.downstream.results import Kind, Mode, Result
from decar.downstream.task import TaskSpec, drop_unreadable, few_shot, load_task
from decar.errors import ConfigError, check_whole

log = logging.getLogger(__name__)

COLUMNS: dict[str, Kind] = {"random": "random", "logmel": "logmel"}  # of a table, by bundle; other bundles: "decar"


def judge(
    spec: TaskSpec,
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
        spec: The task.
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
    check_whole("mode.crop_frames", spec.crop_frames, 1)
    check_whole("mode.num_workers", num_workers, 0)
    if spec.shots is not None:
        check_whole("task.shots", spec.shots, 1)
    numbers = (frontend or FrontEnd()) if isinstance(encoder, str) else encoder.frontend
    task = load_task(spec)
    store = LogMelStore.open_or_build(task.source, numbers, cache_dir=cache_dir, progress=progress)
    whole = drop_unreadable(task, store.lengths[task.rows])
    task = few_shot(whole, seed)
    if isinstance(encoder, str) or mode == "frozen":
        good = np.flatnonzero(store.lengths > 0)
        x = cached_embeddings(encoder, store.take(good), cache_dir, device=device, progress=progress)
        outcome = fit_frozen(x[np.searchsorted(good, task.rows)], task, protocol, seed)
    else:
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
        encoder=COLUMNS.get(bundle, "decar"),
        encoder_hash=encoder_hash(encoder),
        seed=seed,
        split_hash=whole.hash(),
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
