"""`decar embed` in small commits and with a pause a clip, to be killed at any moment."""

import time
from multiprocessing.connection import Connection

from decar import embedder
from decar.audio import clips
from decar.audio.journal import Journal
from decar.cli.app import main

decode = clips.decode_blocks
commit = Journal.commit


def run(report: Connection, source: str, out: str, pause: float, *options: str) -> None:
    """Embed; the number of parts is sent to `report` after each commit."""

    def slow_decode(*args: object, **kwargs: object) -> object:
        time.sleep(pause)
        yield from decode(*args, **kwargs)

    def reported_commit(self: Journal) -> None:
        commit(self)
        report.send(self.committed)

    embedder.BLOCK_FRAMES = 300
    clips.decode_blocks = slow_decode
    clips.GROUP_CLIPS = 1
    Journal.commit = reported_commit
    main(["embed", source, "--out", out, "--workers", "1", *options])
