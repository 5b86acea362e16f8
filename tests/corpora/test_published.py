"""Lists of the published size: the readers lose and invent nothing. No audio is needed, they look at none."""

import pytest

from decar.corpora import CORPORA
from decar.corpora.prepare import Prepared, table1
from tests.corpora.replicas import table, text


@pytest.mark.parametrize("name", [name for name, corpus in CORPORA.items() if corpus.published])
def test_published_parts_add_up_to_the_published_whole(name):
    corpus = CORPORA[name]
    whole = corpus.official[0] if corpus.official else corpus.paper.clips
    assert sum(corpus.published.values()) == whole


def as_published(name, root):
    """No line about the parts of Table 1 tells a difference."""
    clips = CORPORA[name].read(root)
    rows = table1([(CORPORA[name], Prepared(clips, root, root / "manifest.csv"))]).set_index("quantity")
    parts = rows[[quantity.startswith("clips") for quantity in rows.index]]
    assert len(parts) == 1 + len(CORPORA[name].published)
    assert set(parts["difference"]) == {"+0"}
    assert len(set(clips.column("path"))) == len(clips)
    return clips


def test_tut_fold_1(tmp_path):
    """8,640 segments of 10 s; fold 1: 6,122 to train on, 2,518 to evaluate."""
    scenes = ["airport", "bus", "metro", "metro_station", "park", "public_square", "shopping_mall",
              "street_pedestrian", "street_traffic", "tram"]  # fmt: skip
    top = tmp_path / "TUT-urban-acoustic-scenes-2018-development"
    meta, lists = ["filename\tscene_label\tidentifier\tsource_label"], {"train": [], "evaluate": []}
    for i in range(8640):
        part, scene = "train" if i < 6122 else "evaluate", scenes[i % 10]
        name = f"audio/{scene}-{'lyon' if i < 6122 else 'paris'}-{i // 36}-{i}-a.wav"
        meta.append(f"{name}\t{scene}\t{name.rsplit('-', 2)[0]}\ta")
        lists[part].append(f"{name}\t{scene}")
    text(top / "meta.csv", *meta)
    for part, lines in lists.items():
        text(top / "evaluation_setup" / f"fold1_{part}.txt", *lines)
    as_published("tut_urban_2018", tmp_path)


def test_iemocap(tmp_path):
    """10,039 turns, of which 1,708 neutral, 1,103 angry, 1,084 sad, 595 happy; of these 942 in session 5."""
    everything = {"neu": 1708, "ang": 1103, "sad": 1084, "hap": 595, "exc": 1041, "fru": 1849, "xxx": 2507, "oth": 152}
    session_5 = {"neu": 384, "ang": 170, "sad": 245, "hap": 143, "exc": 299, "fru": 381, "xxx": 548, "oth": 0}
    assert sum(everything.values()) == 10039
    turns: dict[int, list[str]] = {session: [] for session in range(1, 6)}
    for emotion, n in everything.items():
        last = session_5[emotion]
        turns[5] += [emotion] * last
        for i in range(n - last):
            turns[1 + i % 4].append(emotion)
    for session, emotions in turns.items():
        lines = ["% [START_TIME - END_TIME] TURN_NAME EMOTION [V, A, D]"]
        for i, emotion in enumerate(emotions):
            turn = f"Ses{session:02d}F_impro01_{'FM'[i % 2]}{i:04d}"
            lines += [f"[{i}.2901 - {i + 1}.2357]\t{turn}\t{emotion}\t[2.5, 2.5, 2.5]", "C-E2:\tHappiness;\t()", ""]
        folder = tmp_path / "IEMOCAP_full_release" / f"Session{session}" / "dialog" / "EmoEvaluation"
        text(folder / f"Ses{session:02d}F_impro01.txt", *lines)
    clips = as_published("iemocap", tmp_path)
    assert (clips.table["split"] == "test").sum() == 942


def test_birdsong(tmp_path):
    """freefield1010: 7,690 clips, 1,935 with a bird; Warblr: 8,000, 6,045 with one."""
    for name, n, birds in (("ff1010bird", 7690, 1935), ("warblrb10k_public", 8000, 6045)):
        rows = [[f"{name[:2]}{i}", name, int(i < birds)] for i in range(n)]
        table(tmp_path / f"{name}_metadata_2018.csv", ["itemid", "datasetid", "hasbird"], *rows)
        (tmp_path / f"{name}_wav" / "wav").mkdir(parents=True)
    clips = as_published("birdsong", tmp_path)
    assert (clips.column("bird") == "yes").sum() == 1935 + 6045
    assert (clips.column("split") == "train").mean() == pytest.approx(0.8, abs=1e-3)
