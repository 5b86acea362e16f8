"""TUT Urban Acoustic Scenes 2018, development set: in which of ten kinds of place.

`audio/SCENE-CITY-LOCATION-NUMBER-DEVICE.wav`, `meta.csv` (tab-separated: filename, scene_label, identifier,
source_label) and `evaluation_setup/fold1_train.txt`, `fold1_evaluate.txt` (file and scene). No location is in both.
"""

from pathlib import Path

from decar.audio.manifest import Manifest
from decar.corpora.base import Archive, Corpus, Size, find, known, lines, manifest, rows
from decar.errors import CorpusError

TITLE = "TUT Urban Acoustic Scenes 2018 (development)"
TOP = "TUT-urban-acoustic-scenes-2018-development"
SCENES = (
    "airport", "bus", "metro", "metro_station", "park", "public_square", "shopping_mall", "street_pedestrian",
    "street_traffic", "tram",
)  # fmt: skip


def read(root: Path) -> Manifest:
    """Columns `scene` (10), `location`, `split`: fold 1's train and, as test, its evaluate list."""
    top = find(root, TITLE, TOP, ".")
    meta = find(top, TITLE, "meta.csv")
    columns = ("filename", "scene_label", "identifier")
    location = {row["filename"]: row["identifier"] for row in rows(meta, TITLE, columns, delimiter="\t")}
    found = []
    for name, split in (("fold1_train.txt", "train"), ("fold1_evaluate.txt", "test")):
        file = find(top, TITLE, f"evaluation_setup/{name}")
        for line in lines(file, TITLE):
            path, _, scene = line.partition("\t")
            if path not in location:
                raise CorpusError(f"{TITLE}: {file} lists {path}, which {meta} does not; unpack the meta archive again")
            scene = known(scene, SCENES, f"{file}, {path}", TITLE)
            where = str(top.relative_to(root) / path)
            found.append({"path": where, "scene": scene, "location": location[path], "split": split})
    return manifest(found, root, TITLE)


CORPUS = Corpus(
    "tut_urban_2018",
    TITLE,
    read,
    label="scene",
    page="https://zenodo.org/record/1228142",
    apart=("location",),
    archives=tuple(
        Archive(f"https://zenodo.org/record/1228142/files/{TOP}.{part}.zip")
        for part in ("doc", "meta", "error", *(f"audio.{i}" for i in range(1, 14)))
    ),
    paper=Size(10, 8640, 10.00),
    published={"split=train": 6122, "split=test": 2518},
)
