"""VocalSound: which of six sounds of the mouth.

`audio_16k/SPEAKER_NUMBER_SOUND.wav` (44.1 kHz release: `data_44k`) and `datafiles/{tr,val,te}.json` (`{"data":
[{"wav": …, "labels": …}]}`). The three lists share no speaker.
"""

import json
from pathlib import Path

from decar.audio.manifest import Manifest
from decar.corpora.base import Corpus, find, known, manifest
from decar.errors import CorpusError

TITLE = "VocalSound"
SOUNDS = ("laughter", "sigh", "cough", "throatclearing", "sneeze", "sniff")


def read(root: Path) -> Manifest:
    """Columns `sound` (6), `speaker`, `split`."""
    audio = find(root, TITLE, "audio_16k", "data_44k").relative_to(root)
    found = []
    for name, split in (("tr", "train"), ("val", "valid"), ("te", "test")):
        file = find(root, TITLE, f"datafiles/{name}.json")
        try:
            wavs = [Path(entry["wav"]).name for entry in json.loads(file.read_text())["data"]]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise CorpusError(f"{TITLE}: {file} cannot be read ({error!r}); unpack the archive again") from error
        for wav in wavs:
            speaker, _, sound = Path(wav).stem.split("_")
            known(sound, SOUNDS, f"{file}, {wav}", TITLE)
            found.append({"path": str(audio / wav), "sound": sound, "speaker": speaker, "split": split})
    return manifest(found, root, TITLE)


CORPUS = Corpus(
    "vocalsound",
    TITLE,
    read,
    label="sound",
    page="https://github.com/YuanGongND/vocalsound",
    apart=("speaker",),
    by_hand="its 16 kHz archive is linked at https://github.com/YuanGongND/vocalsound",
    official=(21024, 6),
    published={"split=train": 15570, "split=valid": 1860, "split=test": 3594},
)
