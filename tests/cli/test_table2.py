"""The paper's Table 2 in one command, on a replica of each of its nine corpora; random weights of the same network."""

import json

import pandas as pd
import pytest

from decar.cli.main import name_neighbours
from decar.downstream.tables import paper_cells
from decar.models import load_encoder, save_bundle
from tests.conftest import SMALL, make_encoder
from tests.corpora.replicas import REPLICAS, Sounds

NINE = sorted({task for task, _ in paper_cells(2)})
READINGS = {
    "librispeech_585", "voxceleb1_1211", "speech_commands_v1", "speech_commands_v2", "tut_urban_2018", "iemocap",
    "birdsong", "voxforge_8803", "nsynth_train_valid",
}  # fmt: skip


@pytest.fixture(autouse=True)
def _own_cache(monkeypatch, tmp_path):
    monkeypatch.setenv("DECAR_CACHE", str(tmp_path / "cache"))


def results(folder):
    return [json.loads(path.read_text()) for path in sorted(folder.rglob("result.json"))]


@pytest.mark.slow  # 36 cells
def test_nine_corpora_in_one_command(evaluate, decar, sound_folder, tmp_path):
    sounds = Sounds()
    for name in NINE:
        REPLICAS[name](tmp_path / name, sounds)
        assert decar("prepare", name, str(tmp_path / name)).code == 0
    base = (
        f"experiment=paper report=false encoder.name={SMALL} trainer=cpu trainer.max_epochs=2 loader.batch_size=8 "
        f"data=folder data.root={sound_folder}"
    )
    words = ["experiment=table2", f"pretrain.base='{base}'", "protocol.max_epochs=1", "accelerator=cpu"]
    first = evaluate(*words)
    assert first.code == 0, first.err
    found = results(tmp_path / "runs" / "table2")
    assert {(r["task"], r["encoder"], r["mode"]) for r in found} == {
        (task, encoder, mode) for task in READINGS for encoder in ("random", "decar") for mode in ("frozen", "finetune")
    }
    run = tmp_path / "runs" / "table3" / "encoders" / "pic-seed0"
    assert {r["network"] for r in found} == {load_encoder(run).description}
    assert all(r["protocol"] == "paper" and r["settings"]["refit"] is True for r in found)
    assert {r["pretrained"].get("clusterer") for r in found if r["encoder"] == "decar"} == {"pic"}
    table = decar("table2", "runs/table2", "--csv", str(tmp_path / "table2.csv"))
    assert table.code == 0, table.err
    beside = table.out.split("the paper's Table 2")[1].splitlines()
    rows = {line.split("|")[1].strip(): line for line in beside if line.startswith("|")}
    assert set(rows) > READINGS, "each of our readings stands beside the paper's figures"
    assert not any("– /" in rows[task] for task in READINGS), "every cell is filled"
    assert set(pd.read_csv(tmp_path / "table2.csv")["task"]) > READINGS
    again = evaluate(*words)
    assert again.out.count("judged already") == len(found) == 36


def test_random_takes_the_network_of_the_bundles_it_stands_beside(evaluate, sound_folder, tmp_path):
    made = {name: make_encoder(SMALL, pool, seed=5) for name, pool in (("a", "max"), ("b", "max"), ("c", "avg"))}
    bundles = {name: save_bundle(made[name], tmp_path / name / "encoder.safetensors").parent for name in made}
    words = ["-m", "task=folder", f"task.path={sound_folder}", "accelerator=cpu", "protocol=paper",
             "protocol.max_epochs=1"]  # fmt: skip
    beside = evaluate(*words, f"bundle=random,logmel,{bundles['a']},{bundles['b']}", "hydra.sweep.dir=one")
    assert beside.code == 0, beside.err
    assert "is not used" not in beside.out
    [random] = [r for r in results(tmp_path / "one") if r["encoder"] == "random"]
    assert random["network"] == made["a"].description
    assert random["encoder_hash"] == make_encoder(SMALL, seed=0).hash(), "drawn by the seed, not the bundle's weights"
    mixed = evaluate(*words, f"bundle=random,{bundles['a']},{bundles['c']}", "hydra.sweep.dir=two")
    assert mixed.code == 2
    assert len(mixed.errors) == 1
    assert f"{bundles['a']} has encoder.pool=max, {bundles['c']} has avg; pass beside=" in mixed.errors[0]
    assert len(results(tmp_path / "two")) == 2, "the bundles themselves are judged"
    chosen = evaluate(*words[1:], "bundle=random", f"beside={bundles['c']}", "hydra.run.dir=three")
    assert chosen.code == 0, chosen.err
    assert results(tmp_path / "three")[0]["network"] == made["c"].description
    more = evaluate(*words, f"bundle={bundles['b']},random", "resume=auto", "hydra.sweep.dir=one")
    assert more.out.count("judged already") == 2, "whatever else stands in the sweep"


@pytest.mark.parametrize(
    ("words", "beside"),
    [
        (["-m", "bundle=random,runs/a,small"], "beside=[runs/a,small]"),
        (["-m", "bundle=random,'my runs/a',logmel,'hear:m'"], "beside=['my runs/a']"),
        (["bundle=random"], None),
        (["-m", "bundle=random,logmel"], None),
        (["-m", "bundle=runs/a,runs/b"], None),
        (["-m", "bundle=random,runs/a", "encoder=efficientnet_b0"], None),
        (["-m", "bundle=random,runs/a", "beside=runs/b"], None),
        (["-m", "bundle=random,["], None),
    ],
)
def test_a_sweep_names_what_random_stands_beside(words, beside):
    assert name_neighbours(words) == [*words, *([beside] if beside else [])]


def test_a_network_chosen_twice_is_refused(evaluate, tmp_path):
    bundle = save_bundle(make_encoder(SMALL, seed=5), tmp_path / "encoder.safetensors")
    twice = evaluate("task=kind", "bundle=random", f"beside={bundle}", "encoder=efficientnet_b0")
    assert "the network comes from beside=" in twice.errors[0]
    idle = evaluate("task=kind", "bundle=small", f"beside={bundle}")
    assert "it says which network bundle=random has" in idle.errors[0]


def test_a_list_of_clips_from_before_is_named(evaluate, decar, tmp_path):
    REPLICAS["nsynth"](tmp_path / "nsynth", Sounds())
    decar("prepare", "nsynth", str(tmp_path / "nsynth"), "--no-store")
    file = next((tmp_path / "cache").glob("corpora/nsynth/manifest.csv"))
    pd.read_csv(file).drop(columns="split_train_valid").to_csv(file, index=False)
    facts = {"root": str(tmp_path / "nsynth"), "missing": 0, "seconds": 1.0, "unreadable": 0}
    (file.parent / "facts.json").write_text(json.dumps(facts))
    done = evaluate("task=nsynth_train_valid", "bundle=logmel")
    assert done.code == 2
    assert "no column 'split_train_valid'" in done.errors[0]
    assert "run `decar prepare nsynth" in done.errors[0]
