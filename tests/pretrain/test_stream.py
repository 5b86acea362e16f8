"""A stream: each clip is read once a pass, batches do not depend on resumes or ranks, and bad clips cost a line."""

import threading
from collections import Counter
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from decar.audio import FrontEnd, LogMelStore, Manifest
from decar.audio import clips as clips_module
from decar.audio.descriptors import DESCRIPTORS
from decar.clustering import PIC, KMeans
from decar.errors import ConfigError, TrainingError
from decar.pretrain import DescriptorLabels, EpochLabels, OnlineLabels, StreamData
from decar.pretrain.online import FittedDescriptors
from decar.pretrain.stream import endless, read_pieces, references, sample_of, shuffled
from tests.audio.sounds import tone, write
from tests.pretrain.helpers import build, fit

NO_LABELS = EpochLabels(np.empty((12, 0), np.int64), [], 0, views=2)


class Endless:
    """A source that does not know its length, and can be iterated again."""

    def __init__(self, jobs):
        self.jobs = jobs

    def __iter__(self):
        return iter(self.jobs)


@pytest.fixture
def manifest(sound_folder):
    return Manifest.from_folder(sound_folder)


@pytest.fixture
def store(manifest, tmp_path):
    return LogMelStore.open_or_build(manifest, cache_dir=tmp_path / "cache", progress=False)


def stream(manifest, store, **options):
    data = StreamData(
        manifest, store, **{"crop_frames": 20, "batch_size": 8, "buffer": 5, "every_n_steps": 10, **options}
    )
    data.set_labels(NO_LABELS)
    return data


def test_the_buffer_gives_each_item_once_and_holds_no_more_than_its_size():
    for n, size in ((0, 3), (2, 5), (100, 1), (100, 10), (7, 7)):
        coming, out = iter(range(n)), []
        for item in shuffled(coming, size, seed=0):
            out.append(item)
            taken = n - coming.__length_hint__()
            assert taken - len(out) <= size
        assert sorted(out) == list(range(n))
    assert list(shuffled(range(100), 10, 0)) == list(shuffled(range(100), 10, 0)) != list(shuffled(range(100), 10, 1))
    assert list(shuffled(range(5), 1, 0)) == [0, 1, 2, 3, 4]
    order = np.array(list(shuffled(range(1000), 1000, 0)))
    assert abs(np.corrcoef(order, np.arange(1000))[0, 1]) < 0.1


@pytest.mark.parametrize("source", [list, Endless], ids=["known length", "unknown"])
def test_each_pass_has_every_clip_once_and_can_be_entered_anywhere(source):
    clips = source(range(23))
    whole = list(islice(endless(clips, 6, seed=0), 100))
    for number in range(4):
        assert sorted(whole[23 * number : 23 * (number + 1)]) == list(range(23))
    assert whole[:23] != whole[23:46]
    for skip in (1, 22, 23, 24, 60):
        assert list(islice(endless(clips, 6, 0, skip), 40)) == whole[skip : skip + 40]


def test_a_source_that_ends_for_good_is_an_error():
    with pytest.raises(TrainingError, match=r"no clips in pass 2: give a source .* again"):
        list(endless((i for i in range(9)), 4, 0))
    with pytest.raises(TrainingError, match="pass 1"):
        next(endless([], 4, 0))


def test_the_references_of_a_manifest_are_its_clips(manifest):
    assert list(references(manifest)) == manifest.jobs
    assert len(references(manifest)) == 12


def test_the_sample(manifest):
    found = sample_of(manifest, 5, seed=0)
    assert found.table.equals(sample_of(manifest, 5, 0).table)
    assert len(set(found.table["path"])) == 5
    assert "label" in found.table
    first = sample_of(Endless(manifest.jobs), 5, seed=0)
    assert first.jobs == manifest.jobs[:5]


def holding(store, crop):
    """The only clip that a crop (M, F) is a stretch of."""
    mels, n = [store[i].astype(np.float32).T for i in range(len(store))], crop.shape[1]
    starts = [(i, s) for i, mel in enumerate(mels) for s in range(mel.shape[1] - n + 1)]
    (clip,) = {i for i, s in starts if np.array_equal(crop, mels[i][:, s : s + n])}
    return clip


def first_batches(data, first, n):
    """`n` batches from number `first` on, as the network gets them."""
    return [data.on_after_batch_transfer(batch, 0) for batch in islice(data.batches_from(first), n)]


def test_crops_are_stretches_of_their_clips_and_each_file_is_read_once_a_pass(manifest, store, monkeypatch):
    read = Counter()
    decode = clips_module.decode_blocks
    monkeypatch.setattr(clips_module, "decode_blocks", lambda file, **k: read.update([file.name]) or decode(file, **k))
    seen = Counter()
    for crops, labels in first_batches(stream(manifest, store), 0, 3):
        assert labels.shape == (8, 0)
        clips = [holding(store, crop) for crop in crops[:, 0].numpy()]
        assert clips[:4] == clips[4:]
        seen.update(clips)
        assert not torch.equal(crops[:4], crops[4:])
    assert seen == dict.fromkeys(range(12), 2)
    ahead = Counter(file.name for file, _, _ in manifest.jobs)
    assert set(read) == set(ahead)
    assert max(read.values()) - min(read.values()) <= 1


@pytest.mark.parametrize("size", [2, 3])
@pytest.mark.parametrize("batch", [12, 6])
def test_ranks_share_the_batches_of_one_process_out(monkeypatch, manifest, store, size, batch):
    def batches():
        label = FittedDescriptors.fit(DescriptorLabels(KMeans(k=2), ("spectrum",), dim=3), store, 0).label
        return first_batches(stream(manifest, store, batch_size=batch, label=label), 1, 4)

    whole = batches()
    for rank in range(size):
        monkeypatch.setattr("decar.pretrain.stream.rank_and_size", lambda rank=rank: (rank, size))
        for (crops, labels), (mine, own) in zip(whole, batches(), strict=True):
            assert torch.equal(crops[rank::size], mine)
            assert torch.equal(labels[rank::size], own)


def test_reading_ahead_ends_with_training(manifest, store, tmp_path):
    before = threading.active_count()
    model, _ = build(store, source=online(store, False))
    data = stream(manifest, store, num_workers=2)
    data.labels = None
    _, recorder = fit(model, data, tmp_path / "whole", epochs=2)
    assert threading.active_count() == before
    model, _ = build(store, source=online(store, False))
    data = stream(manifest, store, num_workers=2)
    data.labels = None
    _, short = fit(model, data, tmp_path / "short", epochs=2, limit_train_batches=3)
    assert threading.active_count() == before
    assert short.losses[:3] == recorder.losses[:3]


def test_a_clip_that_cannot_be_used_is_named_and_another_takes_its_place(manifest, store, caplog):
    bad = Path(manifest.root, manifest.table["path"][3])
    bad.write_bytes(b"RIFF")
    soundfile.write(Path(manifest.root, manifest.table["path"][5]), np.zeros(8000), 16000)
    data = stream(manifest, store)
    crops = torch.cat([crops for crops, _ in first_batches(data, 0, 3)])
    assert len(crops) == 24
    assert data.unusable == 2
    lines = [record.getMessage() for record in caplog.records if "left out of the stream" in record.getMessage()]
    assert len(lines) == 2
    assert any(str(bad) in line for line in lines)
    assert any("silent" in line for line in lines)
    assert (crops.amax((1, 2, 3)) > -8).all(), "silence is not trained on"


def test_a_batch_without_a_clip_that_can_be_used(manifest, store):
    for path in manifest.table["path"]:
        Path(manifest.root, path).write_bytes(b"")
    with pytest.raises(TrainingError, match=r"none of the 4 clips of batch 1 can be used: .*\.wav"):
        next(stream(manifest, store).batches_from(0))


def test_of_a_long_recording_a_random_stretch_is_kept(tmp_path):
    """30 s whose pitch tells the second: each of its three pieces of 10 s is taken about as often."""
    rate = 16_000
    pitch = 300 * 2 ** (np.arange(30 * rate) // (10 * rate))
    soundfile.write(tmp_path / "long.wav", 0.3 * np.sin(2 * np.pi * np.cumsum(pitch) / rate), rate)
    store = LogMelStore.open_or_build(Manifest.from_folder(tmp_path), cache_dir=tmp_path / "cache", progress=False)
    jobs = [((tmp_path / "long.wav", 0.0, None), seed) for seed in range(30)]
    pieces = [mel for _, mel in read_pieces(jobs, store.frontend, 2)]
    assert {len(mel) for mel in pieces} <= {1000, 998}
    counts = Counter(int(mel.astype(np.float32).mean(0).argmax()) for mel in pieces)
    assert len(counts) == 3
    assert min(counts.values()) >= 4
    again = [mel for _, mel in read_pieces(jobs[10:], store.frontend, 1)]
    assert all(np.array_equal(a, b) for a, b in zip(pieces[10:], again, strict=True)), "by its seed alone"


@pytest.mark.parametrize(("seconds", "lengths"), [(10.03, [1000, 1]), (15.0, [1000, 498])])
def test_what_is_left_of_a_long_recording_is_taken_as_rarely_as_it_is_short(tmp_path, seconds, lengths):
    """A clip of 10.03 s was a single frame, and silence, in every second pass."""
    write(tmp_path / "long.wav", tone(seconds))
    jobs = [((tmp_path / "long.wav", 0.0, None), seed) for seed in range(60)]
    found = Counter(len(mel) for _, mel in read_pieces(jobs, FrontEnd(), 2))
    assert found.keys() <= {*lengths}
    assert found[lengths[1]] / 60 == pytest.approx(lengths[1] / sum(lengths), abs=0.15)


def test_descriptors_label_a_clip_by_its_nearest_centre(store):
    source = DescriptorLabels(KMeans(k=3), ("spectrum", "envelope"), dim=3)
    fitted = FittedDescriptors.fit(source, store, seed=0)
    mels = [store[i] for i in range(len(store))]
    found = fitted.label(mels, store.frontend)
    parts = [fitted.label(part, store.frontend) for part in (mels[:5], mels[5:])]
    assert np.array_equal(found, np.concatenate(parts))
    for h, name in enumerate(("spectrum", "envelope")):
        whitening, (centres,) = fitted.fitted[h].whitening, fitted.fitted[h].centres
        for i, mel in enumerate(mels):
            described = DESCRIPTORS[name](mel.astype(np.float64), store.frontend).astype(np.float32)
            point = whitening.unit(described[None])[0]
            distances = [float(np.square(point - centre).sum()) for centre in centres.points]
            assert found[i, h] == int(np.argmin(distances))
    again = FittedDescriptors.fit(source, store, seed=0)
    assert np.array_equal(again.label(mels, store.frontend), found)
    with pytest.raises(ConfigError, match="clusterer=kmeans"):
        FittedDescriptors.fit(DescriptorLabels(PIC()), store, 0)


def test_a_stream_of_unknown_length_needs_the_length_of_an_epoch(manifest, store):
    with pytest.raises(ConfigError, match=r"sampler\.every_n_steps"):
        StreamData(Endless(manifest.jobs), store)
    assert StreamData(manifest, store, batch_size=4, draws_per_clip=3).steps_per_epoch == 9


def online(store, descriptors):
    first = DescriptorLabels(KMeans(k=2), ("spectrum", "shape"), dim=3) if descriptors else None
    return OnlineLabels(KMeans(k=3), first=first, dim=3, queue=16, sample=10).for_stream(store, 0)


@pytest.mark.parametrize("descriptors", [True, False])
@pytest.mark.parametrize(("done", "num_workers"), [(13, 0), (20, 2)], ids=["mid-epoch", "last batch"])
def test_resume_is_exact(manifest, store, tmp_path, descriptors, done, num_workers):
    def make():
        source = online(store, descriptors)
        model, _ = build(store, source=source)
        label = source.first.label if source.first else None
        return model, stream(Endless(manifest.jobs), store, label=label, num_workers=num_workers)

    model, data = make()
    data.labels = None
    _, whole = fit(model, data, tmp_path / "whole", epochs=3, every_n_steps=13 if done == 13 else 10)
    assert len(whole.losses) == 30
    again, data = make()
    data.labels = None
    _, rest = fit(again, data, tmp_path / "rest", epochs=3, ckpt_path=tmp_path / "whole" / f"epoch=1-step={done}.ckpt")
    assert rest.losses == whole.losses[done:]
    assert len(set(whole.losses)) == 30
    for key, value in model.state_dict().items():
        assert torch.equal(value, again.state_dict()[key]), key
    np.testing.assert_array_equal(again.data.labels.sample, model.data.labels.sample)
