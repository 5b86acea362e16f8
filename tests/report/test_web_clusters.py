"""The page of clusters without a run, in a browser, from a file and served. `make test-web`."""

import base64
import io

import numpy as np
import pandas as pd
import pytest
import soundfile

from decar.audio import Manifest
from decar.downstream.classifier import read_examples
from tests.report.helpers import field_page
from tests.report.test_serve import serving

pytestmark = pytest.mark.web


@pytest.fixture(scope="module")
def clusters(tmp_path_factory):
    return field_page(tmp_path_factory.mktemp("field"))


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1400, 390])
def test_a_page_of_clusters_has_what_it_shows_and_nothing_else(visit, clusters, scheme, width):
    seen = visit(clusters, width=width, scheme=scheme)
    shown = seen.js("[...document.querySelectorAll('section')].filter(s => s.checkVisibility()).map(s => s.id)")
    assert (
        shown
        == [
            "summary",
            "explorer",
            "recordings",
            "map",
            "options",
        ]  # and no hours, since nothing says when they were recorded
        == seen.js("[...document.querySelectorAll('nav a')].map(a => a.hash.slice(1))")
    )
    assert seen.js("document.getElementById('facts').textContent") == (
        "recordings2seconds of sound40segments8clusters3in no cluster (noise)25 %"
    )
    column = "[...document.querySelectorAll('#cluster-table tbody tr')].map(r => r.cells[0].textContent)"
    assert seen.js(column) == ["0", "1", "2", "noise"], "by size, and noise last"
    assert seen.js("document.documentElement.scrollWidth <= innerWidth")
    seen.js("showClip(CLIPS.name.indexOf('<b>.wav · 0:10'))")
    shown = seen.js("document.getElementById('clip').textContent")
    assert "cluster2" in shown
    assert "from 10 s" in shown
    assert "novelty2.00" in shown


def test_the_stretch_that_is_shown_is_the_one_that_plays(visit, clusters):
    """A segment from the middle of a recording: its player has its tone, 1,500 Hz, and no other."""
    seen = visit(clusters)
    uri = seen.js("CLIPS.sounds[CLIPS.name.indexOf('a.wav · 0:10')][0]")
    wave, rate = soundfile.read(io.BytesIO(base64.b64decode(uri.split(",")[1])))
    spectrum = np.abs(np.fft.rfft(wave))
    assert np.fft.rfftfreq(len(wave), 1 / rate)[spectrum.argmax()] == pytest.approx(1500, abs=5)
    seen.js("showClip(CLIPS.name.indexOf('a.wav · 0:10'))")
    played = seen.play("#clip audio")
    assert played[0] >= 0.05
    assert played[1] == pytest.approx(4.0, abs=0.1)


def downloaded(seen, button):
    with seen.page.expect_download() as found:
        seen.page.locator(button).click()
    return found.value


def test_clusters_are_named_clips_corrected_with_the_keyboard_and_labels_saved(visit, clusters, tmp_path):
    seen = visit(clusters)
    seen.page.locator("#cluster-table tbody tr", has_text="noise").click()
    seen.page.fill("#name-all", "low")
    seen.page.keyboard.press("Enter")
    assert seen.js("document.querySelector('#cluster-table tbody tr:last-child').cells[1].textContent") == "low"
    seen.page.locator("#cluster-table tbody tr").nth(1).click()
    seen.page.fill("#name-all", "rain, <img src=x onerror=alert(3)>")
    seen.page.keyboard.press("Enter")
    assert seen.js("document.getElementById('label-count').textContent") == "4 of 8 clips labelled"
    seen.page.locator("#cluster .card").first.focus()
    seen.page.keyboard.press("1")  # by hand, in place of what the cluster gave
    first = int(seen.js("document.activeElement.dataset.clip"))
    seen.page.keyboard.press("ArrowRight")
    second = int(seen.js("document.activeElement.dataset.clip"))
    assert first != second
    seen.page.keyboard.press("Enter")
    seen.page.keyboard.type("low,-rain")
    seen.page.keyboard.press("Enter")
    assert int(seen.js("document.activeElement.dataset.clip")) == second, "back on the clip"
    seen.page.locator("#cluster-table tbody tr").nth(2).click()
    seen.page.locator("#cluster .card").first.focus()
    third = int(seen.js("document.activeElement.dataset.clip"))
    seen.page.keyboard.press("Shift+Digit1")
    seen.page.keyboard.press("j")
    seen.page.keyboard.press("2")
    seen.page.keyboard.press("2")  # takes it back
    seen.page.locator("#cluster-table tbody tr").nth(1).click()
    seen.page.fill("#name-all", "other")  # the name does not touch what was given by hand
    seen.page.keyboard.press("Enter")
    file = tmp_path / "labels.csv"
    downloaded(seen, "#label-save").save_as(file)
    table = pd.read_csv(file)
    names = seen.js("CLIPS.name")
    place = lambda i: (names[i].split(" · ")[0], 5.0 * (i % 4))  # noqa: E731
    found = {
        (path[len(str(clusters.parent)) + 1 :], start): (label, by) for path, start, _, label, by in table.to_numpy()
    }
    noise = [i for i in range(8) if i % 4 == 3]
    assert found == {
        **{place(i): ("low", "cluster") for i in noise}, place(first): ("low", "clip"),
        place(second): ("low,-rain", "clip"), place(third): ("-low", "clip"),
    }  # fmt: skip
    assert table["duration"].tolist() == [5.0] * 5
    assert seen.js("document.querySelectorAll('#cluster img:not(.spectrogram)').length") == 0


def test_labels_of_sounds_that_moved_are_shown_and_those_of_others_are_named(visit, tmp_path):
    old, new = tmp_path / "old", tmp_path / "new"
    field_page(old)
    (old / "labels.csv").write_text(f"path,start,duration,label\n{old}/a.wav,5,5,low\n/else/b.wav,5,5,high\n")
    old.rename(new)
    with serving(new / "report.html", root=new) as server:
        seen = visit(server.url)
        assert seen.js("[...LABELS].map(([i, one]) => [CLIPS.name[i], one.words])") == [["a.wav · 0:05", ["low"]]]
    with serving(new / "report.html") as server:  # the sounds are not where the page says
        (new / "labels.csv").write_text(f"path,start,duration,label\n{new}/a.wav,5,5,low\n")
        count = visit(server.url).js("document.getElementById('label-count').textContent")
        assert count == f"No labels yet, and 1 rows of other clips, such as {new}/a.wav"


def test_labels_are_still_there_at_the_next_visit_and_can_be_read_from_a_file(visit, clusters, browser, tmp_path):
    seen = visit(clusters)
    seen.js("giveAll([1, 5], 'a \"b\"', 'clip')")
    seen.page.reload()
    seen.until("document.documentElement.dataset.ready === 'yes'")
    assert seen.js("[...LABELS].map(([i, one]) => [i, one.words, one.by])") == [
        [1, ['a "b"'], "clip"], [5, ['a "b"'], "clip"],
    ]  # fmt: skip
    assert "last visit" in seen.js("document.getElementById('label-state').textContent")
    file = tmp_path / "mine.csv"
    downloaded(seen, "#label-save").save_as(file)
    table = pd.read_csv(file)
    table["speaker"] = ["anna", "x\ny"]
    table.loc[2] = {"path": "/else/where.wav", "start": 3.5, "label": "b,c", "speaker": "bob"}
    table.to_csv(file, index=False)
    other = visit(clusters)
    other.page.set_input_files("#label-load", file)
    other.until("LABELS.size === 2")
    assert "and 1 rows of other clips, such as /else/where.wav" in other.js(
        "document.getElementById('label-count').textContent"
    )
    again = tmp_path / "again.csv"
    downloaded(other, "#label-save").save_as(again)
    pd.testing.assert_frame_equal(
        pd.read_csv(again).sort_values("path", ignore_index=True), table.sort_values("path", ignore_index=True),
        check_dtype=False,
    )  # fmt: skip
    two = "path,start,end,label\n" + "".join(f"{clusters.parent}/a.wav,10,15,{label}\n" for label in ("x", "y", "x"))
    (tmp_path / "two.csv").write_text(two)
    other.page.set_input_files("#label-load", tmp_path / "two.csv")
    other.until("LABELS.size === 3")
    assert "x,y" in other.js("[...LABELS.keys()].map(textOf)"), "a clip with a row a label has both"
    (tmp_path / "no.csv").write_text("x,y\n1,2\n")
    other.page.set_input_files("#label-load", tmp_path / "no.csv")
    other.until("document.getElementById('label-state').textContent.includes('no column path')")
    assert other.js("LABELS.size") == 3


def test_labels_of_other_stretches_stay_with_their_stretches(visit, clusters, tmp_path):
    """A whole recording, and a stretch that only begins as a segment of the page does, are no clips of it."""
    rows = [(0, 5, "yes"), (5, 5.0, "yes"), (0, 2, "no"), ("", "", "no"), (10, "", "no"), (15, 6, "no")]
    table = pd.DataFrame(rows, columns=["start", "duration", "label"]).astype(str)
    table.insert(0, "path", f"{clusters.parent}/a.wav")
    table.to_csv(tmp_path / "mine.csv", index=False, quoting=1)
    seen = visit(clusters)
    seen.page.set_input_files("#label-load", tmp_path / "mine.csv")
    seen.until("LABELS.size > 0")
    assert seen.js("[...LABELS].map(([i, one]) => [CLIPS.name[i], one.words[0]])") == [
        ["a.wav · 0:00", "yes"], ["a.wav · 0:05", "yes"],
    ]  # fmt: skip
    downloaded(seen, "#label-save").save_as(tmp_path / "again.csv")
    again = pd.read_csv(tmp_path / "again.csv", dtype=str, keep_default_na=False)
    kept = again[again["label"] == "no"][["start", "duration"]].to_numpy().tolist()
    assert kept == [["0", "2"], ["", ""], ["10", ""], ["15", "6"]]


def test_notes_beside_a_label_stay_when_it_is_removed(visit, clusters, tmp_path):
    text = f"path,start,duration,label,note\n{clusters.parent}/a.wav,5,5,dog,two of them\n"
    (tmp_path / "mine.csv").write_text(text)
    seen = visit(clusters)
    seen.page.set_input_files("#label-load", tmp_path / "mine.csv")
    seen.until("LABELS.size === 1")
    seen.js("toggle([...LABELS.keys()][0], 'dog'); toggle(0, 'wind')")
    downloaded(seen, "#label-save").save_as(tmp_path / "again.csv")
    again = pd.read_csv(tmp_path / "again.csv", keep_default_na=False).set_index("note")
    assert again.loc["two of them", ["start", "label"]].tolist() == [5, ""]
    assert again["label"].tolist() == ["", "wind"]


def test_a_quotation_mark_in_a_name_does_not_swallow_the_rows_after_it(visit, clusters):
    seen = visit(clusters)
    assert seen.js("""fromCsv('path,label\\na"b.wav,x\\rc.wav,"y ""z"", w"\\r\\n')""") == [
        ["path", "label"], [['a"b.wav', "x"], ["c.wav", 'y "z", w']],
    ]  # fmt: skip


def test_a_column_of_the_source_does_not_take_the_place_of_the_labels_in_a_selection(visit, clusters):
    seen = visit(clusters)
    seen.js("DATA.labels.push('label'), CLIPS.labels.label = {values: ['tree'], codes: CLIPS.name.map(() => 0)}")
    seen.js("giveAll([0], 'wind', 'clip')")
    head, row = seen.js("clipsCsv([0])").splitlines()
    assert head == "path,start,duration,cluster,table_label,label"
    assert row.endswith(",tree,wind")


def test_two_windows_of_a_page_have_one_draft(visit, clusters):
    seen = visit(clusters)
    other = seen.context.new_page()
    other.goto(clusters.as_uri())
    while not other.evaluate("document.documentElement.dataset.ready === 'yes'"):
        other.wait_for_timeout(30)
    seen.js("toggle(0, 'wind'); toggle(1, 'wind')")
    other.wait_for_timeout(300)
    other.evaluate("toggle(1, 'wind'); toggle(2, 'rain')")
    seen.until("LABELS.size === 2 && LABELS.has(2)")
    seen.page.reload()
    seen.until("document.documentElement.dataset.ready === 'yes'")
    assert seen.js("[...LABELS].map(([i, one]) => [i, one.words[0]])") == [[0, "wind"], [2, "rain"]]


def test_a_selection_in_the_map_is_listed_labelled_and_saved(visit, clusters, tmp_path):
    seen = visit(clusters)
    seen.page.locator("#map-chart").scroll_into_view_if_needed()
    seen.page.hover("#map-chart")
    seen.page.click('#map-chart .modebar-btn[data-val="select"]')
    box = seen.page.locator("#map-chart .nsewdrag").first.bounding_box()
    seen.page.mouse.move(box["x"] + 5, box["y"] + 60)
    seen.page.mouse.down()
    seen.page.mouse.move(box["x"] + box["width"] - 5, box["y"] + box["height"] - 5, steps=8)
    seen.page.mouse.up()
    seen.page.wait_for_selector("#selection button")
    chosen = seen.js("document.getElementById('selection').textContent")
    n = int(chosen.split(" ")[0])
    assert n >= 4
    seen.page.get_by_role("button", name="List them").click()
    assert seen.js("document.querySelector('#cluster h3').textContent") == f"Selection: {n} clips"
    assert seen.js("document.querySelectorAll('#cluster .card audio').length") == n
    seen.page.fill("#name-all", "picked")
    seen.page.keyboard.press("Enter")
    assert seen.js("LABELS.size") == n
    seen.js("giveAll([0, 1, 2, 3, 4, 5, 6, 7], 'all', 'cluster')")  # a name of a cluster leaves them as they are
    assert sorted(seen.js("[...LABELS.keys()].map(textOf)")) == ["all"] * (8 - n) + ["picked"] * n
    seen.js("giveAll([0, 1, 2, 3, 4, 5, 6, 7], '', 'cluster')")
    assert seen.js("LABELS.size") == n
    file = tmp_path / "selection.csv"
    downloaded(seen, "#selection button:nth-of-type(2)").save_as(file)
    table = pd.read_csv(file)
    assert (len(table), set(table["label"]), set(table["duration"])) == (n, {"picked"}, {5.0})
    downloaded(seen, "#selection button:nth-of-type(3)").save_as(file)
    lines = file.read_text(encoding="utf-8").splitlines()
    assert lines[0] == "#EXTM3U"
    assert sum(line.startswith("#EXTVLCOPT:start-time=") for line in lines) == n
    assert {line for line in lines if not line.startswith("#")} <= {
        str(clusters.parent / name) for name in ("a.wav", "<b>.wav")
    }


def test_all_clips_of_a_cluster_in_the_order_that_is_asked_for(visit, clusters):
    seen = visit(clusters)
    listed = "[...document.querySelectorAll('#cluster .card')].map(c => CLIPS.novelty[c.dataset.clip])"
    seen.page.locator("#cluster-table tbody tr").nth(0).click()
    seen.page.select_option("#order", "novel")
    assert seen.js(listed) == [4.0, 0.0]
    seen.page.select_option("#order", "given")
    assert seen.js(listed) == [0.0, 4.0]


def test_hours_and_sites_are_drawn_and_a_cell_lists_its_clips(visit, tmp_path):
    names = ("A_20240512_055950.wav", "B_20240513_220000.wav")
    seen = visit(field_page(tmp_path, names))
    assert seen.js("[...document.querySelectorAll('nav a')].map(a => a.hash)") == [
        "#summary", "#explorer", "#recordings", "#when", "#map", "#options",
    ]  # fmt: skip
    hours = seen.js("document.getElementById('hours').data[0].z")
    clusters = seen.js("DATA.when.clusters")
    # the third and the fourth segment of the first recording begin after six
    assert {c: [h for h, share in enumerate(row) if share] for c, row in zip(clusters, hours, strict=True)} == {
        0: [5, 22], 1: [5, 22], 2: [6, 22], -1: [6, 22],
    }  # fmt: skip
    assert seen.js("document.getElementById('sites').data[0].z") == [[0.5, 0.5]] * 4
    seen.page.locator("#hours").scroll_into_view_if_needed()
    x, y = seen.js("""() => {
        const chart = document.getElementById("hours"), box = chart.getBoundingClientRect();
        const { xaxis, yaxis } = chart._fullLayout, row = DATA.when.clusters.indexOf(2);
        return [box.left + xaxis._offset + xaxis.l2p(22), box.top + yaxis._offset + yaxis.l2p(row)];
    }""")
    seen.page.mouse.click(x, y)
    seen.page.wait_for_selector("#cluster [data-clip]")
    assert seen.js("document.querySelector('#cluster h3').textContent") == "Cluster 2, hour 22: 1 on this page"
    assert seen.js("[...document.querySelectorAll('#cluster .card')].map(c => CLIPS.name[c.dataset.clip])") == [
        "B_20240513_220000.wav · 0:10"
    ]
    assert seen.js("document.querySelectorAll('#cluster audio').length") == 1


def click_line(seen, seconds, row=0):
    """Click into the time line, at so many seconds of the recording."""
    seen.page.locator("#recording-line").scroll_into_view_if_needed()
    x, y = seen.js(
        """([seconds, row]) => {
        const chart = document.getElementById("recording-line"), box = chart.getBoundingClientRect();
        const { xaxis, yaxis } = chart._fullLayout, begun = DATA.when.lines.recordings[at("recording").value].begun;
        const x = begun ? Date.parse(begun + "Z") + 1000 * seconds : seconds;
        return [box.left + xaxis._offset + xaxis.d2p(x), box.top + yaxis._offset + yaxis.d2p(row)];
    }""",
        [seconds, row],
    )
    seen.page.mouse.click(x, y)


def tone_of(wave, rate):
    return np.fft.rfftfreq(len(wave), 1 / rate)[np.abs(np.fft.rfft(wave)).argmax()]


def test_a_click_into_a_time_line_plays_that_part(visit, clusters):
    seen = visit(clusters)
    assert seen.js("[...document.getElementById('recording').options].map(o => o.textContent)") == [
        "<b>.wav (4 segments, 4 clusters)", "a.wav (4 segments, 4 clusters)",
    ]  # fmt: skip
    assert seen.js("document.getElementById('recording-line').data[0].z.map(row => row.map(v => v !== null))") == [
        [True] * 4, *np.eye(4, dtype=bool).tolist(),
    ]  # fmt: skip
    seen.page.select_option("#recording", "1")
    click_line(seen, 12.0)
    seen.until("document.querySelector('#part h3').textContent === 'a.wav · 0:10'")
    seen.until("document.querySelector('#part audio').currentTime > 0")
    uri = seen.js("document.querySelector('#part audio').src")
    assert tone_of(*soundfile.read(io.BytesIO(base64.b64decode(uri.split(",")[1])))) == pytest.approx(1500, abs=5)
    assert seen.js("document.querySelector('#part .hint').textContent") == "Cluster 2, 5 s"
    seen.page.get_by_role("button", name="Later →").click()
    assert seen.js("document.querySelector('#part h3').textContent") == "a.wav · 0:15"
    assert seen.js("document.activeElement.textContent") == "← Earlier", "there is no later one"
    click_line(seen, 2.0, row=1)
    seen.until("document.querySelector('#part h3').textContent === 'a.wav · 0:00'")
    seen.js("giveAll(membersOf(0), 'rain', 'cluster')")
    assert "rain" in seen.js("document.getElementById('recording-line')._fullLayout.yaxis.ticktext")
    assert "rain" in seen.js("document.getElementById('typical').textContent")


def test_a_part_whose_sound_is_not_on_the_page_is_named_and_a_server_plays_it(visit, tmp_path, monkeypatch):
    monkeypatch.setattr("decar.report.page.sample", lambda n, seed: np.array([0, 1, 4]))
    page = field_page(tmp_path, ("A_20240512_055950.wav", "B_20240513_220000.wav"))
    seen = visit(page)
    click_line(seen, 12.0)
    seen.until("document.querySelector('#part h3').textContent === 'A_20240512_055950.wav · 0:10'")
    assert "06:00:00 by the recorder's clock" in seen.js("document.getElementById('part').textContent")
    assert "decar page FOLDER --serve plays every part" in seen.js("document.getElementById('part').textContent")
    assert seen.js("document.getElementById('recording-line')._fullLayout.xaxis.type") == "date"
    with serving(page) as server:
        served = visit(server.url)
        served.page.select_option("#recording", "1")
        click_line(served, 12.0)
        served.until("document.querySelector('#part h3').textContent === 'B_20240513_220000.wav · 0:10'")
        served.until("document.querySelector('#part audio').currentTime > 0")
        index = int(served.js("document.querySelector('#part audio').getAttribute('src')").split("/")[1].split("?")[0])
        assert index == 3 + 4 + 2
        assert tone_of(*soundfile.read(io.BytesIO(server.sound(index)))) == pytest.approx(1500, abs=1)


def test_near_duplicates_are_listed_together(visit, clusters):
    """Both recordings have the same four tones."""
    seen = visit(clusters)
    seen.page.get_by_role("button", name="Near duplicates: 8 clips in 4 groups").click()
    assert seen.js("document.querySelector('#cluster h3').textContent") == "8 near duplicates, group by group"
    pairs = seen.js("[...document.querySelectorAll('#cluster .card')].map(c => CLIPS.at[c.dataset.clip])")
    assert pairs[::2] == pairs[1::2]
    assert sorted(pairs[::2]) == [0, 5, 10, 15]
    assert seen.js("document.querySelector('#cluster .card').textContent").endswith("group 1+ label")
    seen.page.locator("#cluster-table tbody tr").first.click()
    assert seen.js("document.getElementById('order').value") == "near"


def test_a_page_of_suggestions_has_its_clips_in_order_and_no_clusters(visit, tmp_path):
    seen = visit(field_page(tmp_path, words=["dog", "cat"], suggested=True))
    assert seen.js("[...document.querySelectorAll('#cluster [data-clip]')].map(c => Number(c.dataset.clip))") == list(
        range(8)
    )
    assert not seen.page.locator("#cluster-table").is_visible()
    assert "cluster" not in seen.js("document.getElementById('facts').textContent")
    assert not seen.page.locator("#typical .card").count()
    assert "recordings" not in seen.js("[...document.querySelectorAll('nav a')].map(a => a.hash.slice(1))")
    seen.page.locator("#cluster .card").nth(2).focus()
    seen.page.keyboard.press("2")
    assert seen.js("[...LABELS].map(([i, one]) => [i, one.words])") == [[2, ["cat"]]]


def test_a_served_page_plays_all_in_full_and_saves_by_itself(visit, tmp_path):
    page = field_page(tmp_path)
    labels = tmp_path / "labels.csv"
    labels.write_text("path,label,note\n/else.wav,dog,kept\n")
    with serving(page) as server:
        seen = visit(server.url)
        seen.page.locator("#cluster-table tbody tr").nth(1).click()
        played = seen.play("#cluster .card audio", 4.5)
        assert played[0] >= 4.55
        assert played[1] == pytest.approx(5.0, abs=0.01)
        seen.page.fill("#name-all", "low")
        seen.page.keyboard.press("Enter")
        seen.until("document.getElementById('label-state').textContent.startsWith('saved to labels.csv')")
        table = pd.read_csv(labels)
        assert table["label"].tolist() == ["dog", "low", "low"]
        assert table["note"].tolist()[0] == "kept"
        assert read_examples(Manifest(table.iloc[1:].assign(label=["low", "-low"]), "/")).names == ["low"]
        labels.write_text("path,label\n/another.wav,cat\n")
        seen.js("toggle(0, 'wind')")
        seen.until("document.getElementById('label-state').textContent.startsWith('NOT saved')")
        assert "has changed since" in seen.js("document.getElementById('label-state').textContent")
        assert "another" in labels.read_text()
        seen.said[:] = [line for line in seen.said if "409" not in line]  # the browser's own line about the answer


def test_labels_that_a_page_cannot_read_are_not_written_over(visit, tmp_path, monkeypatch):
    page = field_page(tmp_path)
    monkeypatch.setattr("decar.report.serve._check", lambda text, name: None)  # as if the server could read more
    (tmp_path / "labels.csv").write_text("path;label\n/a.wav;dog\n")
    with serving(page) as server:
        seen = visit(server.url)
        seen.js("toggle(0, 'wind')")
        seen.until("document.getElementById('label-state').textContent.startsWith('NOT saved')")
        assert "no column path" in seen.js("document.getElementById('label-state').textContent")
    assert (tmp_path / "labels.csv").read_text() == "path;label\n/a.wav;dog\n"


def test_a_served_page_begins_a_file_of_labels(visit, tmp_path):
    with serving(field_page(tmp_path)) as server:
        seen = visit(server.url)
        for i in range(4):  # faster than they are sent
            seen.js("i => toggle(i, 'wind')", i)
        seen.until("document.getElementById('label-state').textContent.startsWith('saved to labels.csv')")
        seen.js("toggle(4, 'rain')")
        seen.until("!unsent")
        seen.page.wait_for_timeout(800)
        assert pd.read_csv(tmp_path / "labels.csv")["label"].tolist() == ["wind"] * 4 + ["rain"]
        again = visit(server.url)
        assert again.js("LABELS.size") == 5
