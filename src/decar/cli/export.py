"""`decar export`: a bundle as one file that runs without decar."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from decar.cli.config import add_network
from decar.cli.terminal import say

if TYPE_CHECKING:
    Commands = argparse._SubParsersAction[argparse.ArgumentParser]


def add_parser(commands: Commands) -> None:
    """Add the command."""
    export = commands.add_parser("export", help="the encoder with its front-end as ONNX or torch.export")
    export.add_argument("bundle", metavar="BUNDLE", help="encoder.safetensors, or a run that holds it")
    export.add_argument("--to", required=True, choices=("onnx", "torch"), help="onnx: needs 'decar[export]'")
    export.add_argument("--out", required=True, type=Path, metavar="FILE", help="usually .onnx or .pt2")
    add_network(export)
    export.set_defaults(run=_export)


def _export(args: argparse.Namespace) -> None:
    from decar.models import load_encoder
    from decar.models.export import export_encoder

    encoder = load_encoder(args.bundle, network=args.network)
    worst = export_encoder(encoder, args.out, args.to)
    size, rate = args.out.stat().st_size / 1e6, encoder.sample_rate
    say(f"{args.out}: {size:.1f} MB, waveform (batch, samples) at {rate} Hz in, embedding (batch, {encoder.dim}) out")
    say(f"read back and compared with the encoder: largest relative difference {worst:.1e}")
