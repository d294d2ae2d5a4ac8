"""Parts of a list of videos: for machines that share nothing but the list.

Each machine computes all parts by itself and takes its own, so the parts must come out alike everywhere: they depend on
the names and the sizes of the files, not on the order of the list.
"""

from __future__ import annotations

import heapq
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from octvideo.stores import is_remote, shown, sizes_of


@dataclass(frozen=True)
class Part:
    """One of so many parts.

    Args:
        number: 1 to `count`.
        count: of all parts.
    """

    number: int
    count: int

    def __str__(self) -> str:
        return f"{self.number}/{self.count}"


def sizes_of_files(paths: Sequence[str]) -> list[int | None]:
    """Bytes of files, also of those behind addresses; None where they can't be had.

    Raises:
        UserError: a store can't be reached, which is no answer.
    """
    remote = [path for path in paths if is_remote(path)]
    sizes = dict(zip(remote, sizes_of(remote), strict=True)) if remote else {}
    return [sizes[path] if path in sizes else size_of_file(path) for path in paths]


def size_of_file(path: str) -> int | None:
    """Bytes of a file on this machine; None where it can't be had."""
    try:
        return os.stat(path).st_size  # noqa: PTH116 (a Path for each of 1,000,000 names is slow)
    except (OSError, ValueError):
        return None


def part_numbers(names: Sequence[str], sizes: Sequence[int | None], count: int) -> list[int]:
    """The number of each name's part, 1 to `count`: the largest file first, each to the part with the fewest bytes.

    That is the greedy rule of longest processing times: no part is larger than the average by more than the largest
    file.

    Args:
        names: each once.
        sizes: in bytes; None counts as the mean of the others.
        count: of parts.

    Example:
        >>> part_numbers(["a", "b", "c", "d"], [10, 20, 30, None], 2)
        [2, 2, 1, 1]
    """
    known = [size for size in sizes if size is not None]
    mean = sum(known) // len(known) if known else 1
    weights = [mean if size is None else size for size in sizes]
    order = sorted(range(len(names)), key=names.__getitem__)
    order.sort(key=weights.__getitem__, reverse=True)  # keeps the order of those that are equal
    # Bytes, files, number: files share out what has no bytes.
    parts = [(0, 0, number) for number in range(1, count + 1)]
    numbers = [0] * len(names)
    for n in order:
        load, files, number = parts[0]
        numbers[n] = number
        heapq.heapreplace(parts, (load + weights[n], files + 1, number))
    return numbers


def indices_of_part(
    names: Sequence[str], part: Part | None, *, of_sizes: Callable[[Sequence[str]], list[int | None]] = sizes_of_files
) -> list[int]:
    """Which names are of a part, in the order of the list; all of them where there is no part.

    Args:
        names: each once.
        part: which.
        of_sizes: from names to the bytes of their files.
    """
    if part is None:
        return list(range(len(names)))
    numbers = part_numbers([shown(name) for name in names], of_sizes(names), part.count)
    return [n for n, number in enumerate(numbers) if number == part.number]


def names_of_part(
    names: Sequence[str], part: Part | None, *, of_sizes: Callable[[Sequence[str]], list[int | None]] = sizes_of_files
) -> list[str]:
    """The names of a part. See `indices_of_part`."""
    return [names[n] for n in indices_of_part(names, part, of_sizes=of_sizes)]
