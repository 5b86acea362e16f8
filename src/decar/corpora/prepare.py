"""A corpus on disk → a checked manifest in the cache, its log-mel store, and how it compares with Table 1."""

import logging
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeAlias

import numpy as np
import pandas as pd

from decar.audio.logmel import FrontEnd
from decar.audio.manifest import Manifest
from decar.audio.store import LogMelStore
from decar.corpora.base import Corpus
from decar.corpora.download import check_finished
from decar.digests import DamagedError, digest_of, read_json, write_json
from decar.errors import CorpusError, ManifestError
from decar.files import whole

log = logging.getLogger(__name__)

FACTS = "facts.json"  # beside the manifest
DURATION = "mean duration, s"  # a quantity of Table 1
Quantity: TypeAlias = tuple[str, float | None, float | None]  # its name, what is expected, what was found


@dataclass(frozen=True)
class Prepared:
    """A corpus that `prepare` has checked.

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
    """A prepared corpus; None when it has not been prepared.

    Raises:
        CorpusError: Its manifest is damaged.
    """
    file = manifest_file(cache_dir, name)
    if not file.is_file():
        return None
    try:
        facts = read_json(file.with_name(FACTS))
        if digest_of(file) != facts.get("digest", digest_of(file)):  # an earlier version wrote none
            raise DamagedError("its checksum is wrong")
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
        CorpusError: A download was stopped, the layout is not the official one, files are missing, or the split leaks
            or has a class without training clips.
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
            facts["digest"] = digest_of(part)
        with whole(prepared.file.with_name(FACTS)) as part:
            write_json(part, facts)
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
    here = {file: file.is_file() for file in set(clips.files)}  # several clips may be of one file
    found = np.asarray([here[file] for file in clips.files])
    missing = int((~found).sum())
    if not missing:
        return clips, 0
    first = clips.files[int(np.flatnonzero(~found)[0])]
    fault = f"{corpus.title}: {missing} of {len(clips)} listed clips are not there, first: {first}"
    if missing == len(clips) or not allow_missing:
        more = "" if missing == len(clips) else ", or pass --allow-missing to go on without them"
        raise CorpusError(f"{fault}; is the download complete and unpacked?{more}")
    log.warning("%s; going on without them", fault)
    return clips.take(found), missing


def check_split(clips: Manifest, corpus: Corpus) -> None:
    """Check the corpus's own rule against leaks, and that every class has training clips.

    Raises:
        CorpusError: A value of one of the columns `apart` is in two splits, or a class has no training clip.
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
        labels, train = table[corpus.label], table["split"] == "train"
        untaught = sorted(corpus.classes(labels) - corpus.classes(labels[train]))
        if untaught:
            raise CorpusError(f"{corpus.title}: no training clip of '{untaught[0]}' ({len(untaught)} such classes)")


def _shared(values: pd.Series, splits: pd.Series) -> list[str]:
    """Values that lie in more than one split; an empty one is no value."""
    counts = splits[values != ""].groupby(values[values != ""]).nunique()
    return sorted(map(str, counts.index[counts > 1]))


def table1(found: Iterable[tuple[Corpus, Prepared]]) -> pd.DataFrame:
    """Prepared corpora beside the paper's Table 1, or the sizes of the release, as text cells.

    Returns:
        Columns corpus, quantity, expected, found, difference, likely reason; three rows a corpus, and one for each part
        of it whose size is published.
    """
    return pd.DataFrame([_row(*both, line) for both in found for line in _quantities(*both)])


def _quantities(corpus: Corpus, prepared: Prepared) -> Iterator[Quantity]:
    """Each quantity that is compared, its expected value and the one found; None: unknown."""
    clips, paper = prepared.manifest, corpus.paper
    n_clips, n_classes = (paper.clips, paper.classes) if paper else corpus.official or (None, None)
    yield "classes", n_classes, len(corpus.classes(clips.column(corpus.label)))
    yield "clips", n_clips, len(clips)
    yield DURATION, paper.seconds if paper else None, prepared.seconds
    for part, size in corpus.published.items():
        column, _, value = part.partition("=")
        yield f"clips, {part}", size, int((clips.column(column) == value).sum())


def _row(corpus: Corpus, prepared: Prepared, line: Quantity) -> dict[str, str]:
    quantity, expected, found = line
    form, close = (",.2f", 0.05) if quantity == DURATION else (",.0f", 0.0)  # `close` is no difference
    difference = None if expected is None or found is None else found - expected
    return {
        "corpus": corpus.name,
        "quantity": quantity,
        "expected": "" if expected is None else format(expected, form),
        "found": "not measured" if found is None else format(found, form),
        "difference": "" if difference is None else format(difference, "+" + form),
        "likely reason": "" if difference is None or abs(difference) <= close else _reason(corpus, prepared),
    }


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
