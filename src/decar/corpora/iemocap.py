"""IEMOCAP: which of four emotions.

`SessionN/dialog/EmoEvaluation/*.txt` hold a line an utterance, `[start - end]` tab name tab emotion tab `[v, a,
d]`; the audio lies in `SessionN/sentences/wav/DIALOG/NAME.wav`. Neutral, angry, sad and happy, without excited;
session 5 is for test, and a session is a fold: five sessions with two speakers each, who are in no other.
"""

import re
from pathlib import Path

from decar.audio.manifest import Manifest
from decar.corpora.base import Corpus, Size, find, lines, manifest

TITLE = "IEMOCAP"
EMOTIONS = {"neu": "neutral", "ang": "angry", "sad": "sad", "hap": "happy"}
_LINE = re.compile(r"^\[[\d.]+ - [\d.]+\]\t(\S+)\t(\w+)\t")


def read(root: Path) -> Manifest:
    """Columns `emotion` (4), `speaker` (10), `fold` (the session), `split`: session 5 is test."""
    find(root, TITLE, "IEMOCAP_full_release", "IEMOCAP", "Session1")
    top = next((root / name for name in ("IEMOCAP_full_release", "IEMOCAP") if (root / name).is_dir()), root)
    found = []
    for session in "12345":
        folder = find(top, TITLE, f"Session{session}/dialog/EmoEvaluation")
        audio = top.relative_to(root) / f"Session{session}" / "sentences" / "wav"
        for file in sorted(folder.glob("Ses*.txt")):
            for line in lines(file, TITLE):
                match = _LINE.match(line)
                if match and match[2] in EMOTIONS:
                    dialog, _, turn = match[1].rpartition("_")
                    found.append(
                        {
                            "path": str(audio / dialog / f"{match[1]}.wav"),
                            "emotion": EMOTIONS[match[2]],
                            "speaker": f"{session}{turn[0]}",
                            "fold": session,
                            "split": "test" if session == "5" else "train",
                        }
                    )
    return manifest(found, root, TITLE)


CORPUS = Corpus(
    "iemocap",
    TITLE,
    read,
    label="emotion",
    page="https://sail.usc.edu/iemocap/",
    apart=("speaker",),
    by_hand="ask for it with the form at https://sail.usc.edu/iemocap/iemocap_release.htm",
    paper=Size(4, 4490, 4.49),
    published={"split=train": 3548, "split=test": 942},
)
