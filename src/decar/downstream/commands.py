"""The commands that would fill the empty cells of Table 2, ready to paste into a shell."""

import re
import shlex
from collections.abc import Iterator, Sequence

from decar.downstream.columns import Column, bundle_names, cells, columns
from decar.downstream.results import Result

# of conf/eval.yaml, that is of bundle=random
DEFAULT_NETWORK = "conv (catavgmax-pool, dropout=0.3, hidden=1024, local=true, stride=8, widths=[32,64,64])"
_PLAIN = re.compile(r"(\.{0,2}/)?[A-Za-z_][\w./-]*", re.ASCII)  # Hydra reads it as itself, and so does a shell
_WORDS = ("null", "true", "false", "nan", "inf")  # Hydra reads them as something else than text


def missing_commands(results: Sequence[Result]) -> list[str]:
    """The commands that would fill the empty cells: one for a column, encoder and task; bundled tasks go together."""
    found = cells(results)
    options = {result.title: _of_all_folds(result, results) for result in results}
    commands = []
    for column in columns(results):
        gaps = [options[task] for task in sorted(options) if (task, column) not in found]
        for task in _tasks(gaps):
            for encoder, seed in _encoders(column, results):
                words = [*task, f"mode={column.mode}", *encoder, f"protocol={column.protocol}", *seed]
                sweep = ["-m"] if "," in task[0] or any("," in word for word in seed) else []
                commands.append(" ".join(["python eval.py", *sweep, *words]))
    return commands


def _of_all_folds(result: Result, results: Sequence[Result]) -> dict[str, str | None]:
    """What to type for a task; where it is judged in folds, all of them that were seen."""
    typed = dict(result.task_options or {"task": result.task})
    folds = sorted({r.fold for r in results if r.title == result.title and r.fold}, key=lambda fold: (len(fold), fold))
    return typed | ({"task.fold": ",".join(folds)} if folds else {})


def _tasks(gaps: Sequence[dict[str, str | None]]) -> Iterator[list[str]]:
    """What to type for the tasks: those with a name of their own in one sweep, those of a user's source one by one."""
    named = [hydra_value(str(typed["task"])) for typed in gaps if len(typed) == 1]
    if named:
        yield ["task=" + ",".join(named)]
    yield from ([option(key, value) for key, value in typed.items()] for typed in gaps if len(typed) > 1)


def _encoders(column: Column, results: Sequence[Result]) -> Iterator[tuple[list[str], list[str]]]:
    """What to type for the encoders of a column, each with its seeds: those of its other results, else everybody's."""
    names = bundle_names(results)
    known = [r for r in results if r.encoder == column.encoder and names.get(r.encoder_hash, "") == column.name]
    typed = {result.encoder_hash: result.bundle for result in known} if column.encoder == "decar" else {}
    for key, bundle in typed.items() or [("", {"decar": "PATH"}.get(column.encoder, column.encoder))]:
        seeds = sorted({result.seed for result in known or results if not key or result.encoder_hash == key})
        seed = [] if seeds == [0] else ["seed=" + ",".join(map(str, seeds))]
        network = _network(known or results) if column.encoder == "random" else []
        yield [option("bundle", bundle), *network], seed


def _network(results: Sequence[Result]) -> list[str]:
    """What to type for the network of untrained weights: that of the others."""
    network = min((result.network for result in results if result.network), default=DEFAULT_NETWORK)
    if "-pool" not in network:  # a network of the user's
        return ["encoder=ITS_YAML"]
    wanted, usual = (_network_options(text) for text in (network, DEFAULT_NETWORK))
    return [
        option(f"encoder.{key}", value) if key in ("name", "pool") else shlex.quote(f"encoder.{key}={value}")
        for key, value in wanted.items()
        if value != usual.get(key)
    ]


def _network_options(description: str) -> dict[str, str]:
    """What an encoder's `description` says, by option; a whole network has no stride."""
    name, _, rest = description.removesuffix(")").partition(" (")
    pool, *extra = rest.split(", ")
    options = dict(part.split("=", 1) for part in extra) or {"stride": "null"}
    return {"name": name, "pool": pool.removesuffix("-pool"), **options}


def option(key: str, value: str | None) -> str:
    """`key=value` as it has to be typed in a shell, so that Hydra finds exactly this text; None is Hydra's null."""
    word = f"{key}={'null' if value is None else hydra_value(value)}"
    if word.endswith("'"):
        return shlex.quote(word) if re.search(r'["$`\\!]', word) else f'"{word}"'
    return word


def hydra_value(value: str) -> str:
    """Text in Hydra's grammar: as it is, or in single quotes when it has anything that Hydra would read otherwise."""
    if _PLAIN.fullmatch(value) and value.lower() not in _WORDS:
        return value
    escaped = re.sub(r"(\\*)('|\Z)", lambda m: m[1] * 2 + m[2].replace("'", r"\'"), value)
    return "'" + escaped.replace("${", r"\${") + "'"
