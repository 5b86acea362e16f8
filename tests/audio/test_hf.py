"""hf://datasets/… through the hub's own client, against a small hub of the test's own."""

import hashlib
import http.server
import json
import re
import threading
from urllib.parse import unquote, urlsplit

import huggingface_hub
import numpy as np
import pytest
from huggingface_hub import constants

import decar
from decar import objects
from decar.errors import ManifestError
from tests.audio.sounds import tone, write


class Hub(http.server.BaseHTTPRequestHandler):
    """The repository me/birds, as much of it as a listing and a download ask for."""

    protocol_version = "HTTP/1.1"

    def do_GET(self):
        path, files = unquote(urlsplit(self.path).path), self.server.files
        tree = re.fullmatch(r"/api/datasets/me/birds/tree/main/?(.*)", path)
        below = [name for name in files if tree and name.startswith(tree[1] and f"{tree[1]}/")]
        name = path.removeprefix("/datasets/me/birds/resolve/main/")
        if re.fullmatch(r"/api/datasets/me/birds(/revision/main)?", path):
            self.send(200, json.dumps({"id": "me/birds", "sha": "0" * 40, "siblings": [], "tags": []}).encode())
        elif below:
            found = [(name, len(files[name]), hashlib.sha1(files[name]).hexdigest()) for name in below]
            rows = [{"type": "file", "path": name, "size": size, "oid": oid} for name, size, oid in found]
            self.send(200, json.dumps(rows).encode())
        elif name in files and (part := re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))):
            self.server.sent.append(name)
            self.send(206, files[name][int(part[1]) : int(part[2]) + 1])
        else:
            kind = "EntryNotFound" if path.startswith("/api/datasets/me/birds/") else "RepoNotFound"
            self.send(404, b'{"error": "nothing"}', X_Error_Code=kind)

    def send(self, status, body, **headers):
        self.send_response(status)
        for name, value in {"Content-Length": len(body), "Content-Type": "application/json", **headers}.items():
            self.send_header(name.replace("_", "-"), str(value))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


@pytest.fixture
def hub(monkeypatch, tmp_path):
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    server.files, server.sent = {}, []
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
    home = f"http://127.0.0.1:{server.server_address[1]}"
    monkeypatch.setattr(constants, "ENDPOINT", home)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", home + "/{repo_id}/resolve/{revision}/{filename}")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(objects, "WAITS", ())
    monkeypatch.setenv("DECAR_CACHE", str(tmp_path / "cache"))
    huggingface_hub.HfFileSystem.clear_instance_cache()
    yield server
    server.shutdown()
    server.server_close()
    huggingface_hub.HfFileSystem.clear_instance_cache()


@pytest.mark.parametrize("revision", ["", "@main"])
def test_a_folder_of_a_data_set(hub, tmp_path, revision):
    for i in range(3):
        file = write(tmp_path / "in" / ("owl", "wren")[i % 2] / f"{i}.wav", tone(0.3, hz=300.0 + 100 * i))
        hub.files[f"data/{file.relative_to(tmp_path / 'in')}"] = file.read_bytes()
    hub.files["README.md"] = b"birds"
    here = decar.embed(tmp_path / "in", progress=False)
    address = f"hf://datasets/me/birds{revision}/data"
    for _ in range(2):
        there = decar.embed(address, fetch=True, progress=False)
        assert there.table.equals(here.table)
        assert np.abs(there.vectors - here.vectors).max() < 1e-6
    assert sorted(hub.sent) == sorted(name for name in hub.files if name.startswith("data"))


@pytest.mark.parametrize("address", ["hf://datasets/me/birds/none", "hf://datasets/me/none/data"])
def test_what_is_not_there(hub, address):
    hub.files["data/a.wav"] = b"sound"
    with pytest.raises(ManifestError, match=f"^{address}: (nothing lies there|there is no such object or bucket)"):
        decar.embed(address, fetch=True, progress=False)
