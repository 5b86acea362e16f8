"""Corpora of surroundings: scenes (TUT 2018), events (ESC-50, UrbanSound8K, FSD50K, AudioSet), birds (DCASE 2018)."""

import logging
import re
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from decar.audio.scan import find_audio
from decar.corpora.base import Archive, Corpus, Row, Size, cells, find, known, lines, rows, with_split
from decar.errors import CorpusError

log = logging.getLogger(__name__)

_TUT = "TUT-urban-acoustic-scenes-2018-development"
SCENES = (
    "airport", "bus", "metro", "metro_station", "park", "public_square", "shopping_mall", "street_pedestrian",
    "street_traffic", "tram",
)  # fmt: skip
_BIRDSONG = {
    "freefield1010": ("ff1010bird", ("ff1010bird_wav/wav", "ff1010bird/wav", "ff1010bird_wav")),
    "warblr": ("warblrb10k_public", ("warblrb10k_public_wav/wav", "warblrb10k_public/wav", "warblrb10k_public_wav")),
}
_FSD50K_SPLITS = {"train": "train", "val": "valid"}
AUDIOSET_SHARE, AUDIOSET_SEED = 0.1, 0
_NAMED = re.compile(r"Y?(.{11})(_\d+(\.\d+)?){0,2}")  # eleven letters, of which the last may be digits after a _ too
_LABELS = re.compile(r"/\w+/\w+(,/\w+/\w+)*")


def tut_urban_2018(root: Path) -> Iterator[Row]:
    """Columns `scene` (10), `location`, `split`: fold 1's train and, as test, its evaluate list.

    `audio/SCENE-CITY-LOCATION-NUMBER-DEVICE.wav`, `meta.csv` (tab-separated: filename, scene_label, identifier,
    source_label) and `evaluation_setup/fold1_train.txt`, `fold1_evaluate.txt` (file and scene). No location is in both.
    """
    top = find(root, _TUT, ".")
    meta = find(top, "meta.csv")
    columns = ("filename", "scene_label", "identifier")
    location = {row["filename"]: row["identifier"] for row in rows(meta, columns, delimiter="\t")}
    for name, split in (("fold1_train.txt", "train"), ("fold1_evaluate.txt", "test")):
        file = find(top, f"evaluation_setup/{name}")
        for line in lines(file):
            path, _, scene = line.partition("\t")
            if path not in location:
                raise CorpusError(f"{file} lists {path}, which {meta} does not; unpack the meta archive again")
            known(scene, SCENES, f"{file}, {path}")
            yield {"path": top / path, "scene": scene, "location": location[path], "split": split}


TUT_URBAN_2018 = Corpus(
    "tut_urban_2018",
    "TUT Urban Acoustic Scenes 2018 (development)",
    tut_urban_2018,
    label="scene",
    page="https://zenodo.org/record/1228142",
    apart=("location",),
    archives=tuple(
        Archive(f"https://zenodo.org/record/1228142/files/{_TUT}.{part}.zip")
        for part in ("doc", "meta", "error", *(f"audio.{i}" for i in range(1, 14)))
    ),
    paper=Size(10, 8640, 10.00),
    published={"split=train": 6122, "split=test": 2518},
)


def esc50(root: Path) -> Iterator[Row]:
    """Columns `category` (50), `source`, `fold` (1 to 5).

    `audio/FOLD-CLIP-TAKE-TARGET.wav` and `meta/esc50.csv`. No source recording is in two folds.
    """
    table = find(root, "ESC-50-master/meta/esc50.csv", "ESC-50/meta/esc50.csv", "meta/esc50.csv")
    for row in rows(table, ("filename", "fold", "category", "src_file")):
        yield {
            "path": table.parents[1] / "audio" / row["filename"],
            "category": row["category"],
            "source": row["src_file"],
            "fold": known(row["fold"], "12345", f"{table}, {row['filename']}"),
        }


ESC50 = Corpus(
    "esc50",
    "ESC-50",
    esc50,
    label="category",
    page="https://github.com/karolpiczak/ESC-50",
    apart=("source",),
    archives=(Archive("https://github.com/karolpiczak/ESC-50/archive/refs/heads/master.zip"),),
    official=(2000, 50),
    published={f"fold={i}": 400 for i in range(1, 6)},
)


def urbansound8k(root: Path) -> Iterator[Row]:
    """Columns `class` (10), `recording`, `fold` (1 to 10).

    `audio/foldN/FSID-CLASS-OCCURRENCE-SLICE.wav` and `metadata/UrbanSound8K.csv`. No Freesound recording is in two
    folds.
    """
    top = find(root, "UrbanSound8K", ".")
    table = find(top, "metadata/UrbanSound8K.csv")
    folds = tuple(map(str, range(1, 11)))
    for row in rows(table, ("slice_file_name", "fsID", "fold", "class")):
        fold = known(row["fold"], folds, f"{table}, {row['slice_file_name']}")
        path = top / "audio" / f"fold{fold}" / row["slice_file_name"]
        yield {"path": path, "class": row["class"], "recording": row["fsID"], "fold": fold}


URBANSOUND8K = Corpus(
    "urbansound8k",
    "UrbanSound8K",
    urbansound8k,
    label="class",
    page="https://urbansounddataset.weebly.com/urbansound8k.html",
    apart=("recording",),
    archives=(
        Archive("https://zenodo.org/record/1203745/files/UrbanSound8K.tar.gz", "md5:9aa69802bbf37fb986f71ec1483a196e"),
    ),
    official=(8732, 10),
    published={f"fold={i}": n for i, n in enumerate((873, 888, 925, 990, 936, 823, 838, 806, 816, 837), start=1)},
)


def fsd50k(root: Path) -> Iterator[Row]:
    """Columns `labels` (200, joined by commas; judged by mAP), `split`.

    `FSD50K.dev_audio/NAME.wav`, `FSD50K.eval_audio/NAME.wav`, and under `FSD50K.ground_truth` `dev.csv` (fname, labels,
    mids, split: train or val), `eval.csv` (fname, labels, mids) and `vocabulary.csv` (number, label, mid). No uploader
    is in both dev and eval.
    """
    truth = find(root, "FSD50K.ground_truth")
    words = find(truth, "vocabulary.csv")
    vocabulary = {row[1] for row in cells(lines(words), words) if len(row) > 1}
    for part, columns in (("dev", ("fname", "labels", "split")), ("eval", ("fname", "labels"))):
        table = find(truth, f"{part}.csv")
        for row in rows(table, columns):
            where = f"{table}, {row['fname']}"
            for label in row["labels"].split(","):
                known(label, vocabulary, where)
            split = "test" if part == "eval" else _FSD50K_SPLITS[known(row["split"], _FSD50K_SPLITS, where)]
            yield {"path": f"FSD50K.{part}_audio/{row['fname']}.wav", "labels": row["labels"], "split": split}


FSD50K = Corpus(
    "fsd50k",
    "FSD50K",
    fsd50k,
    label="labels",
    multilabel=True,
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


def birdsong(root: Path) -> list[Row]:
    """Columns `bird` (yes, no), `part`, `split`: 80:20 within each class (paper, section 4).

    Bird Audio Detection, DCASE 2018, task 3. Two of its data sets: freefield1010 (`ff1010bird_metadata_2018.csv`, audio
    in `wav/` or `ff1010bird_wav/wav/`) and Warblr (`warblrb10k_public_metadata_2018.csv`,
    `warblrb10k_public_wav/wav/`).
    """
    clips: list[Row] = []
    for part, (name, folders) in _BIRDSONG.items():
        labels = find(root, f"{name}_metadata_2018.csv", f"{name}_metadata.csv")
        audio = find(root, *folders).relative_to(root)
        for row in rows(labels, ("itemid", "hasbird")):
            has = known(row["hasbird"], ("0", "1"), f"{labels}, {row['itemid']}")
            path = str(audio / f"{row['itemid']}.wav")
            clips.append({"path": path, "bird": "yes" if has == "1" else "no", "part": part})
    return with_split(clips, {"train": 0.8, "test": 0.2}, within="bird")


BIRDSONG = Corpus(
    "birdsong",
    "Bird Song Detection (freefield1010 + Warblr)",
    birdsong,
    label="bird",
    page="https://dcase.community/challenge2018/task-bird-audio-detection",
    archives=(
        Archive("https://archive.org/download/ff1010bird/ff1010bird_wav.zip", folder="ff1010bird_wav"),
        Archive(
            "https://archive.org/download/warblrb10k_public/warblrb10k_public_wav.zip", folder="warblrb10k_public_wav"
        ),
        Archive("https://ndownloader.figshare.com/files/10853303", name="ff1010bird_metadata_2018.csv"),
        Archive("https://ndownloader.figshare.com/files/10853306", name="warblrb10k_public_metadata_2018.csv"),
    ),
    paper=Size(2, 15690, 10.08),
    published={"part=freefield1010": 7690, "part=warblr": 8000},
)


def audioset(root: Path) -> list[Row]:
    """Columns `labels` (joined by commas), `list`, `tenth`: yes for those of the class-balanced tenth.

    `unbalanced_train_segments.csv` and `balanced_train_segments.csv` as published (three lines that begin with #, then
    `YTID, start, end, "labels"`) and a folder `audio` with a file a segment, in the names of the usual downloaders:
    `YTID.wav`, `Y….wav`, `YTID_START.wav`, `YTID_START_END.flac`. Many videos no longer exist; a log line counts them.
    """
    audio = find(root, "audio", "wav", "wavs")
    there = {video_of(Path(path).stem): path for path in find_audio(audio, recursive=True)}
    clips: list[Row] = []
    missing = 0
    for name in ("balanced", "unbalanced"):
        for video, labels in segments(find(root, f"{name}_train_segments.csv")):
            if video in there:
                path = str(audio.relative_to(root) / there[video])
                clips.append({"path": path, "labels": labels, "list": name})
            else:
                missing += 1
    log.info("AudioSet: audio of %d of %d segments", len(clips), len(clips) + missing)
    clips.sort(key=lambda clip: str(clip["path"]))  # the draw goes by position
    chosen = balanced_share([clip["labels"].split(",") for clip in clips], AUDIOSET_SHARE, AUDIOSET_SEED)
    return [{**clip, "tenth": "yes" if taken else "no"} for clip, taken in zip(clips, chosen, strict=True)]


def segments(file: Path) -> Iterator[tuple[str, str]]:
    """Video and labels, joined by commas, of each row of a list of segments."""
    text = (line for line in lines(file) if not line.startswith("#"))
    for number, row in enumerate(cells(text, file, skipinitialspace=True), 1):
        if len(row) != 4 or not _LABELS.fullmatch(row[3]):
            raise CorpusError(f'{file}, row {number} is not `YTID, start, end, "labels"`: {row}')
        yield row[0], row[3]


def video_of(stem: str) -> str:
    """The eleven letters of the video in a file name; downloaders add a leading Y and times."""
    match = _NAMED.fullmatch(stem)
    return match[1] if match else stem


def balanced_share(labels: list[list[str]], share: float, seed: int) -> NDArray[np.bool_]:
    """A mask of `share` of the clips in which classes are as even as they can be.

    Class by class, rare ones first, each takes in turn one more of its clips in a seeded order, until there are enough.
    """
    of_class: dict[str, list[int]] = defaultdict(list)
    for i in np.random.default_rng(seed).permutation(len(labels)):
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


AUDIOSET = Corpus(
    "audioset",
    "AudioSet",
    audioset,
    label="labels",
    multilabel=True,
    page="https://research.google.com/audioset/download.html",
    by_hand="the lists are at https://research.google.com/audioset/download.html; the audio is in the videos",
)
