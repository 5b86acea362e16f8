"""Which rows of a table a condition holds for. Nothing of it is evaluated as code.

The grammar is the part of `DataFrame.query` that compares columns with values, and allows shorter forms:

- `COLUMN = VALUE` (or `==`), `COLUMN != VALUE`, `COLUMN < NUMBER` (`<=`, `>`, `>=`), `COLUMN in [VALUE, …]`, `not in`,
- `COLUMN` alone, where its value is true, yes or 1,
- joined by `and`, `or`, `not` and parentheses.

Text in quotes is one value, whatever words are in it, and compared as text. A number without quotes equals every cell
of that number (`fold=1`: "1", "01", "1.0"). Names that hold operators or `and` are written in backticks.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pandas as pd

from decar.audio.columns import find_column, no_column
from decar.errors import ManifestError

Mask = npt.NDArray[np.bool_]

_TOKEN = re.compile(r"\s*('[^']*'|\"[^\"]*\"|`[^`]*`|==|!=|<=|>=|[=<>()\[\],]|[^\s=!<>()\[\],'\"`]+|\S)")
_ORDER: dict[str, Callable[[npt.NDArray[np.float64], float], Mask]] = {
    "<": np.less, "<=": np.less_equal, ">": np.greater, ">=": np.greater_equal,
}  # fmt: skip
_SIGNS = ("=", "==", "!=", *_ORDER)
_TRUE = ("true", "yes", "1")
_DEEPEST = 50  # parentheses and nots inside one another


@dataclass(frozen=True)
class _Token:
    text: str
    start: int
    end: int

    @property
    def quoted(self) -> bool:
        return self.text[0] in "'\"`" and len(self.text) > 1

    def word(self) -> str:
        """To compare with keywords; "" in quotes."""
        return "" if self.quoted else self.text


def matching(table: pd.DataFrame, condition: str) -> Mask:
    """`(N,)` mask of the rows for which a condition holds.

    Raises:
        ManifestError: It cannot be read, names no column, compares with a value that no row has, or orders what is no
            number.
    """
    try:
        return _Parser(table, condition).mask()
    except ManifestError as error:
        raise ManifestError(f"where={' '.join(condition.split())}: {error}") from None


class _Parser:
    """Recursive descent, a method a level of the grammar; each returns the `(N,)` mask of its part."""

    def __init__(self, table: pd.DataFrame, text: str) -> None:
        self.table, self.text, self.depth = table, text, 0
        self.tokens = [_Token(found[1], found.start(1), found.end(1)) for found in _TOKEN.finditer(text)]
        self.place = 0

    def mask(self) -> Mask:
        found = self._any()
        if self.place < len(self.tokens):
            raise self._unexpected()
        return found

    def _any(self) -> Mask:
        found = self._all()
        while self._take("or"):
            found = found | self._all()
        return found

    def _all(self) -> Mask:
        found = self._one()
        while self._take("and"):
            found = found & self._one()
        return found

    def _one(self) -> Mask:
        self.depth += 1
        if self.depth > _DEEPEST:
            raise ManifestError("too deep: write it with fewer parentheses")
        if self._take("not"):
            found = ~self._one()
        elif self._take("("):
            found = self._any()
            if not self._take(")"):
                raise self._unexpected("a ) is missing")
        else:
            found = self._comparison()
        self.depth -= 1
        return found

    def _comparison(self) -> Mask:
        column = self._column()
        sign = self._peek()
        if sign in _SIGNS:
            self.place += 1
            value, quoted = self._value(("and", "or"))
            if sign in _ORDER:
                return _ORDER[sign](self._numbers(column), self._number(value))
            return self._equal(column, value, quoted) ^ (sign == "!=")
        unlike = self._take("not")
        if self._take("in"):
            return self._listed(column) ^ unlike
        if unlike:
            raise self._unexpected()
        return self._some(column, "true", self._cells(column).str.lower().isin(_TRUE).to_numpy(bool))

    def _listed(self, column: str) -> Mask:
        close = ")" if self._take("(") else "]"
        if close == "]" and not self._take("["):
            raise self._unexpected("a list such as [a, b] is expected")
        found = self._equal(column, *self._value((",", close)))
        while self._take(","):
            found = found | self._equal(column, *self._value((",", close)))
        if not self._take(close):
            raise self._unexpected(f"a {close} is missing")
        return found

    def _column(self) -> str:
        """The name of a column: a word or several, up to the next sign, or in backticks."""
        name, _ = self._words((*_SIGNS, "and", "or", "not", "in"))
        found = find_column(self.table.columns, name)
        if found is None:
            raise ManifestError(no_column(self.table.columns, name))
        return found

    def _value(self, ends: tuple[str, ...]) -> tuple[str, bool]:
        value, quoted = self._words(ends)
        if not quoted and self._peek() in _SIGNS:
            raise self._unexpected("conditions are joined by and, or; a value with such signs needs quotes")
        return value, quoted

    def _words(self, ends: tuple[str, ...]) -> tuple[str, bool]:
        """The text up to one of `ends`, and whether it stands in quotes; parentheses in it belong to it."""
        first, depth = self.place, 0
        while self.place < len(self.tokens):
            word = self._peek()
            if depth == 0 and (word in ends or word == ")" or word in _SIGNS):
                break
            depth += (word == "(") - (word == ")")
            self.place += 1
        tokens = self.tokens[first : self.place]
        if not tokens:
            raise self._unexpected("a name or a value is expected")
        if len(tokens) == 1 and tokens[0].quoted:
            return tokens[0].text[1:-1].strip(), True
        if any(token.quoted for token in tokens):
            raise self._unexpected(f"quotes in the middle of {self.text[tokens[0].start : tokens[-1].end]}")
        return self.text[tokens[0].start : tokens[-1].end], False

    def _equal(self, column: str, value: str, quoted: bool) -> Mask:
        words = self._cells(column)
        found = (words == value).to_numpy(bool)
        if not quoted and re.fullmatch(r"[-+]?(\d+\.?\d*|\.\d+)(e[-+]?\d+)?", value, re.IGNORECASE | re.ASCII):
            found = found | (pd.to_numeric(words, errors="coerce") == float(value)).to_numpy(bool)
        return self._some(column, value, found)

    def _some(self, column: str, value: str, found: Mask) -> Mask:
        """Refuse a value that no row has, also for !=: a misspelt one would make a condition that does nothing."""
        if not found.any():
            values = ", ".join(map(repr, self._cells(column).value_counts().index[:6]))
            raise ManifestError(f"no clip has {column}={value} (values: {values}, …)")
        return found

    def _cells(self, column: str) -> pd.Series:
        return self.table[column].fillna("").astype(str).str.strip()

    def _numbers(self, column: str) -> npt.NDArray[np.float64]:
        words = self._cells(column)
        numbers = pd.to_numeric(words, errors="coerce")
        bad = np.flatnonzero((numbers.isna() & (words != "")).to_numpy())
        if len(bad):
            raise ManifestError(f"column '{column}', row {bad[0] + 1}: {words.iloc[bad[0]]!r} is not a number")
        return numbers.to_numpy(np.float64)

    def _number(self, value: str) -> float:
        try:
            return float(value)
        except ValueError:
            raise ManifestError(f"{value!r} is not a number; <, <=, > and >= compare numbers") from None

    def _peek(self) -> str:
        return self.tokens[self.place].word() if self.place < len(self.tokens) else ""

    def _take(self, word: str) -> bool:
        if self._peek() != word:
            return False
        self.place += 1
        return True

    def _unexpected(self, why: str = "it cannot be read from there") -> ManifestError:
        found = self.text[self.tokens[self.place].start :] if self.place < len(self.tokens) else "the end"
        return ManifestError(f"at {' '.join(found.split())}: {why}")
