from tests.cli.helpers import decar

__all__ = ["decar"]
