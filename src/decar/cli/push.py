"""`decar push`: a bundle to the Hugging Face hub."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from decar.cli.terminal import say

if TYPE_CHECKING:
    Commands = argparse._SubParsersAction[argparse.ArgumentParser]


def add_parser(commands: Commands) -> None:
    """Add the command."""
    push = commands.add_parser("push", help="put a bundle on the Hugging Face hub, with a model card")
    push.add_argument("bundle", metavar="BUNDLE", help="encoder.safetensors, or a run that holds it")
    push.add_argument("repo", metavar="USER/NAME", help="made where there is none")
    push.add_argument("--private", action="store_true", help="a new repository is private")
    push.add_argument("--revision", metavar="BRANCH", help="a branch, in place of the main one")
    push.set_defaults(run=_push)


def _push(args: argparse.Namespace) -> None:
    from decar.models.hub import push

    where = push(args.bundle, args.repo, private=args.private, revision=args.revision)
    say(f'pushed; load it with decar.load_encoder("{where}")')
