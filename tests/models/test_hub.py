"""The hub at its boundary: a fake backed by a folder; and the real client, offline."""

import html
import json
import re
from types import SimpleNamespace

import huggingface_hub
import pytest
from huggingface_hub import errors

from decar.cli.bundles import model_card
from decar.errors import BundleError
from decar.models import load_encoder, save_bundle
from decar.models.bundle import parse_address
from tests.conftest import make_encoder


@pytest.fixture
def bundle(tmp_path):
    encoder = make_encoder("conv", widths=[4], hidden=8, seed=1)
    return save_bundle(encoder, tmp_path / "encoder.safetensors", {"data": "mini", "clips": 12})


@pytest.fixture
def remote(tmp_path, monkeypatch):
    root = tmp_path / "remote"
    calls = []

    class Api:
        def create_repo(self, repo, *, private, exist_ok):
            calls.append(("repo", repo, private))

        def create_branch(self, *, repo_id, branch, exist_ok):
            calls.append(("branch", repo_id, branch))

        def create_commit(self, repo, operations, *, commit_message, revision):
            folder = root / repo / (revision or "main")
            folder.mkdir(parents=True)
            for operation in operations:
                (folder / operation.path_in_repo).write_bytes(operation.path_or_fileobj)

    def download(repo, name, *, revision):
        file = root / repo / (revision or "main") / name
        if not file.exists():
            raise errors.EntryNotFoundError("nothing there")
        return str(file)

    monkeypatch.setattr(huggingface_hub, "HfApi", Api)
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    return root, calls


@pytest.mark.parametrize(("options", "address"), [([], "hf://me/mine"), (["--revision", "v2"], "hf://me/mine@v2")])
def test_what_is_pushed_is_loaded(bundle, remote, capsys, options, address):
    from decar.cli.app import main

    root, calls = remote
    main(["push", str(bundle), "me/mine", "--private", *options])
    assert f'load_encoder("{address}")' in capsys.readouterr().out
    assert ("repo", "me/mine", True) in calls
    assert load_encoder(address).hash() == load_encoder(bundle).hash()
    folder = root / "me" / "mine" / (options[-1] if options else "main")
    assert {file.name for file in folder.iterdir()} == {"encoder.safetensors", "decar.json", "README.md"}
    card = (folder / "README.md").read_text()
    assert f'decar.load_encoder("{address}")' in card
    assert "| data | mini |" in card
    assert json.loads((folder / "decar.json").read_text())["facts"]["clips"] == 12


def test_a_card_holds_what_a_bundle_says_as_text():
    """No front matter, cell, link or element can come out of a fact; half a surrogate is no reason to fail."""
    evil = {
        "a\n---\nlicense: mit": "x | y\n| z | [click](http://evil) <script>bad()</script> `c` **b** www.evil.com",
        "k": [{"<img src=x>": "\ud800\u202e"}], "clips": 12, "lr": 0.5, "half": None,
    }  # fmt: skip
    encoder = SimpleNamespace(description="conv (<b>|</b>)", sample_rate=16000, dim=8, hash=lambda: "abc")
    card = model_card("hf://me/mine", encoder, evil)
    card.encode()
    assert card.startswith(
        "---\nlibrary_name: decar\ntags: [audio, audio-embedding, self-supervised]\n---\n\n# me/mine\n"
    )
    table = card[card.index("| | |") :].splitlines()
    assert len(table) == 2 + 2 + len(evil)
    assert all(row.count("|") == 3 for row in table)
    assert not re.search(r"[<>`*\[\]()]|http:|www\.|\ud800|\u202e", "".join(table))
    assert table[4:7:2][0].startswith("| a&#92;n---&#92;nlicense&#58; mit | x &#124; y&#92;n&#124; z")
    assert html.unescape(table[2]) == "| network | conv (<b>|</b>) |"
    assert table[-3:] == ["| clips | 12 |", "| lr | 0.5 |", "| half | null |"]


def test_a_repository_without_a_bundle(remote):
    with pytest.raises(BundleError, match=r"no encoder\.safetensors; was it pushed"):
        load_encoder("hf://me/empty")


@pytest.mark.parametrize("address", ["hf://name", "hf://a/b/c", "hf://a/b@", "hf://../b c"])
def test_no_address(address):
    with pytest.raises(BundleError, match="give hf://USER/NAME"):
        parse_address(address)


@pytest.mark.parametrize("command", ["export hf://me/mine --to torch --out x.pt2", "push {bundle} me/mine"])
def test_the_real_client_offline_ends_in_a_line(bundle, tmp_path, monkeypatch, capsys, command):
    from decar.cli.app import main

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)  # it is read from the environment once
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hf"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as end:
        main(command.format(bundle=bundle).split())
    assert end.value.code == 2
    assert "unset HF_HUB_OFFLINE" in capsys.readouterr().err.splitlines()[-1]
