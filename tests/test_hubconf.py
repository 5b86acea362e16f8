"""torch.hub on this checkout, in a process that knows decar from nowhere else."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from decar.models import save_bundle
from tests.conftest import make_encoder

ROOT = Path(__file__).parents[1]


@pytest.fixture
def bundle(tmp_path):
    return save_bundle(make_encoder("conv", widths=[4], hidden=8, seed=1), tmp_path / "encoder.safetensors")


def hub(code, cwd):
    bare = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=cwd, env=bare)


def test_the_entry_loads_this_checkout(bundle, tmp_path):
    code = (
        "import torch, sys\n"
        f"encoder = torch.hub.load({str(ROOT)!r}, 'decar', source='local', bundle={str(bundle)!r})\n"
        "import decar; print(decar.__file__); print(encoder.hash(), encoder.training)\n"
        "print(tuple(encoder.embed(torch.zeros(2, 16000)).shape))"
    )
    done = hub(code, tmp_path)
    assert done.returncode == 0, done.stderr
    where, facts, shape = done.stdout.splitlines()[-3:]
    assert Path(where) == ROOT / "src" / "decar" / "__init__.py"
    encoder = make_encoder("conv", widths=[4], hidden=8, seed=1)
    assert facts == f"{encoder.hash()} False"
    assert shape == f"(2, {encoder.dim})"


def test_its_help_says_what_a_bundle_may_be(tmp_path):
    code = f"import sys; sys.path.insert(0, {str(ROOT)!r}); import hubconf; print(hubconf.decar.__doc__)"
    assert "hf://USER/NAME" in hub(code, tmp_path).stdout


def test_the_dependencies_are_those_of_the_package():
    import re
    from importlib import import_module

    text = (ROOT / "pyproject.toml").read_text()
    listed = {name.replace("-", "_") for name in re.findall(r'^  "([\w-]+)[<>=]', text, re.M)}
    sys.path.insert(0, str(ROOT))
    try:
        dependencies = import_module("hubconf").dependencies
    finally:
        sys.path.remove(str(ROOT))
    assert set(dependencies) <= listed
