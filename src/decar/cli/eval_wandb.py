"""Results of `eval.py` on wandb.

Each has a run with its figures, a table, the confusion matrix, and the run of wandb that its encoder is from.
A sweep gets one more run in the same group, with the table of all its results.
"""

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import wandb

from decar.cli.runs import read_config
from decar.downstream import Result
from decar.downstream.results import FILE_NAME
from decar.errors import DecarError
from decar.metrics import JOURNAL
from decar.models.artifacts import WANDB, origin_of, parse_artifact
from decar.models.bundle import bundle_file
from decar.models.other import is_other
from decar.pretrain.wandb_logger import ResumableWandbLogger, read_journal

log = logging.getLogger(__name__)

COLUMNS = ("task", "mode", "protocol", "bundle", "encoder", "seed", "fold", "shots", "metric", "value", "valid_value",
           "n_train", "n_valid", "n_test", "n_classes")  # fmt: skip
CELLS = 10_000  # of a confusion matrix: what a table of wandb shows


def is_logged(output: Path) -> bool:
    """Whether the result in this folder was logged, up to the end."""
    return bool(read_journal(output / JOURNAL)[0].get("ended"))


def log_to_wandb(logger: ResumableWandbLogger, options: dict[str, Any], result: Result) -> None:
    """Log a result and the options of its job as a run of wandb."""
    with opened(logger):
        run = logger.experiment
        logger.log_hyperparams(options)
        run.config.update({"result": settings_of(result), "pretraining": pretraining_of(result.bundle)})
        if result.bundle.startswith(WANDB) and not run.offline:
            run.use_artifact(":".join(parse_artifact(result.bundle)))
        run.log({"results": table_of([result])}, step=0, commit=False)
        if result.confusion:
            run.log({"confusion": confusion_chart(result)}, step=0, commit=False)
        logger.log_metrics({**result.metrics, "value": result.value, "valid_value": result.valid_value})


def log_table(folder: Path, results: Sequence[Result]) -> None:
    """Log the table of a sweep, of which at least one job has logged to wandb, in the group of its jobs."""
    job = min(folder.glob(f"*/{JOURNAL}")).parent
    options = {
        key: value for key, value in read_config(job / "config.yaml")["logger"]["wandb"].items() if key[0] != "_"
    }
    options |= {"save_dir": folder, "name": f"{folder.name}: results", "job_type": "table", "log_model": False}
    logger = ResumableWandbLogger(**options)
    with opened(logger):
        logger.experiment.log({"results": table_of(results)}, step=logger.n_rows)  # behind that of an earlier call


@contextmanager
def opened(logger: ResumableWandbLogger) -> Iterator[None]:
    """Close the run of wandb whatever happens: a sweep's next job would log into it."""
    run = logger.experiment
    try:
        yield
    except BaseException:
        run.finish()
        raise
    logger.end()


def settings_of(result: Result) -> dict[str, Any]:
    """What a result depends on, and the facts that the bundle holds about its pre-training."""
    names = ("task", "mode", "protocol", "bundle", "encoder", "encoder_hash", "seed", "split_hash", "fold", "shots",
             "settings", "chosen", "network", "pretrained", "version")  # fmt: skip
    return {name: getattr(result, name) for name in names}


def pretraining_of(bundle: str) -> dict[str, Any]:
    """The run of wandb that made a bundle, as ENTITY/PROJECT/ID, and its options; empty where none is known."""
    if is_other(bundle) or bundle in ("random", "logmel"):
        return {}
    file = bundle_file(bundle)
    if bundle.startswith(WANDB):
        return {"run": origin_of(file)}
    folder = file.parent.parent if file.parent.name == "best" else file.parent
    facts, _ = read_journal(folder / JOURNAL)
    if not facts:
        return {}
    run = "/".join(str(facts[key]) for key in ("entity", "project", "id") if facts.get(key))
    try:
        return {"run": run, "config": read_config(folder / "config.yaml")}
    except DecarError as error:
        log.warning("%s", error)
        return {"run": run}


def table_of(results: Sequence[Result]) -> Any:
    """A row a result."""
    rows: Any = [[getattr(result, name) for name in COLUMNS] for result in results]
    return wandb.Table(columns=[*COLUMNS], data=rows)


def confusion_chart(result: Result) -> Any:
    """The confusion matrix of the test split, as wandb draws it."""
    columns: Any = ["Actual", "Predicted", "nPredictions"]
    return wandb.plot_table(
        "wandb/confusion_matrix/v1",
        wandb.Table(columns=columns, data=cells_of(result)),
        {name: name for name in columns},
        {"title": f"{result.title}, test"},
    )


def cells_of(result: Result, most: int = CELLS) -> list[Any]:
    """True class, predicted class and count of each cell; of too many those that are not 0, the largest first."""
    cells: list[Any] = [
        [result.classes[i], result.classes[j], count]
        for i, row in enumerate(result.confusion)
        for j, count in enumerate(row)
    ]
    if len(cells) <= most:
        return cells
    kept = sorted((cell for cell in cells if cell[2]), key=lambda cell: -cell[2])
    if len(kept) > most:
        log.warning(
            "%s: wandb gets the %d largest cells of the confusion matrix; %s has all", result.title, most, FILE_NAME
        )
    return kept[:most]
