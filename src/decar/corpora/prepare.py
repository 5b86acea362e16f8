"""A corpus on disk → a checked manifest in the cache, its log-mel store, and how it compares with Table 1."""

import json
import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd

from decar.audio.logmel import FrontEnd
from decar.audio.manifest import Manifest
from decar.audio.store import LogMelStore
from decar.corpora.base import Corpus
from decar.corpora.download import check_finished
from decar.errors import CorpusError, ManifestError
from decar.files import whole

log = logging.getLogger(__name__)

FACTS = "facts.json"  # beside the manifest
CLOSE = {"classes": 0.0, "clips": 0.0, "mean duration, s": 0.05}  # differences in Table 1 that are none


@dataclass(frozen=True)
class Prepared:
    """What `prepare` made.

    Attributes:
        manifest: The clips that are there.
        root: The folder that its paths start from.
        file: The manifest as CSV; tasks and `data=csv` read it.
        missing: Clips that the corpus lists and that are not there.
        seconds: Mean duration of a readable clip, s; None without a store.
        unreadable: Clips that cannot be used; 0 without a store.
    """

    manifest: Manifest
    root: Path
    file: Path
    missing: int = 0
    seconds: float | None = None
    unreadable: int = 0


def manifest_file(cache_dir: str | Path, name: str) -> Path:
    """Where the manifest of a prepared corpus lies."""
    return Path(cache_dir).expanduser() / "corpora" / name / "manifest.csv"


def load_prepared(cache_dir: str | Path, name: str) -> Prepared | None:
    """What `prepare` made of a corpus; None when it has not been prepared.

    Raises:
        CorpusError: What it made is damaged.
    """
    file = manifest_file(cache_dir, name)
    if not file.is_file():
        return None
    try:
        facts = json.loads(file.with_name(FACTS).read_text())
        clips = Manifest.from_csv(file, root=facts["root"])
        return Prepared(clips, Path(facts["root"]), file, facts["missing"], facts["seconds"], facts["unreadable"])
    except (OSError, ValueError, KeyError, TypeError, ManifestError) as error:
        raise CorpusError(f"{file}: damaged ({error}); run `decar prepare {name} ROOT` again") from error


def prepared_manifest(cache_dir: str | Path, name: str, where: str | None = None) -> Manifest:
    """The clips of a prepared corpus, or those of them for which `where` holds.

    Raises:
        CorpusError: It has not been prepared.
    """
    found = load_prepared(cache_dir, name)
    if found is None:
        raise CorpusError(f"corpus {name} has not been prepared: run `decar prepare {name} ROOT` first")
    return found.manifest.where(where)


def prepare(
    corpus: Corpus,
    root: str | Path,
    cache_dir: str | Path,
    *,
    allow_missing: bool = False,
    store: bool = True,
    progress: bool = True,
) -> Prepared:
    """Read the corpus's own lists, check them against the disk, write the manifest, build the log-mel store.

    Args:
        corpus: One of `CORPORA`.
        root: The folder that its archives were unpacked in.
        cache_dir: Where manifest and store are kept.
        allow_missing: Go on without the listed files that are not there; else they are an error.
        store: Whether to build the store now; else the first job that needs it does.
        progress: Whether to show a bar.

    Raises:
        CorpusError: A download was stopped, the layout is not the official one, files are missing, or the split is not
            one to learn from.
    """
    root = Path(root).expanduser().absolute()
    check_finished(root, corpus.title)
    clips, missing = _present(corpus.read(root), corpus, allow_missing)
    check_split(clips, corpus)
    file = manifest_file(cache_dir, corpus.name)
    prepared = Prepared(clips, root, file, missing)
    _write(prepared)
    if store:
        prepared = _with_store(prepared, cache_dir, progress)
        _write(prepared)
    return prepared


def _write(prepared: Prepared) -> None:
    facts = {"root": str(prepared.root), "missing": prepared.missing, "unreadable": prepared.unreadable}
    facts |= {"seconds": prepared.seconds, "hash": prepared.manifest.content_hash()}
    try:
        with whole(prepared.file) as part:
            prepared.manifest.table.to_csv(part, index=False)
        with whole(prepared.file.with_name(FACTS)) as part:
            part.write_text(json.dumps(facts, indent=1))
    except OSError as error:
        raise CorpusError(f"{prepared.file}: cannot be written ({error}); pass another --cache-dir") from error


def _with_store(prepared: Prepared, cache_dir: str | Path, progress: bool) -> Prepared:
    clips = Manifest.from_csv(prepared.file, root=prepared.root)  # as the tasks will read it
    store = LogMelStore.open_or_build(clips, FrontEnd(), cache_dir, progress=progress)
    good, spec = store.usable(), store.frontend
    frames = float(np.mean(good.lengths))
    seconds = ((frames - 1) * spec.hop_length + spec.win_length) / spec.sample_rate
    return replace(prepared, seconds=round(seconds, 3), unreadable=len(store) - len(good))


def _present(clips: Manifest, corpus: Corpus, allow_missing: bool) -> tuple[Manifest, int]:
    """The clips whose files are there, and how many are not."""
    here: dict[Path, bool] = {}  # many clips of one file: ask the disk once
    found = np.asarray(
        [here.setdefault(file, file.is_file()) if file not in here else here[file] for file in clips.files]
    )
    missing = int((~found).sum())
    if not missing:
        return clips, 0
    first = clips.files[int(np.flatnonzero(~found)[0])]
    told = f"{corpus.title}: {missing} of {len(clips)} listed clips are not there, first: {first}"
    if missing == len(clips) or not allow_missing:
        more = "" if missing == len(clips) else ", or pass --allow-missing to go on without them"
        raise CorpusError(f"{told}; is the download complete and unpacked?{more}")
    log.warning("%s; going on without them", told)
    return clips.take(found), missing


def check_split(clips: Manifest, corpus: Corpus) -> None:
    """The corpus's own rule against leaks holds, and every class has clips to learn from.

    Raises:
        CorpusError: It does not.
    """
    column = next((name for name in ("fold", "split") if name in clips.table), None)
    if column is None:
        return
    table = clips.table
    for name in corpus.apart:
        shared = _shared(table[name].astype(str), table[column].astype(str))
        if shared:
            raise CorpusError(
                f"{corpus.title}: {name} '{shared[0]}' is in more than one {column} ({len(shared)} such); "
                "are the lists those of this release?"
            )
    if "split" in table:
        labels = set(table[corpus.label])
        untaught = sorted(labels - set(table[corpus.label][table["split"] == "train"]))
        if untaught:
            raise CorpusError(f"{corpus.title}: no training clip of '{untaught[0]}' ({len(untaught)} such classes)")


def _shared(values: pd.Series, splits: pd.Series) -> list[str]:
    """Values that lie in more than one split; empty ones know nothing."""
    counts = splits[values != ""].groupby(values[values != ""]).nunique()
    return sorted(map(str, counts.index[counts > 1]))


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
