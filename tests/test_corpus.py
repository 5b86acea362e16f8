"""The builder of the training set: its table of sources, what it leaves out, how it cuts, orders and renders."""

import io
import re
import sys
import tarfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import soundfile

FOLDER = Path(__file__).parents[1] / "benchmarks" / "corpus"
BENCH = Path(__file__).parents[2] / "shared" / "bench" / "index.csv"
sys.path.insert(0, str(FOLDER))

import apart  # noqa: E402
import build  # noqa: E402
import cut  # noqa: E402
import fetch  # noqa: E402
import orchestra  # noqa: E402
import render  # noqa: E402
import speech  # noqa: E402
import table  # noqa: E402
import textures  # noqa: E402

SOURCES = table.read_sources()
ROW = next(row for row in SOURCES if row.source == "debian" and row.real == "real")


def test_every_row_has_a_permitted_licence_an_author_and_where_it_is_stated():
    for row in SOURCES:
        assert table.PERMITTED.fullmatch(row.licence), row
        assert row.attribution.strip(), row
        assert row.source == "made" or (row.stated and re.fullmatch("[0-9a-f]{16}", row.digest)), row


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"licence": "GPL-2+"}, "licence 'GPL-2+' is not permitted"),
        ({"licence": "CC-BY-NC-3.0"}, "licence 'CC-BY-NC-3.0' is not permitted"),
        ({"licence": "CC-BY-ND-4.0"}, "licence 'CC-BY-ND-4.0' is not permitted"),
        ({"attribution": " "}, "no attribution"),
        ({"kind": "noise"}, "kind 'noise'"),
        ({"real": "synthetic"}, "a rendered row is synthetic"),
        ({"stated": ""}, "no file states the licence"),
        ({"take": "sounds/ESC-50/**"}, "an evaluation set"),
        ({"package": "dirt-samples"}, "an evaluation set"),
    ],
)
def test_a_faulty_row_is_named(change, words):
    assert ROW.fault() == ""
    assert words in replace(ROW, **change).fault()


def test_an_excluded_package_in_the_table_stops_the_build(tmp_path):
    lines = (FOLDER / "sources.csv").read_text(encoding="utf-8").splitlines()[:2]
    (tmp_path / "sources.csv").write_text("\n".join(lines), encoding="utf-8")
    (tmp_path / "excluded.csv").write_text(f"package,path,reason\n{SOURCES[0].package},,a test\n", encoding="utf-8")
    with pytest.raises(SystemExit, match=rf"sources.csv:2: {SOURCES[0].package}: excluded.csv bars"):
        table.read_sources(tmp_path / "sources.csv", tmp_path / "excluded.csv")


def test_nothing_excluded_is_in_the_table():
    barred = {row.package for row in table.read_excluded() if not row.path}
    named = "timgm6mb-soundfont hedgewars-data tuxpaint-stamps-default ktuberling-data klettres-data"
    assert barred >= set(named.split())
    assert not barred & {row.package for row in SOURCES}


@pytest.mark.skipif(not BENCH.is_file(), reason="needs the shared bench")
def test_each_package_that_the_bench_keeps_clips_of_is_excluded_or_partly_so():
    bench = pd.read_csv(BENCH, low_memory=False)
    kept = bench[~bench["pretrain"]]
    whole = {row.package for row in table.read_excluded() if not row.path}
    for package, clips in kept.groupby("source_package"):
        if package in whole or package == "fsdd_github_snapshot":
            continue
        assert table.excluded_names(package), package
        for word in clips["word"].dropna() if package != "hydrogen-drumkits" else ():
            folder = "asterisk/sounds/xx" if package.startswith("asterisk") else "sonic-pi/samples"
            suffix = "g722" if package.startswith("asterisk") else "flac"
            assert table.is_excluded(package, f"usr/share/{folder}/{word}.{suffix}"), (package, word)
    presets = {int(name[8:11]) for name in kept["instrument_preset"].dropna() if name.startswith("fluidr3:")}
    assert presets
    assert presets.isdisjoint(render.FLUID)


@pytest.mark.parametrize(
    ("text", "inside", "outside"),
    [
        ("a/*.ogg", "a/b.ogg", "a/b/c.ogg"),
        ("a/**", "a/b/c.ogg", "b/a/c.ogg"),
        ("a/{x,y z}.wav", "a/y z.wav", "a/x,y z.wav"),
        ("*.pk3!music/?.ogg", "b.pk3!music/1.ogg", "b.pk3!sound/1.ogg"),
        ("a.b", "a.b", "aXb"),
    ],
)
def test_patterns(text, inside, outside):
    assert table.pattern(text).fullmatch(inside)
    assert not table.pattern(text).fullmatch(outside)


def test_excluded_files_are_not_unpacked():
    row = next(row for row in SOURCES if row.package == "asterisk-core-sounds-en-g722")
    folder = "usr/share/asterisk/sounds/en_US_f_Allison"
    assert build.is_wanted([row], f"{folder}/activated.g722")
    assert build.is_wanted([row], row.stated)
    assert not build.is_wanted([row], f"{folder}/calling.g722")


def test_a_part_that_was_built_before_its_file_was_excluded(tmp_path):
    lines = [
        [
            f"clips/tuxmath-data/{i}.flac",
            "debian",
            "tuxmath-data",
            "1",
            "MIT",
            "effect",
            "real",
            1.0,
            recording,
            True,
            i,
        ]
        for i, recording in enumerate(("tuxmath-data/usr/share/tuxmath/sounds/explosion.wav", "tuxmath-data/other.wav"))
    ]
    (tmp_path / "clips" / "tuxmath-data").mkdir(parents=True)
    part = pd.DataFrame(lines, columns=build.COLUMNS)
    part.to_csv(tmp_path / "clips" / "tuxmath-data" / "part.csv", index=False)
    index = build.compose(tmp_path, [replace(ROW, package="tuxmath-data")], float("inf"))
    assert index["recording"].tolist() == ["tuxmath-data/other.wav"]


def a_package(folder, members):
    """An npm package of files."""
    path = folder / "package.tgz"
    with tarfile.open(path, "w:gz") as archive:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return path


def test_a_package_becomes_clips_and_is_done_once(tmp_path, monkeypatch, capsys):
    rng = np.random.default_rng(0)
    sounds = {"a": rng.uniform(-0.5, 0.5, 12 * 44100), "b": rng.uniform(-0.1, 0.1, 8000), "silent": np.zeros(9000)}
    members = {"package/LICENSE": b"CC0"}
    for name, wave in sounds.items():
        file = io.BytesIO()
        soundfile.write(file, wave, 44100, format="WAV")
        members[f"package/{name}.wav"] = file.getvalue()
    members["package/twin.wav"] = members["package/b.wav"]
    source = a_package(tmp_path, members)

    def fetched(_source, _package, version, folder):
        return source.rename(folder / source.name), version

    licence = table.Source(
        "npm", "@x/y", "1", "CC0-1.0", "me", "package/LICENSE", "", "effect", "real", "package/*.wav", ""
    )
    (tmp_path / "licence").write_bytes(b"CC0")
    row = replace(licence, digest=fetch.digest(tmp_path / "licence"))
    monkeypatch.setattr(build, "fetch", fetched)
    monkeypatch.setattr(build, "read_sources", lambda: [row])
    monkeypatch.setattr(sys, "argv", ["build.py", "--out", str(tmp_path / "out")])
    for _ in range(2):  # the second time nothing can be fetched
        build.main()
    index = pd.read_csv(tmp_path / "out" / "index.csv")
    assert sorted(index["duration_s"].round(2)) == [0.18, 2.0, 10.0]  # the twin and the silent one are left out
    assert set(index["license"]) == {"CC0-1.0"}
    assert soundfile.info(tmp_path / "out" / index["path"][0]).samplerate == 16000
    assert "me" in (tmp_path / "out" / "ATTRIBUTION.md").read_text(encoding="utf-8")
    assert "1 clips of 4 occur twice" in capsys.readouterr().out
    assert not list((tmp_path / "out").glob(".building-*"))


def test_another_licence_text_leaves_the_package_out(tmp_path, monkeypatch):
    source = a_package(tmp_path, {"package/LICENSE": b"now GPL", "package/a.wav": b"x"})
    monkeypatch.setattr(build, "fetch", lambda *_: (source, "1"))
    row = replace(ROW, source="npm", stated="package/LICENSE", take="package/*.wav")
    with pytest.raises(fetch.UnavailableError, match="is not the licence text"):
        build.build_package([row], tmp_path)
    assert not (tmp_path / "clips").exists()


def test_a_vanished_package_is_one_line(tmp_path, monkeypatch, capsys):
    def vanished(*_):
        raise fetch.UnavailableError("not to be had (no such package)")

    (tmp_path / "clips" / "there").mkdir(parents=True)
    line = ["clips/there/0.flac", "debian", "there", "1", "MIT", "effect", "real", 1.0, "there/a", True, "x"]
    pd.DataFrame([line], columns=build.COLUMNS).to_csv(tmp_path / "clips" / "there" / "part.csv", index=False)
    monkeypatch.setattr(build, "fetch", vanished)
    monkeypatch.setattr(build, "read_sources", lambda: [ROW, replace(ROW, package="there")])
    monkeypatch.setattr(sys, "argv", ["build.py", "--out", str(tmp_path)])
    build.main()
    assert f"{ROW.package}: left out: not to be had (no such package)\n" in capsys.readouterr().out


def test_pieces_end_to_end_are_the_sound():
    wave = np.arange(25, dtype=np.float32)
    pieces = list(cut.end_to_end(iter([wave[:3], wave[3:4], wave[4:]]), 10))
    assert [len(piece) for piece in pieces] == [10, 10, 5]
    assert np.array_equal(np.concatenate(pieces), wave)


@pytest.mark.parametrize("total", [1, 5, 30])
@pytest.mark.parametrize("wanted", [1, 4, 30])
def test_kept_pieces_are_evenly_spread(total, wanted):
    kept = sorted(cut.spread(total, wanted))
    assert len(kept) == min(total, wanted)
    assert max(np.diff(kept), default=0) <= -(-total // len(kept))
    assert kept[0] >= 0
    assert kept[-1] < total


def test_every_beginning_of_the_index_has_the_same_share_of_each_source():
    rng = np.random.default_rng(0)
    rows = [
        {"path": f"{p}/{i}", "source_package": p, "recording": f"{p}/{i // 2}", "duration_s": rng.uniform(1, 9)}
        for p, n in (("a", 400), ("b", 100))
        for i in range(n)
    ]
    frame = build.in_order(pd.DataFrame(rows))
    total = frame["duration_s"].sum() / 3600
    assert frame["hours"].is_monotonic_increasing
    assert frame["hours"].iloc[-1] == pytest.approx(total, abs=1e-3)
    assert frame.groupby("recording")["hours"].nunique().max() == 1
    half = frame[frame["hours"] <= total / 2]
    for package, clips in frame.groupby("source_package"):
        share = half.loc[half["source_package"] == package, "duration_s"].sum() / clips["duration_s"].sum()
        assert share == pytest.approx(0.5, abs=0.05), package


def test_a_recording_that_is_kept_is_found_when_cut_and_coded_otherwise(tmp_path):
    names = ("birds", "steps", "growl", "engine", "stream")
    waves = {name: np.tile(textures.texture(name, render.generator(name)), 4)[:128_000] for name in names}
    for name, wave in waves.items():
        cut.save(wave, tmp_path / f"{name}.flac")
    kept = tmp_path / "kept.opus"
    soundfile.write(kept, 0.3 * waves["steps"][33_333:99_999], 16_000, format="OGG", subtype="OPUS")
    found = list(apart.shared([tmp_path / f"{name}.flac" for name in names], [kept]))
    assert {names[mine] for mine, _, _ in found} == {"steps"}
    assert not list(apart.shared([tmp_path / f"{name}.flac" for name in ("birds", "growl", "engine")], [kept]))


def test_a_midi_file_is_what_the_standard_says():
    # 480 ticks a quarter and 120 beats a minute: 960 ticks a second, 0x87 0x40 as a variable length
    header = "4d546864 00000006 0000 0001 01e0 4d54726b 00000016"
    track = "00 903c40 8740 803c00 8740 904840 01 804800 00 ff2f00"
    events = [*render.note(2, 1 / 960, 72, 64), *render.note(0, 1, 60, 64)]
    assert render.midi(events) == bytes.fromhex(header + track)


def test_drawn_scores_and_texts_are_the_same_each_time():
    def drawn():
        rng = render.generator("a name")
        scores = [
            name + text for (name, text, _), _ in zip(orchestra.scores(render.generator), range(30), strict=False)
        ]
        return (
            render.phrase(rng, 0, 60), render.melodic_items(rng, (3, 2, 1)), render.drum_items(rng, (5, 2)), scores,
            speech.sentence(rng), [speech.text(rng, language) for language in ("en", "ru", "el", "hi")],
        )  # fmt: skip

    assert drawn() == drawn()
    assert render.generator("a").random() != render.generator("b").random()


@pytest.mark.parametrize("name", textures.TEXTURES)
def test_textures_are_the_same_each_time_finite_and_within_full_scale(name):
    first, again = (textures.texture(name, render.generator(name)) for _ in range(2))
    assert np.array_equal(first, again)
    assert np.isfinite(first).all()
    assert 0.02 < np.abs(first).max() < 1
    assert 0.3 * cut.SAMPLE_RATE < len(first) <= cut.LONGEST
    assert first[0] == first[-1] == 0
