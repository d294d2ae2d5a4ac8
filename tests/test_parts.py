"""Parts of a list: each name once, alike on every machine, and alike in bytes."""

from __future__ import annotations

import random
import tracemalloc
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from octvideo.cli.arguments import part as read_part
from octvideo.parts import Part, indices_of_part, names_of_part, part_numbers


def known(sizes: dict[str, int | None]) -> Callable[[Sequence[str]], list[int | None]]:
    return lambda names: [sizes.get(name) for name in names]


def some_files(count: int) -> dict[str, int | None]:
    draw = random.Random(1)
    return {f"v{n}.mp4": int(draw.lognormvariate(14, 1.2)) for n in range(count)}


@pytest.mark.parametrize("count", [1, 2, 3, 7, 16, 40])
@pytest.mark.parametrize("videos", [0, 1, 6, 100])
def test_parts_are_disjoint_and_complete(videos: int, count: int) -> None:
    files = some_files(videos)
    parts = [names_of_part(list(files), Part(n, count), of_sizes=known(files)) for n in range(1, count + 1)]
    assert sorted(name for part in parts for name in part) == sorted(files)
    assert all(part == [name for name in files if name in part] for part in parts), "the order is the list's"


def test_parts_do_not_depend_on_the_order_of_the_list() -> None:
    files = some_files(200) | {"same a.mp4": 1000, "same b.mp4": 1000, "none a.mp4": None, "none b.mp4": None}
    mixed = random.Random(2).sample(list(files), len(files))
    for n in range(1, 6):
        own = names_of_part(list(files), Part(n, 5), of_sizes=known(files))
        assert sorted(names_of_part(mixed, Part(n, 5), of_sizes=known(files))) == sorted(own)


def test_parts_are_alike_in_bytes_and_without_sizes_in_number() -> None:
    files = some_files(2000)
    sizes = [
        sum(files[name] or 0 for name in names_of_part(list(files), Part(n, 8), of_sizes=known(files)))
        for n in range(1, 9)
    ]
    assert max(sizes) - min(sizes) < 0.001 * sum(sizes)
    assert sorted(map(part_numbers(["a", "b", "c", "d", "e"], [None] * 5, 2).count, (1, 2))) == [2, 3]
    assert sorted(map(part_numbers(["a", "b", "c", "d"], [0] * 4, 2).count, (1, 2))) == [2, 2]


def test_the_rule_is_the_largest_first_by_name_where_equal() -> None:
    draw = random.Random(4)
    names = draw.sample([f"v{n}.mp4" for n in range(300)], 300)
    sizes = [draw.choice([None, 0, 7, 7, 20, 300]) for _ in names]
    known_sizes = [size for size in sizes if size is not None]
    mean = sum(known_sizes) // len(known_sizes)
    expected, loads = {}, {number: [0, 0] for number in range(1, 8)}
    for weight, name in sorted(
        (-(mean if size is None else size), name) for name, size in zip(names, sizes, strict=True)
    ):
        number = min(loads, key=lambda number: (*loads[number], number))
        loads[number][0] -= weight
        loads[number][1] += 1
        expected[name] = number
    assert dict(zip(names, part_numbers(names, sizes, 7), strict=True)) == expected


def test_no_part_is_larger_than_the_average_by_more_than_the_largest_file() -> None:
    sizes: list[int | None] = [1000, 1, 1, 1, 1, 500, 400]
    numbers = part_numbers([str(n) for n in range(7)], sizes, 3)
    loads = [sum(size or 0 for size, number in zip(sizes, numbers, strict=True) if number == n) for n in (1, 2, 3)]
    assert sorted(loads) == [404, 500, 1000]


def test_sizes_are_those_of_the_files(tmp_path: Path) -> None:
    for name, size in (("a", 100), ("b", 60), ("c", 50)):
        (tmp_path / name).write_bytes(b"x" * size)
    names = [str(tmp_path / name) for name in "abc"]
    assert indices_of_part(names, Part(1, 2)) == [0] and indices_of_part(names, Part(2, 2)) == [1, 2]
    assert indices_of_part(names, None) == [0, 1, 2]
    assert names_of_part([*names, str(tmp_path / "not there\0")], Part(1, 1))[:3] == names


@pytest.mark.parametrize("text", ["0/4", "5/4", "4", "1/0", "a/b", "1/4/2", "-1/4", ""])
def test_a_part_is_a_number_of_so_many(text: str) -> None:
    assert read_part("3/16") == Part(3, 16) and str(read_part("3/16")) == "3/16"
    with pytest.raises(Exception, match=f"got {text}, expected a part and the number of parts"):
        read_part(text)


@pytest.mark.slow
def test_a_million_names_take_less_than_a_gigabyte() -> None:
    draw = random.Random(3)
    sizes: dict[str, int | None] = {
        f"/data/videos/{n // 1000:04d}/clip {n:07d}.mp4": draw.randrange(10**7) for n in range(10**6)
    }
    names = list(sizes)
    tracemalloc.start()
    own = names_of_part(names, Part(3, 16), of_sizes=known(sizes))
    assert tracemalloc.get_traced_memory()[1] < 500 * 2**20  # the names are as much again
    tracemalloc.stop()
    assert 62_000 < len(own) < 63_000
