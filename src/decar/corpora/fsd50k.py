"""FSD50K: which of 200 sound events, several a clip; judged by mAP.

`FSD50K.dev_audio/NAME.wav`, `FSD50K.eval_audio/NAME.wav`, and under `FSD50K.ground_truth` `dev.csv` (fname, labels,
mids, split: train or val), `eval.csv` (fname, labels, mids) and `vocabulary.csv` (number, label, mid). No uploader
is in both dev and eval.
"""

from pathlib import Path

from decar.audio.manifest import Manifest
from decar.corpora.base import Archive, Corpus, cells, find, known, lines, manifest, rows

TITLE = "FSD50K"
SPLITS = {"train": "train", "val": "valid"}


def read(root: Path) -> Manifest:
    """Columns `labels` (200, joined by commas), `split`."""
    truth = find(root, TITLE, "FSD50K.ground_truth")
    words = find(truth, TITLE, "vocabulary.csv")
    vocabulary = {row[1] for row in cells(lines(words, TITLE), words, TITLE) if len(row) > 1}
    found = []
    for part, columns in (("dev", ("fname", "labels", "split")), ("eval", ("fname", "labels"))):
        table = find(truth, TITLE, f"{part}.csv")
        for row in rows(table, TITLE, columns):
            where = f"{table}, {row['fname']}"
            for label in row["labels"].split(","):
                known(label, vocabulary, where, TITLE)
            split = "test" if part == "eval" else SPLITS[known(row["split"], SPLITS, where, TITLE)]
            path = f"FSD50K.{part}_audio/{row['fname']}.wav"
            found.append({"path": path, "labels": row["labels"], "split": split})
    return manifest(found, root, TITLE)


CORPUS = Corpus(
    "fsd50k",
    TITLE,
    read,
    label="labels",
    page="https://zenodo.org/record/4060432",
    archives=tuple(
        Archive(f"https://zenodo.org/record/4060432/files/FSD50K.{part}")
        for part in (
            *(f"dev_audio.z0{i}" for i in range(1, 6)), "dev_audio.zip", "eval_audio.z01", "eval_audio.zip",
            "ground_truth.zip", "metadata.zip", "doc.zip",
        )
    ),
    official=(51197, 200),
    published={"split=train": 36796, "split=valid": 4170, "split=test": 10231},
)  # fmt: skip
