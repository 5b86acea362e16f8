"""ESC-50: which of fifty environmental sounds.

`audio/FOLD-CLIP-TAKE-TARGET.wav` and `meta/esc50.csv`. Five folds; no source recording is in two.
"""

from pathlib import Path

from decar.audio.manifest import Manifest
from decar.corpora.base import Archive, Corpus, find, known, manifest, rows

TITLE = "ESC-50"


def read(root: Path) -> Manifest:
    """Columns `category` (50), `source`, `fold` (1 to 5)."""
    find(root, TITLE, "ESC-50-master/meta/esc50.csv", "ESC-50/meta/esc50.csv", "meta/esc50.csv")
    top = next((root / name for name in ("ESC-50-master", "ESC-50") if (root / name).is_dir()), root)
    table = top / "meta" / "esc50.csv"
    found = []
    for row in rows(table, TITLE, ("filename", "fold", "category", "src_file")):
        found.append(
            {
                "path": str(top.relative_to(root) / "audio" / row["filename"]),
                "category": row["category"],
                "source": row["src_file"],
                "fold": known(row["fold"], "12345", f"{table}, {row['filename']}", TITLE),
            }
        )
    return manifest(found, root, TITLE)


CORPUS = Corpus(
    "esc50",
    TITLE,
    read,
    label="category",
    page="https://github.com/karolpiczak/ESC-50",
    apart=("source",),
    archives=(Archive("https://github.com/karolpiczak/ESC-50/archive/refs/heads/master.zip"),),
    official=(2000, 50),
    published={f"fold={i}": 400 for i in range(1, 6)},
)
