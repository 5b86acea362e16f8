"""Corpora of speech and of voices: speakers, words, languages, emotions, sounds that are not speech."""

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import soundfile

from decar.corpora.base import Archive, Corpus, Row, Size, entries, find, known, lines, with_split
from decar.errors import CorpusError

WORDS = ("yes", "no", "up", "down", "left", "right", "on", "off", "stop", "go")
NEW_IN_V2 = ("backward", "follow", "forward", "learn", "visual")
NOISE = "_background_noise_"
LANGUAGES = {
    "de": ("de", "german"), "en": ("en", "english", "SpeechCorpus"), "es": ("es", "spanish"), "fr": ("fr", "french"),
    "it": ("it", "italian"), "ru": ("ru", "russian"),
}  # fmt: skip
SOUNDS = ("laughter", "sigh", "cough", "throatclearing", "sneeze", "sniff")
_VOXCELEB_SPLITS = {"1": "train", "2": "valid", "3": "test"}
_VOXCELEB_TOPS = ("wav", "vox1_dev_wav/wav", "vox1_test_wav/wav", "dev/wav", "test/wav")
_VOXCELEB_VERIFIED = range(10270, 10310)  # the 40 speakers of the verification test, whose names begin with E
VOXFORGE_PAPER = 8803  # clips in the paper's Table 1
_IEMOCAP = {"neu": "neutral", "ang": "angry", "sad": "sad", "hap": "happy"}
_IEMOCAP_LINE = re.compile(r"^\[[\d.]+ - [\d.]+\]\t(\S+)\t(\w+)\t")
_CREMA_D = {
    "ANG": "anger", "DIS": "disgust", "FEA": "fear", "HAP": "happy", "NEU": "neutral", "SAD": "sad",
}  # fmt: skip


def librispeech(root: Path) -> list[Row]:
    """Columns `speaker` (251) and `split`; `speaker_chapter` (585) and `split_speaker_chapter`.

    `LibriSpeech/train-clean-100/SPEAKER/CHAPTER/SPEAKER-CHAPTER-NUMBER.flac`, beside it a `.trans.txt` a chapter that
    lists the utterances. There is no split by utterance within speakers: 80:20 within each class is drawn (paper,
    section 4).
    """
    top = find(root, "LibriSpeech/train-clean-100", "train-clean-100")
    clips: list[Row] = []
    for file in sorted(top.glob("*/*/*.trans.txt")):
        for name in (line.split(" ", 1)[0] for line in lines(file)):
            speaker, chapter, _ = name.split("-")
            path = str(top.relative_to(root) / speaker / chapter / f"{name}.flac")
            clips.append({"path": path, "speaker": speaker, "speaker_chapter": f"{speaker}-{chapter}"})
    shares = {"train": 0.8, "test": 0.2}
    clips = with_split(clips, shares, within="speaker")
    return with_split(clips, shares, within="speaker_chapter", column="split_speaker_chapter")


LIBRISPEECH = Corpus(
    "librispeech",
    "LibriSpeech train-clean-100",
    librispeech,
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


def voxceleb1(root: Path) -> Iterator[Row]:
    """Columns `speaker` (1,251), `video` and `split`: that of `iden_split.txt`, for identification; `split_1211`.

    The last is the same split without the 40 speakers of the verification test: the 1,211 of the paper's Table 1.

    `wav/SPEAKER/VIDEO/NUMBER.wav` and `iden_split.txt`, a line a clip: 1, 2 or 3 (train, valid, test) and its path
    under `wav`. The publishers divide the audio into a dev and a test archive; both may be unpacked anywhere below the
    root that `_VOXCELEB_TOPS` names.
    """
    listed = find(root, "iden_split.txt")
    find(root, *_VOXCELEB_TOPS)
    tops = {speaker.name: speaker for top in _VOXCELEB_TOPS for speaker in sorted((root / top).glob("id*"))}
    for line in lines(listed):
        number, _, path = line.partition(" ")
        speaker, _, rest = path.partition("/")
        if number not in _VOXCELEB_SPLITS or rest.count("/") != 1 or not re.fullmatch(r"id\d+", speaker):
            raise CorpusError(f"{listed} has the line '{line}'; expected 1, 2 or 3 and SPEAKER/VIDEO/FILE")
        verified = int(speaker.removeprefix("id")) in _VOXCELEB_VERIFIED
        yield {
            "path": tops.get(speaker, root / "wav" / speaker) / rest,
            "speaker": speaker,
            "video": f"{speaker}/{rest.partition('/')[0]}",
            "split": _VOXCELEB_SPLITS[number],
            "split_1211": "" if verified else _VOXCELEB_SPLITS[number],
        }


VOXCELEB1 = Corpus(
    "voxceleb1",
    "VoxCeleb1",
    voxceleb1,
    label="speaker",
    page="https://www.robots.ox.ac.uk/~vgg/data/voxceleb/vox1.html",
    apart=("video",),
    by_hand="ask for the audio with the form at https://www.robots.ox.ac.uk/~vgg/data/voxceleb/, and put "
    "https://www.robots.ox.ac.uk/~vgg/data/voxceleb/meta/iden_split.txt beside it",
    paper=Size(1211, 153397, 8.20),
    published={"split=train": 138361, "split=valid": 6904, "split=test": 8251},
    official=(153516, 1251),
    differs="1,211 is the number of speakers of the verification split's dev part (task=voxceleb1_1211), with 148,642 "
    "clips; identification has 1,251",
)


def speech_commands(root: Path, version: int) -> Iterator[Row]:
    """Columns `label` (12: ten words, unknown, silence), `word` (V1: 30, V2: 35), `speaker`, `split`.

    `WORD/SPEAKER_nohash_NUMBER.wav`, `_background_noise_/NAME.wav`, and `validation_list.txt` and `testing_list.txt`;
    what neither names is for training.
    """
    top = find(root, f"speech_commands_v0.0{version}", f"SpeechCommands/speech_commands_v0.0{version}", ".")
    lists = {"validation_list.txt": "valid", "testing_list.txt": "test"}
    given = {path: split for name, split in lists.items() for path in lines(find(top, name))}
    there = [word for word in NEW_IN_V2 if (top / word).is_dir()]
    if bool(there) != (version == 2):
        seen = f"the word '{there[0]}' of V2" if there else f"no word '{NEW_IN_V2[0]}'"
        raise CorpusError(f"{top} has {seen}; it is the other release: speech_commands_v{3 - version}")
    files = sorted(top.glob("[!_]*/*.wav"))
    words = {file.parent.name for file in files}
    lost = [path for path in given if path.split("/")[0] not in words or not (top / path).is_file()]
    if lost:
        raise CorpusError(f"{len(lost)} listed files are not in {top}, first: {lost[0]}; unpack the archive again")
    for file in files:
        word = file.parent.name
        yield {
            "path": file,
            "label": word if word in WORDS else "unknown",
            "word": word,
            "speaker": file.name.partition("_nohash_")[0],
            "split": given.get(f"{word}/{file.name}", "train"),
            "start": 0.0,
            "duration": None,
        }
    yield from _silence(find(top, NOISE))


def _silence(folder: Path) -> Iterator[Row]:
    """Pieces of 1 s of each recording of noise: its first eight tenths for training, then a tenth each."""
    for path in sorted(folder.glob("*.wav")):
        try:
            seconds = int(soundfile.info(path).duration)
        except (OSError, RuntimeError) as error:
            raise CorpusError(f"{path} cannot be read ({error}); unpack the archive again") from error
        for start in range(seconds):
            split = "train" if start < 0.8 * seconds else "valid" if start < 0.9 * seconds else "test"
            where = {"path": path, "start": float(start), "duration": 1.0}
            yield {**where, "label": "silence", "word": "", "speaker": "", "split": split}


def _speech_commands(version: int, checksum: str, words: int, clips: int) -> Corpus:
    archive = f"https://storage.googleapis.com/download.tensorflow.org/data/speech_commands_v0.0{version}.tar.gz"
    return Corpus(
        f"speech_commands_v{version}",
        f"Speech Commands V{version}",
        partial(speech_commands, version=version),
        label="label",
        page="https://arxiv.org/abs/1804.03209",
        apart=("speaker",),
        archives=(Archive(archive, f"sha256:{checksum}", f"speech_commands_v0.0{version}"),),
        paper=Size(12, clips, 0.98),
        official=(clips, words),
        differs="the paper counts the spoken clips; the pieces of silence, some 400, come on top",
    )


SPEECH_COMMANDS_V1 = _speech_commands(1, "743935421bb51cccdb6bdd152e04c5c70274e935c82119ad7faeec31780d811d", 30, 64721)
SPEECH_COMMANDS_V2 = _speech_commands(2, "af14739ee7dc311471de98f5f9d2c9191b18aedfe957f4a6ff791c709868ff58", 35, 105829)


def voxforge(root: Path) -> list[Row]:
    """Columns `language` (6), `speaker`, `split`: 70:10:20 of the speakers of each language; `split_8803`.

    The last is the same split for 8,803 clips, the number in the paper's Table 1, as even over the languages as they
    can be, drawn by a fixed seed. Which ones the paper took is not published.

    `LANGUAGE/SPEAKER-DATE-ID/wav/*.wav` (or flac), as the tarballs of the six repositories unpack. Each submission of
    "anonymous" counts as a speaker of its own, since the speaker is unknown.
    """
    clips: list[Row] = []
    for language, names in LANGUAGES.items():
        top = find(root, *names)
        files = sorted(path for kind in ("wav", "flac") for path in top.rglob(f"*/{kind}/*.{kind}"))
        if not files:
            raise CorpusError(f"no SUBMISSION/wav/*.wav in {top}; unpack the tarballs of {language} there")
        for path in files:
            submission = path.parents[1].name
            speaker = submission.split("-")[0]
            if speaker.lower() == "anonymous":
                speaker = submission
            clips.append({"path": path, "language": language, "speaker": f"{language}/{speaker}"})
    clips = with_split(clips, {"train": 0.7, "valid": 0.1, "test": 0.2}, groups="speaker", within="language")
    taken = even_share([clip["language"] for clip in clips], VOXFORGE_PAPER)
    return [{**clip, "split_8803": clip["split"] if take else ""} for clip, take in zip(clips, taken, strict=True)]


def even_share(labels: Sequence[str], n: int) -> list[bool]:
    """A mask of `n` clips, or all if there are fewer, in which classes are as even as they can be; a fixed seed."""
    order = np.random.default_rng(0).permutation(len(labels)).tolist()
    rank, seen = [0] * len(labels), Counter[str]()
    for i in order:
        rank[i] = seen[labels[i]]
        seen[labels[i]] += 1
    chosen = set(sorted(order, key=lambda i: rank[i])[:n])
    return [i in chosen for i in range(len(labels))]


VOXFORGE = Corpus(
    "voxforge",
    "VoxForge",
    voxforge,
    label="language",
    page="http://www.voxforge.org",
    apart=("speaker",),
    by_hand="unpack the tarballs of each language's repository (http://www.repository.voxforge1.org/downloads/) into a "
    "folder a language: de, en, es, fr, it, ru",
    paper=Size(6, 8803, 6.68),
    differs="the repositories grow; which clips the paper took is not published (task=voxforge_8803 draws as many)",
)


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
