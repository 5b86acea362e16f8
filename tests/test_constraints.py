"""The pins of constraints.txt hold on each Python that pyproject.toml promises, not only on the one that CI has."""

import re
import sys
from importlib.metadata import PackageNotFoundError, metadata
from pathlib import Path

import pytest
from packaging.markers import Marker
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

ROOT = Path(__file__).resolve().parents[1]
OLDEST = re.search(r'requires-python = ">=([\d.]+)"', (ROOT / "pyproject.toml").read_text())[1]  # type: ignore[index]
PINS = [
    Requirement(line)
    for line in (ROOT / "constraints.txt").read_text().splitlines()
    if line and not line.startswith("#")
]


def holds(marker: Marker | None, python: str) -> bool:
    return marker is None or marker.evaluate({"python_version": python, "python_full_version": f"{python}.0"})


@pytest.mark.skipif(sys.version_info[:2] == (3, 10), reason="what installs on the oldest Python is for it")
def test_what_is_installed_here_is_marked_where_the_oldest_python_cannot_have_it() -> None:
    wrong, seen = [], 0
    for pin in PINS:
        try:
            known = metadata(pin.name)
        except PackageNotFoundError:
            continue  # of an extra
        seen += 1
        pythons = SpecifierSet(known.get("Requires-Python") or "")
        if known["Version"] in pin.specifier and holds(pin.marker, OLDEST) and f"{OLDEST}.13" not in pythons:
            wrong.append(f"{pin}: needs Python {pythons}")
    assert not wrong
    assert seen > 100


@pytest.mark.parametrize("python", ["3.10", "3.11", "3.12", "3.13"])
def test_a_package_is_pinned_once_for_each_python(python: str) -> None:
    names = [re.sub("[-_.]+", "-", pin.name).lower() for pin in PINS if holds(pin.marker, python)]
    assert sorted(names) == sorted(set(names))
