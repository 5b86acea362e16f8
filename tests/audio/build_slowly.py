"""Builds a store in a process of its own, slowly, so that a test can kill it or run two of them at once.

Arguments: folder of sounds, cache, seconds to wait at each clip, how many processes begin together.
"""

from __future__ import annotations

import logging
import os
import time
from pathlib import Path

from decar.audio import LogMelStore, Manifest, build, clips
from decar.audio.decode import decode_blocks


def main(root: str, cache: str, seconds: str, together: str) -> None:
    logging.basicConfig(level=logging.INFO, filename=Path(cache) / f"log-{os.getpid()}.txt", force=True)

    def slowly(*args: object, **options: object) -> object:
        time.sleep(float(seconds))
        with open(Path(cache) / "decoded.txt", "a") as file:
            file.write(f"{args[0]}\n")
        return decode_blocks(*args, **options)  # type: ignore[arg-type]

    clips.decode_blocks = slowly  # type: ignore[assignment]
    build.COMMIT_SECONDS, clips.GROUP_CLIPS = 0.0, 1  # each clip a commit of its own
    (Path(cache) / f"ready-{os.getpid()}").touch()
    while len(list(Path(cache).glob("ready-*"))) < int(together):  # imports take one longer than the other
        time.sleep(0.01)
    store = LogMelStore.open_or_build(Manifest.from_folder(root), cache_dir=cache, num_workers=2, progress=False)
    logging.info(store.fingerprint)
