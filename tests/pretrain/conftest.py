from tests.cli.helpers import train

__all__ = ["train"]
