"""`decar embed` in small commits and with a pause a clip, to be killed at any moment: SOURCE OUT SECONDS [OPTION …]."""

import sys
import time

from decar import embedder
from decar.audio import clips
from decar.audio.journal import Journal
from decar.cli.app import main

decode = clips.decode_blocks
commit = Journal.commit


def slow_decode(*args, **options):
    time.sleep(float(sys.argv[3]))
    yield from decode(*args, **options)


def loud_commit(self):
    commit(self)
    print(f"committed {self.committed}", flush=True)


if __name__ == "__main__":
    embedder.BLOCK_FRAMES = 300
    clips.decode_blocks = slow_decode
    clips.GROUP_CLIPS = 1
    Journal.commit = loud_commit
    main(["embed", sys.argv[1], "--out", sys.argv[2], "--workers", "1", *sys.argv[4:]])
