"""`decar search SOUND… EMBEDDINGS`: the nearest clips to a sound."""

from __future__ import annotations

import argparse
import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

from decar.cli.config import add_network
from decar.cli.limits import add_limits
from decar.cli.terminal import say
from decar.errors import SearchError

if TYPE_CHECKING:
    import pandas as pd

    from decar.search.index import Index
    from decar.search.query import Query


log = logging.getLogger(__name__)

OURS = ("query", "rank", "distance")


def add_parser(commands: argparse._SubParsersAction[Any]) -> None:
    """Make the command known."""
    parser = commands.add_parser("search", help="the nearest clips to a sound in a table of embeddings")
    parser.add_argument(
        "sounds", nargs="+", metavar="SOUND", help="a file, or, where there is no such file, a path of the table"
    )
    parser.add_argument("embeddings", type=Path, metavar="EMBEDDINGS", help="what `decar embed` wrote (.parquet)")
    parser.add_argument("--row", action="store_true", help="each SOUND is a path of the table, no file")
    parser.add_argument("-n", type=int, default=10, help="how many (default: %(default)s)")
    parser.add_argument("--bundle", metavar="PATH", help="the encoder that made the table; where it does not say")
    parser.add_argument(
        "--measure",
        choices=("cosine", "centred", "standardised"),
        default="cosine",
        help="cosine of the embeddings as they are, minus the table's mean, or standardised (default: %(default)s)",
    )
    parser.add_argument("--root", type=Path, metavar="DIR", help="where the table's paths start from")
    parser.add_argument("--html", type=Path, metavar="FILE", help="write a page with players and spectrograms")
    parser.add_argument("--csv", type=Path, metavar="FILE", help="write what was found as a table")
    add_network(parser)
    add_limits(parser)
    parser.set_defaults(run=_search)


def _search(args: argparse.Namespace) -> None:
    from decar.search.index import Index
    from decar.search.query import find_queries

    index = Index.from_parquet(args.embeddings, args.measure)
    sounds = list(dict.fromkeys(args.sounds))
    queries = find_queries(sounds, index.table, args.bundle, in_table=args.row, root=args.root, network=args.network)
    found, origin = search(index, queries, args.n), {query.name: query.origin for query in queries}
    _write(args, found, index)  # before anything is printed: `| head` ends the process at its second block
    for name, clips in found.groupby("query", sort=False):
        say(f"{name}  ({origin[str(name)]}; 1 - cosine, {args.measure})")
        for clip in clips[clips["rank"] > 0].to_dict("records"):
            say(f"{clip['rank']:4d}  {clip['distance']:.4f}  {clip['path']}{_told(clip)}")
    if args.html:
        say(f"page: {args.html}")


def search(index: Index, queries: list[Query], n: int) -> pd.DataFrame:
    """A row for each query (`rank` 0) and for each clip found: `query`, `rank`, `distance`, then the table's row.

    Columns of those three names in the table, which an embedded result of a search has, are called `table_query` and
    so on.
    """
    import numpy as np
    import pandas as pd

    vectors = np.stack([query.vector for query in queries])
    nearest = index.nearest(vectors, n, without=[query.row for query in queries])
    table, parts = _renamed(index.table.rows), []
    for query, rows, distances in zip(queries, nearest.rows, nearest.distances, strict=True):
        itself = pd.DataFrame([{"path": str(Path(query.name).absolute())}])
        if query.row is not None:
            itself = table.iloc[[query.row]]
        clips = pd.concat([itself, table.iloc[rows]], ignore_index=True)
        clips.insert(0, "query", query.name)
        clips.insert(1, "rank", np.arange(len(clips)))
        clips.insert(2, "distance", np.concatenate([[0.0], distances]).astype(np.float32))
        parts.append(clips)
    found: pd.DataFrame = pd.concat(parts, ignore_index=True)
    return found


def _renamed(rows: pd.DataFrame) -> pd.DataFrame:
    """The rows with no column called as one of ours."""
    names = [str(name) for name in rows.columns]
    for i, name in enumerate(names):
        while names[i] in OURS or names.count(names[i]) > 1:
            names[i] = f"table_{names[i]}"
        if name != names[i]:
            log.info("the column '%s' of the table is called '%s' here", name, names[i])
    return rows.set_axis(names, axis=1)


def _told(clip: dict[Any, Any]) -> str:
    """Where in its file a clip begins."""
    start = clip.get("start")
    return f"  ({start:g} s)" if isinstance(start, float) and start > 0 else ""


def _write(args: argparse.Namespace, found: pd.DataFrame, index: Index) -> None:
    """The page and the table, where they are asked for."""
    from decar.files import whole, write_csv
    from decar.search.page import write_page

    root = args.root or Path(index.table.facts.get("root") or args.embeddings.parent)
    try:
        if args.html:
            write_page(args.html, found, root, args.measure)
        if args.csv:
            with whole(args.csv) as part:
                write_csv(found[found["rank"] > 0], part)
    except OSError as error:
        raise SearchError(f"{error.filename or args.html}: cannot be written ({error.strerror or error})") from error
