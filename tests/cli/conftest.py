from tests.cli.helpers import decar, evaluate, train

__all__ = ["decar", "evaluate", "train"]
