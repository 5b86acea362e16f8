"""`decar embed` in small commits and with a pause a clip, to be killed at any moment."""

import time
from multiprocessing.connection import Connection

from decar.cli.app import main
from decar.embedder import engine, reading
from decar.embedder.partial import Parts

decode = reading.decode_blocks
commit = Parts.commit


def run(report: Connection, source: str, out: str, pause: float, *options: str) -> None:
    """Embed; the number of parts is sent to `report` after each commit."""

    def slow_decode(*args: object, **kwargs: object) -> object:
        time.sleep(pause)
        yield from decode(*args, **kwargs)

    def reported_commit(self: Parts) -> None:
        commit(self)
        report.send(self.committed)

    engine.BLOCK_FRAMES = 300
    reading.decode_blocks = slow_decode
    Parts.commit = reported_commit
    main(["embed", source, "--out", out, "--workers", "1", *options])
