"""`decar push`: a bundle to the Hugging Face hub, with a model card. Weights and JSON go there, never code."""

from __future__ import annotations

import argparse
import json
import re
from typing import TYPE_CHECKING

from decar.cli.config import add_network
from decar.cli.terminal import say
from decar.errors import BundleError, printable

if TYPE_CHECKING:
    from decar.models import Encoder

    Commands = argparse._SubParsersAction[argparse.ArgumentParser]


def add_parser(commands: Commands) -> None:
    """Add the command."""
    push = commands.add_parser("push", help="put a bundle on the Hugging Face hub, with a model card")
    push.add_argument("bundle", metavar="BUNDLE", help="encoder.safetensors, or a run that holds it")
    push.add_argument("repo", metavar="USER/NAME", help="made where there is none")
    push.add_argument("--private", action="store_true", help="a new repository is private")
    push.add_argument("--revision", metavar="BRANCH", help="a branch, in place of the main one")
    add_network(push)
    push.set_defaults(run=_push)


def _push(args: argparse.Namespace) -> None:
    """Upload the bundle, its card and its facts; the repository is made where there is none.

    Raises:
        BundleError: It is not a bundle, no token is set, or the hub refuses or cannot be reached.
    """
    import huggingface_hub

    from decar.models import load_encoder, read_facts
    from decar.models.bundle import FILE, HUB, bundle_file, hub_reason, parse_address

    repo, revision = parse_address(args.repo)
    revision = args.revision or revision
    where = HUB + repo + (f"@{revision}" if revision else "")
    encoder, facts = load_encoder(args.bundle, network=args.network), read_facts(args.bundle)
    about = {"encoder": encoder.settings(), "encoder_hash": encoder.hash(), "facts": facts}
    contents = {
        FILE: bundle_file(args.bundle).read_bytes(),
        "decar.json": json.dumps(about, indent=2).encode(),
        "README.md": model_card(where, encoder, facts).encode(),
    }
    operations = [huggingface_hub.CommitOperationAdd(name, content) for name, content in contents.items()]
    api = huggingface_hub.HfApi()
    try:
        api.create_repo(repo, private=args.private, exist_ok=True)
        if revision:
            api.create_branch(repo_id=repo, branch=revision, exist_ok=True)
        api.create_commit(repo, operations, commit_message="A decar encoder", revision=revision)
    except (OSError, ValueError) as error:
        raise BundleError(f"{where}: not pushed, {hub_reason(error)}") from error
    say(f'pushed; load it with decar.load_encoder("{where}")')


def model_card(where: str, encoder: Encoder, facts: dict[str, object]) -> str:
    """The README.md of the repository; nothing that the bundle says can be Markdown, HTML or YAML in it."""
    rows = {"network": encoder.description, "hash": encoder.hash(), **facts}
    table = "\n".join(f"| {as_text(key)} | {as_text(value)} |" for key, value in rows.items())
    return (
        "---\nlibrary_name: decar\ntags: [audio, audio-embedding, self-supervised]\n---\n\n"
        f"# {where.removeprefix('hf://')}\n\nAn audio encoder trained without labels by decar (arXiv 2110.08895).\n\n"
        f'```python\nimport decar\n\nencoder = decar.load_encoder("{where}")\n'
        f"embedding = encoder.embed(waveform)  # (B, T) at {encoder.sample_rate} Hz to (B, {encoder.dim})\n```\n\n"
        f"| | |\n|---|---|\n{table}\n"
    )


def as_text(value: object) -> str:
    """A value as text of a Markdown cell: each character that Markdown or HTML could read is written by its number.

    >>> as_text("<b>"), as_text(0.5), as_text({"k": 3})
    ('&#60;b&#62;', '0.5', '&#123;&#34;k&#34;&#58; 3&#125;')
    """
    if value is None or isinstance(value, int | float):
        return json.dumps(value)
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return re.sub(r"[^\w \-]|_", lambda sign: f"&#{ord(sign[0])};", printable(text))
