import os
from collections.abc import Callable
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from decar.audio import LogMelStore
from decar.downstream import finetune
from decar.downstream.finetune import FineTuner, TaskData, fit_finetune
from decar.downstream.protocol import Outcome, PaperProtocol, Protocol, SearchProtocol
from decar.downstream.task import Task
from decar.errors import TaskError
from decar.models import Encoder
from tests.downstream.helpers import TinyEncoder, make_task

CPU = {"accelerator": "cpu", "max_epochs": 100}
PAPER = PaperProtocol(lr=3e-3, batch_size=16, max_epochs=4)
SEARCH = SearchProtocol(learning_rates=(1e-5, 1e-2), batch_size=16, max_epochs=3)
Sounds = tuple[Task, LogMelStore]


@pytest.fixture
def sounds(make_store: Callable[..., LogMelStore]) -> Sounds:
    split = np.repeat(["train", "valid", "test"], [36, 12, 12])
    return make_task(np.arange(60) % 4, split), make_store([60, 98, 140] * 20)


def run(sounds: Sounds, protocol: Protocol, seed: int = 0, encoder: TinyEncoder | None = None) -> Outcome:
    return fit_finetune(encoder or TinyEncoder(), *sounds, protocol, seed, trainer_kwargs=CPU)  # type: ignore[arg-type]


def test_learns_and_leaves_the_given_encoder_alone(sounds: Sounds) -> None:
    encoder = TinyEncoder().eval()
    before = {key: value.clone() for key, value in encoder.state_dict().items()}
    outcome = run(sounds, replace(PAPER, max_epochs=12, lr=1e-2), encoder=encoder)
    assert outcome.test_value == 1.0  # the clips of a class share their spectrum
    assert not encoder.training
    assert all(torch.equal(before[key], value) for key, value in encoder.state_dict().items())


def test_the_whole_network_learns_in_train_mode_though_it_came_in_eval_mode(
    sounds: Sounds, monkeypatch: pytest.MonkeyPatch
) -> None:
    tuned: list[FineTuner] = []
    test = finetune._test
    monkeypatch.setattr(finetune, "_test", lambda t, *a: (tuned.append(t.module), test(t, *a))[1])
    encoder = TinyEncoder().eval()
    run(sounds, PAPER, encoder=encoder)
    after = tuned[0].encoder
    assert not torch.equal(after.conv.weight.cpu(), encoder.conv.weight)
    assert not torch.equal(after.norm.running_mean.cpu(), encoder.norm.running_mean)


def test_whole_clips_stay_on_the_cpu_where_their_batch_is_made(sounds: Sounds) -> None:
    data = TaskData(*sounds, batch_size=4)
    module, device = FineTuner(TinyEncoder(), 4, 1e-3), torch.device("meta")  # type: ignore[arg-type]
    whole = module.transfer_batch_to_device(next(iter(data.val_dataloader())), device, 0)
    assert {clip.device.type for clip in whole[0]} == {"cpu"}
    crops = module.transfer_batch_to_device(next(iter(data.train_dataloader())), device, 0)
    assert {part.device.type for part in crops} == {"meta"}


@pytest.mark.parametrize("protocol", [PAPER, SEARCH], ids=lambda p: p.name)
def test_same_seed_same_numbers_and_global_generator_untouched(sounds: Sounds, protocol: Protocol) -> None:
    torch.manual_seed(1)
    state = torch.random.get_rng_state()
    first = run(sounds, protocol)
    assert torch.equal(state, torch.random.get_rng_state())
    torch.manual_seed(2)
    second = run(sounds, protocol)
    assert first.history == second.history
    assert first.chosen == second.chosen
    assert np.array_equal(first.confusion, second.confusion)
    assert run(sounds, replace(protocol, max_epochs=2), seed=1).history != first.history[:2]


@pytest.mark.parametrize("protocol", [PAPER, SEARCH], ids=lambda p: p.name)
def test_test_labels_take_no_part_and_are_read_once(
    sounds: Sounds, protocol: Protocol, monkeypatch: pytest.MonkeyPatch
) -> None:
    reads: list[str] = []
    for name in ("val_dataloader", "test_dataloader"):
        make = getattr(TaskData, name)
        monkeypatch.setattr(TaskData, name, lambda self, name=name, make=make: (reads.append(name), make(self))[1])
    task, store = sounds
    plain = run(sounds, protocol)
    tried = 1 if protocol is PAPER else 2
    assert reads == ["val_dataloader"] * tried + ["test_dataloader"]
    y = task.y.copy()
    y[task.indices("test")] = (y[task.indices("test")] + 1) % 4
    other = run((replace(task, y=y), store), protocol)
    assert other.history == plain.history
    assert other.chosen == plain.chosen
    assert other.valid_value == plain.valid_value
    assert other.test_value != plain.test_value


@pytest.mark.parametrize("several", [False, True])
def test_a_learning_rate_that_diverges_is_never_the_best(
    sounds: Sounds, caplog: pytest.LogCaptureFixture, several: bool
) -> None:
    """The largest of NaNs is the first class: with most clips of that class such a network won, and was the result."""
    y = np.where(np.arange(60) % 5 > 1, 0, np.arange(60) % 4)
    task, store = replace(sounds[0], y=np.eye(4, dtype=bool)[y] if several else y), sounds[1]
    one, both = (replace(SEARCH, learning_rates=rates) for rates in ((1e-5,), (1e-5, 1e36)))
    expected, outcome = run((task, store), one), run((task, store), both)
    assert outcome.chosen == expected.chosen
    assert outcome.metrics == expected.metrics
    assert outcome.history[len(expected.history) :] == [
        {"lr": 1e36, "epoch": epoch, "valid_value": 0.0} for epoch in range(SEARCH.max_epochs)
    ]
    assert "lr=1e+36, epoch 1: the network diverged" in caplog.text
    with pytest.raises(TaskError, match=r"diverged in every epoch .*learning rate"):
        run((task, store), replace(PAPER, lr=1e36))


def test_a_refit_that_diverges_is_an_error(sounds: Sounds, monkeypatch: pytest.MonkeyPatch) -> None:
    refit = finetune._refit

    def diverging(*args: Any) -> FineTuner:
        module = refit(*args)
        torch.nn.init.constant_(module.head.weight, float("nan"))
        return module

    monkeypatch.setattr(finetune, "_refit", diverging)
    with pytest.raises(TaskError, match="diverged"):
        run(sounds, replace(PAPER, refit=True, max_epochs=1))


@pytest.fixture
def hard(sounds: Sounds) -> Sounds:
    """Classes drawn by lot: every epoch answers otherwise."""
    return replace(sounds[0], y=np.random.default_rng(3).integers(0, 4, 60)), sounds[1]


def test_first_best_epoch_is_put_back(hard: Sounds) -> None:
    protocol = replace(PAPER, max_epochs=10, lr=1e-2)
    outcome = run(hard, protocol)
    scores = [entry["valid_value"] for entry in outcome.history]
    first = scores.index(max(scores))
    assert outcome.chosen["epoch"] == first
    assert 0 < first < 9  # else the next lines say nothing
    assert outcome.valid_value == max(scores)
    cuts = [run(hard, replace(protocol, max_epochs=n + 1)) for n in range(first + 1)]
    assert np.array_equal(cuts[first].confusion, outcome.confusion)
    assert not np.array_equal(cuts[first - 1].confusion, outcome.confusion)


def test_each_epoch_of_validation_is_counted_by_itself(hard: Sounds) -> None:
    scores = [12 * entry["valid_value"] for entry in run(hard, replace(PAPER, max_epochs=8, lr=1e-2)).history]
    assert len(set(scores)) > 2
    assert scores == pytest.approx([round(score) for score in scores])


def test_search_tries_each_rate_from_the_same_weights_and_keeps_the_best(sounds: Sounds) -> None:
    outcome = run(sounds, SEARCH)
    parts = [run(sounds, PaperProtocol(lr=lr, batch_size=16, max_epochs=3)) for lr in SEARCH.learning_rates]
    assert outcome.history == parts[0].history + parts[1].history
    best = max(parts, key=lambda part: part.valid_value)
    assert outcome.chosen == best.chosen
    assert np.array_equal(outcome.confusion, best.confusion)


def test_nothing_is_written(sounds: Sounds, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    run(sounds, PAPER)
    assert os.listdir(tmp_path) == []


def test_epochs_differ_in_training(sounds: Sounds, monkeypatch: pytest.MonkeyPatch) -> None:
    """Lightning does tell the sampler which epoch it is."""
    seen: list[list[int]] = []
    step = FineTuner.training_step
    monkeypatch.setattr(
        FineTuner, "training_step", lambda self, b, i: (seen.append(b[1].tolist()), step(self, b, i))[1]
    )
    run(sounds, replace(PAPER, max_epochs=3))
    task_classes = [i % 4 for i in range(36)]
    epochs = [seen[i : i + 3] for i in range(0, 9, 3)]
    assert epochs[0] != epochs[1] != epochs[2] != epochs[0]
    assert all(sorted(chain(*e)) == sorted(task_classes) for e in epochs)


def test_a_real_network(sounds: Sounds, small_encoder: Encoder, monkeypatch: pytest.MonkeyPatch) -> None:
    kept: list[bool] = []
    step = FineTuner.training_step

    def watched(self: FineTuner, batch: object, index: int) -> torch.Tensor:
        kernels = [weight for weight in self.encoder.parameters() if weight.ndim == 4]
        kept.append(all(weight.is_contiguous(memory_format=torch.channels_last) for weight in kernels))
        return step(self, batch, index)  # type: ignore[arg-type]

    monkeypatch.setattr(FineTuner, "training_step", watched)
    outcome = fit_finetune(small_encoder, *sounds, replace(PAPER, max_epochs=1), 0, trainer_kwargs=CPU)
    assert outcome.confusion.sum() == 12
    assert kept  # the encoder's own memory layout, that is the fast one
    assert all(kept)


def test_refit_is_the_same_training_on_both_splits(sounds: Sounds, monkeypatch: pytest.MonkeyPatch) -> None:
    """The slow form: a task whose validation clips are training clips, and a loop over its batches."""
    tested: list[FineTuner] = []
    test = finetune._test
    monkeypatch.setattr(finetune, "_test", lambda t, *a: (tested.append(t.module), test(t, *a))[1])
    plain = run(sounds, PAPER, seed=2)
    outcome = run(sounds, replace(PAPER, refit=True), seed=2)
    assert (outcome.chosen, outcome.history) == (plain.chosen, plain.history)
    task, store = sounds
    union = replace(task, split=np.where(task.split == "valid", "train", task.split))
    data = TaskData(union, store, batch_size=16, seed=2)
    torch.manual_seed(2)
    module = FineTuner(TinyEncoder(), 4, PAPER.lr).train()  # type: ignore[arg-type]
    adam, loader = module.configure_optimizers(), data.train_dataloader()
    for epoch in range(int(plain.chosen["epoch"]) + 1):
        loader.sampler.set_epoch(epoch)  # type: ignore[attr-defined]
        for x, y in loader:
            loss = torch.nn.functional.cross_entropy(module(x), y)
            adam.zero_grad()
            loss.backward()
            adam.step()
    for (key, one), other in zip(tested[1].state_dict().items(), module.state_dict().values(), strict=True):
        torch.testing.assert_close(one, other, msg=key)
    assert not torch.equal(tested[0].head.weight, tested[1].head.weight)
    few = replace(task, spec=replace(task.spec, shots=9)), store
    assert run(few, replace(PAPER, refit=True), seed=2).confusion.tolist() == plain.confusion.tolist(), "of few shots"
