"""`decar export`: an encoder as one file that runs without decar, or embeddings for another program."""

from __future__ import annotations

import argparse
import logging
import shlex
from pathlib import Path

from decar.audio import Manifest
from decar.audio.columns import beside_ours
from decar.audio.recorded import with_clock
from decar.cli.clusters import EMBEDDINGS, root_of, writing
from decar.cli.data import run_files
from decar.cli.eval import device_of
from decar.cli.terminal import say, start_log
from decar.errors import ConfigError, DecarError
from decar.models import embed_store, load_encoder
from decar.neighbours.index import EmbeddingTable
from decar.report.final import FOUND, read_clusters
from decar.report.tools import Points, write_atlas, write_hoplite, write_projector, write_spotlight

log = logging.getLogger(__name__)

OF_ENCODERS = ("onnx", "torch")
SPOTLIGHT = "--dtype embedding=Embedding --dtype audio=Audio --dtype window=Window --dtype cluster=Category"


def export(args: argparse.Namespace) -> None:
    """Write what `--to` asks for."""
    given = [name for name in ("root", "column") if getattr(args, name) is not None]
    if given and (args.to in OF_ENCODERS or (given[-1] == "column" and args.to != "hoplite")):
        raise ConfigError(f"--{given[-1]} does not go with --to {args.to}; leave it out")
    (_export_encoder if args.to in OF_ENCODERS else _export_embeddings)(args)


def _export_encoder(args: argparse.Namespace) -> None:
    from decar.models.export import export_encoder

    encoder = load_encoder(args.source, network=args.network)
    worst = export_encoder(encoder, args.out, args.to)
    size, rate = args.out.stat().st_size / 1e6, encoder.sample_rate
    say(f"{args.out}: {size:.1f} MB, waveform (batch, samples) at {rate} Hz in, embedding (batch, {encoder.dim}) out")
    say(f"read back and compared with the encoder: largest relative difference {worst:.1e}")


def _export_embeddings(args: argparse.Namespace) -> None:
    """Write them, and say how they are opened."""
    start_log(logging.INFO)
    if args.to in ("embedding-atlas", "spotlight") and args.out.suffix != ".parquet":
        raise ConfigError(f"--out {args.out}: the name has to end in .parquet, by which {args.to} knows what it is")
    if args.out.exists():
        raise ConfigError(f"--out {args.out}: is there already; delete it, or give another name")
    points = points_of(args)
    if args.to != "projector":
        _find_sounds(points.clips)
    (n, dim), out = points.vectors.shape, shlex.quote(str(args.out))
    what = f"embeddings of {dim} numbers"
    with writing(args.out):
        if args.to == "embedding-atlas":
            what = f"{n - write_atlas(points, args.out)} of them with sound"
            how = f"embedding-atlas {out} --x x --y y --text name"
        elif args.to == "spotlight":
            write_spotlight(points, args.out)
            how = f"spotlight {out} {SPOTLIGHT}"
        elif args.to == "projector":
            write_projector(points, args.out)
            how = f"tensorboard --logdir {out}"
        else:
            what += f", {write_hoplite(points, args.out, args.column)} annotations"
            how = f"perch_hoplite.db.sqlite_usearch_impl.SQLiteUSearchDB.create({str(args.out)!r}), in Python"
    say(f"{args.out}: {n} clips, {what}")
    say(f"open it: {how}")


def points_of(args: argparse.Namespace) -> Points:
    """The clips of a run, of a folder of `decar cluster` or of a table of embeddings.

    Raises:
        DecarError: It is none of them, or its parts contradict one another.
    """
    source = Path(args.source)
    if (source / "config.yaml").is_file():
        return _points_of_run(args, source)
    file = source / EMBEDDINGS if source.is_dir() else source
    if not file.is_file():
        what = f"holds neither {EMBEDDINGS} nor a run" if source.is_dir() else "does not exist"
        raise DecarError(f"{source} {what}: give a run, a folder of `decar cluster`, or a table of `decar embed`")
    known = EmbeddingTable.open(file)
    if source.is_dir():
        table = read_clusters(source, known.rows, str(known.facts.get("encoder")))
    else:
        table = beside_ours(known.rows, FOUND)
    root = (args.root or known.root or Path.cwd()) if args.to == "projector" else root_of(known, args.root)
    facts = {key: known.facts.get(key) for key in ("encoder", "bundle", "sample_rate", "window")}
    return Points(Manifest(with_clock(table, Manifest(table, root).files), root), known.vectors(), facts)


def _points_of_run(args: argparse.Namespace, run: Path) -> Points:
    """A run keeps its clusters, not its vectors: the clips that its page was made from are embedded again."""
    source = run_files(run, network=args.network)
    if isinstance(source.store, str):
        again = f"`decar cluster SOUNDS --like {run} --out DIR` embeds them where they lie now; then export DIR"
        raise DecarError(f"{source.store}: {again}")
    _, store, table = source.last_clips()
    if len(store) < len(source.store):
        log.info("%d of %d clips, those that the run has clusters for", len(store), len(source.store))
    encoder = source.encoder
    table = read_clusters(run, table, encoder.hash())
    vectors = embed_store(encoder, store, device=device_of("auto"))
    facts = {"encoder": encoder.hash(), "bundle": str(run.resolve()), "sample_rate": encoder.sample_rate}
    return Points(Manifest(table, args.root or store.manifest.root), vectors, facts)


def _find_sounds(clips: Manifest) -> None:
    """Warn of missing files.

    Raises:
        ConfigError: All are missing.
    """
    files = dict.fromkeys(clips.files)
    missing = [file for file in files if not file.is_file()]
    if len(missing) == len(files):
        raise ConfigError(f"{missing[0]} does not exist, nor does any other of the sounds: pass --root, where they lie")
    if missing:
        log.warning("%d of %d files are missing, %s first", len(missing), len(files), missing[0])
