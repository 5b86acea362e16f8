"""Corpora of music: which instrument and pitch (NSynth), which genre (GTZAN)."""

from collections.abc import Iterator
from pathlib import Path

from decar.corpora.base import Archive, Corpus, Row, Size, entries, find, known

FAMILIES = (
    "bass", "brass", "flute", "guitar", "keyboard", "mallet", "organ", "reed", "string", "synth_lead", "vocal",
)  # fmt: skip
_NOTE = ("instrument_family_str", "pitch", "instrument_str")


def nsynth(root: Path) -> Iterator[Row]:
    """Columns `family` (11), `pitch` (MIDI note), `instrument`, `split`; `split_train_valid`.

    The last has the clips of the paper's Table 1: it trains on the train part and tests on the valid part.

    `nsynth-{train,valid,test}/examples.json` with an entry a note, and `audio/NAME.wav` beside it. No instrument of
    train is in valid or test; no note of a synth lead is outside train.
    """
    for split in ("train", "valid", "test"):
        file = find(find(root, f"nsynth-{split}"), "examples.json")
        notes = entries(file, lambda found: ((name, *(note[key] for key in _NOTE)) for name, note in found.items()))
        for name, family, pitch, instrument in notes:
            yield {
                "path": f"nsynth-{split}/audio/{name}.wav",
                "family": known(family, FAMILIES, f"{file}, {name}"),
                "pitch": str(pitch),
                "instrument": instrument,
                "split": split,
                "split_train_valid": {"train": "train", "valid": "test"}.get(split, ""),
            }


NSYNTH = Corpus(
    "nsynth",
    "NSynth",
    nsynth,
    label="family",
    page="https://magenta.tensorflow.org/datasets/nsynth",
    archives=tuple(
        Archive(f"http://download.magenta.tensorflow.org/datasets/nsynth/nsynth-{split}.jsonwav.tar.gz")
        for split in ("train", "valid", "test")
    ),
    paper=Size(11, 301883, 4.00),
    published={"split=train": 289205, "split=valid": 12678, "split=test": 4096},
    official=(305979, 11),
    differs="the paper's number is train and valid (task=nsynth_train_valid); with test there are 305,979",
)


def gtzan(root: Path) -> Iterator[Row]:
    """Columns `genre` (10), `split`.

    `genres/GENRE/GENRE.NUMBER.wav` (or .au; `genres_original` in the mirrors). Split: the artist-filtered lists (443,
    197 and 290 clips, without repetitions and distorted clips) that torchaudio carries, since the full set has the same
    artists and recordings everywhere.
    """
    from torchaudio.datasets import gtzan as published

    top = find(root, "genres", "genres_original", "Data/genres_original", "gtzan_genre")
    top = top / "genres" if top.name == "gtzan_genre" else top
    kind = "au" if any(top.glob("*/*.au")) else "wav"
    splits = {"train": published.filtered_train, "valid": published.filtered_valid, "test": published.filtered_test}
    for split, names in splits.items():
        for name in names:
            genre = name.split(".")[0]
            yield {"path": top / genre / f"{name}.{kind}", "genre": genre, "split": split}


GTZAN = Corpus(
    "gtzan",
    "GTZAN",
    gtzan,
    label="genre",
    page="http://marsyas.info/downloads/datasets.html",
    by_hand="the official address no longer answers; mirrors unpack to genres or genres_original",
    official=(930, 10),
    published={"split=train": 443, "split=valid": 197, "split=test": 290},
)
