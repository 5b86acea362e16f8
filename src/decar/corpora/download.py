"""The archives of a corpus from their official addresses, checked and unpacked."""

import hashlib
import logging
import shutil
import urllib.error
import urllib.request
from pathlib import Path

from decar.corpora.base import Archive, Corpus
from decar.errors import CorpusError
from decar.files import whole

log = logging.getLogger(__name__)
_BLOCK = 1 << 20


def download(corpus: Corpus, root: str | Path) -> None:
    """Fetch and unpack what is not there yet; archives stay in `root/archives`, so that a second call goes on.

    Raises:
        CorpusError: The corpus cannot be fetched without asking, an address does not answer, or a file is not the one
            that was published.
    """
    if not corpus.archives:
        raise CorpusError(f"{corpus.title}: cannot be downloaded from here: {corpus.by_hand or corpus.page}")
    folder = Path(root).expanduser() / "archives"
    for archive in corpus.archives:
        file = folder / archive.url.rsplit("/", 1)[1]
        if not file.is_file():
            log.info("%s: downloading %s", corpus.title, archive.url)
            _fetch(archive, file, corpus.title)
    for archive in corpus.archives:
        _unpack(folder / archive.url.rsplit("/", 1)[1], folder.parent / archive.folder, corpus.title)


def _fetch(archive: Archive, file: Path, title: str) -> None:
    """Download to `file`, whole and with the right checksum or not at all."""
    kind, _, wanted = archive.checksum.partition(":")
    digest = hashlib.new(kind or "sha256")
    try:
        with whole(file) as part, urllib.request.urlopen(archive.url) as source, part.open("wb") as target:
            while block := source.read(_BLOCK):
                digest.update(block)
                target.write(block)
            if wanted and digest.hexdigest() != wanted:
                raise CorpusError(
                    f"{title}: {archive.url} has the {kind} {digest.hexdigest()}, published is {wanted}; try again, or "
                    f"fetch it by hand from {title}'s page into {file.parent}"
                )
    except (OSError, urllib.error.URLError) as error:
        raise CorpusError(f"{title}: {archive.url} cannot be downloaded ({error}); run it again, or by hand") from error


def _unpack(file: Path, folder: Path, title: str) -> None:
    if file.suffix not in (".zip", ".gz", ".tgz", ".tar"):  # a table, or a part of an archive in several pieces
        if file.suffix == ".csv" and not (folder / file.name).is_file():
            shutil.copy(file, folder / file.name)
        return
    done = file.with_name(f".{file.name}.unpacked")
    if done.is_file():
        return
    try:
        folder.mkdir(parents=True, exist_ok=True)
        shutil.unpack_archive(file, folder, filter=None if file.suffix == ".zip" else "data")
    except (OSError, ValueError, shutil.ReadError) as error:
        raise CorpusError(f"{title}: {file} cannot be unpacked ({error}); unpack it by hand into {folder}") from error
    done.touch()
