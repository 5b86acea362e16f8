"""`decar embed`: embeddings of any audio, with the encoder that comes with decar or one of your own."""

from __future__ import annotations

import argparse
import logging
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from decar.cli.config import add_network, build_encoder, conf_dir
from decar.cli.limits import add_limits
from decar.cli.terminal import say, start_log

if TYPE_CHECKING:
    from decar.models import Encoder


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command to those of `decar`."""
    embed = commands.add_parser(
        "embed",
        help="embeddings of any audio: a row a clip, or a window",
        description="A clip of up to 10 s is embedded whole, a longer one as the mean of its 10 s pieces. All columns "
        "of a table are kept. The same command goes on after a stop, and gives the same bytes.",
    )
    embed.add_argument(
        "source", metavar="SOURCE", help="a folder, a table with a column of paths (.csv, .tsv, .txt, .parquet; start "
        "and end or duration in seconds where stretches are meant), a quoted pattern, an audio file, or - for paths on "
        "stdin",
    )  # fmt: skip
    embed.add_argument(
        "--bundle", default="small", metavar="NAME",
        help="encoder.safetensors, a run's folder, random, or small, which comes with decar (default)",
    )  # fmt: skip
    embed.add_argument(
        "--out", type=Path, default=Path("embeddings.parquet"), metavar="FILE",
        help=".parquet, or .npy with FILE.paths.csv beside it (default: %(default)s)",
    )  # fmt: skip
    embed.add_argument(
        "--root", type=Path, metavar="DIR", help="where relative paths of a table or of stdin start from"
    )
    embed.add_argument(
        "--path-column", default="path", metavar="NAME", help="the column of a table that names the files"
    )
    embed.add_argument("--windows", type=float, metavar="SECONDS", help="a row a window, with start and duration")
    embed.add_argument("--hop", type=float, metavar="SECONDS", help="from window to window (default: end to end)")
    embed.add_argument("--device", metavar="NAME", help="cpu, cuda (default: cuda where torch sees one)")
    embed.add_argument(
        "--batch-size", type=int, default=16, metavar="N", help="pieces at a time (default: %(default)s)"
    )
    embed.add_argument("--workers", type=int, metavar="N", help="threads that decode (default: one a core)")
    add_network(embed)
    add_limits(embed)
    embed.set_defaults(run=_embed)


def _embed(args: argparse.Namespace) -> None:
    """Exit status: 0 where anything was embedded, 2 where nothing could be."""
    from decar.audio.source import read_source
    from decar.embedder import Embedder
    from decar.embedder.output import beside, check_out
    from decar.errors import check_whole

    start_log(logging.INFO)
    check_out(args.out)
    if args.workers is not None:
        check_whole("--workers", args.workers, 1)
    check_whole("--batch-size", args.batch_size, 1)
    clips = read_source(args.source, root=args.root, path_column=args.path_column)
    embedder = Embedder(
        _encoder(args.bundle, args.network), windows=args.windows, hop=args.hop, device=args.device,
        batch_size=args.batch_size, num_workers=args.workers,
    )  # fmt: skip
    made = embedder.write(clips, args.out, name=args.bundle)
    rows, dim = made.vectors.shape
    left_out = f", {len(made.bad)} clips left out ({beside(args.out, 'bad')})" if len(made.bad) else ""
    say(f"{args.out}: {rows} embeddings of {dim} numbers, by {args.bundle}{left_out}")


def _encoder(bundle: str, network: Callable[..., Any] | None) -> Encoder:
    """The encoder of that name; untrained weights are those of the default network, seed 0, as in `eval.py`."""
    from decar.models import load_encoder

    if bundle != "random":
        return load_encoder(bundle, network=network)
    from hydra import compose, initialize_config_dir

    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        return build_encoder(compose("eval")).eval()
