"""A classifier from labelled stretches of recordings: fitted to embeddings, validated by recording, kept in a file.

One logistic regression a label, on standardised embeddings. A clip may have several labels, and a label may be denied.
Letters: `N` clips, `D` numbers of an embedding, `C` labels.
"""

from __future__ import annotations

import json
import logging
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save
from scipy.special import expit, logit
from sklearn.metrics import average_precision_score, precision_recall_curve, precision_recall_fscore_support
from sklearn.model_selection import GroupKFold, StratifiedGroupKFold

import decar
from decar.audio import Manifest
from decar.audio.columns import find_column, no_column
from decar.audio.groups import SLACK, together
from decar.digests import NO_DIGEST, seal_tensors, tensors_digest
from decar.downstream.probe import fit_labels, preparation
from decar.downstream.protocol import SearchProtocol
from decar.downstream.split import read_split
from decar.downstream.task import warn_of_spellings
from decar.errors import TaskError, one_line
from decar.files import whole

log = logging.getLogger(__name__)

FORMAT = 1
FOLDS = 5
SHARED = 10  # clips with a label at which its own threshold and that of all labels together weigh the same
NOT = "-"  # before a label that a clip has not
MOST_BYTES = 2**28  # of a file
FITTED = ("train", "valid")  # splits whose clips a classifier is fitted to and validated on
LEAST = 2  # recordings with a label, and without it, for a validation of the label

Floats = NDArray[np.float32] | NDArray[np.float64]
Bools = NDArray[np.bool_]
Fold = tuple[NDArray[np.int64], NDArray[np.int64]]  # rows to fit to, rows to judge


@dataclass(frozen=True)
class Examples:
    """Labelled clips.

    Attributes:
        clips: `N` stretches, each once, in the order in which they first occur.
        names: `C` labels, sorted.
        truth: `(N, C)`, which labels a clip has.
        known: `(N, C)`, where that is known.
        split: `(N,)` train, valid, test or "", as the table says; train where it says nothing of splits.
    """

    clips: Manifest
    names: list[str]
    truth: Bools
    known: Bools
    split: NDArray[np.str_]

    def take(self, rows: NDArray[np.int64]) -> Examples:
        """Some of the clips, with the labels that those to fit to have.

        Raises:
            TaskError: A label is left that all of them have.
        """
        split = self.split[rows]
        there = np.flatnonzero(self.truth[rows][split == "train"].any(axis=0))
        names = [self.names[c] for c in there.tolist()]
        left = Examples(self.clips.take(rows), names, self.truth[rows][:, there], self.known[rows][:, there], split)
        left.check()
        return left

    def for_fit(self) -> Examples:
        """The clips of splits train and valid; a line says how many are left out, and which labels.

        Raises:
            TaskError: They cannot be learned, see `check`.
        """
        for split, what in (("test", "of split test"), ("", "without a split, in a table that has splits,")):
            if n := int((self.split == split).sum()):
                log.info("%d labelled clips %s are left out: nothing is fitted to them", n, what)
        left = self.take(np.flatnonzero(np.isin(self.split, FITTED)))
        for name in sorted({*self.names} - {*left.names}):
            log.warning("%s: no clip of split train has it, so the classifier does not know it", name)
        return left

    def check(self) -> None:
        """Refuse labels that cannot be learned from the clips of split train.

        Raises:
            TaskError: There is no such clip, no label, or every clip of which it is known has it.
        """
        fitted = self.split == "train"
        if not fitted.any():
            raise TaskError("no labelled clip is of split train: nothing to learn")
        if not self.names:
            raise TaskError("no clip has a label: nothing to learn")
        everywhere = (self.truth | ~self.known)[fitted].all(axis=0)
        if everywhere.any():
            name, which = self.names[int(everywhere.argmax())], "" if fitted.all() else " to fit to"
            raise TaskError(
                f"every labelled clip{which} has '{name}': label some that have it not, with another label or as "
                f"'{NOT}{name}'"
            )


def read_examples(table: Manifest, column: str = "label") -> Examples:
    """The clips of a table that have a label.

    A cell holds a label, or several with commas between. `-dog` says that it is no dog. A clip with a label has none of
    the others; of a clip with nothing but denied labels nothing else is known. Rows of the same stretch are joined. Of
    clips that overlap it is not known whether one has the label of the other. A column `split` says which clips are to
    be fitted to; see `Examples.for_fit`.

    Raises:
        TaskError: There is no such column, no label, or one that every clip has, or that one clip has and has not; a
            split is unknown, or a stretch is of two.
    """
    found = find_column(table.table.columns, column)
    if found is None:
        raise TaskError(f"{no_column(table.table.columns, column)}; name the column of the labels")
    cells, splits = table.table[found].fillna("").astype(str).tolist(), _splits(table.table)
    first: dict[tuple[str, float, float | None], int] = {}
    has: dict[int, set[str]] = {}
    for row, (cell, path, stretch) in enumerate(zip(cells, table.table["path"], table.stretches, strict=True)):
        words = words_of(cell)
        if words:
            known_as = first.setdefault((path, *stretch), row)
            if splits[row] != splits[known_as]:
                both = " and ".join(f"of split {splits[i]}" if splits[i] else "without one" for i in (known_as, row))
                raise TaskError(f"{path}: the same stretch is {both}: correct the column of splits")
            has.setdefault(known_as, set()).update(words)
    if not has:
        raise TaskError(f"no row has a value in '{found}': nothing to learn")
    names = sorted({word for words in has.values() for word in words if not word.startswith(NOT)})
    for path, words in zip(table.table["path"].iloc[list(has)], has.values(), strict=True):
        _refuse(path, words, names)
    truth = np.array([[name in words for name in names] for words in has.values()]).reshape(len(has), -1)
    denied = np.array([[NOT + name in words for name in names] for words in has.values()]).reshape(truth.shape)
    clips, known = table.take(list(has)), denied | truth.any(axis=1, keepdims=True)
    for one, other in _sharing(clips):
        known[one] &= truth[one] | denied[one] | ~truth[other]
        known[other] &= truth[other] | denied[other] | ~truth[one]
    examples = Examples(clips, names, truth, known, splits[list(has)])
    replace(examples, split=np.full(len(clips), "train")).check()
    warn_of_spellings(names)
    return examples


def words_of(cell: object) -> set[str]:
    """The labels that a cell gives or denies.

    >>> sorted(words_of("dog, -cat,"))
    ['-cat', 'dog']
    """
    return {word.strip() for word in str(cell).split(",")} - {"", NOT}


def _splits(table: pd.DataFrame) -> NDArray[np.str_]:
    """The split of each row, by a column of that name."""
    found = find_column(table.columns, "split")
    if found is None:
        return np.full(len(table), "train")
    return read_split(table[found].fillna("").astype(str).str.strip().to_numpy(str), f"column '{found}'")


def _sharing(clips: Manifest) -> Iterator[tuple[int, int]]:
    """Pairs of clips that overlap in a recording."""
    ends = [(start, np.inf if seconds is None else start + seconds) for start, seconds in clips.stretches]
    rows = sorted((path, *end, i) for i, (path, end) in enumerate(zip(clips.table["path"], ends, strict=True)))
    for place, (path, _, end, i) in enumerate(rows):
        for after in range(place + 1, len(rows)):
            other, start, until, j = rows[after]
            if other != path or start > end - SLACK:
                break
            if min(end, until) - start > SLACK:
                yield i, j


def _refuse(path: str, words: set[str], names: Sequence[str]) -> None:
    """Refuse a clip whose denied labels make no sense."""
    for word in sorted(words):
        if word.startswith(NOT) and word[1:] not in names:
            raise TaskError(f"{path}: '{word}' says that it has no '{word[1:]}', and no clip has that label")
        if NOT + word in words:
            raise TaskError(f"{path} has both '{word}' and '{NOT}{word}': take one of them out")


@dataclass(frozen=True)
class Classifier:
    """Scores of labels for embeddings of one encoder.

    Attributes:
        names: `C` labels.
        weight: `(D, C)` float64, on embeddings as they come.
        bias: `(C,)` float64.
        thresholds: `(C,)` the score from which on a clip is given the label.
        validation: For each label `clips` and `recordings` that have it, and where these suffice `average_precision`,
            `precision`, `recall` and `f1` of clips whose recordings the classifier had not seen.
        facts: Plain values: which encoder, how recordings are cut, and more.
    """

    names: list[str]
    weight: NDArray[np.float64]
    bias: NDArray[np.float64]
    thresholds: NDArray[np.float64]
    validation: Mapping[str, Mapping[str, float]]
    facts: Mapping[str, Any]

    def scores(self, vectors: Floats) -> NDArray[np.float64]:
        """Of `(N, D)` embeddings, `(N, C)` from 0 to 1.

        Raises:
            TaskError: They are of another width.
        """
        if np.ndim(vectors) != 2 or vectors.shape[1] != len(self.weight):
            raise TaskError(
                f"embeddings of shape {np.shape(vectors)}, the classifier was fitted to {len(self.weight)} numbers a "
                "clip: embed the sounds with the same encoder"
            )
        scores: NDArray[np.float64] = expit(vectors.astype(np.float64) @ self.weight + self.bias)
        return scores

    def labels(self, scores: NDArray[np.float64]) -> list[str]:
        """The labels whose threshold is reached, with commas between, the surest first; "" where there is none."""
        sure = margins(scores, self.thresholds)
        order = np.argsort(-sure, axis=1, kind="stable")
        return [
            ",".join(self.names[c] for c in line if row[c] >= 0) for line, row in zip(order.tolist(), sure, strict=True)
        ]

    def require_encoder(self, encoder: str) -> None:
        """Refuse another encoder, by its hash.

        Raises:
            TaskError: The classifier was fitted to the embeddings of another one.
        """
        wanted = str(self.facts.get("encoder"))
        if wanted != encoder:
            raise TaskError(
                f"the classifier was fitted to embeddings of another encoder ({wanted[:16]}) than this one "
                f"({encoder[:16]}): pass the one that it was fitted with as bundle"
            )

    def save(self, file: str | Path) -> None:
        """Write it as safetensors with a checksum, whole or not at all.

        Raises:
            OSError: It cannot be written.
        """
        header = {
            "digest": NO_DIGEST, "format": FORMAT, "labels": self.names, "validation": dict(self.validation),
            "facts": dict(self.facts), "version": decar.__version__,
        }  # fmt: skip
        tensors = {"weight": self.weight, "bias": self.bias, "thresholds": self.thresholds}
        with whole(file) as part:
            part.write_bytes(seal_tensors(save(tensors, metadata={"decar": json.dumps(header)})))

    @classmethod
    def load(cls, file: str | Path) -> Classifier:
        """Read what `save` wrote. The file may be somebody else's: nothing in it is run.

        Raises:
            TaskError: It is missing, damaged, or something else.
        """
        path = Path(file)
        try:
            if path.stat().st_size > MOST_BYTES:
                raise ValueError("it is too large")
            with safe_open(path, framework="numpy") as source:
                header = json.loads((source.metadata() or {})["decar"])
                arrays = {name: source.get_tensor(name) for name in ("weight", "bias", "thresholds")}
            if header["digest"] != tensors_digest(path, header["digest"]):
                raise ValueError("its checksum is wrong")
            if header["format"] != FORMAT:
                raise ValueError(f"format {header['format']}, this decar knows {FORMAT}")
            made = cls(
                [str(name) for name in header["labels"]], arrays["weight"], arrays["bias"], arrays["thresholds"],
                dict(header["validation"]), dict(header["facts"]),
            )  # fmt: skip
            made._check()
        except (OSError, ValueError, KeyError, TypeError, AttributeError, SafetensorError) as error:
            raise TaskError(
                f"{file}: not readable as a classifier ({one_line(error)}); `decar fit LABELS.csv` writes one"
            ) from error
        return made

    def _check(self) -> None:
        n = len(self.names)
        if self.weight.ndim != 2 or {self.weight.shape[1], *self.bias.shape, *self.thresholds.shape} != {n} or not n:
            raise ValueError("its arrays do not fit its labels")
        arrays = (self.weight, self.bias, self.thresholds)
        if not all(array.dtype == np.float64 and np.isfinite(array).all() for array in arrays):
            raise ValueError("its numbers are not finite")
        if len(set(self.names)) < n:
            raise ValueError("a label is in it twice")


def fit_classifier(
    vectors: Floats,
    examples: Examples,
    *,
    group: str | None = "auto",
    seed: int = 0,
    facts: Mapping[str, Any] | None = None,
) -> Classifier:
    """Fit a classifier; strength and thresholds are chosen by validation on recordings that were held back.

    Where there are clips of split valid, these are what was held back, and it is fitted to the others.

    Args:
        vectors: `(N, D)` embeddings of the examples.
        examples: The labelled clips, none of split test.
        group: Column whose values are held back together, beside recordings; `auto`: those named speaker, site and the
            like; None: recordings alone.
        seed: Of the folds.
        facts: To be kept with the classifier.

    Raises:
        TaskError: An embedding is not finite, or a clip is of split test.
    """
    if not np.isfinite(vectors).all():
        raise TaskError("an embedding is not finite; is the bundle from a run that diverged?")
    if not np.isin(examples.split, FITTED).all():
        raise TaskError("there are clips of split test, or of none: take `examples.for_fit()`")
    fitted, given = examples.split == "train", examples.split == "valid"
    sets = np.array([",".join(np.asarray(examples.names)[row]) for row in examples.truth])
    groups, apart = _kept_apart(examples, group)
    folds = [(np.flatnonzero(fitted), np.flatnonzero(given))] if given.any() else _folds(sets, apart, seed)
    held = _held_back(vectors, examples, folds)
    strength = min(held, key=lambda one: _loss(held[one], examples))
    validation, thresholds = _validate(held[strength], examples, apart, groups)
    prepare = preparation(vectors[fitted])
    weight, bias = fit_labels(prepare(vectors[fitted]), examples.truth[fitted], strength, examples.known[fitted])
    origin = prepare(np.zeros((1, vectors.shape[1])))
    slopes = prepare(np.eye(vectors.shape[1])) - origin  # `prepare` is affine: the classifier takes embeddings as is
    about = {
        **(facts or {}), "strength": strength, "clips": int(fitted.sum()), "recordings": len(np.unique(groups[fitted])),
        **({"valid": int(given.sum())} if given.any() else {}),
    }  # fmt: skip
    return Classifier(
        examples.names, slopes @ weight, (origin @ weight)[0] + bias, thresholds, validation, about
    )  # fmt: skip


def _kept_apart(examples: Examples, group: str | None) -> tuple[NDArray[np.str_], NDArray[np.int64]]:
    """`(N,)` what each clip is of, a recording or a value of `group`; and what validation holds back together of it."""
    paths, given = examples.clips.table["path"].to_numpy(str), examples.split == "valid"
    groups, _, left_out = together(examples.clips.table, examples.truth, group, label="label")
    if given.any():
        both = sorted({*paths[given]} & {*paths[~given]})
        if both:
            log.warning(
                "%d recordings are in split train and in split valid, such as %s: figures and thresholds are too good "
                "for other recordings", len(both), both[0],
            )  # fmt: skip
        return groups, pd.factorize(groups)[0]
    if left_out:
        log.warning(
            "the validation does not hold back %s: most clips, or most labels, have one value of it; name a column as "
            "group to hold it back", ", ".join(left_out),
        )  # fmt: skip
    if len(np.unique(groups)) < LEAST <= len(np.unique(paths)):
        log.warning("all labelled clips have one value of %s: the validation holds back recordings alone", group)
        groups = paths
    if len(np.unique(groups)) >= LEAST:
        return groups, pd.factorize(groups)[0]
    log.warning(
        "all labelled clips are of one recording: the validation holds back clips of it, so its figures are too "
        "good; label clips of other recordings"
    )
    return groups, np.arange(len(groups))


def margins(scores: NDArray[np.float64], thresholds: NDArray[np.float64]) -> NDArray[np.float64]:
    """`(N, C)`: how far scores are above their thresholds, in log-odds; finite."""
    return np.asarray(_log_odds(scores) - _log_odds(thresholds))


def _log_odds(scores: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.asarray(logit(np.clip(scores, 1e-12, 1 - 1e-12)))


def _held_back(x: Floats, examples: Examples, folds: Iterable[Fold]) -> dict[float, NDArray[np.float64]]:
    """For each strength `(N, C)` scores of each clip by a classifier that has seen no clip of its recording.

    NaN where the other recordings do not tell a label from its absence. Strengths rise, and so does the time that a fit
    takes. Two in a row that are worse than the best before end the search.
    """
    parts = []
    for train, test in folds:
        truth, known = examples.truth[train], examples.known[train]
        both = (truth & known).any(axis=0) & (~truth & known).any(axis=0)
        if len(test) and both.any():
            prepare = preparation(x[train])
            seen, unseen = (prepare(x[rows]).astype(np.float32) for rows in (train, test))
            parts.append((seen, truth[:, both], known[:, both], unseen, np.ix_(test, both)))
    scores, losses = dict[float, NDArray[np.float64]](), list[float]()
    start = dict[int, tuple[NDArray[np.float64], NDArray[np.float64]]]()  # of each part, the fit before
    for strength in sorted(SearchProtocol().strengths):
        scores[strength] = found = np.full(examples.truth.shape, np.nan)
        for i, (seen, truth, known, unseen, place) in enumerate(parts):
            weight, bias = start[i] = fit_labels(seen, truth, strength, known, start=start.get(i), rough=True)
            found[place] = expit(unseen @ weight + bias)
        losses.append(_loss(found, examples))
        if len(losses) > 2 and min(losses[-2:]) > min(losses[:-2]):
            break
    return scores


def _folds(sets: NDArray[np.str_], recordings: NDArray[np.int64], seed: int) -> Iterator[Fold]:
    """Rows to fit and rows to judge, five times; no recording is in both, and each part has all kinds if possible."""
    n = min(FOLDS, len(np.unique(recordings)))
    commonest = int(np.unique(sets, return_counts=True)[1].max())
    if commonest < n:  # nothing to balance
        yield from GroupKFold(n, shuffle=True, random_state=seed).split(sets, groups=recordings)
        return
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The least populated class")
        folds = StratifiedGroupKFold(n, shuffle=True, random_state=seed)
        yield from folds.split(sets, sets, recordings)


def _loss(scores: NDArray[np.float64], examples: Examples) -> float:
    """Mean log-loss of what is known; of nothing 0: the strengths are then equally good, and the first is taken."""
    judged = examples.known & np.isfinite(scores)
    right = np.where(examples.truth, scores, 1 - scores)[judged]
    return float(-np.log(right.clip(1e-12)).mean()) if len(right) else 0.0


def _validate(
    scores: NDArray[np.float64], examples: Examples, apart: NDArray[np.int64], recordings: NDArray[np.str_]
) -> tuple[dict[str, dict[str, float]], NDArray[np.float64]]:
    """What is known of each label, and its threshold; 0.5 where nothing can be said.

    `apart` says what was held back together: recordings, or clips where all are of one recording.

    The threshold with the best F1 is a matter of chance while few clips have the label. So it is drawn towards the one
    that is best for all labels together.
    """
    found, thresholds = dict[str, dict[str, float]](), np.full(len(examples.names), 0.5)
    given = examples.split == "valid"
    asked = given if given.any() else ~given  # the clips that were to be held back
    judged = examples.known & np.isfinite(scores)
    shared = _best_threshold(examples.truth[judged], scores[judged])[1] if examples.truth[judged].any() else 0.5
    for c, name in enumerate(examples.names):
        known, truth = examples.known[:, c], examples.truth[:, c]
        found[name] = {
            "clips": int(truth.sum()), "without": int((known & ~truth).sum()),
            "recordings": len(np.unique(recordings[truth])),
        }  # fmt: skip
        rows = known & np.isfinite(scores[:, c])
        if all(len(np.unique(apart[rows & (truth == value)])) >= LEAST for value in (True, False)):
            own = _best_threshold(truth[rows], scores[rows, c])[1]
            weight = truth[asked].sum() / (truth[asked].sum() + SHARED)
            odds = weight * _log_odds(np.array(own)) + (1 - weight) * _log_odds(np.array(shared))
            thresholds[c] = expit(odds)
            found[name].update(_measures(truth[rows], scores[rows, c], thresholds[c]))
        else:
            log.warning(
                "%s: clips of at least two recordings with it and two without are needed to validate it; its threshold "
                "is 0.5", name,
            )  # fmt: skip
    return found, thresholds


def _best_threshold(truth: Bools, scores: NDArray[np.float64]) -> tuple[float, float]:
    """The best F1, and a threshold with it, half-way to the next lower score."""
    precision, recall, steps = precision_recall_curve(truth, scores)
    f1 = 2 * precision * recall / np.maximum(precision + recall, 1e-12)
    best = int(f1[:-1].argmax())
    below = steps[best - 1] if best else 0.0
    return float(f1[best]), float((steps[best] + below) / 2)


def _measures(truth: Bools, scores: NDArray[np.float64], threshold: float) -> dict[str, float]:
    """Of a label, at its threshold."""
    given = scores >= threshold
    precision, recall, f1, _ = precision_recall_fscore_support(truth, given, average="binary", zero_division=0.0)
    return {
        "average_precision": float(average_precision_score(truth, scores)), "precision": float(precision),
        "recall": float(recall), "f1": float(f1),
    }  # fmt: skip
