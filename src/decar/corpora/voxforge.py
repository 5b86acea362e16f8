"""VoxForge: which of six languages.

`LANGUAGE/SPEAKER-DATE-ID/wav/*.wav` (or flac), as the tarballs of the six repositories unpack. Split by speaker
within a language; each submission of "anonymous" counts as a speaker of its own, since nobody knows who spoke.
"""

from pathlib import Path

from decar.audio.manifest import Manifest
from decar.corpora.base import Corpus, Size, draw, find, manifest
from decar.errors import CorpusError

TITLE = "VoxForge"
LANGUAGES = {
    "de": ("de", "german"), "en": ("en", "english", "SpeechCorpus"), "es": ("es", "spanish"), "fr": ("fr", "french"),
    "it": ("it", "italian"), "ru": ("ru", "russian"),
}  # fmt: skip


def read(root: Path) -> Manifest:
    """Columns `language` (6), `speaker`, `split`: 70:10:20 of the speakers of each language."""
    found = []
    for language, names in LANGUAGES.items():
        top = find(root, TITLE, *names)
        clips = sorted(path for kind in ("wav", "flac") for path in top.rglob(f"*/{kind}/*.{kind}"))
        if not clips:
            raise CorpusError(f"{TITLE}: no SUBMISSION/wav/*.wav in {top}; unpack the tarballs of {language} there")
        for path in clips:
            submission = path.parents[1].name
            speaker = submission.split("-")[0]
            if speaker.lower() == "anonymous":
                speaker = submission
            found.append(
                {"path": str(path.relative_to(root)), "language": language, "speaker": f"{language}/{speaker}"}
            )
    clips_of = manifest(found, root, TITLE)
    table = clips_of.table
    shares = {"train": 0.7, "valid": 0.1, "test": 0.2}
    table["split"] = draw(table["speaker"].tolist(), table["language"].tolist(), shares)
    return Manifest(table, root)


CORPUS = Corpus(
    "voxforge",
    TITLE,
    read,
    label="language",
    page="http://www.voxforge.org",
    apart=("speaker",),
    by_hand="unpack the tarballs of each language's repository (http://www.repository.voxforge1.org/downloads/) into a "
    "folder a language: de, en, es, fr, it, ru",
    paper=Size(6, 8803, 6.68),
    differs="the repositories grow; which submissions the paper took is not published",
)
