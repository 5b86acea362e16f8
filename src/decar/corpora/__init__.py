"""Public corpora: the official layout of each → Manifest."""

import pkgutil
from collections.abc import Iterator
from importlib import import_module

from decar.corpora.base import Archive, Corpus, Size
from decar.corpora.prepare import load_prepared, prepared_manifest
from decar.errors import CorpusError

__all__ = ["CORPORA", "Archive", "Corpus", "Size", "find_corpus", "load_prepared", "prepared_manifest"]


def _corpora() -> Iterator[Corpus]:
    """Each corpus that a module of this package defines."""
    for module in pkgutil.iter_modules(__path__):
        values = vars(import_module(f"{__name__}.{module.name}")).values()
        yield from (value for value in values if isinstance(value, Corpus))


# the paper's nine first
CORPORA = {corpus.name: corpus for corpus in sorted(_corpora(), key=lambda corpus: (corpus.paper is None, corpus.name))}


def find_corpus(name: str) -> Corpus:
    """The corpus of this name; or, with a dot in it, a user's own: `module.NAME`.

    Raises:
        CorpusError: There is none.
    """
    if name in CORPORA:
        return CORPORA[name]
    if "." not in name:
        raise CorpusError(
            f"there is no corpus '{name}'; there are {', '.join(CORPORA)}; or give one of your own as module.NAME"
        )
    try:
        found = pkgutil.resolve_name(name)
    except (ImportError, AttributeError, ValueError) as error:
        raise CorpusError(
            f"{name}: cannot be imported ({error}); is the folder of its module on PYTHONPATH?"
        ) from error
    if not isinstance(found, Corpus):
        raise CorpusError(f"{name}: is a {type(found).__name__}, not a decar.corpora.Corpus")
    return found
