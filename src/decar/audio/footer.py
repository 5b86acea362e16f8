"""Sizes of columns from the footer of a Parquet file, without pyarrow.

pyarrow ends the whole process when `RowGroupMetaData.column` meets some kinds of damage (26.0: one of 400 random
ones): its error is thrown where Python cannot catch it. The footer is a struct of Thrift's compact protocol, whose
fields are in `parquet.thrift` of the Apache Parquet format.
"""

import os
import struct
from pathlib import Path
from typing import Any

_TAIL = 8  # bytes: length of the footer, "PAR1"
_DEEPEST = 32
_ROW_GROUPS, _COLUMNS, _META, _PATH, _VALUES, _UNCOMPRESSED = 4, 1, 3, 3, 5, 6  # numbers of fields


def column_sizes(source: Path) -> list[list[tuple[list[str], int, int]]]:
    """Path in the schema, number of values and uncompressed bytes of each column, in each row group.

    Raises:
        ValueError: The footer is damaged.
    """
    with open(source, "rb") as file:
        end = file.seek(0, os.SEEK_END)
        file.seek(max(end - _TAIL, 0))
        length = int.from_bytes(file.read(4), "little")
        file.seek(max(end - _TAIL - length, 0))
        footer = file.read(length)
    try:
        groups = _Thrift(footer).fields()[_ROW_GROUPS]
        columns = [[column[_META] for column in group[_COLUMNS]] for group in groups]
        return [
            [([part.decode() for part in c[_PATH]], int(c[_VALUES]), int(c[_UNCOMPRESSED])) for c in group]
            for group in columns
        ]
    except (IndexError, KeyError, TypeError, AttributeError, struct.error) as error:
        raise ValueError("its footer is damaged") from error


class _Thrift:
    """A reader of Thrift's compact protocol: structs become dictionaries by field number."""

    def __init__(self, data: bytes) -> None:
        self.data, self.at = data, 0

    def fields(self, depth: int = 0) -> dict[int, Any]:
        """A struct."""
        if depth > _DEEPEST:
            raise ValueError("its footer is damaged")
        found, number = dict[int, Any](), 0
        while head := self.take(1)[0]:
            number = number + (head >> 4) if head >> 4 else self.integer()
            kind = head & 15
            found[number] = kind == 1 if kind in (1, 2) else self.value(kind, depth)  # a Boolean is in the head
        return found

    def value(self, kind: int, depth: int) -> Any:
        """A value of one of the protocol's kinds."""
        if kind in (1, 2, 3):
            return self.take(1)[0]
        if kind in (4, 5, 6):
            return self.integer()
        if kind == 7:
            return struct.unpack("<d", self.take(8))[0]
        if kind == 8:
            return self.take(self.varint())
        if kind in (9, 10):
            head = self.take(1)[0]
            size = self.varint() if head >> 4 == 15 else head >> 4
            return [self.value(head & 15, depth + 1) for _ in range(size)]
        if kind == 12:
            return self.fields(depth + 1)
        raise ValueError("its footer is damaged")  # Parquet has no maps

    def take(self, n: int) -> bytes:
        """The next `n` bytes."""
        part = self.data[self.at : self.at + n]
        if len(part) < n:
            raise IndexError("the footer ends early")
        self.at += n
        return part

    def varint(self) -> int:
        """An unsigned number, seven bits a byte, the lowest first."""
        number = shift = 0
        while True:
            byte = self.take(1)[0]
            number |= (byte & 127) << shift
            if byte < 128:
                return number
            shift += 7

    def integer(self) -> int:
        """A signed number, by zigzag."""
        number = self.varint()
        return (number >> 1) ^ -(number & 1)
