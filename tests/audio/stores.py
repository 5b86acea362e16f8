"""An object store in memory, under s3:// and through fsspec as the real one, that can fail and counts what it sends."""

import hashlib
from typing import ClassVar

import fsspec
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from decar import objects


class Bucket(MemoryFileSystem):
    """Stands for s3fs."""

    protocol, store, pseudo_dirs = ("s3",), {}, [""]
    sent: ClassVar[list[str]] = []  # objects that were opened
    listings = 0
    refused: ClassVar[dict[str, Exception]] = {}  # what is raised for which object
    down_after: int | None = None  # objects that are sent before the store stops
    read_only = False

    @classmethod
    def _strip_protocol(cls, path):
        return "/" + path.removeprefix("s3://").strip("/")

    def answer(self):
        if Bucket.down_after is not None and len(Bucket.sent) >= Bucket.down_after:
            raise ConnectionError("Could not connect to the endpoint")

    def info(self, path, **options):
        self.answer()
        found = super().info(path, **options)
        if found["type"] == "file":
            found = found | {"ETag": hashlib.md5(self.cat_file_quietly(path)).hexdigest()}
        return found

    def cat_file_quietly(self, path):
        return self.store[self._strip_protocol(path)].getvalue()

    def find(self, path, detail=False, **options):
        self.answer()
        Bucket.listings += 1
        return {name: self.info(name) for name in super().find(path, **options)}

    def _open(self, path, mode="rb", **options):
        self.answer()
        name = self._strip_protocol(path)
        if name in self.refused:
            raise self.refused[name]
        Bucket.sent.append(name)
        return super()._open(path, mode, **options)

    def put_file(self, file, path, **options):
        self.answer()
        if Bucket.read_only:
            raise PermissionError("Access Denied")
        with open(file, "rb") as source:
            self.pipe_file(path, source.read())

    def pipe_file(self, path, value, **options):
        with super()._open(self._strip_protocol(path), "wb") as target:
            target.write(value)


@pytest.fixture
def bucket(monkeypatch):
    """An empty store; `pipe_file(address, bytes)` fills it."""
    monkeypatch.setattr(objects, "WAITS", (0.0, 0.0))
    for name, value in {"store": {}, "pseudo_dirs": [""], "sent": [], "listings": 0, "refused": {}}.items():
        monkeypatch.setattr(Bucket, name, value)
    monkeypatch.setattr(Bucket, "down_after", None)
    monkeypatch.setattr(Bucket, "read_only", False)
    fsspec.register_implementation("s3", Bucket, clobber=True)
    yield Bucket()
    fsspec.register_implementation("s3", "s3fs.S3FileSystem", clobber=True)
