"""The page of a run in a browser. `make test-web`."""

import numpy as np
import pandas as pd
import pytest

from decar.audio import LogMelStore, Manifest
from decar.report import RunFiles, write_environment, write_report
from tests.conftest import make_encoder
from tests.report.helpers import EVIL, N, small_run
from tests.report.test_page import result

pytestmark = pytest.mark.web


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    """A page of a whole run, with an attack in a file name, a label and a class."""
    encoder = make_encoder("conv", seed=0, widths=[4, 4], hidden=8, pool="avg")
    source = small_run(tmp_path_factory.mktemp("web"), encoder, epochs=3)
    write_environment(source.run)
    for name, changes in {"own": {}, "random": {"encoder": "random", "encoder_hash": "r", "value": 0.5}}.items():
        (source.run / name).mkdir()
        result(**{"encoder_hash": encoder.hash(), **changes}).write(source.run / name)
    return write_report(source, progress=False)


def test_every_part_is_drawn(visit, file):
    seen = visit(file)
    for chart in ("curve-loss_epoch", "quantiles", "sizes", "flow", "map-chart", "bars", "confusion"):
        assert seen.js("id => document.getElementById(id).querySelectorAll('.main-svg').length", chart) > 0, chart
    assert seen.js("[...document.querySelectorAll('[data-note]')].filter(n => !n.hidden).map(n => n.textContent)") == []
    assert seen.js("document.getElementById('explored').selectedOptions[0].textContent").startswith("final embedding")
    seen.page.select_option("#explored", "1")
    assert seen.js("document.querySelectorAll('#cluster-table tbody tr').length") == 4
    assert seen.js("document.querySelectorAll('#environment-table tr').length") > 8
    k = seen.js("DATA.explorer[2].clusters.length")
    assert seen.js("document.getElementById('facts').textContent") == f"seconds of sound12clips{N}clusters{k}"
    assert seen.js("[...document.querySelectorAll('#sentences li')].map(li => li.textContent)") == [
        "Trained for 3 epochs.",
        "NMI 1.00 between the last two clusterings: at 1 nothing moves any more.",
        "Task kind: accuracy 75.0 % (random weights 50.0 %, commonest class 50.0 %).",
    ]
    assert seen.js("[...document.querySelectorAll('nav a')].map(a => a.textContent)") == [
        "Summary", "Explorer", "Map", "Curves", "Epochs", "Results", "Options",
    ]  # fmt: skip
    traces = "document.getElementById('bars').data.map(t => [t.name, t.x])"
    bars = [["this encoder", [0.75]], ["random weights", [0.5]], ["always the commonest class", [0.5, 0.5, None]]]
    assert seen.js(traces) == bars


@pytest.mark.parametrize(("width", "height"), [(1400, 900), (390, 844)])
def test_the_first_screen_says_what_there_is_and_plays_the_largest_clusters(visit, file, width, height):
    seen = visit(file, width=width, height=height)
    cards = "[...document.querySelectorAll('#typical .card')].filter(c => c.checkVisibility())"
    assert seen.js(f"{cards}.length") == min(seen.js("DATA.explorer[2].clusters.length"), 4 if width < 860 else 6)
    assert seen.js(f"{cards}.every(c => c.getBoundingClientRect().bottom <= innerHeight)")
    first = seen.js("DATA.explorer[2].clusters[0]")
    share = f"{100 * first['size'] / N:.1f} %, {first['size']} clips"
    assert seen.js(f"{cards}[0].textContent").endswith(f"Cluster {first['id']}{share}")
    seen.page.locator("#typical .play").first.click()
    seen.until("!document.querySelector('#typical audio').paused || document.querySelector('#typical audio').ended")
    best = seen.js("""() => {
        const rows = CLIPS.name.map((_, i) => i).filter(i => CLIPS.clusters[2][i] === 0);
        return CLIPS.sounds[rows.reduce((a, b) => CLIPS.middle[2][b] > CLIPS.middle[2][a] ? b : a)][0];
    }""")
    assert seen.js("document.querySelector('#typical audio').src") == best
    seen.page.locator("#typical .name").nth(2).click()
    third = seen.js("DATA.explorer[2].clusters[2].id")
    assert seen.js("document.querySelector('#cluster h3').textContent").startswith(f"Cluster {third}:")


def test_spectrograms_have_ticks_of_frequency_and_time(visit, file):
    seen = visit(file)
    ticks = seen.js(
        "[...document.querySelectorAll('#cluster .sight')[0].querySelectorAll('span')].map(t => t.textContent)"
    )
    assert ticks == ["1 kHz", "2", "4", "0.25 s"]
    low, high = (2595 * np.log10(1 + hz / 700) for hz in (60, 7800))
    height = (2595 * np.log10(1 + 1000 / 700) - low) / (high - low)
    assert float(seen.js("document.querySelectorAll('#cluster .sight span')[0].style.bottom")[:-1]) == pytest.approx(
        100 * height, abs=0.01
    )


def test_a_click_on_a_point_shows_its_clip_which_plays(visit, file):
    seen = visit(file)
    seen.page.locator("#map-chart").scroll_into_view_if_needed()
    place = seen.js("""() => {
        const chart = document.getElementById("map-chart"), box = chart.getBoundingClientRect();
        const { xaxis, yaxis } = chart._fullLayout;
        const points = CLIPS.x.map((x, i) => [xaxis.d2p(x), yaxis.d2p(CLIPS.y[i])]);
        const apart = (p, q) => Math.hypot(p[0] - q[0], p[1] - q[1]);
        const room = points.map((p, i) => Math.min(...points.filter((_, j) => j != i).map(q => apart(p, q))));
        const alone = room.indexOf(Math.max(...room.filter((_, i) => i % 3 == 1)));  // like clips lie on one another
        return [box.left + xaxis._offset + points[alone][0], box.top + yaxis._offset + points[alone][1], alone];
    }""")
    seen.page.mouse.move(place[0], place[1])
    seen.page.wait_for_selector("#map-chart .hoverlayer .hovertext")
    seen.page.mouse.click(place[0], place[1])
    seen.page.wait_for_selector("#clip audio")
    shown = seen.js("document.getElementById('clip').textContent")
    assert f"clip {place[2]}.wav" in shown
    assert "<img src=x onerror=alert(2)>" in shown, "the label, as text"
    assert seen.js("document.querySelectorAll('#clip img').length") == 1, "the spectrogram and no other"
    picture = "document.querySelector('#clip img')"
    assert seen.js(f"{picture}.decode().then(() => {picture}.naturalHeight)") == 64
    played = seen.play("#clip audio")
    assert played[0] >= 0.05
    assert played[1] == pytest.approx(0.5, abs=0.05)


def test_colour_find_and_select(visit, file):
    seen = visit(file)
    traces = "document.getElementById('map-chart').data.map(t => [t.name, Array.isArray(t.marker.color)])"
    assert {name for name, _ in seen.js(traces)} == {"low", "high", "&lt;/script&gt;&lt;img src=x onerror…"}
    seen.page.select_option("#colour", "clustering:1")
    assert seen.js(traces) == [["", True]]
    seen.page.fill("#find", "clip 1")
    found = [f"clip {i}.wav" for i in (1, *range(10, 20))]
    assert seen.js("document.getElementById('found').textContent").startswith(f"{len(found)} found")
    seen.page.locator("#found button").first.click()
    assert "clip 1.wav" in seen.js("document.getElementById('clip').textContent")
    seen.page.fill("#find", "alert(1)")
    seen.page.locator("#found button").first.click()
    assert seen.js("document.querySelector('#clip h3').textContent") == EVIL


def test_tables_sort_filter_and_open(visit, file):
    seen = visit(file)
    seen.page.select_option("#explored", "1")
    column = "n => [...document.querySelectorAll('#cluster-table tbody tr')].map(r => r.cells[n].textContent)"
    assert seen.js(column, 0) == ["0", "1", "2", "3"]
    seen.page.locator("#cluster-table thead button").first.click()
    assert seen.js(column, 0) == ["3", "2", "1", "0"]
    assert seen.js("document.querySelector('#cluster-table th').ariaSort") == "descending"
    seen.page.select_option("#explored", "0")
    assert seen.js(column, 2) == ["100.0 %"] * 3
    seen.page.fill("#cluster-filter", "high")
    assert seen.js(column, 0) == ["2"]
    seen.page.locator("#cluster-table tbody tr").click()
    assert seen.js("document.querySelector('#cluster h3').textContent") == "Cluster 2: 8 clips"
    assert seen.js("document.querySelectorAll('#cluster audio').length") == 8
    seen.page.fill("#result-filter", "random")
    assert seen.js("document.querySelectorAll('#result-table tbody tr').length") == 1
    seen.page.locator("#result-table tbody tr").click()
    assert "random weights" in seen.js("document.getElementById('confusion-title').textContent")
    assert seen.js("document.getElementById('confusion').data[0].text") == [[2, 0], [1, 1]]


def test_epochs_and_clusterings_are_chosen(visit, file):
    seen = visit(file)
    before = seen.js("document.getElementById('flow').data[0].z.length")
    seen.page.select_option("#which", "0")
    assert (before, seen.js("document.getElementById('flow').data[0].z.length")) == (4, 3)
    seen.page.select_option("#flow-pair", "0")
    assert "clusters of epoch 1;" in seen.js("document.getElementById('flow-hint').textContent")
    seen.page.select_option("#size-epoch", "0")
    assert seen.js("document.getElementById('sizes').data[0].y") == [8, 8, 8]


def test_the_configuration_is_searched(visit, file):
    seen = visit(file)
    shown = (
        "[...document.querySelectorAll('#config-tree .leaf')].filter(l => l.checkVisibility()).map(l => l.textContent)"
    )
    assert seen.js(shown) == ["k: 3"]
    seen.page.fill("#config-find", "encoder.na")
    assert seen.js(shown) == ["name: small"]
    seen.page.fill("#config-find", "")
    seen.page.click("#config-open")
    assert seen.js(shown) == ["k: 3", "name: small"]


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_phone_never_scrolls_sideways(visit, file, scheme):
    seen = visit(file, width=390, height=844, scheme=scheme)
    seen.js("showClip(0)")
    assert seen.js("document.documentElement.scrollWidth <= innerWidth")
    too_wide = """[...document.querySelectorAll("section *")]
        .filter(e => !e.closest(".scroll, svg, .js-plotly-plot, [hidden]"))
        .filter(e => e.getBoundingClientRect().right > innerWidth + 1).map(e => e.outerHTML.slice(0, 90))"""
    assert seen.js(too_wide) == []


def contrast(seen, selector):
    """WCAG 2: relative luminances of an element's text and of the page's cards."""
    style = "getComputedStyle(document.querySelector({}))"
    text, back = seen.js(f"s => [{style.format('s')}.color, {style.format('`section`')}.backgroundColor]", selector)
    values = []
    for colour in (text, back):
        rgb = np.array([float(x) for x in colour[colour.index("(") + 1 : -1].split(",")[:3]]) / 255
        linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
        values.append(float(linear @ [0.2126, 0.7152, 0.0722]))
    return (max(values) + 0.05) / (min(values) + 0.05)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_light_and_dark_can_be_read_and_switched(visit, file, scheme):
    seen = visit(file, scheme=scheme)
    for switched in (False, True):
        if switched:
            seen.page.click("#theme")
        dark = (scheme == "dark") != switched
        assert (seen.js("document.getElementById('flow')._fullLayout.font.color") == "#e8ebf0") == dark
        for selector in ("h2", ".hint", "label", "td", "nav a", ".tree .key"):
            assert contrast(seen, selector) >= 4.5, (selector, dark)


def test_the_keyboard_reaches_everything_and_shows_where_it_is(visit, file):
    seen = visit(file)
    reached = []
    for _ in range(300):
        seen.page.keyboard.press("Tab")
        name = seen.js("document.activeElement.id || document.activeElement.tagName")
        outline = seen.js("getComputedStyle(document.activeElement).outlineStyle")
        if name == "BODY":
            break
        reached.append(name)
        assert outline not in ("none", "") or name == "AUDIO", f"{name}: no focus to be seen"
    for name in ("theme", "which", "flow-pair", "colour", "find", "explored", "cluster-filter", "config-find", "AUDIO"):
        assert name in reached
    seen.page.locator("#cluster-table tbody tr").nth(0).focus()
    seen.page.keyboard.press("ArrowDown")
    seen.page.keyboard.press("Enter")
    assert seen.js("document.querySelector('#cluster h3').textContent").startswith("Cluster 1:")
    assert seen.js("document.activeElement.tagName") == "TR", "the place in the table is kept"


def test_a_page_of_nothing_says_so(visit, tmp_path):
    seen = visit(write_report(RunFiles(tmp_path, {}, "the folder is gone"), progress=False))
    told = seen.js("[...document.querySelectorAll('[data-note]')].filter(n => !n.hidden).map(n => n.dataset.note)")
    assert told == ["explorer", "map", "curves", "clusters", "results", "environment"]
    assert seen.js("document.documentElement.scrollWidth <= innerWidth")


def test_no_labels_one_epoch_one_cluster(visit, tmp_path):
    encoder = make_encoder("conv", seed=0, widths=[4, 4], hidden=8, pool="avg")
    source = small_run(tmp_path, encoder, epochs=1)
    manifest = Manifest(pd.DataFrame(source.store.manifest.table["path"]), source.store.manifest.root)
    source = RunFiles(source.run, {}, LogMelStore.open_or_build(manifest, cache_dir=tmp_path / "c", progress=False))
    seen = visit(write_report(source, progress=False))
    assert "nothing has moved yet" in seen.js("document.getElementById('flow-hint').textContent")
    seen.page.select_option("#explored", "0")
    assert "no label columns" in seen.js("document.getElementById('explorer-hint').textContent")
    assert seen.js("document.querySelectorAll('#cluster audio').length") == N // 3
