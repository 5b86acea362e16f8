"""`python -m decar.cli.rank CONFIG CHECKPOINT SIZE`: a further process of a job that `decar.cli.launch` has started."""

from __future__ import annotations

import logging
import os
import sys
from pathlib import Path

from decar.cli.config import register_resolvers
from decar.cli.explain import explain
from decar.cli.launch import end_with_parent
from decar.cli.liveness import heartbeat, peers_named
from decar.cli.terminal import complain, start_log
from decar.errors import PreemptedError
from decar.signals import stoppable


def main() -> None:
    """Train with what the first process has settled; exit with 2 on a user's error."""
    from omegaconf import DictConfig, OmegaConf

    from decar.cli.main import quiet
    from decar.cli.train import all_clips, train

    register_resolvers()
    quiet()
    start_log(logging.ERROR)
    end_with_parent()
    config, checkpoint = Path(sys.argv[1]), sys.argv[2] or None
    cfg = OmegaConf.load(config)
    assert isinstance(cfg, DictConfig)
    rank = int(os.environ["LOCAL_RANK"])
    alive = heartbeat(rank, int(sys.argv[3]), cfg.stall_timeout)
    try:
        # Ctrl-C goes to all processes: the first one decides when the job stops
        with stoppable(leads=False), peers_named(), alive:
            train(cfg, config.parent, checkpoint, all_clips(cfg))
    except PreemptedError as error:
        sys.exit(error.status)
    except Exception as error:
        line = explain(error, "train")
        if line is None:
            raise
        complain(f"process {rank}: {line}")
        sys.exit(getattr(error, "status", 2))


if __name__ == "__main__":
    main()
