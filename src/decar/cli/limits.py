"""The limits of sounds and tables as options: `limits.max_hours=24` in train.py and eval.py, else `--max-hours 24`."""

from __future__ import annotations

import argparse
from dataclasses import fields
from typing import TYPE_CHECKING

from decar.limits import Limits, set_limits

if TYPE_CHECKING:
    from omegaconf import DictConfig

HELP = {
    "min_rate": "lowest rate of a sound, in Hz",
    "max_rate": "highest rate of a sound, in Hz",
    "max_channels": "most channels of a sound",
    "max_hours": "longest clip, in hours; longer files are listed in stretches",
    "max_rows": "most rows of a table",
}


def add_limits(parser: argparse.ArgumentParser) -> None:
    """Give a command the options of `Limits`."""
    group = parser.add_argument_group("limits", "what is beyond them is refused with a line; the job goes on")
    for field in fields(Limits):
        kind = float if field.name == "max_hours" else int
        option = f"--{field.name.replace('_', '-')}"
        group.add_argument(
            option, type=kind, default=field.default, metavar="N", help=f"{HELP[field.name]} (default: %(default)s)"
        )


def use_limits(args: argparse.Namespace) -> None:
    """Set the limits that a command was given; the defaults for one that has no such options."""
    names = [field.name for field in fields(Limits)]
    set_limits(Limits(**{name: getattr(args, name) for name in names if hasattr(args, name)}))


def use_configured_limits(cfg: DictConfig) -> None:
    """Set the limits of a configuration."""
    set_limits(Limits(**cfg.limits))
