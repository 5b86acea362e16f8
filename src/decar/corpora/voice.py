"""Corpora of how a voice sounds: emotions (IEMOCAP, CREMA-D), and sounds that are not speech (VocalSound)."""

import re
from collections.abc import Iterator
from pathlib import Path

from decar.corpora.base import Corpus, Row, Size, entries, find, known, lines, with_split
from decar.errors import CorpusError

_IEMOCAP = {"neu": "neutral", "ang": "angry", "sad": "sad", "hap": "happy"}
_IEMOCAP_LINE = re.compile(r"^\[[\d.]+ - [\d.]+\]\t(\S+)\t(\w+)\t")
_CREMA_D = {
    "ANG": "anger", "DIS": "disgust", "FEA": "fear", "HAP": "happy", "NEU": "neutral", "SAD": "sad",
}  # fmt: skip
SOUNDS = ("laughter", "sigh", "cough", "throatclearing", "sneeze", "sniff")


def iemocap(root: Path) -> Iterator[Row]:
    """Columns `emotion` (4), `speaker` (10), `fold` (the session), `split`: session 5 is test.

    `SessionN/dialog/EmoEvaluation/*.txt` hold a line an utterance, `[start - end]` tab name tab emotion tab `[v, a,
    d]`; the audio lies in `SessionN/sentences/wav/DIALOG/NAME.wav`. Neutral, angry, sad and happy, without excited. A
    session is a fold: five sessions with two speakers each, who are in no other.
    """
    find(root, "IEMOCAP_full_release", "IEMOCAP", "Session1")
    top = next((root / name for name in ("IEMOCAP_full_release", "IEMOCAP") if (root / name).is_dir()), root)
    for session in "12345":
        folder = find(top, f"Session{session}/dialog/EmoEvaluation")
        for line in (line for file in sorted(folder.glob("Ses*.txt")) for line in lines(file)):
            match = _IEMOCAP_LINE.match(line)
            if match and match[2] in _IEMOCAP:
                dialog, _, turn = match[1].rpartition("_")
                yield {
                    "path": top / f"Session{session}" / "sentences" / "wav" / dialog / f"{match[1]}.wav",
                    "emotion": _IEMOCAP[match[2]],
                    "speaker": f"{session}{turn[0]}",
                    "fold": session,
                    "split": "test" if session == "5" else "train",
                }


IEMOCAP = Corpus(
    "iemocap",
    "IEMOCAP",
    iemocap,
    label="emotion",
    page="https://sail.usc.edu/iemocap/",
    apart=("speaker",),
    by_hand="ask for it with the form at https://sail.usc.edu/iemocap/iemocap_release.htm",
    paper=Size(4, 4490, 4.49),
    published={"split=train": 3548, "split=test": 942},
)


def crema_d(root: Path) -> list[Row]:
    """Columns `emotion` (6), `actor`, `split`: 70:10:20 of the actors, since there is no official split.

    `AudioWAV/ACTOR_SENTENCE_EMOTION_LEVEL.wav`, 91 actors.
    """
    clips: list[Row] = []
    for path in sorted(find(root, "AudioWAV", "CREMA-D/AudioWAV").glob("*.wav")):
        words = path.stem.split("_")
        if len(words) != 4 or words[2] not in _CREMA_D:
            raise CorpusError(f"{path} is not named ACTOR_SENTENCE_EMOTION_LEVEL.wav; take it out of the folder")
        clips.append({"path": path, "emotion": _CREMA_D[words[2]], "actor": words[0]})
    return with_split(clips, {"train": 0.7, "valid": 0.1, "test": 0.2}, groups="actor")  # each speaks all emotions


CREMA_D = Corpus(
    "crema_d",
    "CREMA-D",
    crema_d,
    label="emotion",
    page="https://github.com/CheyneyComputerScience/CREMA-D",
    apart=("actor",),
    by_hand="clone https://github.com/CheyneyComputerScience/CREMA-D with git lfs and give its folder",
    official=(7442, 6),
)


def vocalsound(root: Path) -> Iterator[Row]:
    """Columns `sound` (6), `speaker`, `split`.

    `audio_16k/SPEAKER_NUMBER_SOUND.wav` (44.1 kHz release: `data_44k`) and `datafiles/{tr,val,te}.json` (`{"data":
    [{"wav": …, "labels": …}]}`). The three lists share no speaker.
    """
    audio = find(root, "audio_16k", "data_44k")
    for name, split in (("tr", "train"), ("val", "valid"), ("te", "test")):
        file = find(root, f"datafiles/{name}.json")
        for (wav,) in entries(file, lambda found: [(Path(entry["wav"]).name,) for entry in found["data"]]):
            speaker, _, sound = Path(wav).stem.split("_")
            known(sound, SOUNDS, f"{file}, {wav}")
            yield {"path": audio / wav, "sound": sound, "speaker": speaker, "split": split}


VOCALSOUND = Corpus(
    "vocalsound",
    "VocalSound",
    vocalsound,
    label="sound",
    page="https://github.com/YuanGongND/vocalsound",
    apart=("speaker",),
    by_hand="its 16 kHz archive is linked at https://github.com/YuanGongND/vocalsound",
    official=(21024, 6),
    published={"split=train": 15570, "split=valid": 1860, "split=test": 3594},
)
