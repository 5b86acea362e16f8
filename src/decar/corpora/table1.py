"""Prepared corpora beside the paper's Table 1."""

from collections.abc import Iterable, Sequence

import pandas as pd

from decar.corpora.base import Corpus
from decar.corpora.prepare import Prepared

CLOSE = {"classes": 0.0, "clips": 0.0, "mean duration, s": 0.05}  # what counts as no difference


def table1(found: Iterable[tuple[Corpus, Prepared]]) -> pd.DataFrame:
    """Text cells: what the paper (else the release) says, what was found, and why they differ.

    Returns:
        Columns corpus, quantity, expected, found, difference, likely reason; three rows a corpus, and one for each part
        of it whose size is published.
    """
    return pd.DataFrame([row for corpus, prepared in found for row in _rows(corpus, prepared)])


def _rows(corpus: Corpus, prepared: Prepared) -> list[dict[str, str]]:
    counts = (prepared.manifest.column(corpus.label).nunique(), len(prepared.manifest))
    found: Sequence[float | None] = (*counts, prepared.seconds)
    compared = [*zip(CLOSE.items(), _expected(corpus), found, strict=True)]
    for part, size in corpus.published.items():
        column, _, value = part.partition("=")
        compared.append(((f"clips, {part}", 0.0), size, int((prepared.manifest.column(column) == value).sum())))
    rows = []
    for (what, close), wanted, have in compared:
        form = ",.0f" if close == 0 else ",.2f"
        row = {"corpus": corpus.name, "quantity": what, "expected": "", "found": "not measured", "difference": ""}
        row |= {"expected": format(wanted, form)} if wanted is not None else {}
        row |= {"found": format(have, form)} if have is not None else {}
        reason = ""
        if wanted is not None and have is not None:
            row["difference"] = format(have - wanted, "+" + form)
            reason = _reason(corpus, prepared) if abs(have - wanted) > close else ""
        rows.append({**row, "likely reason": reason})
    return rows


def _expected(corpus: Corpus) -> Sequence[float | None]:
    if corpus.paper:
        return corpus.paper.classes, corpus.paper.clips, corpus.paper.seconds
    return (corpus.official[1], corpus.official[0], None) if corpus.official else (None, None, None)


def _reason(corpus: Corpus, prepared: Prepared) -> str:
    """Why the numbers may differ, most likely first."""
    reasons = []
    if prepared.missing:
        reasons.append(f"{prepared.missing:,} listed clips are missing")
    if corpus.official and corpus.paper and len(prepared.manifest) == corpus.official[0]:
        reasons.append(f"complete: the release has {corpus.official[0]:,} clips")
    if corpus.differs:
        reasons.append(corpus.differs)
    return "; ".join(reasons) or "not the full release?"
