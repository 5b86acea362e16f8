"""The encoder of a cell, pre-trained first where it is not there yet: a table in one sweep (experiment=table3)."""

from __future__ import annotations

import functools
import logging
import shlex
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from decar.cli.checks import require
from decar.cli.config import hydra_value
from decar.cli.done import FINISHED

if TYPE_CHECKING:
    from omegaconf import DictConfig

log = logging.getLogger(__name__)


def obtain(cfg: DictConfig) -> None:
    """Run `train.py` with `pretrain.options` into the folder `bundle`, which leaves a finished run of these as it is.

    A run that was stopped goes on where it was; one of other options or sounds is refused by name. Of several jobs
    that want one encoder the first makes it, the others wait.

    Raises:
        ConfigError: The pre-training failed; what it said stands in its folder's train.log.
    """
    if cfg.get("pretrain"):
        _obtain(Path(cfg.bundle).expanduser().absolute(), cfg.pretrain.options)


@functools.cache  # the jobs of a sweep share their encoders: it takes seconds to see that one is there
def _obtain(folder: Path, options: str) -> None:
    """Run `train.py` in a process of its own: nothing of a training leaks into the judging."""
    import filelock

    folder.parent.mkdir(parents=True, exist_ok=True)
    with filelock.FileLock(f"{folder}.lock"):
        log.info("pre-training %s, unless that is done", folder)
        words = [*shlex.split(options), f"hydra.run.dir={hydra_value(str(folder))}", "resume=auto"]
        code = subprocess.run([sys.executable, "-m", "decar.cli.train", *words], check=False).returncode
        finished = (folder / FINISHED).is_file()
    require(code == 0, f"pre-training {folder} failed (exit status {code}); see above, or train.log in there")
    require(finished, f"pre-training {folder} was cut short (trainer.max_time?): give the same command again to go on")
