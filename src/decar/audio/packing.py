"""Neighbours put together up to a bound."""

from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

Item = TypeVar("Item")


def packed(
    items: Iterable[Item], weight: Callable[[Item], int], room: int, *, most: int | None = None
) -> Iterator[list[Item]]:
    """The items in their order, in lists that weigh `room` and hold `most` at most; a heavier item is alone."""
    together: list[Item] = []
    total = 0
    for item in items:
        heavy = weight(item)
        if together and (len(together) == most or total + heavy > room):
            yield together
            together, total = [], 0
        together.append(item)
        total += heavy
    if together:
        yield together
