"""The table of sources: what is taken of which package, under which licence, and what is never taken.

`sources.csv` has a row for the files of one package that share licence, attribution and kind of sound:

| column | |
|---|---|
| source | `debian`, `pypi`, `npm`; `made`: nothing is fetched, an installed program or numpy makes the sound |
| package, version | the name in that registry; the version whose licence was read |
| licence, attribution | one of `PERMITTED`; who made the sounds |
| stated, digest | the file of the package that states the licence, and the first 16 digits of its SHA-256 |
| kind | what it sounds like, one of `KINDS` |
| real | `real`: published recordings and productions; `synthetic`: rendered by this script |
| take | patterns of files, joined by `; ` (`*` within a folder, `**` through folders, `{a,b}`, `ARCHIVE!MEMBER`) |
| transform | `cap=S`: at most S seconds of a recording; `limit=S`: of the row; `render=NAME`: as `render.py` says |

`excluded.csv` has the packages that are kept for evaluation, and the files and soundfont programs (`BANK/NUMBER`) of
packages of which only a part is. A package in both tables stops the build; excluded files are not even unpacked.
"""

import csv
import re
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

HERE = Path(__file__).parent
SOURCES, EXCLUDED = HERE / "sources.csv", HERE / "excluded.csv"
PERMITTED = re.compile(r"MIT|BSD(-[23]-Clause|-like)?|CC0-1\.0|CC-BY(-SA)?-[234]\.[05](-[A-Z]{2})?|public-domain")
KINDS = ("ambience", "animal", "effect", "instrument", "music", "percussion", "speech", "texture")
REGISTRIES = ("debian", "pypi", "npm", "made")
# sets of the public tasks, by the names that packages give them
EVALUATION_SETS = re.compile(
    r"fsdd|spoken.?digit|esc.?(10|50)|ravdess|emo.?db|berlin.?emotion|dirt.?samples|superdirt|philharmonia|urbansound",
    re.IGNORECASE,
)


@dataclass(frozen=True)
class Source:
    """A row of sources.csv; the fields are its columns."""

    source: str
    package: str
    version: str
    licence: str
    attribution: str
    stated: str
    digest: str
    kind: str
    real: str
    take: str
    transform: str

    @property
    def options(self) -> dict[str, str]:
        """The entries of `transform`."""
        return dict(part.split("=", 1) for part in self.transform.split())

    def takes(self, name: str) -> bool:
        """Whether a file of the package is taken."""
        return any(pattern(text).fullmatch(name) for text in self.take.split("; "))

    def takes_from(self, name: str) -> bool:
        """Whether a file of the package is an archive of which something is taken."""
        archives = [text.partition("!")[0] for text in self.take.split("; ") if "!" in text]
        return any(pattern(text).fullmatch(name) for text in archives)

    def fault(self) -> str:
        """What is wrong with the row; "" for nothing."""
        checks = {
            f"source {self.source!r}, none of {', '.join(REGISTRIES)}": self.source in REGISTRIES,
            f"licence {self.licence!r} is not permitted": PERMITTED.fullmatch(self.licence),
            f"kind {self.kind!r}, none of {', '.join(KINDS)}": self.kind in KINDS,
            f"real {self.real!r}, neither real nor synthetic": self.real in ("real", "synthetic"),
            "a rendered row is synthetic, any other real": ("render" in self.transform) == (self.real == "synthetic"),
            "no attribution": self.attribution.strip(),
            "no file states the licence": self.source == "made" or (self.stated and len(self.digest) == 16),
            "nothing is taken": self.source == "made" or self.take,
            "an evaluation set by its name": not EVALUATION_SETS.search(f"{self.package} {self.take}"),
        }
        return next((reason for reason, good in checks.items() if not good), "")


@dataclass(frozen=True)
class Excluded:
    """A row of excluded.csv: `path` of "" stands for the whole package."""

    package: str
    path: str
    reason: str


def read_sources(path: Path = SOURCES, excluded: Path = EXCLUDED) -> list[Source]:
    """All rows, checked.

    Raises:
        SystemExit: A row is faulty or excluded; the message names file, line, package and reason.
    """
    with path.open(newline="", encoding="utf-8") as file:
        rows = [Source(**row) for row in csv.DictReader(file)]
    barred = {row.package for row in read_excluded(excluded) if not row.path}
    for number, row in enumerate(rows, 2):
        reason = row.fault() or (f"{excluded.name} bars the package" if row.package in barred else "")
        if reason:
            raise SystemExit(f"{path}:{number}: {row.package}: {reason}")
    return rows


def read_excluded(path: Path = EXCLUDED) -> list[Excluded]:
    """All rows."""
    with path.open(newline="", encoding="utf-8") as file:
        return [Excluded(**row) for row in csv.DictReader(file)]


@lru_cache
def excluded_names(package: str) -> tuple[re.Pattern[str], ...]:
    """Patterns of the files and programs of a package that are never taken."""
    return tuple(pattern(row.path) for row in read_excluded() if row.package == package and row.path)


def is_excluded(package: str, name: str) -> bool:
    """Whether a file of a package, or a program of its soundfont, is kept for evaluation."""
    return any(text.fullmatch(name) for text in excluded_names(package))


@lru_cache(maxsize=4096)
def pattern(text: str) -> re.Pattern[str]:
    """A pattern of `take` as a regular expression for whole names."""
    out, depth = "", 0
    for part in re.findall(r"\*\*|.", text.strip()):
        depth += (part == "{") - (part == "}")
        special = {"**": ".*", "*": "[^/!]*", "?": ".", "{": "(?:", "}": ")"}
        out += "|" if part == "," and depth else special.get(part, re.escape(part))
    return re.compile(out)


def attribution_page(rows: list[Source]) -> str:
    """ATTRIBUTION.md: whom the sounds are from, a line for each package, licence and author."""
    groups: dict[tuple[str, str, str, str], set[str]] = {}
    for row in rows:
        groups.setdefault((row.source, row.package, row.licence, row.attribution), set()).add(row.kind)
    lines = [
        f"| {source} | {package} | {licence} | {author.replace('|', '/')} | {', '.join(sorted(kinds))} |"
        for (source, package, licence, author), kinds in sorted(groups.items())
    ]
    head = (
        "# Attribution\n\nAll sounds were converted to 16 kHz mono FLAC and cut into clips of at most 10 s; rendered "
        "ones were made from what is named.\n\n"
        "| source | package | licence | attribution | kinds |\n|---|---|---|---|---|\n"
    )
    return head + "\n".join(lines) + "\n"
