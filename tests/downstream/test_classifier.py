"""Labels to a classifier: what the table means, the mathematics, honest validation, a file that is data."""

import json

import numpy as np
import pandas as pd
import pytest
from scipy.special import expit

from decar.audio import Manifest
from decar.cli.classify import card_of
from decar.downstream.classifier import Classifier, Examples, fit_classifier, margins, read_examples
from decar.downstream.probe import fit_labels, preparation
from decar.downstream.suggest import doubt, suggest
from decar.errors import TaskError


def table(*rows, columns=("path", "start", "duration", "label")):
    return Manifest(pd.DataFrame(list(rows), columns=list(columns)), "/")


def test_a_label_says_that_a_clip_has_none_of_the_others_and_a_denied_one_says_nothing_else():
    found = read_examples(
        table(
            ("a.wav", 0.0, 5.0, "dog"),
            ("a.wav", 5.0, 5.0, "bird , dog"),
            ("b.wav", 0.0, 5.0, "-dog"),
            ("b.wav", 5.0, 5.0, ""),
            ("c.wav", 0.0, 5.0, "bird"),
            ("c.wav", 0.0, 5.0, "rain"),  # the same stretch
        )
    )
    assert found.names == ["bird", "dog", "rain"]
    assert found.truth.astype(int).tolist() == [[0, 1, 0], [1, 1, 0], [0, 0, 0], [1, 0, 1]]
    assert found.known.astype(int).tolist() == [[1, 1, 1], [1, 1, 1], [0, 1, 0], [1, 1, 1]]
    assert found.clips.table["path"].tolist() == ["a.wav", "a.wav", "b.wav", "c.wav"]


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (["", ""], "no row has a value in 'label'"),
        (["dog", "dog"], "every labelled clip has 'dog'"),
        (["dog", "-cat"], "'-cat' says that it has no 'cat', and no clip has that label"),
        (["dog", "cat,dog,-dog"], "b.wav has both 'dog' and '-dog'"),
        (["-dog", "-dog"], "no clip has that label"),
    ],
)
def test_labels_that_make_no_sense_are_refused_by_name(labels, message):
    rows = [(f"{name}.wav", 0.0, 1.0, label) for name, label in zip("ab", labels, strict=True)]
    with pytest.raises(TaskError, match=message):
        read_examples(table(*rows))


def test_a_stretch_is_no_example_against_the_label_of_one_that_overlaps_it():
    """Boxes of Raven: a bird that sings while the dog barks is in the dog's stretch too, or in a part of it."""
    rows = [
        ("a.wav", 10.0, 3.0, "dog"), ("a.wav", 11.0, 3.0, "bird"), ("a.wav", 14.0, 1.0, "-bird"),
        ("a.wav", 13.99, 2.0, "rain"), ("b.wav", 11.0, 3.0, "bird"), ("b.wav", np.nan, np.nan, "dog"),
        ("a.wav", 12.5, 0.1, "-dog"), ("c.wav", 0.0, 1.0, "bird"),
    ]  # fmt: skip
    found = read_examples(table(*rows))
    assert found.names == ["bird", "dog", "rain"]
    slow, ends = np.empty((8, 3), bool), [np.nan_to_num(start + seconds, nan=9e9) for _, start, seconds, _ in rows]
    for i, (path, start, _, own) in enumerate(rows):
        for c, name in enumerate(found.names):
            others = [
                word for (other, begin, _, word), end in zip(rows, ends, strict=True)
                if other == path and min(ends[i], end) - max(np.nan_to_num(start), np.nan_to_num(begin)) > 0.02
            ]  # fmt: skip
            slow[i, c] = own in (name, f"-{name}") or (not own.startswith("-") and name not in others)
    assert (found.known == slow).all()
    assert slow.astype(int).tolist() == [
        [0, 1, 1], [1, 0, 1], [1, 0, 0], [1, 1, 1], [1, 0, 1], [0, 1, 1], [0, 1, 0], [1, 1, 1]
    ]  # fmt: skip


def test_labels_that_look_alike_are_named(caplog):
    """Each of them would be a clip that has not the other: `Dog` is then no `dog`."""
    words = ["Dog", "dog", "e\u0301", "\u00e9", "Parus  major", "Parus major", "rain"]
    found = read_examples(table(*[(f"{i}.wav", 0.0, 1.0, word) for i, word in enumerate(words)]))
    assert found.names == sorted(words)
    assert len(caplog.messages) == 3
    assert "'Dog' and 'dog'" in caplog.text
    assert "'Parus  major' and 'Parus major'" in caplog.text


def test_a_column_that_is_missing_is_named():
    with pytest.raises(TaskError, match=r"no column 'label'.*is 'labels' meant"):
        read_examples(table(("a.wav", "x"), columns=("path", "labels")))


def test_some_of_the_examples_lose_the_labels_that_they_do_not_have():
    found = read_examples(table(*[(f"{i}.wav", 0.0, 1.0, label) for i, label in enumerate(["a", "b", "c", "b"])]))
    left = found.take(np.array([0, 1, 3]))
    assert left.names == ["a", "b"]
    assert left.truth.astype(int).tolist() == [[1, 0], [0, 1], [0, 1]]
    with pytest.raises(TaskError, match="every labelled clip has 'b'"):
        found.take(np.array([1, 3]))


def test_what_is_not_known_does_not_count():
    rng = np.random.default_rng(0)
    x, y, known = rng.normal(size=(60, 5)), rng.random((60, 3)) < 0.4, rng.random((60, 3)) < 0.7
    weight, bias = fit_labels(x, y, 0.5, known)
    for c in range(3):
        rows = known[:, c]
        alone, its_bias = fit_labels(x[rows], y[rows][:, [c]], 0.5)
        np.testing.assert_allclose(weight[:, [c]], alone, atol=1e-4)
        np.testing.assert_allclose(bias[c], its_bias[0], atol=1e-4)


def examples_of(sets, recordings, denied=()):
    names = sorted({name for words in sets for name in words})
    truth = np.array([[name in words for name in names] for words in sets])
    clips = table(
        *[(f"{r}.wav", float(i), 1.0, ",".join(s)) for i, (s, r) in enumerate(zip(sets, recordings, strict=True))]
    )
    return Examples(clips, names, truth, np.ones_like(truth), np.full(len(truth), "train"))


def blobs(n=120, dim=20, seed=0):
    rng = np.random.default_rng(seed)
    kind = np.arange(n) % 3
    x = (3 * np.eye(3, dim)[kind] + 0.7 * rng.normal(size=(n, dim))) * 5 + 40
    return x.astype(np.float32), [{"abc"[k]} for k in kind]


@pytest.mark.parametrize("n", [12, 120])  # fewer clips than numbers of an embedding, and more
def test_scores_are_those_of_the_regression_on_prepared_embeddings(n):
    x, sets = blobs(n)
    found = fit_classifier(x, examples_of(sets, np.arange(n)))
    prepare = preparation(x)
    truth = np.array([[name in words for name in "abc"] for words in sets])
    weight, bias = fit_labels(prepare(x), truth, found.facts["strength"])
    new = blobs(50, seed=1)[0]
    np.testing.assert_allclose(found.scores(new), expit(prepare(new) @ weight + bias), atol=1e-9)
    right = [{found.names[c]} for c in found.scores(new).argmax(1)]
    assert np.mean([a == b for a, b in zip(right, blobs(50)[1], strict=True)]) > (0.9 if n == 120 else 0.5)


def test_a_rough_fit_from_another_strength_is_near_the_exact_one():
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(300, 40)), rng.random((300, 3)) < 0.3
    before = fit_labels(x, y, 0.001, rough=True)
    weight, bias = fit_labels(x, y, 0.01)
    rough, rough_bias = fit_labels(x.astype(np.float32), y, 0.01, start=before, rough=True)
    assert rough.dtype == rough_bias.dtype == np.float64
    np.testing.assert_allclose(expit(x @ rough + rough_bias), expit(x @ weight + bias), atol=2e-3)
    assert np.abs(x @ before[0] - x @ weight).max() > 0.1, "the two strengths differ"


def test_strengths_beyond_the_best_are_not_tried(monkeypatch):
    """Noise that has nothing to do with the labels: the strongest penalty is the best, and two more are tried."""
    rng, tried = np.random.default_rng(0), []

    def fit(x, y, strength, *args, **options):
        tried.append(strength)
        return fit_labels(x, y, strength, *args, **options)

    monkeypatch.setattr("decar.downstream.classifier.fit_labels", fit)
    x, sets = rng.normal(size=(200, 30)).astype(np.float32), [{"ab"[i]} for i in rng.integers(0, 2, 200)]
    found = fit_classifier(x, examples_of(sets, np.arange(200)))
    assert found.facts["strength"] == 1e-4
    assert sorted(set(tried)) == [1e-4, 1e-3, 1e-2]


def test_validation_holds_back_whole_recordings():
    """Labels are drawn for each recording, and embeddings tell recordings apart and nothing else."""
    rng = np.random.default_rng(0)
    recording = np.repeat(np.arange(40), 10)
    x = (rng.normal(size=(40, 60))[recording] + 0.01 * rng.normal(size=(400, 60))).astype(np.float32)
    label = rng.permutation(np.repeat([0, 1], 20))[recording]
    found = fit_classifier(x, examples_of([{"ab"[k]} for k in label], recording))
    assert (found.scores(x).argmax(1) == label).mean() > 0.9  # it knows these recordings
    assert 0.3 < found.validation["a"]["average_precision"] < 0.7  # and nothing else
    x, sets = blobs()
    honest = fit_classifier(x, examples_of(sets, np.arange(120)))
    assert honest.validation["a"]["average_precision"] > 0.95
    assert honest.validation["a"] | {"clips": 40, "without": 80, "recordings": 40} == honest.validation["a"]


def test_a_column_of_places_is_held_back_together():
    x, sets = blobs(30)
    examples = examples_of(sets, np.arange(30))
    examples.clips.table["site"] = ["north", "south"] * 15
    assert fit_classifier(x, examples).facts["recordings"] == 2
    assert fit_classifier(x, examples, group=None).facts["recordings"] == 30


def test_places_are_held_back_though_sets_of_labels_are_rare(caplog):
    """Of each set there is one place, so the column was left out without a word; of each label there are several."""
    rng = np.random.default_rng(0)
    sets = [set(rng.choice([*"abcdefgh"], rng.integers(2, 5), replace=False)) for _ in range(60)]
    examples = examples_of(sets, np.arange(60))
    examples.clips.table["site"] = np.arange(60) % 10
    x = rng.normal(size=(60, 5)).astype(np.float32)
    assert fit_classifier(x, examples).facts["recordings"] == 10
    assert "hold back site" not in caplog.text
    examples.clips.table["site"] = ["north"] * 40 + ["south"] * 20
    fit_classifier(x, examples)
    assert "hold back site" in caplog.text


def test_a_label_of_one_recording_has_no_validation_and_a_line_says_so(caplog):
    x, sets = blobs(30)
    recordings = [0 if words == {"a"} else i for i, words in enumerate(sets)]
    found = fit_classifier(x, examples_of(sets, recordings))
    assert "f1" not in found.validation["a"]
    assert "f1" in found.validation["b"]
    assert found.thresholds[0] == 0.5
    assert "a: clips of at least two recordings" in caplog.text


def test_one_recording_is_validated_by_clips_and_a_line_says_so(caplog):
    x, sets = blobs(30)
    found = fit_classifier(x, examples_of(sets, [0] * 30))
    assert "f1" in found.validation["a"]
    assert [one["recordings"] for one in found.validation.values()] == [1] * len(found.names)
    assert "all labelled clips are of one recording" in caplog.text
    card = card_of(found, "c")
    assert "clips whose recordings the classifier had not seen" not in card
    assert "All labelled clips are of one recording" in card
    assert "had not seen" in card_of(fit_classifier(x, examples_of(sets, np.arange(30))), "c")


def test_one_place_is_validated_by_recordings_and_not_by_their_clips(caplog):
    """Each recording has a sound of its own, and labels follow recordings: clips of it in both parts would be known."""
    rng = np.random.default_rng(0)
    recordings = np.repeat(np.arange(20), 6)
    x = 5 * rng.normal(size=(20, 64))[recordings] + 0.1 * rng.normal(size=(120, 64))
    examples = examples_of([{"ab"[i % 2]} for i in recordings], recordings)
    examples.clips.table["site"] = "pond"
    found = fit_classifier(x, examples, group="site")
    assert found.validation["a"]["average_precision"] < 0.9
    assert (found.facts["recordings"], found.validation["a"]["recordings"]) == (20, 10)
    assert "one value of site: the validation holds back recordings alone" in caplog.text
    assert "had not seen" in card_of(found, "c")


def in_splits(x, sets, split):
    """Embeddings, and examples of a recording each whose table has a column `Split`."""
    rows = [(f"{i}.wav", ",".join(words), part) for i, (words, part) in enumerate(zip(sets, split, strict=True))]
    return x, read_examples(table(*rows, columns=("path", "label", "Split")))


def test_clips_of_a_split_are_fitted_validated_or_left_out_as_it_says(caplog):
    caplog.set_level("INFO")
    x, sets = blobs(120)
    split = np.resize(["train", "Train", "dev", "test", ""], 120)
    x[split == "dev", :3] += 6 * np.roll(x[split == "dev", :3] > 45, 1, axis=1)  # half of them look like another label
    x, examples = in_splits(x, sets, split)
    used = examples.for_fit()
    assert used.clips.table["path"].tolist() == [f"{i}.wav" for i in range(120) if i % 5 < 3]
    assert "24 labelled clips of split test" in caplog.text
    assert "24 labelled clips without a split" in caplog.text
    found = fit_classifier(x[np.resize([True] * 3 + [False] * 2, 120)], used)
    rows, given = np.resize([True, True, False, False, False], 120), split == "dev"
    prepare = preparation(x[rows])
    truth = np.array([[name in words for name in "abc"] for words in sets])
    weight, bias = fit_labels(prepare(x[rows]), truth[rows], found.facts["strength"])
    np.testing.assert_allclose(found.scores(x), expit(prepare(x) @ weight + bias), atol=1e-9)
    assert (found.facts["clips"], found.facts["valid"]) == (48, 24)
    for c, name in enumerate("abc"):
        right, above = truth[given, c], found.scores(x[given])[:, c] >= found.thresholds[c]
        assert found.validation[name]["recall"] == pytest.approx((right & above).sum() / right.sum(), abs=0.13)
        assert found.validation[name]["clips"] == 24
    assert "of the 24 clips of split valid" in card_of(found, "c")


def test_a_clip_to_test_on_changes_nothing():
    x, sets = blobs(60)
    examples = examples_of(sets, np.arange(60))
    alone = fit_classifier(x, examples)
    spoiled = [*sets, *[{"c"}] * 30]
    y, more = in_splits(np.concatenate([x, x[::-2]]), spoiled, ["train"] * 60 + ["test"] * 30)
    found = fit_classifier(y[:60], more.for_fit())
    assert (found.scores(x) == alone.scores(x)).all()
    assert (found.thresholds == alone.thresholds).all()
    assert found.validation == alone.validation
    with pytest.raises(TaskError, match="clips of split test"):
        fit_classifier(y, more)


def test_a_recording_of_two_splits_is_named(caplog):
    x, sets = blobs(12)
    examples = examples_of(sets, [0, 0, *range(1, 11)])
    examples.split[[0, 4, 5]] = "valid"
    fit_classifier(x, examples)
    assert "1 recordings are in split train and in split valid, such as 0.wav" in caplog.text


@pytest.mark.parametrize(
    ("split", "message"),
    [
        (["test", "test", ""], "no labelled clip is of split train"),
        (["train", "trian", "test"], "column 'split' has unknown values 'trian'"),
        (["train", "valid", "valid"], "every labelled clip to fit to has 'a'"),
    ],
)
def test_splits_that_leave_nothing_to_learn_are_refused(split, message):
    with pytest.raises(TaskError, match=message):
        in_splits(None, [{"a"}, {"b"}, {"b"}], split)[1].for_fit()


def test_a_label_that_no_clip_to_fit_has_is_named(caplog):
    examples = in_splits(None, [{"a"}, {"b"}, {"c"}, {"b"}], ["train", "train", "valid", "test"])[1]
    assert examples.names == ["a", "b", "c"]
    assert examples.for_fit().names == ["a", "b"]
    assert "c: no clip of split train has it" in caplog.text


def test_a_stretch_of_two_splits_is_refused():
    rows = [("a.wav", "x", "train"), ("b.wav", "y", "train"), ("a.wav", "z", "test")]
    with pytest.raises(TaskError, match=r"a\.wav: the same stretch is of split train and of split test"):
        read_examples(table(*rows, columns=("path", "label", "split")))


def test_the_threshold_has_the_best_f1_of_all():
    from decar.downstream.classifier import _best_threshold

    rng = np.random.default_rng(0)
    for _ in range(50):
        truth = rng.random(40) < 0.3
        truth[:2] = True, False
        scores = np.clip(0.3 * truth + rng.random(40) * 0.7, 0, 1).round(1)
        found, threshold = _best_threshold(truth, scores)

        def f1(t, truth=truth, scores=scores):
            return 2 * (truth & (scores >= t)).sum() / (truth.sum() + (scores >= t).sum())

        assert found == pytest.approx(max(f1(t) for t in scores))
        assert f1(threshold) == pytest.approx(found)


def test_the_threshold_of_a_rare_label_is_drawn_towards_that_of_all():
    from decar.downstream.classifier import _best_threshold, _validate

    rng = np.random.default_rng(0)
    truth = np.stack(
        [np.arange(200) % 2 == 0, np.arange(200) % 100 == 0], axis=1
    )  # 100 clips have the one, 2 the other
    scores = expit(np.where(truth, 1.0, -1.0) + rng.normal(size=(200, 2)) * 0.8)
    examples = Examples(
        table(*[(f"{i}.wav", 0.0, 1.0, "") for i in range(200)]), ["a", "b"], truth, np.ones_like(truth),
        np.full(200, "train"),
    )  # fmt: skip
    _, found = _validate(scores, examples, np.arange(200), np.arange(200).astype(str))
    shared = _best_threshold(truth.ravel(), scores.ravel())[1]
    for c, n in enumerate((100, 2)):
        own = _best_threshold(truth[:, c], scores[:, c])[1]
        odds = (n * np.log(own / (1 - own)) + 10 * np.log(shared / (1 - shared))) / (n + 10)
        assert found[c] == pytest.approx(expit(odds))


def classifier():
    rng = np.random.default_rng(0)
    facts = {"encoder": "0" * 64, "bundle": "small", "segment": "auto"}
    return Classifier(["a", "b"], rng.normal(size=(6, 2)), rng.normal(size=2), np.array([0.5, 0.7]), {}, facts)


def test_labels_are_those_above_their_threshold_the_surest_first():
    scores = np.array([[0.6, 0.8], [0.6, 0.69], [0.4, 0.2], [0.5, 0.99]])
    assert classifier().labels(scores) == ["b,a", "a", "", "b,a"]
    assert margins(np.array([[0.0, 1.0]]), np.full(2, 0.5))[0] == pytest.approx([-27.63, 27.63], abs=0.01)


def test_a_file_gives_back_what_was_saved_and_damage_is_noticed(tmp_path):
    made, file = classifier(), tmp_path / "c.safetensors"
    made.save(file)
    back = Classifier.load(file)
    x = np.random.default_rng(1).normal(size=(9, 6))
    assert (back.scores(x) == made.scores(x)).all()
    assert (back.names, back.facts) == (made.names, made.facts)
    assert (back.thresholds == made.thresholds).all()
    content, rng = file.read_bytes(), np.random.default_rng(0)
    for place in rng.integers(len(content), size=60).tolist():
        broken = bytearray(content)
        broken[place] ^= 1 << int(rng.integers(8))
        file.write_bytes(broken)
        with pytest.raises(TaskError, match="not readable as a classifier"):
            Classifier.load(file)
    file.write_bytes(content[:-8])
    with pytest.raises(TaskError, match="not readable as a classifier"):
        Classifier.load(file)


def test_what_is_no_classifier_is_refused(tmp_path):
    from safetensors.numpy import save

    from decar.digests import seal_tensors
    from decar.models.bundle import READY_FILE

    for file in (tmp_path / "none", READY_FILE):
        with pytest.raises(TaskError, match=r"decar fit LABELS\.csv"):
            Classifier.load(file)
    about = {"digest": "0" * 32, "format": 1, "labels": ["a"], "validation": {}, "facts": {}}
    for arrays in (
        {"weight": np.zeros((6, 2)), "bias": np.zeros(2), "thresholds": np.zeros(2)},
        {"weight": np.full((6, 1), np.nan), "bias": np.zeros(1), "thresholds": np.zeros(1)},
        {"weight": np.zeros((6, 1), np.float32), "bias": np.zeros(1), "thresholds": np.zeros(1)},
        {"weight": np.zeros((6, 1)), "bias": np.zeros(1)},
    ):
        (tmp_path / "sent").write_bytes(seal_tensors(save(arrays, metadata={"decar": json.dumps(about)})))
        with pytest.raises(TaskError, match="not readable as a classifier"):
            Classifier.load(tmp_path / "sent")


def test_embeddings_of_another_encoder_are_refused():
    with pytest.raises(TaskError, match="fitted to 6 numbers a clip"):
        classifier().scores(np.zeros((3, 7)))
    with pytest.raises(TaskError, match="embeddings of another encoder"):
        classifier().require_encoder("1" * 64)


def test_typical_clips_are_one_of_each_kind_and_never_a_labelled_one():
    rng = np.random.default_rng(0)
    kind = np.arange(200) % 5
    x = (10 * np.eye(5, 16)[kind] + rng.normal(size=(200, 16))).astype(np.float32)
    rows = suggest(x, np.arange(100), None, n=5)
    assert sorted(kind[rows].tolist()) == [0, 1, 2, 3, 4]
    assert (rows >= 100).all()
    assert suggest(x, np.arange(197), None, n=5).tolist() == [197, 198, 199]


def test_unsure_clips_are_suggested_that_are_unlike_one_another():
    """Clips lie on a line between two kinds; ten copies of the least sure one are suggested once."""
    along = np.concatenate([np.linspace(-1, 1, 190), np.zeros(10)])
    x = np.stack([along, np.random.default_rng(0).normal(size=200) * 0.2], axis=1).astype(np.float32)
    x[190:] = [0.0, 0.0]
    made = Classifier(["a", "b"], np.array([[9.0, -9.0], [0.0, 0.0]]), np.zeros(2), np.full(2, 0.5), {}, {})
    rows = suggest(x, np.array([0, 189]), made, n=10)
    assert np.abs(along[rows]).max() < 0.3  # the 50 least sure of 198
    assert (rows >= 190).sum() <= 1
    assert len(set(rows.tolist())) == 10
    unit = (x - x.mean(0)) / np.sqrt(x.var(0) + x.var(0).mean())
    unit /= np.linalg.norm(unit, axis=1, keepdims=True)
    order = np.argsort(doubt(margins(made.scores(x), made.thresholds)), kind="stable")
    pool = [i for i in order.tolist() if i not in (0, 189)][:50]
    given = [0, 189]
    for row in rows.tolist():  # the slow form
        far = [min(1 - unit[i] @ unit[j] for j in given) for i in pool]
        assert 1 - max(unit[row] @ unit[j] for j in given) == pytest.approx(max(far), abs=1e-5)
        given.append(row)
