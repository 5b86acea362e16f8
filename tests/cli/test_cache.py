"""`decar cache` lists and deletes what decar made, and nothing else."""

import shutil

import pytest

from decar.audio import LogMelStore, Manifest
from decar.cli import app
from decar.files import locked


@pytest.fixture
def cache(sound_folder, tmp_path):
    LogMelStore.open_or_build(Manifest.from_folder(sound_folder), cache_dir=tmp_path / "cache", progress=False)
    return tmp_path / "cache"


def run(*words):
    with pytest.raises(SystemExit) as ended:
        app.main(["cache", *map(str, words)])
    return ended.value.code


def test_what_decar_made_is_listed_and_deleted_and_nothing_else(cache, sound_folder, capsys):
    mine = [cache / "logmel" / "notes", cache / "embeddings" / "mine.npy", cache / "corpora" / "esc50" / "manifest.csv"]
    for file in mine:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("mine")
    store = next(path for path in (cache / "logmel").iterdir() if path.is_dir())
    size = sum(file.stat().st_size for file in store.iterdir()) / 1e6
    assert run(cache) == 0
    assert capsys.readouterr().out.splitlines()[0].split()[-3:] == ["1", f"{size:.1f}", "MB"]
    assert store.is_dir()
    assert run(cache, "--clear") == 0
    assert not store.exists()
    assert all(file.read_text() == "mine" for file in mine)
    assert not list((cache / "identity").glob("*.npy"))
    again = LogMelStore.open_or_build(Manifest.from_folder(sound_folder), cache_dir=cache, progress=False)
    assert len(again) == 12


def test_a_store_that_is_being_built_is_kept_and_named(cache, capsys):
    store = next(path for path in (cache / "logmel").iterdir() if path.is_dir())
    part = store.rename(store.with_name(f"{store.name}.partial"))
    with locked(store.with_name(f"{store.name}.lock")):
        assert run(cache, "--clear") == 1
    assert part.is_dir()
    assert f"kept: {part}" in capsys.readouterr().out
    assert run(cache, "--clear") == 0
    assert not part.exists()


def test_unpacked_sounds_are_listed_and_deleted(sound_folder, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("DECAR_CACHE", str(tmp_path / "cache"))
    archive = shutil.make_archive(str(tmp_path / "sounds"), "zip", sound_folder)
    clips = Manifest.from_folder(archive)
    size = sum(file.stat().st_size for file in clips.files) / 1e6
    assert run(tmp_path / "cache", "--clear") == 0
    found = [line for line in capsys.readouterr().out.splitlines() if line.startswith("unpacked and fetched")]
    assert found[0].split()[-3] == "1"
    assert abs(float(found[0].split()[-2]) - size) < 0.1
    assert not list((tmp_path / "cache" / "sources").iterdir())
    assert not any(file.exists() for file in clips.files)
    assert all(file.exists() for file in Manifest.from_folder(archive).files)


def test_no_cache_is_said_and_no_error(tmp_path, capsys):
    app.main(["cache", str(tmp_path / "none")])
    assert "there is no cache" in capsys.readouterr().out
