"""From `train.py data=folder` to the first decoded sample: every function on the way is one more to read."""

import sys
import threading
from pathlib import Path
from types import FrameType

import soundfile

import decar

ROOM = Path(decar.__file__).parent
MOST = 15


def functions(frame: FrameType | None) -> list[str]:
    """Our functions that stand on a stack, from the outermost inwards."""
    names = []
    while frame:
        if Path(frame.f_code.co_filename).is_relative_to(ROOM):
            names.append(f"{Path(frame.f_code.co_filename).relative_to(ROOM)}: {frame.f_code.co_name}")
        frame = frame.f_back
    return names[::-1]


def test_few_functions_lead_to_the_first_sample(train, sound_folder, tmp_path, monkeypatch):
    road: list[str] = []
    lock = threading.Lock()
    decode = soundfile.SoundFile.read

    def read(self, *args, **kwargs):
        with lock:
            if not road:
                here = functions(sys._getframe(1))
                main = functions(sys._current_frames()[threading.main_thread().ident])
                main = main[: next(i for i, name in enumerate(main) if name.startswith("audio/parallel")) + 1]
                road.extend([*main, *here])
        return decode(self, *args, **kwargs)

    monkeypatch.setattr(soundfile.SoundFile, "read", read)
    done = train(
        "debug=fast",
        "data=folder",
        f"data.root={sound_folder}",
        "trainer=cpu",
        "hydra.run.dir=run",
        "k=3",
        f"cache_dir={tmp_path / 'cache'}",
    )
    assert road[0] == "cli/train.py: main", done.err
    assert len(road) <= MOST, "\n".join(road)
