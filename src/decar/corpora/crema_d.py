"""CREMA-D: which of six emotions.

`AudioWAV/ACTOR_SENTENCE_EMOTION_LEVEL.wav`, 91 actors. There is no official split: 70:10:20 of the actors is drawn.
"""

from pathlib import Path

from decar.audio.manifest import Manifest
from decar.corpora.base import Corpus, draw, find, manifest
from decar.errors import CorpusError

TITLE = "CREMA-D"
EMOTIONS = {
    "ANG": "anger", "DIS": "disgust", "FEA": "fear", "HAP": "happy", "NEU": "neutral", "SAD": "sad",
}  # fmt: skip


def read(root: Path) -> Manifest:
    """Columns `emotion` (6), `actor`, `split`."""
    top = find(root, TITLE, "AudioWAV", "CREMA-D/AudioWAV")
    found = []
    for path in sorted(top.glob("*.wav")):
        words = path.stem.split("_")
        if len(words) != 4 or words[2] not in EMOTIONS:
            raise CorpusError(
                f"{TITLE}: {path} is not named ACTOR_SENTENCE_EMOTION_LEVEL.wav; take it out of the folder"
            )
        found.append({"path": str(path.relative_to(root)), "emotion": EMOTIONS[words[2]], "actor": words[0]})
    clips = manifest(found, root, TITLE)
    table = clips.table
    everyone = ["actor"] * len(table)  # each actor speaks all emotions: drawn among all of them
    table["split"] = draw(table["actor"].tolist(), everyone, {"train": 0.7, "valid": 0.1, "test": 0.2})
    return Manifest(table, root)


CORPUS = Corpus(
    "crema_d",
    TITLE,
    read,
    label="emotion",
    page="https://github.com/CheyneyComputerScience/CREMA-D",
    apart=("actor",),
    by_hand="clone https://github.com/CheyneyComputerScience/CREMA-D with git lfs and give its folder",
    official=(7442, 6),
)
