"""`decar embed`, `search`, `push`: what is done with a trained encoder."""

from __future__ import annotations

import argparse
import json
import logging
import re
import sys
from collections.abc import Callable
from typing import Any

from hydra import compose, initialize_config_dir

from decar.audio import Manifest
from decar.audio.clips import Segment, as_segment
from decar.audio.containers import folder_of
from decar.audio.source import read_source
from decar.cli.config import build_encoder, conf_dir
from decar.cli.terminal import say, start_log
from decar.embedder import Embedder
from decar.embedder.output import check_out, name_beside
from decar.embedder.shards import Engine
from decar.errors import BundleError, check_whole, printable, require
from decar.files import write_table
from decar.models import Encoder, load_encoder, read_facts
from decar.models.bundle import FILE, HUB, bundle_file, exact_name, hub_reason, parse_address
from decar.neighbours.index import Index
from decar.neighbours.page import write_page
from decar.neighbours.query import find_queries, neighbour_table


def embed(args: argparse.Namespace) -> None:
    """Exit status: 0 where anything was embedded, 2 where nothing could be."""
    start_log(logging.INFO)
    check_out(args.out)
    check_numbers(args)
    clips = source_of(args, later=True)
    segment = as_segment(args.segment) if args.segment else None
    embedder = embedder_of(args, args.bundle, segment, windows=args.windows, hop=args.hop, dim=args.dim)
    made = embedder.write(clips, args.out, name=exact_name(args.bundle))
    rows, dim = made.vectors.shape
    left_out = f", {len(made.bad)} clips left out ({name_beside(args.out, 'bad')})" if len(made.bad) else ""
    say(f"{args.out}: {rows} embeddings of {dim} numbers, by {args.bundle}{left_out}")


def source_of(args: argparse.Namespace, *, later: bool = False) -> Manifest:
    """The clips that SOURCE and the options beside it name; `later` as of `read_source`."""
    options = {"root": args.root, "path_column": args.path_column, "fetch": args.fetch, "later": later}
    return read_source(args.source, **options, progress=sys.stderr.isatty())


def check_numbers(args: argparse.Namespace) -> None:
    """Refuse `--workers`, `--batch-size` and `--jobs` that are no numbers of workers, pieces and jobs."""
    jobs = getattr(args, "jobs", None)
    for name, value in (("--workers", args.workers), ("--batch-size", args.batch_size), ("--jobs", jobs)):
        if value is not None:
            check_whole(name, value, 1)


def embedder_of(
    args: argparse.Namespace, bundle: str, segment: Segment | None, *, windows: float | None = None,
    hop: float | None = None, dim: int | None = None,
) -> Embedder:  # fmt: skip
    """The embedder that the options of `FORWARD` and `--network` describe."""
    return Embedder(
        encoder_of(bundle, args.network, dim), windows=windows, hop=hop, segment=segment, device=args.device,
        batch_size=args.batch_size, num_workers=args.workers, engine=engine_of(args),
    )  # fmt: skip


def engine_of(args: argparse.Namespace) -> Engine | None:
    """The machines that the options of `MACHINES` name; None where a command has not got them, and for this one."""
    engine = getattr(args, "engine", None)
    for name, needs in (("address", "ray"), ("jobs", "slurm"), ("slurm", "slurm")):
        given = getattr(args, name, None)
        require(given is None or engine == needs, f"--{name} {given}: it is for --engine {needs}; leave it out")
    if engine is None:
        return None
    from decar.embedder import engines  # Ray is imported for those who ask for it

    if engine == "ray":
        return engines.RayEngine(args.address, args.workers)
    words = dict(_setting(word) for word in args.slurm or [])
    return engines.SlurmEngine(args.jobs or 8, args.workers, words)


def _setting(word: str) -> tuple[str, str]:
    name, equals, value = word.partition("=")
    require(bool(name and equals), f"--slurm {word}: give NAME=VALUE, such as partition=gpu")
    return name, value


def encoder_of(bundle: str, network: Callable[..., Any] | None, dim: int | None = None) -> Encoder:
    """The encoder of that name; untrained weights are those of the default network, seed 0, as in `eval.py`."""
    if bundle != "random":
        return load_encoder(bundle, dim=dim, network=network)
    require(dim is None, f"--dim {dim}: random weights have no principal directions; leave it out")

    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        return build_encoder(compose("eval")).eval()


def search(args: argparse.Namespace) -> None:
    """Print the nearest clips to each sound."""
    index = Index.from_parquet(args.embeddings, args.measure)
    folder = folder_of(args.root) if args.root else None
    sounds = list(dict.fromkeys(args.sounds))
    queries = find_queries(sounds, index.table, args.bundle, in_table=args.row, root=folder, network=args.network)
    found, origin = neighbour_table(index, queries, args.n), {query.name: query.origin for query in queries}
    if args.html:  # files come before anything is printed: `| head` ends the process at its second block
        named = index.table.root
        root = folder or (named if named and named.is_dir() else args.embeddings.parent)
        write_page(args.html, found, root, args.measure)
    write_table(found[found["rank"] > 0], args.csv)
    for name, clips in found.groupby("query", sort=False):
        say(f"{name}  ({origin[str(name)]}; 1 - cosine, {args.measure})")
        for clip in clips[clips["rank"] > 0].to_dict("records"):
            start = clip.get("start")
            begins = f"  ({start:g} s)" if isinstance(start, float) and start > 0 else ""
            say(f"{clip['rank']:4d}  {clip['distance']:.4f}  {clip['path']}{begins}")
    if args.html:
        say(f"page: {args.html}")


def push(args: argparse.Namespace) -> None:
    """Upload a bundle, its card and its facts, never code; the repository is made where there is none.

    Raises:
        BundleError: It is not a bundle, no token is set, or the hub refuses or cannot be reached.
    """
    import huggingface_hub

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
