"""Damaged copies of videos, each told by one number: what downloads, disks and tools leave, and what no tool would."""

from __future__ import annotations

import random
from collections.abc import Callable

Damage = Callable[[bytearray, random.Random, bytes], str]

# Sizes and counts that programs stumble over.
_EXTREMES = (0, 1, 2, 7, 0x7FFF, 0xFFFF, 0x10000, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFE, 0xFFFFFFFF)
_SUFFIXES = (".mp4", ".mkv", ".avi", ".webm", ".mpg", ".flv", ".ts", ".h264", ".3gp", ".wmv", "")


def damage(content: bytes, other: bytes, suffix: str, *, seed: int, number: int) -> tuple[bytes, str, str]:
    """One damaged copy; the same for the same arguments, on every machine.

    Args:
        content: of the video.
        other: of another one, to join or mix with.
        suffix: of the file's name, with its dot.
        seed: of a series.
        number: in it.

    Returns:
        content and suffix of the copy, and what was done, in words.
    """
    dice = random.Random(f"{seed}/{number}")
    copy, done = bytearray(content), []
    # Mostly one kind of damage: what several do can seldom be told apart afterwards.
    for _ in range(dice.choice((1, 1, 1, 2, 3))):
        kind = dice.choice(KINDS)
        done.append(kind(copy, dice, other))
    if dice.random() < 0.1:
        suffix = dice.choice(_SUFFIXES)
        done.append(f"called *{suffix}")
    return bytes(copy), suffix, ", ".join(done)


def cut(copy: bytearray, dice: random.Random, other: bytes) -> str:
    """The end is missing, as after a download that broke off."""
    size = dice.randrange(len(copy) + 1)
    del copy[size:]
    return f"cut to {size} bytes"


def cut_front(copy: bytearray, dice: random.Random, other: bytes) -> str:
    """The beginning is missing."""
    size = _block(copy, dice)
    del copy[:size]
    return f"first {size} bytes missing"


def flip_bits(copy: bytearray, dice: random.Random, other: bytes) -> str:
    """Bits that changed, from one in the file to one in eighty."""
    number = max(1, int(len(copy) * 10 ** dice.uniform(-7, -1)))
    for _ in range(number if copy else 0):
        copy[dice.randrange(len(copy))] ^= 1 << dice.randrange(8)
    return f"{number} bits flipped"


def zero_blocks(copy: bytearray, dice: random.Random, other: bytes) -> str:
    """Holes, as a disk or a sparse copy leaves them."""
    number = dice.randint(1, 5)
    for _ in range(number):
        place, size = _place(copy, dice), _block(copy, dice)
        copy[place : place + size] = bytes(len(copy[place : place + size]))
    return f"{number} blocks of zeros"


def noise_block(copy: bytearray, dice: random.Random, other: bytes) -> str:
    """Random bytes over a piece."""
    place, size = _place(copy, dice), _block(copy, dice)
    size = len(copy[place : place + size])
    copy[place : place + size] = dice.randbytes(size)
    return f"noise over {size} bytes at {place}"


def repeat_block(copy: bytearray, dice: random.Random, other: bytes) -> str:
    """A piece written twice, in place of what follows it or before it."""
    place, size = _place(copy, dice), _block(copy, dice)
    block = copy[place : place + size]
    if dice.random() < 0.5:
        copy[place + len(block) : place + 2 * len(block)] = block
    else:
        copy[place:place] = block
    return f"{len(block)} bytes at {place} repeated"


def remove_block(copy: bytearray, dice: random.Random, other: bytes) -> str:
    """A piece that got lost."""
    place, size = _place(copy, dice), _block(copy, dice)
    del copy[place : place + size]
    return f"{size} bytes at {place} missing"


def swap_blocks(copy: bytearray, dice: random.Random, other: bytes) -> str:
    """Two pieces that changed places."""
    size = _block(copy, dice)
    one, two = sorted((_place(copy, dice), _place(copy, dice)))
    size = min(size, two - one, len(copy) - two)
    copy[one : one + size], copy[two : two + size] = copy[two : two + size], copy[one : one + size]
    return f"{size} bytes at {one} and {two} swapped"


def break_header(copy: bytearray, dice: random.Random, other: bytes) -> str:
    """Fields at the beginning, or at the end (where an mp4 may have its tables), with extreme values."""
    number = dice.randint(1, 8)
    reach = min(len(copy), dice.choice((64, 1024, 8192)))
    at_end = dice.random() < 0.4
    for _ in range(number if reach >= 8 else 0):
        place = dice.randrange(reach - 4) + (len(copy) - reach if at_end else 0)
        copy[place : place + 4] = dice.choice(_EXTREMES).to_bytes(4, dice.choice(("big", "little")))
    return f"{number} fields of the {'last' if at_end else 'first'} {reach} bytes set"


_TABLES = (b"stsz", b"stco", b"stsc", b"stts", b"ctts", b"stss", b"stsd", b"avcC", b"hvcC", b"tkhd", b"mdhd", b"elst")


def break_table(copy: bytearray, dice: random.Random, other: bytes) -> str:
    """Fields of a table of an mp4: sizes, places and times of its frames. Another file: as `break_header`."""
    there = [(name, place) for name in _TABLES if (place := copy.find(name)) >= 0]
    if not there:
        return break_header(copy, dice, other)
    name, place = dice.choice(there)
    number = dice.randint(1, 4)
    for _ in range(number):
        at = min(place + 4 + dice.randrange(64), len(copy) - 4)
        copy[at : at + 4] = dice.choice(_EXTREMES).to_bytes(4, "big")
    return f"{number} fields of {name.decode()} set"


def garbage_in_front(copy: bytearray, dice: random.Random, other: bytes) -> str:
    """Bytes before the beginning, as of a web page or another file."""
    size = _block(copy, dice)
    copy[:0] = other[:size] if dice.random() < 0.3 else dice.randbytes(size)
    return f"{size} bytes in front"


def join(copy: bytearray, dice: random.Random, other: bytes) -> str:
    """Two files one after the other, or the first part of one and the rest of the other."""
    if dice.random() < 0.5:
        copy.extend(other)
        return "another file after it"
    place = _place(copy, dice)
    copy[place:] = other[place:]
    return f"another file from byte {place} on"


KINDS: tuple[Damage, ...] = (
    cut,
    cut_front,
    flip_bits,
    flip_bits,
    flip_bits,
    zero_blocks,
    noise_block,
    repeat_block,
    remove_block,
    swap_blocks,
    break_header,
    break_table,
    break_table,
    garbage_in_front,
    join,
)


def _place(copy: bytearray, dice: random.Random) -> int:
    return dice.randrange(len(copy)) if copy else 0


def _block(copy: bytearray, dice: random.Random) -> int:
    """A size, from a few bytes to a quarter of the file."""
    return int(min(16 * 2 ** dice.uniform(0, 14), len(copy) / 4))
