"""Corpora of speech: who speaks (LibriSpeech, VoxCeleb1), which word (Speech Commands), which language (VoxForge)."""

import hashlib
import re
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import soundfile

from decar.corpora.base import Archive, Corpus, Row, Size, find, lines, with_split
from decar.errors import CorpusError

WORDS = ("yes", "no", "up", "down", "left", "right", "on", "off", "stop", "go")
NEW_IN_V2 = ("backward", "follow", "forward", "learn", "visual")
NOISE = "_background_noise_"
LANGUAGES = {
    "de": ("de", "german"), "en": ("en", "english", "SpeechCorpus"), "es": ("es", "spanish"), "fr": ("fr", "french"),
    "it": ("it", "italian"), "ru": ("ru", "russian"),
}  # fmt: skip
_VOXCELEB_SPLITS = {"1": "train", "2": "valid", "3": "test"}
_VOXCELEB_TOPS = ("wav", "vox1_dev_wav/wav", "vox1_test_wav/wav", "dev/wav", "test/wav")
_MOST = 2**27 - 1  # clips a word that the rule of Speech Commands was made for


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
    """Columns `speaker` (1,251), `video` and `split`: that of `iden_split.txt`, for identification.

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
        if number not in _VOXCELEB_SPLITS or rest.count("/") != 1:
            raise CorpusError(f"{listed} has the line '{line}'; expected 1, 2 or 3 and SPEAKER/VIDEO/FILE")
        yield {
            "path": tops.get(speaker, root / "wav" / speaker) / rest,
            "speaker": speaker,
            "video": f"{speaker}/{rest.partition('/')[0]}",
            "split": _VOXCELEB_SPLITS[number],
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
    differs="1,211 is the number of speakers of the verification split's dev part; identification has 1,251",
)


def split_of(name: str, valid: float = 10.0, test: float = 10.0) -> str:
    """The split of a file of Speech Commands: by a hash of what stands before `_nohash_`, so a speaker has one split.

    The published lists follow from this rule of the publishers.

    Args:
        name: File name, with or without folders.
        valid: Percent of speakers for validation.
        test: Percent for test.
    """
    speaker = re.sub(r"_nohash_.*$", "", Path(name).name)
    percent = int(hashlib.sha1(speaker.encode()).hexdigest(), 16) % (_MOST + 1) * (100.0 / _MOST)
    return "valid" if percent < valid else "test" if percent < valid + test else "train"


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
    """Columns `language` (6), `speaker`, `split`: 70:10:20 of the speakers of each language.

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
    return with_split(clips, {"train": 0.7, "valid": 0.1, "test": 0.2}, groups="speaker", within="language")


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
    differs="the repositories grow; which submissions the paper took is not published",
)
