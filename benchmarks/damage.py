"""Random damage to a file, as disks and transfers do it."""

import re
from pathlib import Path

import numpy as np

KINDS = ("zeros", "flipped bit", "cut tail")  # drawn where none is given; others: zeroed, emptied, deleted
# in a line that names damage
NAMED = re.compile("damaged|checksum|cannot be read|not a readable|differs from its copy|cut short|is missing")
LONGEST = 4096  # bytes of zeros


def damage(file: Path, rng: np.random.Generator, kind: str | None = None) -> str:
    """Change a file at a random place; returns what was done."""
    before = file.read_bytes()
    kind = kind or str(rng.choice(KINDS))
    if kind == "deleted":
        file.unlink()
        return f"{file.name}: deleted"
    while True:
        data, at = bytearray(before), int(rng.integers(len(before)))
        if kind == "zeros":
            end = min(len(data), at + int(rng.integers(1, LONGEST)))
            data[at:end] = bytes(end - at)
        elif kind == "flipped bit":
            data[at] ^= 1 << int(rng.integers(8))
        elif kind == "zeroed":
            data[:] = bytes(len(data))
        else:
            del data[0 if kind == "emptied" else at :]
        if bytes(data) != before:  # zeros may have been zeros
            with file.open("r+b") as opened:  # in place, as a disk does it: programs may have the file open
                opened.write(data)
                opened.truncate()
            return f"{file.name}: {kind} at byte {at} of {len(before)}"
