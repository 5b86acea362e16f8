import shlex

import pytest
from hydra import compose, initialize_config_dir
from hydra.core.override_parser.overrides_parser import OverridesParser

from decar.cli.config import conf_dir, register_resolvers
from decar.downstream.columns import COLUMNS
from decar.downstream.commands import DEFAULT_NETWORK, missing_commands, option
from decar.downstream.results import Result
from decar.downstream.tables import EMPTY, table2, table2_markdown
from tests.conftest import make_encoder
from tests.downstream.helpers import make_decar, make_result

ODD = [
    "/x/my (sounds)", "it's", "back\\slash", "end\\", "\\'", 'say "x"', "a,b", "a=b", "$HOME", "${seed}", "`x`", "null",
    "true", "1", "1.5", "[a]", "{a}", "é", "~/x", "!x", " x ", "", "a:b", "#", "a;b", "*", "50%", "../x", "./x",
]  # fmt: skip


def composed(command: str):
    """The configuration that a command without sweep leads to."""
    register_resolvers()
    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        return compose("eval", shlex.split(command)[2:])


@pytest.mark.parametrize("value", ODD)
def test_any_text_comes_through_shell_and_hydra_as_it_is(value: str) -> None:
    assert composed(f"python eval.py {option('task.path', value)}").task.path == value
    (word,) = shlex.split(option("task.path", value))
    assert not OverridesParser.create().parse_override(word).is_sweep_override()


def test_only_odd_text_is_quoted() -> None:
    assert option("bundle", "runs/A-1/encoder.safetensors") == "bundle=runs/A-1/encoder.safetensors"
    assert option("task.path", "/x/my (sounds)") == "\"task.path='/x/my (sounds)'\""
    assert option("task.split", None) == "task.split=null"
    assert composed("python eval.py task.split=null").task.split is None


def test_commands_fill_every_empty_cell_and_no_other() -> None:
    results = [make_result(task="a"), make_result(task="b"), make_decar(task="a")]
    commands = missing_commands(results)
    frame = table2(results).loc[["a", "b"]]
    asked = sum(len(c.split("task=")[1].split()[0].split(",")) for c in commands)
    assert asked == (frame == EMPTY).to_numpy().sum()
    assert "python eval.py -m task=a,b mode=frozen bundle=random protocol=paper" in commands
    own = "python eval.py task=b mode=frozen \"bundle='runs/my run/encoder.safetensors'\" protocol=search"
    assert own in commands
    assert not any("mode=frozen bundle=random protocol=search" in c for c in commands)
    assert not any("bundle=logmel" in c and "finetune" in c for c in commands)


def test_full_table_has_no_commands() -> None:
    results = [make_result(encoder=c.encoder, bundle="x", mode=c.mode, protocol=c.protocol) for c in COLUMNS]
    assert missing_commands(results) == []
    assert "To fill" not in table2_markdown(results)


def only(results: list[Result], *words: str) -> list[str]:
    return [c for c in missing_commands(results) if all(word in c for word in words)]


def test_tasks_of_a_users_source_are_typed_in_full_and_one_by_one() -> None:
    source: dict[str, str | None] = {"task": "csv", "task.path": "/x/my (sounds).csv", "task.label": "species"}
    results = [
        make_result(task="species", task_options={**source, "task.split": None}), make_result(task="kind"),
        make_result(task="event", task_options={"task": "event"}), make_result(task="birds", task_options=source),
    ]  # fmt: skip
    bundled, birds, species = sorted(only(results, "bundle=logmel", "protocol=paper"), key=len)
    assert bundled == "python eval.py -m task=event,kind mode=frozen bundle=logmel protocol=paper"
    own = "python eval.py task=csv \"task.path='/x/my (sounds).csv'\" task.label=species"
    assert birds == f"{own} mode=frozen bundle=logmel protocol=paper"
    assert species == f"{own} task.split=null mode=frozen bundle=logmel protocol=paper"
    task = composed(species).task
    assert (task.name, task.path, task.label, task.split) == ("species", "/x/my (sounds).csv", "species", None)


def test_seeds_and_bundles_are_those_of_the_other_cells() -> None:
    results = [
        *(make_result(task="a", seed=s, encoder_hash=f"r{s}") for s in (0, 1)), make_result(task="b", mode="finetune"),
        *(make_decar(task="a", seed=s, encoder_hash=f"d{s}", bundle=f"seed{s}/pretrain") for s in (0, 1)),
    ]  # fmt: skip
    tail = "protocol=search"
    assert only(results, "frozen", "bundle=random", tail) == [
        "python eval.py -m task=b mode=frozen bundle=random protocol=search seed=0,1"
    ]
    assert only(results, "task=b", "frozen", "pretrain", tail) == [
        "python eval.py task=b mode=frozen bundle=seed0/pretrain protocol=search",
        "python eval.py task=b mode=frozen bundle=seed1/pretrain protocol=search seed=1",
    ]


def test_each_of_several_bundles_gets_commands_of_its_own() -> None:
    results = [make_decar(bundle=f"runs/{x}", encoder_hash=x, seed=3) for x in "AB"]
    results.append(make_decar(bundle="runs/A", encoder_hash="A", seed=3, mode="finetune"))
    assert only(results, "finetune", "runs/", "search") == [
        "python eval.py task=speaker mode=finetune bundle=runs/B protocol=search seed=3"
    ]
    assert only(results, "bundle=random", "frozen", "search")[0].endswith("protocol=search seed=3")
    assert only([make_result()], "frozen", "search", "bundle=PATH")


def test_untrained_weights_are_those_of_the_network_that_is_judged() -> None:
    usual, other = make_decar(network=DEFAULT_NETWORK), make_decar(network="efficientnet_b0 (avg-pool)")
    assert not any(" encoder." in command for command in missing_commands([usual]))
    (command,) = only([other], "bundle=random", "frozen", "search")
    assert "bundle=random encoder.name=efficientnet_b0 encoder.pool=avg encoder.stride=null protocol" in command
    assert not only([other], "bundle=logmel", "encoder.")
    (own,) = only([make_decar(network="mymodule.MyNetwork (width=6)")], "bundle=random", "frozen", "search")
    assert "bundle=random encoder=ITS_YAML protocol" in own
    cfg = composed(command)
    assert (cfg.encoder.name, cfg.encoder.pool, cfg.encoder.stride) == ("efficientnet_b0", "avg", None)
    assert built(composed("python eval.py")) == DEFAULT_NETWORK


@pytest.mark.parametrize(
    "options",
    [
        {"name": "conv", "widths": [8, 16], "local": False, "pool": "catavgmax"},
        {"name": "mobilenetv3_small_050", "stride": 8, "hidden": 16, "dropout": 0.25},
        {"name": "mobilenetv3_small_050", "pool": "avgmax"},
    ],
)
def test_the_command_for_untrained_weights_builds_the_very_network(options) -> None:
    network = make_encoder(**options, seed=0).description
    (command,) = only([make_decar(network=network)], "bundle=random", "frozen", "search")
    assert built(composed(command)) == network


def built(cfg) -> str:
    from decar.cli.config import build_encoder

    return build_encoder(cfg).description
