"""How many cores there are to use."""

import os


def cpu_count() -> int:
    """Cores that this process may use: a container or a scheduler may have given it fewer than the machine has."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
