"""The three splits, and drawing one where the source gives none. No torch in here."""

import numpy as np
import pandas as pd
from numpy.typing import NDArray

SPLITS = ("train", "valid", "test")


def hold_out(
    labels: NDArray[np.str_], files: NDArray[np.str_], share: float, rng: np.random.Generator
) -> NDArray[np.bool_]:
    """Draw a share of every class to set aside, whole files at a time so that no file is on both sides.

    Of a class with one file nothing is taken, of a class with more at least one file and never all.

    Args:
        labels: `(N,)` class of each clip.
        files: `(N,)` file that each clip is a stretch of; a file counts for the class of its first clip.
        share: Part of the files of a class, 0 to 1.
        rng: Where the draw comes from.

    Returns:
        `(N,)` mask of the clips that are set aside.
    """
    first = pd.Series(labels).groupby(files).first()  # sorted by file: the draw does not hang on the table's order
    taken: list[str] = []
    for label in sorted(set(first)):
        members = first.index[first == label].to_numpy(str)
        count = min(max(1, round(share * len(members))), len(members) - 1)
        taken += rng.permutation(members)[:count].tolist()
    return np.isin(files, taken)
