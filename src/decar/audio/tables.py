"""A text table of somebody else's → its cells as text: encoding, separator and kind of file are looked at, not guessed.

The header line says whether comma, semicolon or tab divides the columns. UTF-8 and UTF-16 with a byte-order mark are
read. Everything else, for example a spreadsheet or JSON, is refused with what to do.
"""

from __future__ import annotations

import csv
import io
import os
import stat
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from pandas.errors import ParserWarning

from decar.audio.footer import column_sizes
from decar.digests import check_parquet
from decar.errors import ManifestError, one_line
from decar.limits import limits
from decar.unpack import is_archive

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
_HEAD = 1 << 16  # bytes that say which kind of file it is
_CHUNK = 1 << 20
LONGEST_LINE = 1 << 20  # bytes
MOST_COLUMNS = 10_000
MOST_FOOTER_BYTES = 2**23
MOST_BYTES = 2**31  # of the cells of a Parquet table, which 60 kB can unfold to


def is_table(path: Path) -> bool:
    """Whether a file is a table by its name, also one of a kind that is refused."""
    return path.suffix.lower() in (*TEXT_SUFFIXES, *PARQUET_SUFFIXES, *REFUSED)


def is_parquet(path: Path) -> bool:
    """Whether a file, or what a pattern stands for, is Parquet by its name."""
    return path.suffix.lower() in PARQUET_SUFFIXES


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
        check_file(source)
        encoding = _encoding(source)
        n_lines = _count_lines(source)
        separator, width = _separator(source, encoding, has_path)
        _refuse_size(source, width, 8 * n_lines * width)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always", ParserWarning)
            table = pd.read_csv(
                source,
                sep=separator,
                dtype=str,
                keep_default_na=False,
                index_col=False,  # otherwise a trailing comma in every row turns the first column into the index
                encoding=encoding,
                compression=None,  # not by the name: 1 MB of gzip holds 1 GB of cells
            )
        if caught:
            _refuse_lost_cells(source, separator, encoding, len(table.columns))
        _refuse_twins(source, separator, encoding, table)
        if n_lines > 1 + len(table):
            _refuse_joined(source, separator, table, has_path)
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


def read_parquet_table(source: Path) -> pd.DataFrame:
    """The cells of a Parquet table as text, "" where empty; columns of lists and structs are not read.

    Raises:
        ManifestError: The file is missing, damaged, or unfolds to more than the limits allow.
    """
    with parquet_errors(source):
        check_file(source)
        check_parquet(source)
        names = [field.name for field in pq.read_schema(source) if not pa.types.is_nested(field.type)]
        table = read_flat(source, names)
        frame = table.to_pandas(types_mapper=pd.ArrowDtype)  # keeps integers with gaps integers: "3", not "3.0"
        return pd.DataFrame({str(name): _as_text(frame[name]) for name in frame.columns}, index=frame.index)


@contextmanager
def parquet_errors(source: Path) -> Iterator[None]:
    """Turn what reading a Parquet file may raise into a ManifestError that names it."""
    try:
        yield
    except FileNotFoundError:
        raise ManifestError(f"the table {source} does not exist") from None
    except ManifestError:
        raise
    except Exception as error:  # a damaged file makes pandas and pyarrow raise half a dozen kinds
        raise ManifestError(f"the table {source} cannot be read as Parquet: {one_line(error)}") from error


def read_flat(source: Path, names: list[str]) -> pa.Table:
    """Some columns of a Parquet file, after a look at how much it unfolds to: 60 kB can hold millions of equal rows.

    The footer says how many values there are. How long text is, is known once its distinct values are read.

    Raises:
        ManifestError: There are more rows than the limit, more columns or bytes than any table of clips has.
    """
    schema, metadata = pq.read_schema(source), pq.read_metadata(source)
    refuse_rows(source, metadata.num_rows)
    if metadata.serialized_size > MOST_FOOTER_BYTES:
        raise ManifestError(f"the table {source} has a footer of {metadata.serialized_size:,} bytes: no table of clips")
    _refuse_size(source, len(names), 0)  # before the footer is read once more
    _refuse_size(source, len(names), _value_bytes(source, metadata.schema, set(names)))
    texts = [name for name in names if _is_text(schema.field(name).type)]
    table = pq.read_table(
        source, columns=names, read_dictionary=texts, use_pandas_metadata=True, page_checksum_verification=True
    )
    _refuse_size(source, len(names), sum(map(_text_bytes, table.columns)))
    plain = [schema.field(field.name) if field.name in texts else field for field in table.schema]
    return table.cast(pa.schema(plain, table.schema.metadata))


def check_file(source: Path) -> None:
    """Refuse what is no ordinary file: a named pipe or a device would be waited for, or read, for ever.

    Raises:
        FileNotFoundError: There is no such file.
        ManifestError: It is something else.
    """
    if not stat.S_ISREG(os.stat(source).st_mode):
        raise ManifestError(f"the table {source} cannot be read: it is a folder, a pipe or a device; give a file")


def refuse_rows(source: Path, n_rows: int) -> None:
    """Raise a ManifestError where a table has more rows than the limit."""
    if n_rows > limits().max_rows:
        raise ManifestError(
            f"the table {source} has {n_rows:,} rows or more, the limit max_rows is {limits().max_rows:,}: raise it, "
            "or divide the table"
        )


def _refuse_size(source: Path, n_columns: int, n_bytes: int) -> None:
    if n_columns > MOST_COLUMNS:
        raise ManifestError(f"the table {source} has {n_columns:,} columns or more, {MOST_COLUMNS:,} at most are read")
    if n_bytes > MOST_BYTES:
        raise ManifestError(
            f"the table {source} unfolds to {n_bytes:,} bytes, {MOST_BYTES:,} at most are read: leave columns out"
        )


def _value_bytes(source: Path, schema: Any, names: set[str]) -> int:
    """Bytes of some columns in memory, but for the text of each row, by the footer."""
    total = 0
    for group in column_sizes(source):
        for i, (path, n_values, uncompressed) in enumerate(group):
            if path[0] in names or ".".join(path) in names:
                width = max(8, schema.column(i).length)  # of fixed length, else 0
                total += max(n_values * width, uncompressed)
    return total


def _text_bytes(column: pa.ChunkedArray) -> int:
    """Bytes of a column once each row has its own text."""
    if not (pa.types.is_dictionary(column.type) and _is_text(column.type.value_type)):
        return 0
    lengths = [pc.binary_length(chunk.dictionary).take(chunk.indices) for chunk in column.chunks]
    return sum(pc.sum(chunk.cast(pa.int64())).as_py() or 0 for chunk in lengths)


def _is_text(kind: pa.DataType) -> bool:
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_binary(kind))


def _as_text(column: pd.Series) -> pd.Series:
    return pd.Series(["" if pd.isna(value) else str(value) for value in column], dtype=str)


def _encoding(source: Path) -> str:
    """By the byte-order mark, UTF-8 without one; other kinds of files are refused."""
    kind = REFUSED.get(source.suffix.lower())
    with open(source, "rb") as file:
        head = file.read(_HEAD)
    if is_archive(source):
        raise ManifestError(
            f"{source} is an archive, not a table: its sounds are read by data=folder data.root={source}"
        )
    kind = kind or next((what for magic, what in _MAGIC.items() if head.lstrip().startswith(magic)), None)
    if kind:
        raise ManifestError(f"the table {source} is {kind}: save it as 'CSV UTF-8'; .parquet is read too")
    if head.startswith((b"\xff\xfe", b"\xfe\xff")):
        return "utf-16"
    for half in (head[0::2], head[1::2]):
        if half.count(0) > len(head) / 4:
            raise ManifestError(f"the table {source} is UTF-16 without a byte-order mark: save it as 'CSV UTF-8'")
    return "utf-8-sig"


def _count_lines(source: Path) -> int:
    """Line ends, in bytes whatever the encoding, also those within quotes: at least as many as rows.

    Raises:
        ManifestError: There are more than the limit of rows, or a line without end.
    """
    n_lines = begun = 0
    with open(source, "rb") as file:
        while chunk := file.read(_CHUNK):
            n_lines += max(chunk.count(b"\n"), chunk.count(b"\r"))
            last = max(chunk.rfind(b"\n"), chunk.rfind(b"\r"))
            begun = begun + len(chunk) if last < 0 else len(chunk) - 1 - last
            if begun > LONGEST_LINE:
                raise ManifestError(f"the table {source} has a line of more than {LONGEST_LINE:,} bytes: not a table")
            refuse_rows(source, n_lines - 1)  # the header is none
    return n_lines


def _usual(source: Path) -> str:
    return "\t" if source.suffix.lower() == ".tsv" else ","


def _separator(source: Path, encoding: str, has_path: Callable[[list[str]], bool]) -> tuple[str, int]:
    """The separator that gives the header line a path column, else the most columns; the usual one of equals.

    And how many columns that are.
    """
    with open(source, encoding=encoding, newline="") as file:
        text = file.read(_HEAD)

    def rank(separator: str) -> tuple[bool, int]:
        rows = csv.reader(io.StringIO(text, newline=""), delimiter=separator)
        header = next((row for row in rows if any(cell.strip() for cell in row)), [])
        return has_path([cell.strip() for cell in header]), len(header)

    usual = _usual(source)
    best = max([usual, *(separator for separator in _SEPARATORS if separator != usual)], key=rank)
    with open(source, encoding=encoding, newline="") as file:
        return best, 1 + file.readline(LONGEST_LINE).count(best)


def _refuse_lost_cells(source: Path, separator: str, encoding: str, width: int) -> None:
    """More cells than columns: empty ones are a spreadsheet's, others are mostly a comma in a name without quotes."""
    with open(source, newline="", encoding=encoding) as file:
        for row in csv.reader(file, delimiter=separator):
            if any(cell.strip() for cell in row[width:]):
                raise ManifestError(
                    f"the table {source} has {width} columns, but a row of {len(row)} cells "
                    f"({separator.join(row)[:80]}): put names that hold commas into quotes"
                )


def _refuse_twins(source: Path, separator: str, encoding: str, table: pd.DataFrame) -> None:
    """Refuse two columns of one name that differ; pandas calls the second `name.1`, and the first would be taken."""
    with open(source, newline="", encoding=encoding) as file:
        header = next(filter(None, csv.reader(file, delimiter=separator)), [])
    names = [name.strip() for name in header[: len(table.columns)]]
    for i, name in enumerate(names):
        first = names.index(name)
        if name and first < i and not table.iloc[:, first].equals(table.iloc[:, i]):
            raise ManifestError(
                f"the table {source}: columns {first + 1} and {i + 1} are both called '{name}' and differ: rename one"
            )


def _refuse_joined(source: Path, separator: str, table: pd.DataFrame, has_path: Callable[[list[str]], bool]) -> None:
    """Refuse rows that quotes have joined, as ditto marks do: each line of such a row is a row by itself."""
    at = next((i for i, name in enumerate(table.columns) if has_path([str(name).strip()])), -1)
    several = [column.str.contains("\n", regex=False, na=False) for _, column in table.items()]
    for number, *row in table.fillna("")[pd.concat(several, axis=1).any(axis=1)].itertuples(name=None):
        lines = [line.split(separator) for line in separator.join(row).split("\n")]
        whole = at >= 0 and all(len(line) == len(row) for line in lines)
        endings = {os.path.splitext(line[at].strip())[1] for line in lines} if whole else {""}
        if len(endings) == 1 and "" not in endings:
            raise ManifestError(
                f"the table {source}, row {number + 1}: quotes join {len(lines)} lines of the table to one row: leave "
                'out the sign ", or write it twice within quotes'
            )
