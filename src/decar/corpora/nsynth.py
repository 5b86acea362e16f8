"""NSynth: which of eleven families of instruments; also which pitch.

`nsynth-{train,valid,test}/examples.json` with an entry a note, and `audio/NAME.wav` beside it. No instrument of
train is in valid or test; no note of a synth lead is outside train.
"""

import json
from pathlib import Path
from typing import Any

from decar.audio.manifest import Manifest
from decar.corpora.base import Archive, Corpus, Size, find, known, manifest
from decar.errors import CorpusError

TITLE = "NSynth"
FAMILIES = (
    "bass", "brass", "flute", "guitar", "keyboard", "mallet", "organ", "reed", "string", "synth_lead", "vocal",
)  # fmt: skip


def read(root: Path) -> Manifest:
    """Columns `family` (11), `pitch` (MIDI note), `instrument`, `split`."""
    found = []
    for split in ("train", "valid", "test"):
        folder = find(root, TITLE, f"nsynth-{split}")
        file = find(folder, TITLE, "examples.json")
        for name, note in _notes(file).items():
            found.append(
                {
                    "path": f"nsynth-{split}/audio/{name}.wav",
                    "family": known(note["instrument_family_str"], FAMILIES, f"{file}, {name}", TITLE),
                    "pitch": str(note["pitch"]),
                    "instrument": note["instrument_str"],
                    "split": split,
                }
            )
    return manifest(found, root, TITLE)


def _notes(file: Path) -> dict[str, dict[str, Any]]:
    try:
        notes: dict[str, dict[str, Any]] = json.loads(file.read_text())
        complete = all({"instrument_family_str", "pitch", "instrument_str"} <= set(note) for note in notes.values())
    except (OSError, ValueError, AttributeError, TypeError) as error:
        raise CorpusError(f"{TITLE}: {file} cannot be read ({error}); unpack the archive again") from error
    if not complete:
        raise CorpusError(f"{TITLE}: {file} has notes without family, pitch or instrument; is it another release?")
    return notes


CORPUS = Corpus(
    "nsynth",
    TITLE,
    read,
    label="family",
    page="https://magenta.tensorflow.org/datasets/nsynth",
    archives=tuple(
        Archive(f"http://download.magenta.tensorflow.org/datasets/nsynth/nsynth-{split}.jsonwav.tar.gz")
        for split in ("train", "valid", "test")
    ),
    paper=Size(11, 301883, 4.00),
    published={"split=train": 289205, "split=valid": 12678, "split=test": 4096},
    official=(305979, 11),
    differs="the paper's number is train and valid; with test there are 305,979",
)
