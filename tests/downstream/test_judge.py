from dataclasses import replace
from pathlib import Path

import pytest
import soundfile

from decar.downstream import evaluate
from decar.downstream.evaluate import judge
from decar.downstream.protocol import PaperProtocol, SearchProtocol
from decar.downstream.results import Result
from decar.downstream.task import TaskSpec
from decar.errors import ConfigError
from tests.downstream.helpers import TinyEncoder


@pytest.fixture
def spec(sound_folder: Path) -> TaskSpec:
    return TaskSpec("sounds", "label", str(sound_folder))


def run(spec: TaskSpec, cache: Path, encoder: object = "logmel", **changes: object) -> Result:
    given = {"bundle": "logmel", "mode": "frozen", "protocol": SearchProtocol(), "seed": 0, **changes}
    return judge(spec, encoder, cache_dir=cache, progress=False, trainer_kwargs={"accelerator": "cpu"}, **given)  # type: ignore[arg-type]


def test_logmel_from_folder_to_result(spec: TaskSpec, tmp_path: Path) -> None:
    result = run(spec, tmp_path)
    assert (result.task, result.encoder, result.encoder_hash, result.metric) == (
        "sounds",
        "logmel",
        "logmel",
        "accuracy",
    )
    assert (result.n_train, result.n_valid, result.n_test, result.n_classes) == (6, 3, 3, 3)
    assert result.value == 1.0
    assert result.seconds > 0
    assert Result.read(result.write(tmp_path)) == result


@pytest.mark.parametrize("value", [0, "98"])
def test_numbers_of_the_mode_are_checked_before_anything_is_done(spec: TaskSpec, tmp_path: Path, value: object) -> None:
    with pytest.raises(ConfigError, match=r"^mode\.crop_frames=.*: not allowed; give a whole number, 1 or more"):
        run(replace(spec, crop_frames=value), tmp_path)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match=r"^mode\.num_workers=-1: not allowed; give a whole number, 0 or more"):
        run(spec, tmp_path, num_workers=-1)
    assert not (tmp_path / "logmel").exists()


@pytest.mark.parametrize("mode", ["frozen", "finetune"])
def test_same_seed_same_result_whether_cached_or_not(spec: TaskSpec, tmp_path: Path, mode: str) -> None:
    given = {"bundle": "runs/x", "mode": mode, "protocol": PaperProtocol(max_epochs=2)}
    first = run(spec, tmp_path / "one", TinyEncoder(), **given)
    cached = run(spec, tmp_path / "one", TinyEncoder(), **given)
    afresh = run(spec, tmp_path / "two", TinyEncoder(), **given)
    assert first.encoder == "decar"
    assert replace(first, seconds=0) == replace(cached, seconds=0) == replace(afresh, seconds=0)


def test_tasks_of_one_source_share_store_and_embeddings(
    sound_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = sorted(p.relative_to(sound_folder).as_posix() for p in sound_folder.rglob("*.wav"))
    rows = [f"{n},{n.split('/')[0]},{'' if 'noise' in n else n.split('/')[0]}" for n in names]
    (sound_folder / "t.csv").write_text("\n".join(["path,all,tones", *rows]))
    passes: list[int] = []
    encode = evaluate.embed_store
    monkeypatch.setattr(evaluate, "embed_store", lambda *a, **k: (passes.append(1), encode(*a, **k))[1])
    for label, n in (("all", 12), ("tones", 8)):
        spec = TaskSpec(label, label, str(sound_folder / "t.csv"), split=None)
        result = run(spec, tmp_path, TinyEncoder(), bundle="random")
        assert result.n_train + result.n_valid + result.n_test == n
    assert len(passes) == 1
    assert len(list((tmp_path / "logmel").glob("*/meta.json"))) == 1


@pytest.mark.parametrize("mode", ["frozen", "finetune"])
def test_bad_files_are_counted_and_rows_stay_with_their_labels(
    sound_folder: Path, spec: TaskSpec, tmp_path: Path, mode: str
) -> None:
    (sound_folder / "high" / "a.wav").write_bytes(b"")
    (sound_folder / "low" / "zz.wav").write_text("not sound")
    soundfile.write(sound_folder / "noise" / "silent.wav", [0.0] * 8000, 16000)
    encoder, bundle = ("logmel", "logmel") if mode == "frozen" else (TinyEncoder(), "random")
    result = run(spec, tmp_path, encoder, bundle=bundle, mode=mode, protocol=SearchProtocol(max_epochs=1))
    assert sum(result.dropped.values()) == 2
    assert result.n_train + result.n_valid + result.n_test == 13  # silence is sound
    if mode == "frozen":
        assert result.value >= 2 / 3


def test_logmel_cannot_be_tuned(spec: TaskSpec, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="mode=frozen"):
        run(spec, tmp_path, mode="finetune")
