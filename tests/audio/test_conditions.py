"""Conditions on a table, against masks made with pandas by hand."""

from collections.abc import Callable

import pandas as pd
import pytest

from decar.audio.conditions import matching
from decar.errors import ManifestError

TABLE = pd.DataFrame(
    {
        "kind": ["dog and cat", "dog", "owl", "R&B", "dog (small)", ""],
        "fold": ["1", "01", "2", "10", "1.0", ""],
        "year": ["2009", "2010", "2011", "", "2012", "2010.5"],
        "ok": ["True", "no", "1", "yes", "0", ""],
        "My Note": ["a", "b", "a", "b", "a", "b"],
        "duration": [1.0, 2.0, 3.0, float("nan"), 5.0, 6.0],
    }
)


@pytest.mark.parametrize(
    ("condition", "rows"),
    [
        ("kind='dog and cat'", [0]),
        ('kind != "dog and cat" and kind != dog', [2, 3, 4, 5]),
        ("kind == dog", [1]),
        ("kind=dog (small)", [4]),
        ("kind=R&B", [3]),
        ("kind = ''", [5]),
        ("fold=1", [0, 1, 4]),
        ("fold='1'", [0]),
        ("fold in [1, '10']", [0, 1, 3, 4]),
        ("fold not in (1, 2, 10)", [5]),
        ("year > 2010", [2, 4, 5]),
        ("year >= 2010 and year <= 2011", [1, 2, 5]),
        ("duration < 3", [0, 1]),
        ("ok", [0, 2, 3]),
        ("not ok", [1, 4, 5]),
        ("ok and not (fold=1 or fold=2)", [3]),
        ("fold=2 or ok and year<2010", [0, 2]),
        ("My Note=a", [0, 2, 4]),
        ("`My Note` == 'b' and ok", [3]),
        ("my_note=a and ok", [0, 2]),
    ],
)
def test_the_rows_for_which_it_holds(condition: str, rows: list[int]) -> None:
    assert matching(TABLE, condition).nonzero()[0].tolist() == rows


@pytest.mark.parametrize(
    ("condition", "message"),
    [
        ("kind", "no clip has kind=true"),
        ("kinds=dog", r"no column 'kinds' \(columns: kind, fold, .*\); is 'kind' meant"),
        ("kind != bat", r"no clip has kind=bat \(values: "),
        ("kind in [dog, bat]", "no clip has kind=bat"),
        ("kind > 3", "column 'kind', row 1: 'dog and cat' is not a number"),
        ("year > soon", "'soon' is not a number"),
        ("fold=1 & kind=dog", "conditions are joined by and, or"),
        ("(fold=1", r"at the end: a \) is missing"),
        ("fold=1)", r"at \): it cannot be read from there"),
        ("fold in 1", r"a list such as \[a, b\]"),
        ("fold=", "at the end: a name or a value is expected"),
        ("kind.str.len() > 3", r"no column 'kind\.str\.len\(\)'"),
        ("@pd.eval('1')", "quotes in the middle of"),
        ("__class__ = 1", "no column '__class__'"),
        ("(" * 500 + "ok" + ")" * 500, "too deep"),
        ("not " * 500 + "ok", "too deep"),
    ],
)
def test_what_cannot_hold_says_why(condition: str, message: str) -> None:
    with pytest.raises(ManifestError, match=message) as caught:
        matching(TABLE, condition)
    assert str(caught.value).startswith("where=")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("condition", "holds"),
    [
        ("year > 2009 and fold != 2", lambda t: (t.y > 2009) & (t.f != 2)),
        ("year > 2009 or fold = 2 and ok", lambda t: (t.y > 2009) | ((t.f == 2) & t.o)),
        ("not (year > 2009 or ok)", lambda t: ~((t.y > 2009) | t.o)),
    ],
)
def test_as_pandas_finds_it(condition: str, holds: Callable[[pd.DataFrame], pd.Series]) -> None:
    numbers = pd.DataFrame({"y": pd.to_numeric(TABLE["year"]), "f": pd.to_numeric(TABLE["fold"])})
    numbers["o"] = TABLE["ok"].isin(["True", "yes", "1"])
    assert matching(TABLE, condition).tolist() == holds(numbers).tolist()
