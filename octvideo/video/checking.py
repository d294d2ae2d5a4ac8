"""Whether a file can be read to its end, as training and evaluation would read it."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from octvideo.files import one_line
from octvideo.stores import is_remote
from octvideo.video.frames import Source, VideoReadError, fetched, num_bytes
from octvideo.video.image_frames import FrameFolder
from octvideo.video.isolated import Alive, Outcome
from octvideo.video.reader import Decoder, read_frames

Verdict = Literal["ok", "partly", "unreadable"]


@dataclass(frozen=True)
class Check:
    """What is known of a file.

    Args:
        verdict: "partly" where fewer frames can be read than it announces.
        num_frames: that can be read.
        num_announced: that the file announces; its packets, where its header says less.
        reason: of what is not ok, in one line.
        seconds: that it took.
        stamp: size in bytes and time of the last change in ns, both from before; None where the file can't be had
            (gone, not allowed), which may change without leaving a trace in them. Behind an address the time is 0.
        may_pass: it is the trouble of a network.
    """

    verdict: Verdict
    num_frames: int = 0
    num_announced: int = 0
    reason: str = ""
    seconds: float = 0.0
    stamp: tuple[int, int] | None = None
    may_pass: bool = False


def check_video(item: tuple[str, str | FrameFolder, Decoder], alive: Alive) -> Check:
    """Decodes all frames and keeps none; work for an `IsolatedPool`.

    Args:
        item: name in the report, path, address or folder of images, decoder.
        alive: called for every piece of 64 MB of frames, with the frames read so far and the frames in all.
    """
    _, given, decoder = item
    path: Source | FrameFolder = given
    start = time.monotonic()
    try:
        if is_remote(given):
            path = fetched(str(given))
            stamp = num_bytes(path), 0
        else:
            if isinstance(given, str):
                with open(given, "rb") as file:  # noqa: PTH123
                    file.read(1)
            stamp = stamp_of(str(given))
    except VideoReadError as error:
        return Check("unreadable", reason=error.reason, seconds=time.monotonic() - start, may_pass=error.may_pass)
    except OSError as error:
        return Check("unreadable", reason=_in_words(error))

    done = total = 0

    def all_frames(num_frames: int) -> Tensor:
        nonlocal done, total
        done, total = 0, num_frames
        return torch.arange(num_frames)

    def nothing(frames: Tensor) -> Tensor:
        nonlocal done
        done += len(frames)
        alive(done, total)
        return frames[:, :1, :1].clone()  # a view would hold them all

    try:
        read = read_frames(path, all_frames, decoder=decoder, resize=nothing)
    except VideoReadError as error:
        took = time.monotonic() - start
        return Check("unreadable", reason=error.reason, seconds=took, stamp=stamp, may_pass=error.may_pass)
    num_announced = read.num_frames + read.num_missing
    took = time.monotonic() - start
    if read.num_missing == 0:
        return Check("ok", read.num_frames, num_announced, "", took, stamp)
    reason = f"{read.num_frames} of {num_announced} frames can be read"
    return Check("partly", read.num_frames, num_announced, reason, took, stamp)


def check_of(path: str, outcome: Outcome) -> Check:
    """The check of an outcome: a process that had to be killed says nothing itself."""
    if outcome.ending == "returned":
        check: Check = outcome.value
        return check
    if is_remote(path):  # a transfer may have been too slow
        return Check("unreadable", reason=outcome.reason, stamp=(0, 0), may_pass=outcome.ending == "timeout")
    try:
        stamp = stamp_of(path)
    except OSError:
        stamp = None
    return Check("unreadable", reason=outcome.reason, stamp=stamp)


def stamp_of(path: str) -> tuple[int, int]:
    """Size and time of the last change; those of a folder do not tell that one of its images has been written anew.

    Raises:
        OSError: the file can't be looked at.
    """
    status = os.stat(path)  # noqa: PTH116 (a Path for each of 240,000 files takes seconds)
    return status.st_size, status.st_mtime_ns


def _in_words(error: OSError) -> str:
    known = {FileNotFoundError: "no such file", IsADirectoryError: "it is a folder"}
    return known.get(type(error), one_line(error).lower())
