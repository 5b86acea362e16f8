"""Bird Song Detection (DCASE 2018, task 3; BAD challenge): is there a bird, in the field or before a phone.

Two of its data sets: freefield1010 (`ff1010bird_metadata_2018.csv`, audio in `wav/` or `ff1010bird_wav/wav/`) and
Warblr (`warblrb10k_public_metadata_2018.csv`, `warblrb10k_public_wav/wav/`). 80:20 within each class is drawn
(paper, section 4).
"""

from pathlib import Path

from decar.audio.manifest import Manifest
from decar.corpora.base import Archive, Corpus, Size, draw, find, known, manifest, rows

TITLE = "Bird Song Detection (freefield1010 + Warblr)"
PARTS = {
    "freefield1010": ("ff1010bird", ("ff1010bird_wav/wav", "ff1010bird/wav", "ff1010bird_wav")),
    "warblr": ("warblrb10k_public", ("warblrb10k_public_wav/wav", "warblrb10k_public/wav", "warblrb10k_public_wav")),
}


def read(root: Path) -> Manifest:
    """Columns `bird` (yes, no), `part`, `split`."""
    found = []
    for part, (name, folders) in PARTS.items():
        labels = find(root, TITLE, f"{name}_metadata_2018.csv", f"{name}_metadata.csv")
        audio = find(root, TITLE, *folders).relative_to(root)
        for row in rows(labels, TITLE, ("itemid", "hasbird")):
            has = known(row["hasbird"], ("0", "1"), f"{labels}, {row['itemid']}", TITLE)
            path = str(audio / f"{row['itemid']}.wav")
            found.append({"path": path, "bird": "yes" if has == "1" else "no", "part": part})
    clips = manifest(found, root, TITLE)
    table = clips.table
    table["split"] = draw(table["path"].tolist(), table["bird"].tolist(), {"train": 0.8, "test": 0.2})
    return Manifest(table, root)


_WARBLR = "https://archive.org/download/warblrb10k_public/warblrb10k_public_wav.zip"
CORPUS = Corpus(
    "birdsong",
    TITLE,
    read,
    label="bird",
    page="https://dcase.community/challenge2018/task-bird-audio-detection",
    archives=(
        Archive("https://archive.org/download/ff1010bird/ff1010bird_wav.zip", folder="ff1010bird_wav"),
        Archive(_WARBLR, folder="warblrb10k_public_wav"),
        Archive("https://ndownloader.figshare.com/files/10853303", name="ff1010bird_metadata_2018.csv"),
        Archive("https://ndownloader.figshare.com/files/10853306", name="warblrb10k_public_metadata_2018.csv"),
    ),
    paper=Size(2, 15690, 10.08),
    published={"part=freefield1010": 7690, "part=warblr": 8000},
)
