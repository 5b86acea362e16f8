"""What only looks at options starts in a moment: nothing that takes seconds to import is imported for it."""

import subprocess
import sys

import pytest

SLOW = ("torch", "pytorch_lightning", "timm", "faiss", "sklearn", "pandas", "wandb")
CODE = """
import sys
from decar.cli.{module} import main
try:
    main()
except SystemExit as stop:
    assert not stop.code, stop.code
found = [name for name in {slow} if name in sys.modules]
assert not found, found
"""


@pytest.mark.parametrize(
    ("module", "words"),
    [
        ("train", ["--cfg", "job"]), ("train", ["--help"]), ("eval", ["--cfg", "job"]), ("app", ["--help"]),
        ("app", ["cluster", "--help"]),
    ],
)  # fmt: skip
def test_options_are_shown_without_slow_imports(module, words, tmp_path):
    code = CODE.format(module=module, slow=SLOW)
    done = subprocess.run([sys.executable, "-c", code, *words], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout


@pytest.mark.parametrize(
    "modules", ["decar.neighbours.query", "decar.report.page", "decar.downstream.classifier", "decar.api"]
)
def test_what_uses_the_encoder_that_comes_with_decar_imports_neither_timm_nor_lightning(modules):
    """They take as long as torch itself, and bring torchvision and wandb with them."""
    code = f"import sys, {modules}, decar; decar.load_encoder(); print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not {"timm", "pytorch_lightning", "torchvision", "torchmetrics", "wandb"} & set(done.stdout.split())


def test_decar_alone_lists_every_command_by_what_it_is_for(decar):
    from decar.cli.app import COMMANDS, GROUPS, HYDRA

    assert sorted(name for names in GROUPS.values() for name in names) == sorted([*COMMANDS, *HYDRA])
    outcome = decar()
    assert outcome.code == 0
    assert outcome.out == decar("--help").out
    for name in (*COMMANDS, *HYDRA):
        assert f" {name} " in outcome.out


@pytest.mark.parametrize("name", ["train", "eval"])
def test_train_and_eval_are_commands_too(decar, name):
    outcome = decar(name, "--cfg", "job", "seed=7")
    assert outcome.code == 0, outcome.err
    assert "\nseed: 7\n" in f"\n{outcome.out}"
    assert decar(name, "sede=7").code == 2
