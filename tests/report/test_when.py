"""Hours, sites and time lines, against loops."""

import math

import numpy as np
import pandas as pd
import pytest

from decar.report import when
from decar.report.when import hours_and_sites, hours_of, segments_of, time_lines


def recordings(*lengths, recorded_at=None):
    """Recordings a, b, … of segments of these lengths, end to end."""
    rows = []
    for name, found in zip("abcdefgh", lengths, strict=False):
        ends = np.cumsum(found)
        rows += [(f"{name}.wav", end - length, length) for end, length in zip(ends, found, strict=True)]
    table = pd.DataFrame(rows, columns=["path", "start", "duration"])
    return table if recorded_at is None else table.assign(recorded_at=recorded_at)


def test_the_most_varied_recording_comes_first_and_single_clips_have_no_line():
    table = recordings([5, 5, 5, 7.5], [5, 5, 5], [3.2], [5, 5, 5, 5])
    lines = time_lines(table, np.array([0, 0, 0, 1, 0, 1, -1, 5, 2, 2, 2, 2]))
    assert (lines["n"], [line["path"] for line in lines["recordings"]]) == (3, ["b.wav", "a.wav", "d.wav"])
    assert [line["clusters"] for line in lines["recordings"]] == [[0, 1, -1], [0, 0, 0, 1], [2, 2, 2, 2]]
    assert [line["begun"] for line in lines["recordings"]] == ["", "", ""]


def paths_of(table, labels):
    return [line["path"] for line in time_lines(table, labels)["recordings"]]


def test_a_few_seconds_of_another_cluster_vary_less_than_many():
    labels = np.array([0, 0, 0, 1, 0, 0, 1, 1])
    assert paths_of(recordings([5] * 4, [5] * 4), labels) == ["b.wav", "a.wav"]
    assert paths_of(recordings([5, 5, 5, 15], [5, 5, 1, 1]), labels) == ["a.wav", "b.wav"], "by time, not by number"


def test_segments_come_back_as_they_were_whatever_their_order_gaps_and_lengths():
    rng = np.random.default_rng(0)
    table = recordings([5] * 50 + [7.3], rng.random(9).round(3), [5, 5])
    table = table.drop(index=[3, 4, 55]).sample(frac=1, random_state=0)
    labels = rng.integers(-1, 4, len(table))
    lines = time_lines(table, labels)["recordings"]
    found = segments_of(lines).assign(cluster=[c for line in lines for c in line["clusters"]])
    wanted = table.assign(cluster=labels)
    assert found["path"].tolist() == [line["path"] for line in lines for _ in line["clusters"]]
    for frame in (found, wanted):
        frame.sort_values(["path", "start"], inplace=True, ignore_index=True)
    pd.testing.assert_frame_equal(found.round(3), wanted.round(3))
    assert len(str(lines[0]["starts"])) < 60, "fifty like steps are one entry"
    assert len(segments_of([])) == 0


def test_the_clock_is_that_of_the_beginning_of_the_recording_even_if_its_first_part_is_missing():
    times = [f"2024-05-12T23:59:{s:02d}+02:00" for s in (50, 55)] + ["2024-05-13T00:00:00+02:00", "dusk", "dusk"]
    lines = time_lines(recordings([5] * 3, [5] * 2, recorded_at=times).iloc[1:], np.array([0, 1, 0, 0]))
    assert [(line["path"], line["begun"]) for line in lines["recordings"]] == [
        ("a.wav", "2024-05-12T23:59:50"), ("b.wav", ""),
    ]  # fmt: skip


def test_the_least_varied_are_left_out_where_a_page_has_no_room(monkeypatch):
    table, labels = recordings([5] * 3, [5] * 4, [5] * 3, [5] * 2), np.array([0, 0, 0, 0, 1, 2, 3, 0, 0, 1, 0, 1])
    assert paths_of(table, labels) == ["b.wav", "d.wav", "c.wav", "a.wav"]
    monkeypatch.setattr(when, "MAX_SEGMENTS", 8)
    assert paths_of(table, labels) == ["b.wav", "d.wav"]
    monkeypatch.setattr(when, "MAX_SEGMENTS", 9)
    monkeypatch.setattr(when, "MAX_RECORDINGS", 1)
    found = time_lines(table, labels)
    assert (found["n"], [line["path"] for line in found["recordings"]]) == (4, ["b.wav"])


def test_what_somebody_sends_cannot_fill_the_memory():
    line = {"path": "a", "starts": [[0, 1]], "lengths": [[5000, 10**12]], "clusters": [0]}
    with pytest.raises(ValueError, match="more than 100000 segments"):
        segments_of([line])
    with pytest.raises(ValueError, match="more than 100000 segments"):
        segments_of([{**line, "starts": [[0, 1000]], "lengths": [[5, 1000]]}] * 101)


def test_hours_of_a_column_of_the_user():
    """A space in place of the T is ISO 8601 too (RFC 3339); those clips were in no hour."""
    at = ["2024-05-12 05:30:00", "2024-05-12T23:30:00Z", "2024-05-12", "2024-05-12T25:00:00", "", "dawn and dusk"]
    assert hours_of(pd.DataFrame({"recorded_at": at})) == [5, 23, -1, -1, -1, -1]


def test_hours_and_sites_against_a_loop():
    rng = np.random.default_rng(0)
    times = [f"2024-05-12T{h:02d}:00:00" if h < 24 else "" for h in rng.integers(0, 30, 40)]
    table = recordings([5] * 40, recorded_at=times)
    table = table.assign(site=rng.choice(["north", "south", ""], 40))
    labels = rng.integers(0, 3, 40)
    found = hours_and_sites(table, labels)
    assert found["sites"] == ["north", "south"]
    for cluster, hours, sites in zip(found["clusters"], found["hours"], found["at_sites"], strict=True):
        rows = table[labels == cluster]
        assert hours == [sum(at.startswith(f"2024-05-12T{h:02d}") for at in rows["recorded_at"]) for h in range(24)]
        assert sites == [(rows["site"] == name).sum() for name in ("north", "south")]
    assert math.isclose(sum(map(sum, found["hours"])), (table["recorded_at"] != "").sum())
