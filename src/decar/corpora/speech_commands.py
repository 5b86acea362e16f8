"""Speech Commands, V1 and V2: which of ten words, another word, or silence; V2 also which of its 35 words.

`WORD/SPEAKER_nohash_NUMBER.wav`, `_background_noise_/NAME.wav`, and `validation_list.txt` and `testing_list.txt`;
what neither names is for training. The published lists follow from a hash of the speaker (`split_of`).
"""

import hashlib
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import soundfile

from decar.audio.manifest import Manifest
from decar.corpora.base import Archive, Corpus, Size, find, lines, manifest
from decar.errors import CorpusError

WORDS = ("yes", "no", "up", "down", "left", "right", "on", "off", "stop", "go")
NEW_IN_V2 = ("backward", "follow", "forward", "learn", "visual")
NOISE = "_background_noise_"
TITLES = {1: "Speech Commands V1", 2: "Speech Commands V2"}
_MOST = 2**27 - 1  # clips a word that the rule was made for


def split_of(name: str, valid: float = 10.0, test: float = 10.0) -> str:
    """The split of a file by the publishers' rule: a hash of what stands before `_nohash_`, so a speaker has one split.

    Args:
        name: File name, with or without folders.
        valid: Percent of speakers for validation.
        test: Percent for test.
    """
    speaker = re.sub(r"_nohash_.*$", "", Path(name).name)
    percent = int(hashlib.sha1(speaker.encode()).hexdigest(), 16) % (_MOST + 1) * (100.0 / _MOST)
    return "valid" if percent < valid else "test" if percent < valid + test else "train"


def read_v1(root: Path) -> Manifest:
    """Columns `label` (12 classes), `word` (30), `speaker`, `split`."""
    return _read(root, 1)


def read_v2(root: Path) -> Manifest:
    """Columns `label` (12 classes), `word` (35), `speaker`, `split`."""
    return _read(root, 2)


def _read(root: Path, version: int) -> Manifest:
    title = TITLES[version]
    names = (f"speech_commands_v0.0{version}", f"SpeechCommands/speech_commands_v0.0{version}", ".")
    top = find(root, title, *names)
    lists = {
        find(top, title, f"{word}_list.txt"): split for word, split in (("validation", "valid"), ("testing", "test"))
    }
    given = {path: split for file, split in lists.items() for path in lines(file, title)}
    there = [word for word in NEW_IN_V2 if (top / word).is_dir()]
    if bool(there) != (version == 2):
        seen = f"the word '{there[0]}' of V2" if there else f"no word '{NEW_IN_V2[0]}'"
        raise CorpusError(f"{title}: {top} has {seen}; it is the other release: speech_commands_v{3 - version}")
    prefix = top.relative_to(root)
    found = [_spoken(prefix, path.relative_to(top), given) for path in sorted(top.glob("[!_]*/*.wav"))]
    words = {path.parent.name for path in top.glob("[!_]*/*.wav")}
    lost = [path for path in given if path.split("/")[0] not in words or not (top / path).is_file()]
    if lost:
        raise CorpusError(
            f"{title}: {len(lost)} listed files are not in {top}, first: {lost[0]}; unpack the archive again"
        )
    return manifest([*found, *_silence(find(top, title, NOISE), prefix, title)], root, title)


def _spoken(prefix: Path, path: Path, given: dict[str, str]) -> dict[str, Any]:
    word, name = path.parts
    return {
        "path": str(prefix / path),
        "label": word if word in WORDS else "unknown",
        "word": word,
        "speaker": name.partition("_nohash_")[0],
        "split": given.get(path.as_posix(), "train"),
        "start": 0.0,
        "duration": None,
    }


def _silence(folder: Path, prefix: Path, title: str) -> Iterator[dict[str, Any]]:
    """Pieces of 1 s of each recording of noise: its first eight tenths for training, then a tenth each."""
    for path in sorted(folder.glob("*.wav")):
        try:
            seconds = int(soundfile.info(path).duration)
        except (OSError, RuntimeError) as error:
            raise CorpusError(f"{title}: {path} cannot be read ({error}); unpack the archive again") from error
        for start in range(seconds):
            split = "train" if start < 0.8 * seconds else "valid" if start < 0.9 * seconds else "test"
            where = {"path": str(prefix / NOISE / path.name), "start": float(start), "duration": 1.0}
            yield {**where, "label": "silence", "word": "", "speaker": "", "split": split}


def _corpus(version: int, read: Any, checksum: str, paper: Size, clips: int) -> Corpus:
    return Corpus(
        f"speech_commands_v{version}",
        TITLES[version],
        read,
        label="label",
        page="https://arxiv.org/abs/1804.03209",
        apart=("speaker",),
        archives=(
            Archive(
                f"https://storage.googleapis.com/download.tensorflow.org/data/speech_commands_v0.0{version}.tar.gz",
                checksum,
                f"speech_commands_v0.0{version}",
            ),
        ),
        paper=paper,
        official=(clips, 30 if version == 1 else 35),
        differs="the paper counts the spoken clips; the pieces of silence, some 400, come on top",
    )


V1 = _corpus(
    1, read_v1, "sha256:743935421bb51cccdb6bdd152e04c5c70274e935c82119ad7faeec31780d811d", Size(12, 64721, 0.98), 64721
)
V2 = _corpus(
    2,
    read_v2,
    "sha256:af14739ee7dc311471de98f5f9d2c9191b18aedfe957f4a6ff791c709868ff58",
    Size(12, 105829, 0.98),
    105829,
)
