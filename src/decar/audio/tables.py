"""A text table of somebody else's → its cells as text: encoding, separator and kind of file are looked at, not guessed.

Comma, semicolon and tab are told apart by the header line. UTF-8 and UTF-16 with a byte-order mark are read. Everything
else, a spreadsheet or JSON say, is refused with what to do.
"""

from __future__ import annotations

import csv
import io
import warnings
from collections.abc import Callable
from pathlib import Path

import pandas as pd
from pandas.errors import ParserWarning

from decar.errors import ManifestError

PARQUET_SUFFIXES = (".parquet", ".pq")
TEXT_SUFFIXES = (".csv", ".tsv", ".txt")
REFUSED = {
    ".json": "JSON", ".jsonl": "JSON lines", ".ndjson": "JSON lines", ".xlsx": "an Excel workbook",
    ".xls": "an Excel workbook", ".ods": "an OpenDocument spreadsheet",
}  # fmt: skip
_MAGIC = {
    b"PK\x03\x04": "a ZIP archive, as Excel workbooks are", b"\xd0\xcf\x11\xe0": "an Excel workbook",
    b"PAR1": "Parquet", b"{": "JSON", b"[": "JSON",
}  # fmt: skip
_SEPARATORS = {",": "commas", ";": "semicolons", "\t": "tabs"}
_HEAD = 1 << 16  # bytes that are sure to hold the header line


def is_table(path: Path) -> bool:
    """Whether a file is a table by its name, also one of a kind that is refused."""
    return path.suffix.lower() in (*TEXT_SUFFIXES, *PARQUET_SUFFIXES, *REFUSED)


def read_text_table(source: Path, has_path: Callable[[list[str]], bool]) -> tuple[pd.DataFrame, list[str]]:
    """The cells of a table with a header line.

    Args:
        source: The file.
        has_path: Whether some column names name the files; the separator under which they do is taken.

    Returns:
        Cells as text, "" where empty, column names without outer spaces; and what is worth saying about the format.

    Raises:
        ManifestError: The file is missing, of another kind, in another encoding, or its rows do not fit its header.
    """
    try:
        encoding = _encoding(source)
        separator = _separator(source, encoding, has_path)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always", ParserWarning)
            table = pd.read_csv(
                source,
                sep=separator,
                dtype=str,
                keep_default_na=False,
                index_col=False,  # otherwise a trailing comma in every row turns the first column into the index
                encoding=encoding,
            )
        if caught:
            _refuse_lost_cells(source, separator, encoding, len(table.columns))
    except FileNotFoundError:
        raise ManifestError(f"the table {source} does not exist") from None
    except UnicodeDecodeError as error:
        raise ManifestError(
            f"the table {source} cannot be read as CSV: it is not {error.encoding.upper()} (byte "
            f"0x{error.object[error.start]:02x}); save it as 'CSV UTF-8' (older spreadsheets write Windows-1252)"
        ) from error
    except (OSError, ValueError, csv.Error) as error:  # pandas' parser errors are ValueErrors
        raise ManifestError(f"the table {source} cannot be read as CSV: {one_line(error)}") from error
    stripped = [str(name).strip() for name in table.columns]
    if len(set(stripped)) == len(stripped):
        table.columns = pd.Index(stripped)
    notes = [] if separator == _usual(source) else [f"cells are separated by {_SEPARATORS[separator]}"]
    return table.fillna(""), notes


def one_line(error: Exception) -> str:
    """An error's message without line breaks."""
    return " ".join(str(error).split()) or type(error).__name__


def _encoding(source: Path) -> str:
    """By the byte-order mark, UTF-8 without one; other kinds of files are refused."""
    kind = REFUSED.get(source.suffix.lower())
    with open(source, "rb") as file:
        head = file.read(_HEAD)
    kind = kind or next((what for magic, what in _MAGIC.items() if head.lstrip().startswith(magic)), None)
    if kind:
        raise ManifestError(f"the table {source} is {kind}: save it as 'CSV UTF-8'; .parquet is read too")
    if head.startswith((b"\xff\xfe", b"\xfe\xff")):
        return "utf-16"
    for half in (head[0::2], head[1::2]):
        if half.count(0) > len(head) / 4:
            raise ManifestError(f"the table {source} is UTF-16 without a byte-order mark: save it as 'CSV UTF-8'")
    return "utf-8-sig"


def _usual(source: Path) -> str:
    return "\t" if source.suffix.lower() == ".tsv" else ","


def _separator(source: Path, encoding: str, has_path: Callable[[list[str]], bool]) -> str:
    """The separator that gives the header line a path column, else the most columns; the usual one of equals."""
    with open(source, encoding=encoding, newline="") as file:
        text = file.read(_HEAD)

    def rank(separator: str) -> tuple[bool, int]:
        rows = csv.reader(io.StringIO(text, newline=""), delimiter=separator)
        header = next((row for row in rows if any(cell.strip() for cell in row)), [])
        return has_path([cell.strip() for cell in header]), len(header)

    usual = _usual(source)
    return max([usual, *(separator for separator in _SEPARATORS if separator != usual)], key=rank)


def _refuse_lost_cells(source: Path, separator: str, encoding: str, width: int) -> None:
    """More cells than columns: empty ones are a spreadsheet's, others are mostly a comma in a name without quotes."""
    with open(source, newline="", encoding=encoding) as file:
        for row in csv.reader(file, delimiter=separator):
            if any(cell.strip() for cell in row[width:]):
                raise ManifestError(
                    f"the table {source} has {width} columns, but a row of {len(row)} cells "
                    f"({separator.join(row)[:80]}): put names that hold commas into quotes"
                )
