"""`python eval.py`, `decar-eval`: judge an encoder on a task, one cell of the paper's Table 2."""

from __future__ import annotations

import logging
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from decar.cli.checks import check, require
from decar.cli.main import run_hydra

if TYPE_CHECKING:  # torch takes seconds to import, --help and --cfg should not
    from omegaconf import DictConfig

    from decar.audio import FrontEnd
    from decar.downstream import TaskSpec
    from decar.models import Encoder

log = logging.getLogger(__name__)


def evaluate(cfg: DictConfig) -> float | None:
    """Judge as configured and write `result.json`; returns the accuracy on test, None for a task that was skipped."""
    from hydra.core.hydra_config import HydraConfig
    from hydra.types import RunMode
    from hydra.utils import instantiate
    from omegaconf import OmegaConf

    from decar.downstream import judge

    conf: Any = HydraConfig.get()
    choice = conf.runtime.choices.task
    check(cfg)
    find_corpus(cfg)
    if cfg.task.path is None and conf.mode == RunMode.MULTIRUN and any("glob(" in word for word in sys.argv):
        # task=glob(*) names the tasks that need a source of the user's, and corpora that are not here, as well
        log.info("task=%s: skipped, %s", choice, "not prepared" if cfg.task.corpus else "it has no task.path")
        return None
    corpus = cfg.task.corpus
    cure = f"run `decar prepare {corpus} ROOT` first" if corpus else "pass task.path=…, a table or a folder of classes"
    require(cfg.task.path is not None, f"task={choice} has no source: {cure}")
    output = Path(conf.runtime.output_dir)
    (output / "config.yaml").write_text(OmegaConf.to_yaml(cfg, resolve=True))
    frontend = instantiate(cfg.frontend)
    fine = cfg.mode if cfg.mode.name == "finetune" else {"crop_frames": 98, "num_workers": 0}
    trainer = {"accelerator": cfg.accelerator, "precision": cfg.precision, "enable_progress_bar": cfg.progress}
    result = judge(
        task_spec(cfg, crop_frames=fine["crop_frames"]),
        choose_encoder(cfg, frontend),
        bundle=str(cfg.bundle),
        mode=cfg.mode.name,
        protocol=instantiate(cfg.protocol, _convert_="all"),
        seed=cfg.seed,
        cache_dir=cfg.cache_dir,
        frontend=frontend,
        device=device_of(cfg.accelerator),
        num_workers=fine["num_workers"],
        trainer_kwargs=trainer,
        progress=cfg.progress,
        choice=choice,
    )
    result.write(output / "result.json")
    log.info(
        "%s, %s, protocol %s, %s: %.1f %% on test (%.1f on validation; %d classes, %d clips to learn from), %.0f s",
        result.task, result.mode, result.protocol, result.bundle, 100 * result.value, 100 * result.valid_value,
        result.n_classes, result.n_train, result.seconds,
    )  # fmt: skip
    return result.value


def find_corpus(cfg: DictConfig) -> None:
    """Fill in where the clips of a task's corpus are, once `decar prepare` has been run on it."""
    from decar.corpora import load_prepared

    if not cfg.task.corpus or cfg.task.path is not None:
        return
    prepared = load_prepared(cfg.cache_dir, cfg.task.corpus)
    if prepared is not None:
        cfg.task.path, cfg.task.root = str(prepared.file), str(prepared.root)


def task_spec(cfg: DictConfig, **more: Any) -> TaskSpec:
    """The task as configured."""
    from decar.downstream import TaskSpec

    given = {str(key): value for key, value in cfg.task.items() if key != "corpus"}
    fold = given.pop("fold", None)
    return TaskSpec(**given, fold=None if fold is None else str(fold), **more)


def choose_encoder(cfg: DictConfig, frontend: FrontEnd) -> Encoder | Literal["logmel"]:
    """What `bundle` means: untrained weights by seed, the log-mel statistics, or an encoder from a file."""
    from hydra.utils import instantiate

    from decar.models import load_encoder

    require(bool(cfg.bundle), "bundle is not set: give a run, an encoder.safetensors, random or logmel")
    if cfg.bundle == "logmel":
        return "logmel"
    if cfg.bundle == "random":
        # partial: Hydra would turn a dataclass among the arguments into a config
        encoder: Encoder = instantiate(cfg.encoder, _partial_=True)(frontend=frontend)
        return encoder.eval()
    return load_encoder(cfg.bundle, frontend=frontend)


def device_of(accelerator: str) -> str:
    """Where the embedding pass runs: on the GPU when Lightning would take one."""
    import torch

    require(accelerator in ("auto", "cpu", "gpu"), f"accelerator={accelerator}: choose auto, cpu or gpu")
    seen = torch.cuda.is_available()
    require(accelerator != "gpu" or seen, "accelerator=gpu: torch sees no GPU here; use accelerator=cpu")
    return "cuda" if seen and accelerator != "cpu" else "cpu"


def main() -> None:
    """Entry point."""
    run_hydra(evaluate, "eval")


if __name__ == "__main__":
    main()
