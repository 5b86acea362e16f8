"""LibriSpeech train-clean-100: who speaks.

`LibriSpeech/train-clean-100/SPEAKER/CHAPTER/SPEAKER-CHAPTER-NUMBER.flac`, beside it a `.trans.txt` a chapter that
lists the utterances. There is no split by utterance within speakers: 80:20 within each class is drawn (paper,
section 4).
"""

from pathlib import Path

from decar.audio.manifest import Manifest
from decar.corpora.base import Archive, Corpus, Size, draw, find, lines, manifest

TITLE = "LibriSpeech train-clean-100"


def read(root: Path) -> Manifest:
    """Columns `speaker` (251) and `split`; `speaker_chapter` (585) and `split_speaker_chapter`."""
    top = find(root, TITLE, "LibriSpeech/train-clean-100", "train-clean-100")
    names = [line.split(" ", 1)[0] for file in sorted(top.glob("*/*/*.trans.txt")) for line in lines(file, TITLE)]
    found = []
    for name in names:
        speaker, chapter, _ = name.split("-")
        path = top.relative_to(root) / speaker / chapter / f"{name}.flac"
        found.append({"path": str(path), "speaker": speaker, "speaker_chapter": f"{speaker}-{chapter}"})
    clips = manifest(found, root, TITLE)
    table = clips.table
    shares = {"train": 0.8, "test": 0.2}
    for label, split in (("speaker", "split"), ("speaker_chapter", "split_speaker_chapter")):
        table[split] = draw(table["path"].tolist(), table[label].tolist(), shares)
    return Manifest(table, root)


CORPUS = Corpus(
    "librispeech",
    TITLE,
    read,
    label="speaker",
    page="https://www.openslr.org/12",
    archives=(
        Archive(
            "https://www.openslr.org/resources/12/train-clean-100.tar.gz",
            "sha256:d4ddd1d5a6ab303066f14971d768ee43278a5f2a0aa43dc716b0e64ecbbbf6e2",
        ),
    ),
    paper=Size(585, 28538, 12.69),
    official=(28539, 251),
    differs="the paper's 585 classes appear to be pairs of speaker and chapter: task=librispeech_585",
)
