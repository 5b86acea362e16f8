"""UrbanSound8K: which of ten urban sounds.

`audio/foldN/FSID-CLASS-OCCURRENCE-SLICE.wav` and `metadata/UrbanSound8K.csv`. Ten folds; no Freesound recording is
in two.
"""

from pathlib import Path

from decar.audio.manifest import Manifest
from decar.corpora.base import Archive, Corpus, find, known, manifest, rows

TITLE = "UrbanSound8K"
FOLDS = tuple(map(str, range(1, 11)))


def read(root: Path) -> Manifest:
    """Columns `class` (10), `recording`, `fold` (1 to 10)."""
    top = find(root, TITLE, "UrbanSound8K", ".")
    table = find(top, TITLE, "metadata/UrbanSound8K.csv")
    found = []
    for row in rows(table, TITLE, ("slice_file_name", "fsID", "fold", "class")):
        fold = known(row["fold"], FOLDS, f"{table}, {row['slice_file_name']}", TITLE)
        path = top.relative_to(root) / "audio" / f"fold{fold}" / row["slice_file_name"]
        found.append({"path": str(path), "class": row["class"], "recording": row["fsID"], "fold": fold})
    return manifest(found, root, TITLE)


CORPUS = Corpus(
    "urbansound8k",
    TITLE,
    read,
    label="class",
    page="https://urbansounddataset.weebly.com/urbansound8k.html",
    apart=("recording",),
    archives=(
        Archive("https://zenodo.org/record/1203745/files/UrbanSound8K.tar.gz", "md5:9aa69802bbf37fb986f71ec1483a196e"),
    ),
    official=(8732, 10),
    published={f"fold={i}": n for i, n in enumerate((873, 888, 925, 990, 936, 823, 838, 806, 816, 837), start=1)},
)
