"""Small copies of the official layouts of public corpora, with real sounds: names, lists and quirks as published."""

import csv
import hashlib
import json
from collections.abc import Callable
from pathlib import Path

import soundfile

from decar.audio.decode import decode
from decar.cli.config import bundled


class Sounds:
    """Writes one bundled sound after another, the first half second of each."""

    def __init__(self) -> None:
        files = sorted(Path(bundled("audio")).glob("*.opus"))[::20]
        self.clips = [decode(file, duration=0.5) for file in files]
        self.count = 0

    def put(self, path: Path, seconds: float = 0.5) -> None:
        """Write the next sound; `seconds` more than half a second repeats it."""
        path.parent.mkdir(parents=True, exist_ok=True)
        clip = self.clips[self.count % len(self.clips)]
        self.count += 1
        wanted = int(seconds * 16_000)
        while len(clip) < wanted:
            clip = [*clip, *clip]
        soundfile.write(path, clip[:wanted], 16_000)


def text(path: Path, *lines: str, ending: str = "\n") -> None:
    """Write a list file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(("".join(line + ending for line in lines)).encode())


def table(path: Path, columns: list[str], *rows: list[object]) -> None:
    """Write a CSV."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([columns, *rows])


def librispeech(root: Path, sounds: Sounds) -> None:
    top = root / "LibriSpeech" / "train-clean-100"
    for speaker, chapters in (("19", ("198", "227")), ("26", ("495", "496")), ("27", ("123349", "124992"))):
        for chapter in chapters:
            folder = top / speaker / chapter
            names = [f"{speaker}-{chapter}-{i:04d}" for i in range(5)]
            for name in names:
                sounds.put(folder / f"{name}.flac")
            text(folder / f"{speaker}-{chapter}.trans.txt", *(f"{name} SOME WORDS SPOKEN" for name in names))
    text(
        root / "LibriSpeech" / "SPEAKERS.TXT",
        "; ID |SEX| SUBSET | MINUTES | NAME",
        "19 | F | train-clean-100 | 25.19 | K",
    )


def voxceleb1(root: Path, sounds: Sounds) -> None:
    lines = []
    for speaker, top in (("id10001", "vox1_dev_wav/wav"), ("id10270", "vox1_test_wav/wav"), ("id10003", "wav")):
        for number, video in (
            (1, "1zcIwhmdeo4"),
            (1, "7gWzIy6yIIk"),
            (1, "DtdEL7Xj_Yk"),
            (2, "J9lHsKG98U8"),
            (3, "Y8hIVOBuels"),
        ):
            for i in (1, 2):
                sounds.put(root / top / speaker / video / f"{i:05d}.wav")
                lines.append(f"{number} {speaker}/{video}/{i:05d}.wav")
    text(root / "iden_split.txt", *lines)


def split_of(name: str) -> str:
    """The publishers' rule of Speech Commands: a hash of the speaker draws 10 % for validation and 10 % for test."""
    speaker = Path(name).name.partition("_nohash_")[0].encode()
    percent = int(hashlib.sha1(speaker).hexdigest(), 16) % 2**27 * (100.0 / (2**27 - 1))
    return "valid" if percent < 10 else "test" if percent < 20 else "train"


def _speech_commands(root: Path, sounds: Sounds, words: list[str]) -> None:
    lists: dict[str, list[str]] = {"train": [], "valid": [], "test": []}
    speakers = ["0a7c2a8d", "004ae714", "00b01445", "0132a06d", "0137b3f4", "01b4757a", "01bb6a2a", "01d22d03"]
    speakers += [f"{i:08x}" for i in range(14)]
    for word in words:
        for speaker in speakers:
            name = f"{word}/{speaker}_nohash_0.wav"
            sounds.put(root / name, seconds=0.3)
            lists[split_of(name)].append(name)
    for name in ("doing_the_dishes", "white_noise"):
        sounds.put(root / "_background_noise_" / f"{name}.wav", seconds=11.4)
    text(root / "_background_noise_" / "README.md", "Noise.")
    for name, listed in (("validation", lists["valid"]), ("testing", lists["test"])):
        assert listed
        text(root / f"{name}_list.txt", *listed)


def speech_commands_v1(root: Path, sounds: Sounds) -> None:
    _speech_commands(root, sounds, ["yes", "no", "bed"])


def speech_commands_v2(root: Path, sounds: Sounds) -> None:
    _speech_commands(root / "SpeechCommands" / "speech_commands_v0.02", sounds, ["yes", "off", "backward", "visual"])


def tut_urban_2018(root: Path, sounds: Sounds) -> None:
    top = root / "TUT-urban-acoustic-scenes-2018-development"
    meta, lists = ["filename\tscene_label\tidentifier\tsource_label"], {"train": [], "evaluate": [], "test": []}
    for scene in ("airport", "bus", "tram"):
        for city, place, part in (("barcelona", 0, "train"), ("london", 3, "train"), ("paris", 7, "evaluate")):
            for i in range(3):
                name = f"audio/{scene}-{city}-{place}-{i}-a.wav"
                sounds.put(top / name)
                meta.append(f"{name}\t{scene}\t{city}-{place}\ta")
                lists[part].append(f"{name}\t{scene}")
                if part == "evaluate":
                    lists["test"].append(name)
    text(top / "meta.csv", *meta, ending="\r\n")
    for part, lines in lists.items():
        text(top / "evaluation_setup" / f"fold1_{part}.txt", *lines)


def birdsong(root: Path, sounds: Sounds) -> None:
    for name, first in (("ff1010bird", 64486), ("warblrb10k_public", 100)):
        rows = []
        for i in range(10):
            item = str(first + i) if name.startswith("ff") else f"759808e5-f824-401e-{first + i}"
            sounds.put(root / f"{name}_wav" / "wav" / f"{item}.wav")
            rows.append([item, name, i % 2])
        table(root / f"{name}_metadata_2018.csv", ["itemid", "datasetid", "hasbird"], *rows)


def iemocap(root: Path, sounds: Sounds) -> None:
    top = root / "IEMOCAP_full_release"
    for session in range(1, 6):
        for kind in ("impro01", "script01_1"):
            dialog = f"Ses{session:02d}F_{kind}"
            lines = ["% [START_TIME - END_TIME] TURN_NAME EMOTION [V, A, D]", ""]
            for i, emotion in enumerate(("neu", "ang", "sad", "hap", "exc", "xxx")):
                for speaker in "FM":
                    turn = f"{dialog}_{speaker}{i:03d}"
                    lines.append(f"[{6 + i}.2901 - {8 + i}.2357]\t{turn}\t{emotion}\t[2.5000, 2.5000, 2.5000]")
                    lines += ["C-E2:\tNeutral;\t()", "A-E3:\tval 3; act 2; dom  2;\t()", ""]
                    sounds.put(top / f"Session{session}" / "sentences" / "wav" / dialog / f"{turn}.wav")
            text(top / f"Session{session}" / "dialog" / "EmoEvaluation" / f"{dialog}.txt", *lines)
            text(top / f"Session{session}" / "dialog" / "EmoEvaluation" / f"._{dialog}.txt", "\0Mac OS X")


def voxforge(root: Path, sounds: Sounds) -> None:
    for language in ("de", "english", "es", "fr", "it", "ru"):
        people = [f"{name}-2008{month:02d}26-{name[:3]}" for name in ("ralf", "anna", "timo") for month in (3, 4)]
        people += [f"anonymous-2008{month:02d}11-xy{month}" for month in range(1, 6)]
        for submission in people:
            kind = "flac" if submission.startswith("anna") else "wav"
            sounds.put(root / language / submission / kind / f"{language}-0001.{kind}")
            text(root / language / submission / "etc" / "README", "User Name: someone")


def nsynth(root: Path, sounds: Sounds) -> None:
    for split, instruments in (("train", ("000", "001", "002")), ("valid", ("003",)), ("test", ("003",))):
        notes = {}
        for family in ("bass", "flute", "synth_lead"):
            if family == "synth_lead" and split != "train":
                continue
            for instrument in instruments:
                for pitch in (21, 60):
                    name = f"{family}_synthetic_{instrument}-{pitch + (split == 'test'):03d}-100"
                    sounds.put(root / f"nsynth-{split}" / "audio" / f"{name}.wav")
                    notes[name] = {
                        "note_str": name, "instrument_str": f"{family}_synthetic_{instrument}", "pitch": pitch,
                        "instrument_family_str": family, "velocity": 100, "qualities_str": [],
                    }  # fmt: skip
        path = root / f"nsynth-{split}" / "examples.json"
        path.write_text(json.dumps(notes))


def audioset(root: Path, sounds: Sounds) -> None:
    head = [
        "# Segments csv created Sun Mar  5 10:54:31 2017",
        "# num_ytids=22160",
        "# YTID, start_seconds, end_seconds, positive_labels",
    ]
    rows = {"balanced": [], "unbalanced": []}
    shapes = ("{}.wav", "Y{}.wav", "{}_30.000_40.000.flac", "{}_30.wav")
    for i in range(40):
        video = f"--{i:02d}_xY-{i % 10}Z"[:11].ljust(11, "_")
        labels = ["/m/09x0r", *(["/m/04rlf"] if i % 2 else []), *(["/t/dd00003"] if i % 20 == 3 else [])]
        rows["balanced" if i < 10 else "unbalanced"].append(f'{video}, 30.000, 40.000, "{",".join(labels)}"')
        if i % 8:  # the others are no longer on the net
            sounds.put(root / "audio" / shapes[i % 4].format(video))
    for name, lines in rows.items():
        text(root / f"{name}_train_segments.csv", *head, *lines)


def esc50(root: Path, sounds: Sounds) -> None:
    rows = []
    for fold in range(1, 6):
        for target, category in ((0, "dog"), (1, "rooster"), (37, "clock_alarm")):
            for take in "AB":
                source = f"{fold}{target:02d}32"
                name = f"{fold}-{source}-{take}-{target}.wav"
                sounds.put(root / "ESC-50-master" / "audio" / name)
                rows.append([name, fold, target, category, target < 10, source, take])
    columns = ["filename", "fold", "target", "category", "esc10", "src_file", "take"]
    table(root / "ESC-50-master" / "meta" / "esc50.csv", columns, *rows)


def urbansound8k(root: Path, sounds: Sounds) -> None:
    rows = []
    for fold in range(1, 11):
        for number, name in ((3, "dog_bark"), (8, "siren")):
            for piece in range(2):
                source = 100000 + 10 * fold + number
                file = f"{source}-{number}-0-{piece}.wav"
                sounds.put(root / "UrbanSound8K" / "audio" / f"fold{fold}" / file)
                rows.append([file, source, 0.0, 0.5, 1, fold, number, name])
    columns = ["slice_file_name", "fsID", "start", "end", "salience", "fold", "classID", "class"]
    table(root / "UrbanSound8K" / "metadata" / "UrbanSound8K.csv", columns, *rows)


def fsd50k(root: Path, sounds: Sounds) -> None:
    truth = root / "FSD50K.ground_truth"
    words = ("Bark", "Dog", "Rain")
    for part, count in (("dev", 24), ("eval", 9)):
        rows = []
        for i in range(count):
            labels = ("Bark,Dog", "Rain", "Dog,Rain", "Bark,Rain")[3 if part == "eval" and i == 8 else i % 3]
            name = 64760 + i + 1000 * (part == "eval")
            sounds.put(root / f"FSD50K.{part}_audio" / f"{name}.wav")
            rows.append([name, labels, "/m/0x", *(["val" if i % 4 == 3 else "train"] if part == "dev" else [])])
        table(truth / f"{part}.csv", ["fname", "labels", "mids", *(["split"] if part == "dev" else [])], *rows)
    text(truth / "vocabulary.csv", *(f"{i},{word},/m/0{i}" for i, word in enumerate(words)))


def crema_d(root: Path, sounds: Sounds) -> None:
    for actor in range(1001, 1013):
        for emotion in ("ANG", "HAP", "SAD"):
            sounds.put(root / "AudioWAV" / f"{actor}_IEO_{emotion}_HI.wav")


def gtzan(root: Path, sounds: Sounds) -> None:
    from torchaudio.datasets import gtzan as lists

    for name in (*lists.filtered_train, *lists.filtered_valid, *lists.filtered_test):
        genre, number = name.split(".")
        if genre in ("blues", "disco") and int(number) % 8 == 0:
            sounds.put(root / "genres" / genre / f"{name}.au")


def vocalsound(root: Path, sounds: Sounds) -> None:
    for part, speakers in (("tr", ("f0003", "m0005", "f0010")), ("val", ("m0020",)), ("te", ("f0101",))):
        entries = []
        for speaker in speakers:
            for sound in ("laughter", "cough", "throatclearing"):
                for i in (0, 1):
                    name = f"{speaker}_{i}_{sound}.wav"
                    sounds.put(root / "audio_16k" / name)
                    entries.append({"wav": f"/data/sls/vocalsound/data_16k/{name}", "labels": "/m/01j3sz"})
        path = root / "datafiles" / f"{part}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps({"data": entries}))


PARTIAL = ("gtzan",)  # its lists are torchaudio's, of 930 clips
REPLICAS: dict[str, Callable[[Path, Sounds], None]] = {
    make.__name__: make
    for make in (
        librispeech, voxceleb1, iemocap, tut_urban_2018, speech_commands_v1, speech_commands_v2, birdsong, voxforge,
        nsynth, audioset, crema_d, esc50, fsd50k, gtzan, urbansound8k, vocalsound,
    )
}  # fmt: skip
