"""Times several things beside each other on a machine that may be busy: they take turns, round by round."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import TypeVar

T = TypeVar("T")


def rounds_of(turns: Mapping[str, Callable[[], T]], *, rounds: int, warm_up: int = 1) -> Iterator[dict[str, T]]:
    """What each turn returns (its own measurement), a mapping per round.

    All take one turn in each round, in another order every time, so that whatever slows the machine slows all:
    compare numbers of the same round. A round that is cut off (an exception, Ctrl-C) is not given out.

    Args:
        turns: by name; each does its work once and returns what it took.
        rounds: 1 or more.
        warm_up: rounds before these, whose numbers are dropped.

    Raises:
        ValueError: no round is asked for.

    Example:
        >>> [sorted(measured) for measured in rounds_of({"a": time_a, "b": time_b}, rounds=2)]
        [['a', 'b'], ['a', 'b']]
    """
    if rounds < 1:
        raise ValueError(f"rounds: got {rounds}, expected 1 or more")
    names = list(turns)
    for number in range(warm_up + rounds):
        first = number % len(names)
        measured = {name: turns[name]() for name in names[first:] + names[:first]}
        if number >= warm_up:
            yield {name: measured[name] for name in names}
