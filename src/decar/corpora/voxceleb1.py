"""VoxCeleb1, identification: who speaks.

`wav/SPEAKER/VIDEO/NUMBER.wav` and `iden_split.txt`, a line a clip: 1, 2 or 3 (train, valid, test) and its path
under `wav`. The publishers divide the audio into a dev and a test archive; wherever both are unpacked to is fine.
"""

from pathlib import Path

from decar.audio.manifest import Manifest
from decar.corpora.base import Corpus, Size, find, lines, manifest
from decar.errors import CorpusError

TITLE = "VoxCeleb1"
SPLITS = {"1": "train", "2": "valid", "3": "test"}
TOPS = ("wav", "vox1_dev_wav/wav", "vox1_test_wav/wav", "dev/wav", "test/wav")


def read(root: Path) -> Manifest:
    """Columns `speaker` (1,251), `video` and `split`: that of `iden_split.txt`."""
    listed = find(root, TITLE, "iden_split.txt")
    find(root, TITLE, *TOPS)
    where = {speaker.name: speaker.relative_to(root) for top in TOPS for speaker in sorted((root / top).glob("id*"))}
    found = []
    for line in lines(listed, TITLE):
        number, _, path = line.partition(" ")
        speaker, _, rest = path.partition("/")
        if number not in SPLITS or rest.count("/") != 1:
            raise CorpusError(f"{TITLE}: {listed} has the line '{line}'; expected 1, 2 or 3 and SPEAKER/VIDEO/FILE")
        there = where.get(speaker, Path("wav") / speaker) / rest
        video = f"{speaker}/{rest.partition('/')[0]}"
        found.append({"path": str(there), "speaker": speaker, "video": video, "split": SPLITS[number]})
    return manifest(found, root, TITLE)


CORPUS = Corpus(
    "voxceleb1",
    TITLE,
    read,
    label="speaker",
    page="https://www.robots.ox.ac.uk/~vgg/data/voxceleb/vox1.html",
    apart=("video",),
    by_hand="ask for the audio with the form at https://www.robots.ox.ac.uk/~vgg/data/voxceleb/, and put "
    "https://www.robots.ox.ac.uk/~vgg/data/voxceleb/meta/iden_split.txt beside it",
    paper=Size(1211, 153397, 8.20),
    published={"split=train": 138361, "split=valid": 6904, "split=test": 8251},
    official=(153516, 1251),
    differs="1,211 is the number of speakers of the verification split's dev part; identification has 1,251",
)
