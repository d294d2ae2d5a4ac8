"""Reads damaged copies of videos: each must end as frames or as one VideoReadError, soon and within bounds.

Each damage is told by one number: what downloads, disks and tools leave, and what no tool would.
"""

from __future__ import annotations

import random
import shutil
import tempfile
import time
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from octvideo.video.frames import VideoReadError
from octvideo.video.isolated import Alive, IsolatedPool, Outcome
from octvideo.video.reader import Decoder, check_decoder, read_frames

# Frames as training and evaluation want them, few enough to wait for: a clip, some of all, the last, every tenth.
_CHOICES: tuple[Callable[[int], Tensor], ...] = (
    lambda num_frames: torch.arange(num_frames // 3, min(num_frames // 3 + 32, num_frames), 4),
    lambda num_frames: torch.linspace(0, num_frames - 1, 30).long(),
    lambda num_frames: torch.tensor([num_frames - 1]),
    lambda num_frames: torch.arange(0, num_frames, 10)[:40],
)
_PATIENCE = 6


@dataclass(frozen=True)
class Case:
    """A damaged copy that one reader reads in one way.

    Args:
        video: the intact one.
        number: in the series.
        done: to the copy, in words.
        decoder: that reads it.
        copy: the file.
    """

    video: Path
    number: int
    done: str
    decoder: Decoder
    copy: Path


@dataclass(frozen=True)
class Finding:
    """What came of a case.

    Args:
        case: that was tried.
        kind: "frames" or "error" (a VideoReadError); else what must not be, "timeout", "crashed", "raised" and such.
        what: in one line.
        details: traceback, of "raised".
    """

    case: Case
    kind: str
    what: str
    details: str = ""

    @property
    def failed(self) -> bool:
        """Whether it is something that must not be."""
        return self.kind not in ("frames", "error")


def fuzz(
    videos: Sequence[Path],
    numbers: range,
    *,
    decoders: Sequence[Decoder],
    seed: int,
    timeout_s: float,
    memory_bytes: int,
    keep: Path,
    num_processes: int = 1,
) -> Iterator[Finding]:
    """Damages and reads, and keeps the copies that failed in `keep`.

    Args:
        videos: intact ones; damaged in turn.
        numbers: of the series.
        decoders: each reads every copy.
        seed: of the series.
        timeout_s: for a copy and a reader.
        memory_bytes: that a process may grow by.
        keep: folder, made when it is needed.
        num_processes: that read at once.
    """
    contents = [video.read_bytes() for video in videos]
    with tempfile.TemporaryDirectory(prefix="octvideo-fuzz-") as place:
        copies, scratch = Path(place, "copies"), Path(place, "scratch")
        copies.mkdir()
        scratch.mkdir()

        def cases() -> Iterator[tuple[Case, str]]:
            for number in numbers:
                which = number % len(videos)
                other = contents[(which + 1 + number // len(videos)) % len(videos)]
                content, suffix, done = damage(contents[which], other, videos[which].suffix, seed=seed, number=number)
                for decoder in decoders:
                    copy = copies / f"{number}-{decoder}{suffix}"
                    copy.write_bytes(content)
                    yield Case(videos[which], number, done, decoder, copy), str(scratch)

        pool: IsolatedPool[tuple[Case, str]] = IsolatedPool(
            read_case, num_processes=num_processes, timeout_s=timeout_s, memory_bytes=memory_bytes
        )
        with pool:
            for (case, _), outcome in pool.run(cases()):
                if outcome.ending == "timeout":
                    outcome = _once_more(case, str(scratch), timeout_s, memory_bytes)
                finding = _finding(case, outcome, timeout_s)
                if left := sorted(file.name for file in scratch.iterdir()):
                    finding = Finding(case, "left files", f"left {', '.join(left)} behind")
                    for name in left:
                        remove = shutil.rmtree if (scratch / name).is_dir() else Path.unlink
                        remove(scratch / name)
                if finding.failed:
                    keep.mkdir(parents=True, exist_ok=True)
                    (keep / f"{case.video.stem}-{seed}-{case.copy.name}").write_bytes(case.copy.read_bytes())
                case.copy.unlink()
                yield finding


def _once_more(case: Case, scratch: str, timeout_s: float, memory_bytes: int) -> Outcome:
    """With more patience: on a busy machine it may only have waited, and then its CPU time tells."""
    with IsolatedPool[tuple[Case, str]](
        read_case, num_processes=1, timeout_s=_PATIENCE * timeout_s, memory_bytes=memory_bytes
    ) as pool:
        ((_, outcome),) = pool.run([(case, scratch)])
    return outcome


def _finding(case: Case, outcome: Outcome, timeout_s: float) -> Finding:
    if outcome.ending != "returned":
        return Finding(case, outcome.ending, outcome.reason, outcome.details)
    kind, what, cpu_s = outcome.value
    if cpu_s > timeout_s:
        return Finding(case, "timeout", f"{cpu_s:.1f} s of CPU time, then: {what}")
    return Finding(case, kind, what)


def read_case(item: tuple[Case, str], alive: Alive) -> tuple[str, str, float]:
    """In the process: reads, and looks at what came; also the CPU time that it took."""
    start = time.process_time()
    return *_read_case(*item), time.process_time() - start


def _read_case(case: Case, scratch: str) -> tuple[str, str]:
    check_decoder(case.decoder)  # here, since torch's compiler, which torchcodec loads, keeps a folder in tempdir
    tempfile.tempdir = scratch
    asked: list[Tensor] = []
    frames_of = _CHOICES[zlib.crc32(f"{case.number}".encode()) % len(_CHOICES)]

    def choose(num_frames: int) -> Tensor:
        asked.append(frames_of(num_frames))
        return asked[-1]

    try:
        # Reduced while others are decoded, as training and evaluation have it: 40 frames of 4K are 1 GB.
        read = read_frames(case.copy, choose, decoder=case.decoder, resize=lambda frames: frames[:, :64, :64].clone())
    except VideoReadError as error:
        return "error", error.reason
    count, height, width, channels = read.frames.shape
    assert channels == 3 and height > 0 and width > 0 and count == len(torch.unique(asked[-1]))
    assert read.places.shape == asked[-1].shape and int(read.places.max()) == count - 1
    return "frames", f"{read.num_frames} frames by {read.decoder}"


# ── damaged copies ────────────────────────────────────────────────────────────────────────────────────────────────────

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
    cut, cut_front, flip_bits, flip_bits, flip_bits, zero_blocks, noise_block, repeat_block, remove_block, swap_blocks,
    break_header, break_table, break_table, garbage_in_front, join,
)  # fmt: skip


def _place(copy: bytearray, dice: random.Random) -> int:
    return dice.randrange(len(copy)) if copy else 0


def _block(copy: bytearray, dice: random.Random) -> int:
    """A size, from a few bytes to a quarter of the file."""
    return int(min(16 * 2 ** dice.uniform(0, 14), len(copy) / 4))
