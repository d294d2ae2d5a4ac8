"""Reads damaged copies of videos: each must end as frames or as one VideoReadError, soon and within bounds."""

from __future__ import annotations

import shutil
import tempfile
import time
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from lab.fuzzing.damage import damage
from octvideo.video.frames import VideoReadError
from octvideo.video.isolated import Alive, IsolatedPool, Outcome
from octvideo.video.reader import Decoder, read_frames
from octvideo.video.torchcodec_reader import load_torchcodec

_CHOICES = ("clip", "spread", "last", "every tenth")
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
    if case.decoder == "torchcodec":
        load_torchcodec()  # torch's compiler, which comes with it, keeps a folder among temporary files
    tempfile.tempdir = scratch
    asked: list[Tensor] = []
    how = _CHOICES[zlib.crc32(f"{case.number}".encode()) % len(_CHOICES)]

    def choose(num_frames: int) -> Tensor:
        asked.append(frames_of(how, num_frames))
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


def frames_of(how: str, num_frames: int) -> Tensor:
    """Frames as training and evaluation want them; few enough to wait for."""
    if how == "clip":
        start = num_frames // 3
        return torch.arange(start, min(start + 32, num_frames), 4)
    if how == "spread":
        return torch.linspace(0, num_frames - 1, 30).long()
    if how == "last":
        return torch.tensor([num_frames - 1])
    return torch.arange(0, num_frames, 10)[:40]
