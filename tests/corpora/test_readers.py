"""Each reader lists what its replica holds, with the corpus's own classes and splits, and no leaks."""

import hashlib
import re

import numpy as np
import pytest

from decar.corpora import CORPORA
from decar.corpora.base import draw
from decar.corpora.prepare import check_split
from decar.corpora.scenes import video_of
from decar.corpora.speech import _VOXCELEB_VERIFIED, even_share
from tests.corpora.replicas import PARTIAL, REPLICAS, split_of


def test_every_corpus_has_a_replica():
    assert set(REPLICAS) == set(CORPORA)


@pytest.mark.parametrize("name", sorted(CORPORA))
def test_the_listed_files_are_there_once_each_and_nothing_leaks(name, replica):
    corpus = CORPORA[name]
    clips = corpus.read(replica(name))
    assert name in PARTIAL or all(file.is_file() for file in clips.files)
    assert all(not path.startswith("/") for path in clips.table["path"])
    assert len(set(zip(clips.files, clips.stretches, strict=True))) == len(clips)
    assert clips.column(corpus.label).nunique() >= 2
    check_split(clips, corpus)
    column = clips.table["fold" if "fold" in clips.table else "split"] if name != "audioset" else clips.table["list"]
    for known in corpus.apart:  # the rule again, the slow way
        for value in set(clips.table[known]) - {""}:
            assert len(set(column[clips.table[known] == value])) == 1, (known, value)
    again = corpus.read(replica(name))
    assert clips.content_hash() == again.content_hash()


def counts(clips, *columns):
    return clips.table.groupby(list(columns)).size().to_dict()


def test_librispeech(replica):
    clips = CORPORA["librispeech"].read(replica("librispeech"))
    assert counts(clips, "speaker", "split") == {
        (s, p): n for s in ("19", "26", "27") for p, n in (("train", 8), ("test", 2))
    }
    assert clips.column("speaker_chapter").nunique() == 6
    by_chapter = counts(clips, "speaker_chapter", "split_speaker_chapter")
    assert {part: {n for (_, p), n in by_chapter.items() if p == part} for part in ("train", "test")} == {
        "train": {4},
        "test": {1},
    }


def test_voxceleb1_finds_the_audio_of_both_archives(replica):
    clips = CORPORA["voxceleb1"].read(replica("voxceleb1"))
    assert counts(clips, "split") == {"train": 18, "valid": 6, "test": 6}
    tops = {re.sub(r"/id.*", "", path) for path in clips.table["path"]}
    assert tops == {"vox1_dev_wav/wav", "vox1_test_wav/wav", "wav"}


def test_voxceleb1_without_the_speakers_of_the_verification_test(replica):
    table = CORPORA["voxceleb1"].read(replica("voxceleb1")).table
    verified = table["speaker"] == "id10270"
    assert set(table["split_1211"][verified]) == {""}
    assert (table["split_1211"][~verified] == table["split"][~verified]).all()
    assert len(_VOXCELEB_VERIFIED) == 1251 - 1211
    assert len(range(10001, 11252)) == 1251, "ids run without a gap"


def test_speech_commands_lists_follow_from_the_hash(replica):
    for name in ("speech_commands_v1", "speech_commands_v2"):
        clips = CORPORA[name].read(replica(name))
        spoken = clips.table[clips.table["label"] != "silence"]
        assert [split_of(path) for path in spoken["path"]] == spoken["split"].tolist()


def test_the_hash_rule_of_speech_commands():
    """As its readme states it: SHA-1 of the name before `_nohash_`, modulo 2**27, in percent."""
    for name in ("bed/004ae714_nohash_0.wav", "bed/004ae714_nohash_3.wav", "x/0a7c2a8d_nohash_1.wav"):
        speaker = name.split("/")[1].split("_")[0]
        number = int.from_bytes(hashlib.sha1(speaker.encode()).digest(), "big") % 2**27
        share = 100 * number / (2**27 - 1)
        assert split_of(name) == ("valid" if share < 10 else "test" if share < 20 else "train")
    # what the published lists begin with
    assert split_of("bed/026290a7_nohash_0.wav") == "valid"
    assert split_of("bed/0c40e715_nohash_0.wav") == "test"
    drawn = [split_of(f"{i:08x}_nohash_0.wav") for i in range(4000)]
    assert drawn.count("valid") / 4000 == pytest.approx(0.1, abs=0.015)
    assert drawn.count("test") / 4000 == pytest.approx(0.1, abs=0.015)


def test_speech_commands_has_twelve_classes_worth_of_rules(replica):
    clips = CORPORA["speech_commands_v2"].read(replica("speech_commands_v2"))
    table = clips.table
    assert set(table["label"]) == {"yes", "off", "unknown", "silence"}
    assert set(table.loc[table["label"] == "unknown", "word"]) == {"backward", "visual"}
    silence = table[table["label"] == "silence"]
    assert len(silence) == 2 * 11
    assert (silence["duration"] == 1).all()
    for _, pieces in silence.groupby("path"):
        assert pieces["start"].tolist() == list(range(11))
        assert pieces["split"].tolist() == ["train"] * 9 + ["valid"] + ["test"]


def test_tut_has_fold_1(replica):
    clips = CORPORA["tut_urban_2018"].read(replica("tut_urban_2018"))
    assert counts(clips, "scene", "split")["tram", "test"] == 3
    assert counts(clips, "split") == {"train": 18, "test": 9}


def test_birdsong_draws_80_to_20_in_both_classes(replica):
    clips = CORPORA["birdsong"].read(replica("birdsong"))
    assert counts(clips, "bird", "split") == {
        ("no", "test"): 2,
        ("no", "train"): 8,
        ("yes", "test"): 2,
        ("yes", "train"): 8,
    }
    assert set(clips.column("part")) == {"freefield1010", "warblr"}


def test_iemocap_has_four_emotions_and_tests_on_session_5(replica):
    clips = CORPORA["iemocap"].read(replica("iemocap"))
    assert set(clips.column("emotion")) == {"neutral", "angry", "sad", "happy"}  # neither excited nor undecided
    assert counts(clips, "split") == {"train": 4 * 16, "test": 16}
    assert (clips.table["fold"][clips.table["split"] == "test"] == "5").all()


def test_voxforge_keeps_speakers_apart_and_does_not_merge_the_anonymous(replica):
    clips = CORPORA["voxforge"].read(replica("voxforge"))
    assert set(counts(clips, "language")) == {"de", "en", "es", "fr", "it", "ru"}
    assert clips.column("speaker").nunique() == 6 * (3 + 5)
    assert all(set(part["split"]) == {"train", "valid", "test"} for _, part in clips.table.groupby("language"))


@pytest.mark.parametrize("sizes", [[30, 30, 30], [2, 40, 11], [1, 1, 1], [5000, 3, 3000]])
def test_an_even_share_by_loops(sizes):
    """The slow form: one clip of each class in turn, until there are enough."""
    labels = [str(c) for c, size in enumerate(sizes) for _ in range(size)]
    taken = even_share(labels, 20)
    left, counts = list(sizes), [0] * len(sizes)
    while sum(counts) < min(20, len(labels)):
        rest = [c for c in range(len(sizes)) if left[c]]
        least = min(counts[c] for c in rest)
        for c in rest:
            if counts[c] == least and sum(counts) < 20:
                counts[c] += 1
                left[c] -= 1
    found = [sum(take for take, label in zip(taken, labels, strict=True) if label == str(c)) for c in range(len(sizes))]
    assert sorted(found) == sorted(counts)
    assert even_share(labels, 20) == taken


def test_voxforge_has_the_paper_s_number_of_clips(tmp_path):
    """Twelve thousand clips: 8,803 of them, with their split, as even over the languages as they can be."""
    for c, language in enumerate(("de", "english", "es", "fr", "it", "ru")):
        for speaker in range(20):
            folder = tmp_path / language / f"p{speaker}-20080326-abc" / "wav"
            folder.mkdir(parents=True)
            for i in range((100, 100, 100, 100, 100, 40)[c]):
                (folder / f"{i}.wav").touch()
    table = CORPORA["voxforge"].read(tmp_path).table
    chosen = table[table["split_8803"] != ""]
    assert len(chosen) == CORPORA["voxforge"].paper.clips == 8803
    assert sorted(chosen.groupby("language").size()) == [800, 1600, 1600, 1601, 1601, 1601]
    assert (chosen["split"] == chosen["split_8803"]).all()
    assert {part["split_8803"].nunique() for _, part in chosen.groupby("language")} == {3}


def test_nsynth_as_the_paper_counts_it(replica):
    table = CORPORA["nsynth"].read(replica("nsynth")).table
    assert set(zip(table["split"], table["split_train_valid"], strict=True)) == {
        ("train", "train"), ("valid", "test"), ("test", ""),
    }  # fmt: skip
    published = CORPORA["nsynth"].published
    assert published["split=train"] + published["split=valid"] == CORPORA["nsynth"].paper.clips


def test_nsynth(replica):
    clips = CORPORA["nsynth"].read(replica("nsynth"))
    assert counts(clips, "split") == {"train": 18, "valid": 4, "test": 4}
    assert set(clips.column("pitch")) == {"21", "60"}
    train = clips.table["split"] == "train"
    assert not set(clips.table["instrument"][train]) & set(clips.table["instrument"][~train])


def test_audioset_takes_a_class_balanced_tenth_of_what_is_there(replica):
    clips = CORPORA["audioset"].read(replica("audioset"))
    assert len(clips) == 35
    chosen = clips.table[clips.table["tenth"] == "yes"]
    assert len(chosen) == 4  # a tenth, rounded
    assert "/t/dd00003" in ",".join(chosen["labels"])  # the rare class has two clips in all


def test_folds(replica):
    assert counts(CORPORA["esc50"].read(replica("esc50")), "fold") == {str(i): 6 for i in range(1, 6)}
    assert counts(CORPORA["urbansound8k"].read(replica("urbansound8k")), "fold") == {str(i): 4 for i in range(1, 11)}


def test_fsd50k_has_several_labels_a_clip(replica):
    clips = CORPORA["fsd50k"].read(replica("fsd50k"))
    assert counts(clips, "split") == {"train": 18, "valid": 6, "test": 9}
    assert "Bark,Dog" in set(clips.column("labels"))


def test_gtzan_has_the_artist_filtered_split():
    from torchaudio.datasets import gtzan

    sizes = [len(names) for names in (gtzan.filtered_train, gtzan.filtered_valid, gtzan.filtered_test)]
    assert sizes == [443, 197, 290]
    assert sum(sizes) == CORPORA["gtzan"].official[0]


def test_vocalsound_and_crema_d(replica):
    assert counts(CORPORA["vocalsound"].read(replica("vocalsound")), "split") == {"train": 18, "valid": 6, "test": 6}
    actors = CORPORA["crema_d"].read(replica("crema_d")).table.groupby("split")["actor"].nunique().to_dict()
    assert actors == {"train": 8, "valid": 2, "test": 2}


def test_a_draw_takes_whole_groups_within_each_label_by_its_shares():
    rng = np.random.default_rng(0)
    groups = [f"g{i}" for i in rng.integers(0, 60, 1000)]
    labels = [f"c{int(group[1:]) % 3}" for group in groups]
    split = draw(groups, labels, {"train": 0.7, "valid": 0.1, "test": 0.2})
    of_group = dict(zip(groups, split, strict=True))
    assert [of_group[group] for group in groups] == split
    for label in ("c0", "c1", "c2"):
        members = [part for group, part in of_group.items() if f"c{int(group[1:]) % 3}" == label]
        assert [members.count(part) for part in ("train", "valid", "test")] == [14, 2, 4]
    order = rng.permutation(1000)
    shuffled = draw([groups[i] for i in order], [labels[i] for i in order], {"train": 0.7, "valid": 0.1, "test": 0.2})
    assert shuffled == [split[i] for i in order]  # the order of the table does not matter
    assert draw(["a", "b"], ["x", "x"], {"train": 0.9, "test": 0.1}) in (["train", "test"], ["test", "train"])


@pytest.mark.parametrize(
    "named", ["{}", "Y{}", "{}_30", "Y{}_30.000", "{}_30_40", "Y{}_30.000_40.000", "{}_30000_40000"]
)
@pytest.mark.parametrize(
    "video", ["abcdefghijk", "Ybcdefghijk", "mE7sE4VR9_0", "Y-LpNi1_123", "_1234567890", "a_1_2_3_4_5"]
)
def test_the_video_of_a_segment_may_end_in_digits_itself(video: str, named: str) -> None:
    """Of 0.3 % of all videos the end was taken for a time, and their clips were counted as missing."""
    assert video_of(named.format(video)) == video
