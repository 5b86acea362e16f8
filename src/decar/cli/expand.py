"""`task.name=*` on the command line: all tables of a folder of tasks, in one sweep."""

from __future__ import annotations

import fnmatch
from pathlib import Path

from decar.cli.checks import require


def expand_tasks(arguments: list[str]) -> list[str]:
    """Replace a pattern in `task.name=` by the names of the tables in `task.root=DIR`'s folder `tasks` that fit it.

    Hydra's own `glob(*)` looks at files of the configuration, not of the user.

    Raises:
        ConfigError: There is no such table, or the command is no sweep.
    """
    given = dict(word.split("=", 1) for word in arguments if word.startswith(("task.root=", "task.name=")))
    pattern, root = given.get("task.name", ""), given.get("task.root")
    if not any(sign in pattern for sign in "*?") or root is None:
        return arguments
    folder = Path(root).expanduser() / "tasks"
    names = sorted(path.stem for path in folder.glob("*.csv") if fnmatch.fnmatch(path.stem, pattern))
    require(bool(names), f"task.name={pattern}: no such table in {folder}; DIR/tasks/NAME.csv is looked for")
    several = any(word in ("-m", "--multirun") for word in arguments)
    require(several, f"task.name={pattern} means {len(names)} tasks: add -m")
    return [f"task.name={','.join(names)}" if word.startswith("task.name=") else word for word in arguments]
