"""Who may import whom (DESIGN, section 4): an arrow only points down, and some libraries have one room."""

import ast
import graphlib
from collections.abc import Iterator
from pathlib import Path

import pytest

import decar

ROOT = Path(decar.__file__).parent
LEVEL = {
    "errors": 0, "files": 0, "digests": 0, "cores": 0, "metrics": 0, "limits": 0.5, "unpack": 0.5, "fetch": 0.6,
    "objects": 0.7,
    "audio": 1, "clustering": 1, "signals": 1,
    "corpora": 2, "models": 2,
    "pretrain": 3, "downstream": 3, "embedder": 3, "neighbours": 3, "hear": 3,
    "report": 4,
    "cli": 5, "api": 6,
}  # fmt: skip
NEVER = {("downstream", "clustering")}
FENCES = {
    "hydra": {"cli"},
    "omegaconf": {"cli"},
    "pytorch_lightning": {"pretrain", "downstream", "cli"},
    "faiss": {"clustering", "neighbours"},
    "timm": {"models"},
    "perch_hoplite": {"report"},
    "ray": {"embedder"},
    "submitit": {"embedder"},
    "wandb": {"pretrain", "models", "cli"},
}


def imports(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            if node.module == "decar":  # from decar import pretrain
                yield from (f"decar.{alias.name}" for alias in node.names if alias.name not in decar.__all__)
            else:
                yield f"{node.module}"


def room_of(path: Path) -> str:
    return path.relative_to(ROOT).parts[0].removesuffix(".py")


FILES = [path for path in sorted(ROOT.rglob("*.py")) if path.parent != ROOT or path.stem not in ("__init__",)]


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_arrows_point_down_and_fences_hold(path):
    room = room_of(path)
    assert room in LEVEL, f"{path} stands in no room of the house"
    for name in imports(path):
        top, *rest = name.split(".")
        if top == "decar" and rest and rest[0] != room:
            other = rest[0]
            assert LEVEL[other] < LEVEL[room], f"{path}: {room} may not import {name}"
            assert (room, other) not in NEVER, f"{path}: {room} never imports {other}"
        assert top not in FENCES or room in FENCES[top], f"{path}: {top} belongs into {FENCES[top]}"


def test_no_imports_go_in_a_circle():
    """Inside rooms neither, those in functions included; not those that only annotations need."""
    modules = {module_of(path): ast.parse(path.read_text()) for path in FILES}
    graph: dict[str, set[str]] = {name: set() for name in modules}
    for name, tree in modules.items():
        idle = {id(node) for block in ast.walk(tree) if is_for_types(block) for node in ast.walk(block)}
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom) and id(node) not in idle:
                inner = [f"{node.module}.{alias.name}" for alias in node.names]
                graph[name] |= {full if full in modules else node.module for full in inner} & set(modules)
    list(graphlib.TopologicalSorter(graph).static_order())  # raises CycleError, which names the modules


def module_of(path: Path) -> str:
    return ".".join(path.relative_to(ROOT.parent).with_suffix("").parts).removesuffix(".__init__")


def is_for_types(node):
    return isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"


def test_the_front_door_is_light():
    assert set(imports(ROOT / "__init__.py")) <= {
        "collections.abc",
        "importlib",
        "importlib.metadata",
        "typing",
        "decar.api",
        "decar.models",
    }


def test_what_is_printed_is_escaped():
    """File names and values of found files may retitle or erase a terminal."""
    unsafe = [
        f"{path}:{call.lineno}: {ast.unparse(call)}"
        for path in sorted(ROOT.rglob("*.py"))
        for call in ast.walk(ast.parse(path.read_text()))
        if isinstance(call, ast.Call) and ast.unparse(call.func) in PRINTERS and not all(map(is_escaped, call.args))
    ]
    assert unsafe == [], "write print(printable(…))"


PRINTERS = ("print", "sys.stdout.write", "sys.stderr.write", "sys.stdout.writelines", "sys.stderr.writelines")


def is_escaped(argument):
    return isinstance(argument, ast.Call) and ast.unparse(argument.func) == "printable"
