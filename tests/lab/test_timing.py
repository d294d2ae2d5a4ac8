"""Turns: who goes first, what is dropped, what a cut-off round leaves."""

from __future__ import annotations

import pytest

from lab.timing import rounds_of


def test_all_take_turns_in_another_order_each_round_and_the_warm_up_is_dropped() -> None:
    log: list[str] = []

    def turn(name: str) -> int:
        log.append(name)
        return len(log)

    found = list(rounds_of({name: lambda name=name: turn(name) for name in "abc"}, rounds=3))
    assert log == [*"abc", *"bca", *"cab", *"abc"]
    assert found == [{"b": 4, "c": 5, "a": 6}, {"c": 7, "a": 8, "b": 9}, {"a": 10, "b": 11, "c": 12}]
    assert [list(measured) for measured in found] == [["a", "b", "c"]] * 3
    log.clear()
    assert len(list(rounds_of({"a": lambda: turn("a")}, rounds=1, warm_up=4))) == 1 and len(log) == 5
    with pytest.raises(ValueError, match="rounds: got 0, expected 1 or more"):
        list(rounds_of({"a": lambda: turn("a")}, rounds=0))


def test_a_round_that_is_cut_off_is_not_given_out() -> None:
    left = iter(range(5))

    def turn() -> int:
        for number in left:
            return number
        raise KeyboardInterrupt

    kept = []
    with pytest.raises(KeyboardInterrupt):
        for measured in rounds_of({"a": turn, "b": turn}, rounds=9):
            kept.append(measured)
    assert kept == [{"a": 3, "b": 2}]
