"""Pages of `make docs` that are not files in docs/: README, CONTRIBUTING, and a page of public names a room."""

import ast
import re
from pathlib import Path

import griffe
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).resolve().parents[1]
ROOMS = (
    "decar",
    "audio",
    "clustering",
    "models",
    "corpora",
    "pretrain",
    "downstream",
    "embedder",
    "neighbours",
    "report",
)
PAGES = {"README.md": "index.md", "CONTRIBUTING.md": "contributing.md"}


def on_files(files: Files, *, config: MkDocsConfig) -> Files:
    """Add the pages."""
    for source, page in PAGES.items():
        files.append(File.generated(config, page, content=_with_links((ROOT / source).read_text())))
    for room in ROOMS:
        files.append(File.generated(config, f"api/{room}.md", content=_api(room)))
    return files


def on_page_markdown(markdown: str, **_: object) -> str:
    """Links of docs/ to files of the repository become plain text: the site does not have them."""
    return re.sub(r"\[([^\]]+)\]\(\.\./[^)]*\)", r"\1", markdown)


def _with_links(text: str) -> str:
    """Links as seen from docs/: to its pages, to the generated ones; to other files of the repository, plain text."""
    for source, page in PAGES.items():
        text = text.replace(f"]({source}", f"]({page}")
    text = text.replace("](docs/", "](")
    return re.sub(r"\[([^\]]+)\]\((?:src|benchmarks|conf|tests|SECURITY|CHANGELOG|LICENSE)[^)]*\)", r"\1", text)


def _api(room: str) -> str:
    """The names in the room's `__all__`, in its order."""
    package = "decar" if room == "decar" else f"decar.{room}"
    tree = ast.parse((ROOT / "src" / package.replace(".", "/") / "__init__.py").read_text())
    (names,) = [n.value for n in tree.body if isinstance(n, ast.Assign) and ast.unparse(n.targets[0]) == "__all__"]
    public = [name for name in ast.literal_eval(names) if not name.startswith("__")]
    home = {name.name: n.module for n in ast.walk(tree) if isinstance(n, ast.ImportFrom) for name in n.names}
    entries = (f"::: {home.get(name, package)}.{name}" for name in public)  # a function may have its module's name
    return "\n\n".join([f"# {package}", ast.get_docstring(tree) or "", *entries])


class Doctests(griffe.Extension):
    """Show a doctest as code wherever it stands; Google's style knows it below `Examples:` only."""

    def on_object(self, *, obj: griffe.Object, **_: object) -> None:
        """Fence the doctests of a docstring."""
        if obj.docstring:
            obj.docstring.value = re.sub(r"^>>> (?:.+\n?)+", r"```pycon\n\g<0>\n```\n", obj.docstring.value, flags=re.M)
