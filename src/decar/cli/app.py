"""`decar`: what is done with finished runs."""

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from decar import __version__
from decar.errors import DecarError


def main(argv: Sequence[str] | None = None) -> None:
    """Entry point; exits with 2 on a user's error."""
    args = _parser().parse_args(argv)
    try:
        args.run(args)
        sys.stdout.flush()
    except BrokenPipeError:  # the reader, `head` say, has seen enough
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115 - or Python complains again at exit
    except DecarError as error:
        print(f"decar: error: {error}", file=sys.stderr)
        sys.exit(2)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="decar", description="Deep clustering for audio. To pre-train: decar-train. To judge: decar-eval."
    )
    parser.add_argument("--version", action="version", version=f"decar {__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    table2 = commands.add_parser("table2", help="accuracy by task, encoder and mode, from result.json files")
    table2.add_argument("runs", nargs="+", metavar="RUNS", help="folders that hold results, at any depth")
    table2.add_argument("--csv", type=Path, metavar="FILE", help="write the table as CSV too")
    table2.set_defaults(run=_table2)
    return parser


def _table2(args: argparse.Namespace) -> None:
    from decar.downstream import collect, table2, table2_markdown

    results = collect(args.runs)
    print(table2_markdown(results))
    if args.csv:
        try:
            args.csv.parent.mkdir(parents=True, exist_ok=True)
            table2(results).to_csv(args.csv)
        except OSError as error:
            raise DecarError(f"{args.csv}: the table could not be written ({error.strerror or error})") from error


if __name__ == "__main__":
    main()
