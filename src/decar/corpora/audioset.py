"""AudioSet, for pre-training: the class-balanced tenth of the unbalanced segments that there is audio of.

`unbalanced_train_segments.csv` and `balanced_train_segments.csv` as published (three lines that begin with #, then
`YTID, start, end, "labels"`) and a folder `audio` with a file a segment, however the downloader called it:
`YTID.wav`, `Y….wav`, `YTID_START.wav`, `YTID_START_END.flac`. Many videos are gone: the missing ones are counted.
"""

import logging
import re
from collections import defaultdict
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from decar.audio.manifest import Manifest
from decar.audio.scan import find_audio
from decar.corpora.base import Corpus, cells, find, lines, manifest
from decar.errors import CorpusError

TITLE = "AudioSet"
SHARE = 0.1
SEED = 0
_TIMES = re.compile(r"_\d+(\.\d+)?(_\d+(\.\d+)?)?$")
_LABELS = re.compile(r"/\w+/\w+(,/\w+/\w+)*")
log = logging.getLogger(__name__)


def read(root: Path) -> Manifest:
    """Columns `labels` (joined by commas), `list`, `tenth`: yes for those of the class-balanced tenth."""
    audio = find(root, TITLE, "audio", "wav", "wavs")
    there = {video_of(Path(path).stem): path for path in find_audio(audio, recursive=True)}
    found, missing = [], 0
    for name in ("balanced", "unbalanced"):
        for video, labels in segments(find(root, TITLE, f"{name}_train_segments.csv")):
            if video not in there:
                missing += 1
                continue
            path = str(audio.relative_to(root) / there[video])
            found.append({"path": path, "labels": ",".join(labels), "list": name})
    log.info("%s: audio of %d of %d segments", TITLE, len(found), len(found) + missing)
    clips = manifest(found, root, TITLE)
    table = clips.table
    chosen = balanced_share([labels.split(",") for labels in table["labels"]], SHARE, SEED)
    table["tenth"] = np.where(chosen, "yes", "no")
    return Manifest(table, root)


def segments(file: Path) -> list[tuple[str, list[str]]]:
    """Video and labels of each row of a list of segments."""
    text = (line for line in lines(file, TITLE) if not line.startswith("#"))
    rows = cells(text, file, TITLE, skipinitialspace=True)
    found = []
    for number, row in enumerate(rows, 1):
        if len(row) != 4 or not _LABELS.fullmatch(row[3]):
            raise CorpusError(f'{TITLE}: {file}, row {number} is not `YTID, start, end, "labels"`: {row}')
        found.append((row[0], row[3].split(",")))
    return found


def video_of(stem: str) -> str:
    """The eleven letters of the video in a file name; a leading Y and times are what downloaders add."""
    name = _TIMES.sub("", stem) if len(stem) > 12 else stem
    return name[1:] if len(name) == 12 and name.startswith("Y") else name


def balanced_share(labels: list[list[str]], share: float, seed: int) -> NDArray[np.bool_]:
    """A mask of `share` of the clips in which classes are as even as they can be.

    Class by class, rare ones first, each takes in turn one more of its clips in a seeded order, until there are enough.
    """
    order = np.random.default_rng(seed).permutation(len(labels))
    of_class: dict[str, list[int]] = defaultdict(list)
    for i in order:
        for label in labels[i]:
            of_class[label].append(int(i))
    queues = [iter(of_class[label]) for label in sorted(of_class, key=lambda label: (len(of_class[label]), label))]
    chosen, wanted = np.zeros(len(labels), bool), round(share * len(labels))
    taken = 0
    while taken < wanted:
        for queue in list(queues):
            clip = next((i for i in queue if not chosen[i]), None)
            if clip is None:
                queues.remove(queue)
            elif taken < wanted:
                chosen[clip] = True
                taken += 1
    return chosen


CORPUS = Corpus(
    "audioset",
    TITLE,
    read,
    label="labels",
    page="https://research.google.com/audioset/download.html",
    by_hand="the lists are at https://research.google.com/audioset/download.html; the audio is in the videos",
)
