"""GTZAN: which of ten genres.

`genres/GENRE/GENRE.NUMBER.wav` (or .au; `genres_original` in the mirrors). Split: the artist-filtered lists (443,
197 and 290 clips, without repetitions and distorted clips) that torchaudio carries, since the full set has the same
artists and recordings everywhere.
"""

from pathlib import Path

from decar.audio.manifest import Manifest
from decar.corpora.base import Corpus, find, manifest

TITLE = "GTZAN"


def read(root: Path) -> Manifest:
    """Columns `genre` (10), `split`."""
    from torchaudio.datasets import gtzan

    top = find(root, TITLE, "genres", "genres_original", "Data/genres_original", "gtzan_genre")
    top = top / "genres" if top.name == "gtzan_genre" else top
    kind = "au" if any(top.glob("*/*.au")) else "wav"
    lists = {"train": gtzan.filtered_train, "valid": gtzan.filtered_valid, "test": gtzan.filtered_test}
    found = []
    for split, names in lists.items():
        for name in names:
            genre = name.split(".")[0]
            path = top.relative_to(root) / genre / f"{name}.{kind}"
            found.append({"path": str(path), "genre": genre, "split": split})
    return manifest(found, root, TITLE)


CORPUS = Corpus(
    "gtzan",
    TITLE,
    read,
    label="genre",
    page="http://marsyas.info/downloads/datasets.html",
    by_hand="the official address no longer answers; mirrors unpack to genres or genres_original",
    official=(930, 10),
    published={"split=train": 443, "split=valid": 197, "split=test": 290},
)
