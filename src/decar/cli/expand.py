"""`task.name=*` and `task=glob(*)` on the command line: all tables of a folder of tasks, or all tasks, in one sweep."""

from __future__ import annotations

import fnmatch
from pathlib import Path

from decar.cli.checks import require
from decar.files import find_files

SKIP = "DECAR_SKIP_TASKS"  # in hydra.job.env_set: the one place that a job in another process is handed, and no option


def expand_tasks(arguments: list[str]) -> list[str]:
    """Replace a pattern in `task.name=` by the names of the tables in `task.root=DIR`'s folder `tasks` that fit it.

    Hydra's own `glob(*)` looks at files of the configuration, not of the user. It also names tasks whose clips are not
    here: a sweep over it carries the mark `SKIP`, also into jobs of other processes.

    Raises:
        ConfigError: There is no such table, or the command is no sweep.
    """
    several = any(word in ("-m", "--multirun") for word in arguments)
    if several and any(word.startswith("task=") and "glob(" in word for word in arguments):
        arguments = [*arguments, f"++hydra.job.env_set.{SKIP}=1"]
    given = dict(word.split("=", 1) for word in arguments if word.startswith(("task.root=", "task.name=")))
    pattern, root = given.get("task.name", ""), given.get("task.root")
    if not any(sign in pattern for sign in "*?") or root is None:
        return arguments
    folder = Path(root).expanduser() / "tasks"
    files = find_files(folder, recursive=False) if folder.is_dir() else []
    tables = [Path(file).stem for file in files if file.endswith(".csv")]
    names = sorted(name for name in tables if fnmatch.fnmatch(name, pattern))
    require(bool(names), f"task.name={pattern}: no such table in {folder}; DIR/tasks/NAME.csv is looked for")
    require(several, f"task.name={pattern} means {len(names)} tasks: add -m")
    return [f"task.name={','.join(names)}" if word.startswith("task.name=") else word for word in arguments]
