"""`decar embed` in small commits and with a pause a clip, to be killed at any moment: SOURCE OUT SECONDS [OPTION …]."""

import sys
import time

from decar.cli.app import main
from decar.embedder import engine, reading
from decar.embedder.partial import Parts

decode = reading.decode_blocks
commit = Parts.commit


def slow_decode(*args, **options):
    time.sleep(float(sys.argv[3]))
    yield from decode(*args, **options)


def told_commit(self):
    commit(self)
    print(f"committed {self.committed}", flush=True)


if __name__ == "__main__":
    engine.BLOCK_FRAMES = 300
    reading.decode_blocks = slow_decode
    Parts.commit = told_commit
    main(["embed", sys.argv[1], "--out", sys.argv[2], "--workers", "1", *sys.argv[4:]])
