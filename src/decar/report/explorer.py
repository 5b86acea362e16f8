"""What the explorer and the map of a page show: a sample of the clips, and the clusters that all of them are in.

Letters: `N` clips, of which `n` are sampled, `D` embedding.
"""

import os
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from decar.clustering import Placed
from decar.models.embed import half_standardised
from decar.report import clusters as of
from decar.report.clips import Clips, ends, middles, near_duplicates, order_of, sounds, tsne
from decar.report.when import clip_names, hours_and_sites, hours_of, time_lines

FINAL = "final embedding"
MAX_COLUMNS = 16  # label columns that travel with the clips
EXPLORED = 4  # label columns that a cluster's purity is shown against


def show(
    some: Clips,
    table: pd.DataFrame,
    vectors: NDArray[np.float32],
    placed: Placed,
    chosen: NDArray[np.int64],
    names: list[str],
    seed: int,
    *,
    called: str = FINAL,
    others: Sequence[tuple[str, NDArray[np.int64]]] = (),
) -> dict[str, Any]:
    """Explorer, map, hours, sites, time lines and sounds.

    Args:
        some: The `n` sampled clips.
        table: All `N` clips, with `path`, `start` and `duration` (s).
        vectors: `(N, D)` their embeddings.
        placed: Their clusters.
        chosen: `(n,)` which of all clips the sampled ones are.
        names: Label columns.
        seed: Of the map, and of the clips that are heard.
        called: The name of the clustering.
        others: Names and clusters `(N,)` of others, to be chosen beside it.
    """
    unit, clusterings = half_standardised(vectors[chosen]), [*others, (called, placed.labels)]
    places = tsne(unit, seed)
    explored = [{"name": of, **explore(labels, table, names[:EXPLORED])} for of, labels in clusterings]
    middle = [middles(unit, labels[chosen]) for _, labels in clusterings]
    pairs = zip(clusterings[::-1], middle[::-1], strict=True)
    groups = [group for (_, labels), cosine in pairs for group in ends(cosine, labels[chosen])]
    turns = order_of(groups, np.random.default_rng(seed).permutation(len(unit)).tolist())
    heard, clips, labels = sounds(some, turns), table.iloc[chosen], placed.labels
    return {
        "n_sounds": sum(bool(sound.audio) for sound in heard.values()),
        "explorer": explored,
        "labels": names,
        "root": os.path.abspath(some.manifest.root),
        "frontend": some.frontend.as_dict(),
        "when": {**hours_and_sites(table, labels), "lines": time_lines(table, labels)},
        "clips": {
            "name": clip_names(some.manifest, table),
            "path": _coded(clips["path"].tolist()),
            "at": [start for start, _ in some.manifest.stretches],
            "for": [seconds for _, seconds in some.manifest.stretches],
            "seconds": clips["duration"].round(2).tolist(),
            "x": places[:, 0].round(4).tolist(),
            "y": places[:, 1].round(4).tolist(),
            "labels": {
                name: _coded(clips[name].astype(str).where(of.known(clips[name]), "").tolist()) for name in names
            },
            "clusters": [labels[chosen].tolist() for _, labels in clusterings],
            "hour": hours_of(clips),
            "novelty": placed.novelty[chosen].round(2).tolist(),
            "alike": near_duplicates(unit).tolist(),
            "middle": [cosine.round(3).tolist() for cosine in middle],
            "sounds": {i: [s.audio, s.picture, s.fault] for i, s in heard.items()},
        },
    }


def explore(labels: NDArray[np.int64], table: pd.DataFrame, names: list[str]) -> dict[str, Any]:
    """The clusters of one assignment, the largest first and noise last: sizes and purities over all clips."""
    pure = {name: of.purity(labels, table[name]) for name in names}
    clusters, counts = np.unique(labels, return_counts=True)
    order = np.lexsort((-counts, clusters < 0))
    return {
        "overall": {name: of.agreement(labels, table[name]) for name in names},
        "clusters": [
            {"id": cluster, "size": count,
             "purity": {name: [p[cluster].value, p[cluster].top, p[cluster].n] for name, p in pure.items()}}
            for cluster, count in zip(clusters[order].tolist(), counts[order].tolist(), strict=True)
        ],
    }  # fmt: skip


def _coded(words: list[str]) -> dict[str, Any]:
    """Each word once, commonest first, and a number a clip; -1 where there is none."""
    values, counts = np.unique([word for word in words if word] or [""], return_counts=True)
    ranked = values[np.argsort(-counts, kind="stable")].tolist()
    place = {word: i for i, word in enumerate(ranked)} | {"": -1}
    return {"values": ranked, "codes": [place[word] for word in words]}
