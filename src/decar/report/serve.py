"""`decar page --serve`: a page on this computer, where every clip plays in full and labels are saved by themselves.

A page may come from somebody else. So only its data are taken, as values, and the page is made anew from them. The
server listens on 127.0.0.1 alone. Every request needs a token that is drawn at each start, and the name of this host:
other pages of the browser, and other names that resolve to this computer, get nothing. Readable are the clips of the
page and of its time lines, as sound and picture; writable is `labels.csv` beside the page. See docs/security.md.
"""

from __future__ import annotations

import base64
import csv
import hmac
import io
import os
import secrets
import threading
from collections.abc import Mapping
from functools import lru_cache
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import numpy as np
import pandas as pd
import soundfile
import xxhash

from decar.audio import Manifest, decode
from decar.errors import AudioError, DecarError, one_line
from decar.files import advice, locked, whole
from decar.report.clips import SECONDS, Decoded, loud, loudness, spectrogram
from decar.report.folder import FRONT_END, frontend_of
from decar.report.page import SERVED_POLICY, render
from decar.report.run import MOST_BYTES, SECTIONS, read_page
from decar.report.when import segments_of

LABELS = "labels.csv"
NEEDED = ("path", "label")  # columns of such a file
LONGEST = 300.0  # s of a clip that are played
RATE = 32_000  # Hz at which they are


class Refused(Exception):
    """A request that is not answered with what it asked for."""

    def __init__(self, status: HTTPStatus, text: str) -> None:
        super().__init__(text)
        self.status = status


def data_of(page: Path) -> dict[str, Any]:
    """The data that a page shows, as plain values.

    Raises:
        DecarError: It is no page of decar's, or one of a version that did not say where its clips lie.
    """
    again = "make it again with decar report or decar cluster"
    try:
        data = read_page(page)
    except (OSError, ValueError) as error:
        raise DecarError(f"{page}: cannot be read ({one_line(error)}); {again}") from error
    data["sections"] = [name for name in SECTIONS if name in (data.get("sections") or ())]
    missing = {"kind", "version", "words", "suggested", "notes", "summary", "bars"} - data.keys()
    if missing or (data.get("clips") and not {"root", "frontend"} <= data.keys()):
        raise DecarError(f"{page}: made by another version of decar; {again}")
    return data


def clips_of(data: Mapping[str, Any], root: Path | None = None) -> Manifest:
    """The clips that the data of a page list; `root` is where they lie now, if not where they lay.

    Raises:
        DecarError: The data contradict themselves.
    """
    found = data.get("clips")
    if not found:
        return Manifest(pd.DataFrame({"path": pd.Series(dtype=str)}), root or Path.cwd())
    try:
        paths = [str(found["path"]["values"][code]) for code in found["path"]["codes"]]
        table = pd.DataFrame(
            {"path": paths, "start": np.array(found["at"], float), "duration": np.array(found["for"], float)}
        )
        return Manifest(table, root or Path(data["root"]))
    except (KeyError, IndexError, TypeError, ValueError) as error:
        raise DecarError(f"the page lists its clips wrongly ({one_line(error)}); make it again") from error


def with_lines(clips: Manifest, data: Mapping[str, Any]) -> Manifest:
    """The clips of a page, then all segments of its time lines, in their order.

    Raises:
        DecarError: The time lines contradict themselves.
    """
    try:
        segments = segments_of(data["when"]["lines"]["recordings"] if len(clips) else [])
    except (KeyError, TypeError, ValueError) as error:
        raise DecarError(f"the page lists its recordings wrongly ({one_line(error)}); make it again") from error
    return Manifest(pd.concat([clips.table, segments], ignore_index=True), clips.root)


class Labels:
    """The file `labels.csv` beside a page; it is replaced only by somebody who has read what is in it."""

    def __init__(self, file: Path) -> None:
        self.file, self._lock = file, threading.Lock()

    def read(self) -> tuple[str, str]:
        """Its text and its version; both empty where there is no file.

        Raises:
            DecarError: It is no table of labels.
        """
        try:
            content = self.file.read_bytes() if self.file.exists() else b""
            text = content.decode("utf-8-sig")
        except (OSError, UnicodeDecodeError) as error:
            raise DecarError(f"{self.file}: cannot be read ({one_line(error)}); correct or move it") from error
        _check(text, str(self.file))
        return text, _version(content)

    def write(self, text: str, version: str) -> str:
        """Replace what has this version; returns the new one.

        Raises:
            Refused: The file has changed meanwhile, the text is no table of labels, or it cannot be written.
        """
        lock = self.file.with_name(f".{self.file.name}.lock")  # another server may have a page of this folder
        with self._lock:
            try:
                _check(text, "labels")
                with locked(lock):
                    if self.read()[1] != version:
                        reason = f"{self.file} has changed since this page read it: load it anew"
                        raise Refused(HTTPStatus.CONFLICT, reason)
                    with whole(self.file) as part:
                        part.write_bytes(text.encode())
            except BlockingIOError as error:
                raise Refused(HTTPStatus.CONFLICT, f"{self.file}: {error.strerror}") from error
            except OSError as error:
                reason = f"{self.file}: {error.strerror or error}: {advice(error)}"
                raise Refused(HTTPStatus.INSUFFICIENT_STORAGE, reason) from error
            except DecarError as error:
                raise Refused(HTTPStatus.CONFLICT, str(error)) from error
        return _version(text.encode())


def _check(text: str, name: str) -> None:
    rows, head = _cells(text)
    missing = [column for column in NEEDED if column not in head]
    if rows and missing:
        raise DecarError(f"{name}: no column {' or '.join(missing)}: not a table of labels; move it")


def _version(content: bytes) -> str:
    return xxhash.xxh3_64_hexdigest(content) if content else ""


def moved(text: str, old: str, new: str) -> str:
    """A table of labels whose paths below the folder `old` begin with `new`; as it is where there are none."""
    rows, places = _cells(text)
    old, place, found = old.rstrip("/\\"), places.get("path", len(places)), False
    for row in rows:
        if place < len(row) and row[place].startswith((f"{old}/", f"{old}\\")):
            row[place], found = new.rstrip("/\\") + row[place][len(old) :], True
    made = io.StringIO(newline="")
    csv.writer(made, lineterminator="\n").writerows(rows)
    return made.getvalue() if found else text


def _cells(text: str) -> tuple[list[list[str]], dict[str, int]]:
    """The rows of a table that are not empty, its head among them, and the place of each column in them."""
    rows = [row for row in csv.reader(io.StringIO(text, newline="")) if any(row)]
    return rows, {name.strip(): place for place, name in enumerate(rows[0] if rows else [])}


class PageServer(ThreadingHTTPServer):
    """Serves one page on 127.0.0.1.

    Args:
        page: The page; `labels.csv` lies beside it.
        port: 0: any that is free.
        root: Where the sounds lie now, if not where they lay when the page was made.

    Raises:
        DecarError: It is no page, `labels.csv` is no table of labels, the port is taken, or no path of the page starts
            from a root.
    """

    daemon_threads = True

    def __init__(self, page: Path, port: int = 0, root: Path | None = None) -> None:
        self.data = data_of(page)
        self.clips = with_lines(clips_of(self.data, root), self.data)
        self._old = str(self.data.get("root") or "")
        if root is not None and self.data.get("clips"):
            if all(map(os.path.isabs, self.clips.table["path"])):
                raise DecarError(f"--root {root}: all sounds of the page have absolute paths; leave it out")
            self.data["root"] = str(root.absolute())
        frontend = frontend_of({"frontend": {"_target_": FRONT_END, **(self.data.get("frontend") or {})}})
        self._decoded = Decoded(self.clips, frontend)
        self.labels = Labels(page.parent / LABELS)
        self.labels.read()
        self.token = secrets.token_urlsafe(24)
        self.sound = lru_cache(maxsize=4)(self._sound)
        self._range: tuple[float, float] | None = None
        try:
            super().__init__(("127.0.0.1", port), _Handler)
        except OSError as error:
            raise DecarError(f"--port {port}: {error.strerror or error}; take another one") from error

    @property
    def url(self) -> str:
        """Where the page is, with the token."""
        return f"http://127.0.0.1:{self.server_port}/?token={self.token}"

    def page(self) -> bytes:
        """The page, with the labels that the file has now."""
        text, version = self._labels()
        served = {"token": self.token, "version": version, "labels": text, "file": self.labels.file.name}
        return render(self.data, served).encode("utf-8", "replace")

    def _labels(self) -> tuple[str, str]:
        """As `Labels.read`; labels that were given where the sounds lay before have the paths that these have now."""
        text, version = self.labels.read()
        root = str(self.data.get("root") or "")
        return (moved(text, self._old, root) if self._old != root else text), version

    def strangers(self) -> tuple[int, str]:
        """How many rows of `labels.csv` have labels of recordings that the page does not show, and the first of these.

        Raises:
            DecarError: It is no table of labels.
        """
        known, (rows, places) = {str(file) for file in self.clips.files}, _cells(self._labels()[0])
        wanted = [places[name] for name in NEEDED if name in places]
        labelled = [[row[place] for place in wanted] for row in rows[1:] if len(row) > max(wanted)]
        others = [path for path, label in labelled if label.strip() and str(Path(path)) not in known]
        return len(others), others[0] if others else ""

    def _sound(self, index: int) -> bytes:
        """Clip `index` as a WAV file, scaled to a peak of 0.9."""
        [(file, start, seconds)] = self.clips.take([index]).jobs  # of all clips would take as long as decoding one
        length = min(LONGEST, seconds) if seconds is not None else LONGEST
        wave = decode(file, start=start, duration=length, sample_rate=RATE, note=lambda _: None)
        sound = io.BytesIO()
        soundfile.write(sound, loud(wave), RATE, format="WAV", subtype="PCM_16")
        return sound.getvalue()

    def picture(self, index: int) -> bytes:
        """The first seconds of clip `index` as a WebP."""
        spec = self._decoded.frontend
        if self._range is None:
            some = np.random.default_rng(0).permutation(len(self.clips))[:20]
            self._range = loudness(self._decoded, some.tolist())
        frames = round(SECONDS * spec.sample_rate / spec.hop_length)
        uri = spectrogram(self._decoded[index], *self._range, frames)
        if not uri:
            raise Refused(HTTPStatus.NOT_FOUND, "cannot be read, or has no frames")
        return base64.b64decode(uri.split(",", 1)[1])


class _Handler(BaseHTTPRequestHandler):
    server: PageServer
    protocol_version = "HTTP/1.1"
    timeout = 60

    def do_GET(self) -> None:  # the names are those of the base class
        """The page, or a clip's sound or picture."""
        self._answer(self._get)

    def do_PUT(self) -> None:
        """New labels."""
        self._answer(self._put)

    def _get(self) -> tuple[str, bytes]:
        parts = urlsplit(self.path).path.strip("/").split("/")
        if parts == [""]:
            return "text/html; charset=utf-8", self.server.page()
        if len(parts) != 2 or parts[0] not in ("sound", "picture") or not parts[1].isdecimal():
            raise Refused(HTTPStatus.NOT_FOUND, "nothing of that name")
        index = int(parts[1][:12])
        if index >= len(self.server.clips):
            raise Refused(HTTPStatus.NOT_FOUND, "no such clip")
        try:
            if parts[0] == "sound":
                return "audio/wav", self.server.sound(index)
            return "image/webp", self.server.picture(index)
        except (AudioError, OSError, RuntimeError) as error:
            raise Refused(HTTPStatus.NOT_FOUND, one_line(error)) from error

    def _put(self) -> tuple[str, bytes]:
        if urlsplit(self.path).path != "/labels":
            raise Refused(HTTPStatus.NOT_FOUND, "nothing of that name")
        text = self.headers.get("Content-Length", "")
        if not text.isdecimal() or int(text) > MOST_BYTES:
            self.close_connection = True
            raise Refused(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, f"more than {MOST_BYTES} bytes, or of unknown length")
        content = self.rfile.read(int(text))
        if len(content) < int(text):  # the browser was closed, or the connection broke
            self.close_connection = True
            raise Refused(HTTPStatus.BAD_REQUEST, f"{len(content)} of {text} bytes came: nothing is written")
        try:
            labels = content.decode()
        except UnicodeDecodeError as error:
            raise Refused(HTTPStatus.BAD_REQUEST, "not UTF-8") from error
        return "text/plain", self.server.labels.write(labels, self.headers.get("If-Match", "")).encode()

    def _answer(self, make: Any) -> None:
        status = HTTPStatus.OK
        try:
            self._check()
            kind, content = make()
        except Refused as refused:
            status, kind, content = refused.status, "text/plain; charset=utf-8", str(refused).encode()
        except DecarError as error:
            status, kind, content = HTTPStatus.CONFLICT, "text/plain; charset=utf-8", str(error).encode()
        total, begin = len(content), self._begin(len(content)) if status == HTTPStatus.OK else None
        if begin is not None:
            status, content = HTTPStatus.PARTIAL_CONTENT, content[begin:]
        self.send_response(status)
        for name, value in {
            "Content-Type": kind, "Content-Length": str(len(content)), "Content-Security-Policy": SERVED_POLICY,
            "Cache-Control": "no-store", "Referrer-Policy": "no-referrer", "X-Content-Type-Options": "nosniff",
            "X-Frame-Options": "DENY", "Cross-Origin-Resource-Policy": "same-origin", "Accept-Ranges": "bytes",
        }.items():  # fmt: skip
            self.send_header(name, value)
        if begin is not None:
            self.send_header("Content-Range", f"bytes {begin}-{total - 1}/{total}")
        self.end_headers()
        self.wfile.write(content)

    def _begin(self, total: int) -> int | None:
        """Where the bytes begin that a player asks for to jump within a sound; their end is that of the sound."""
        first = self.headers.get("Range", "").removeprefix("bytes=").split("-")[0][:15]
        return int(first) if first.isdecimal() and int(first) < total else None

    def _check(self) -> None:
        """Refuse what does not come from the page itself."""
        port = self.server.server_port
        hosts = (f"127.0.0.1:{port}", f"localhost:{port}")
        origin = self.headers.get("Origin")
        given = self.headers.get("X-Token") or parse_qs(urlsplit(self.path).query).get("token", [""])[0]
        same = hmac.compare_digest(given.encode("utf-8", "replace"), self.server.token.encode())
        if (
            self.headers.get("Host") not in hosts
            or not same
            or (origin is not None and origin.removeprefix("http://") not in hosts)
        ):
            self.close_connection = True
            raise Refused(HTTPStatus.FORBIDDEN, "take the address that decar page printed")

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing: the token would stand in the log."""
