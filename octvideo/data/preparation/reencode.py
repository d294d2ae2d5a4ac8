"""A folder of videos re-encoded into another one, many at once, each in a process that may crash.

A video is done when its file has its name, so that an interrupted run can be resumed.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from filelock import FileLock, Timeout

from octvideo.data.preparation.encoding import Encoded, EncodingSettings, encode_job
from octvideo.errors import UserError
from octvideo.files import part_of, walk_videos, whole_text
from octvideo.parts import Part, names_of_part, sizes_of_files
from octvideo.stores import is_remote, videos_at
from octvideo.video.isolated import IsolatedPool, Pool, Work

SETTINGS_FILE, FAILED_FILE, DAMAGED_FILE = "reencode.json", "reencode_failed.txt", "reencode_damaged.txt"
_LOCK, _BEGIN_S = ".reencode.lock", 30.0
_MEMORY_BYTES = 4 * 2**30  # that decoding and encoding one video may take


@dataclass
class Summary:
    """What became of all of them."""

    done: int = 0
    there: int = 0
    failed: int = 0
    damaged: int = 0
    source_bytes: int = 0
    bytes: int = 0
    same: int = 0

    def add(self, encoded: Encoded) -> None:
        """One more that is done."""
        self.done += 1
        self.damaged += bool(encoded.damage)
        self.same += encoded.is_source
        self.source_bytes += encoded.source_bytes
        self.bytes += encoded.bytes


def name_for_part(name: str, part: Part | None) -> str:
    """A file of a part's own: reencode_failed.txt, reencode_failed-3-of-16.txt."""
    stem, dot, suffix = name.rpartition(".")
    return name if part is None else f"{stem}-{part.number}-of-{part.count}{dot}{suffix}"


def reencode(
    source: str | Path,
    out: Path,
    settings: EncodingSettings,
    *,
    workers: int,
    timeout_sec: float,
    progress: Callable[[int, int, Summary], None],
    part: Part | None = None,
    make_pool: Callable[[Work, float, int], Pool[tuple[str, str, str, EncodingSettings]]] | None = None,
) -> Summary:
    """Re-encodes every video under `source` to the same name under `out`, with the suffix .mp4.

    Written beside the videos: reencode.json (the settings), reencode_failed.txt and reencode_damaged.txt
    (path, tab, reason).

    Args:
        source: folder of videos, or its address; nothing in it is touched.
        out: folder to write, neither in `source` nor around it.
        settings: how.
        workers: videos at once.
        timeout_sec: longest time without a new frame.
        progress: is told videos done, videos in all, and the summary so far.
        part: of the videos, which other runs share out among them at the same time; it has its own lists of failed
            and damaged videos. None is all.
        make_pool: of work, seconds and bytes; None makes one of `workers` here.

    Raises:
        UserError: the folders overlap, `out` holds videos of other settings, another run writes to it, or its disk is
            full.
    """
    _check_folders(source, out)
    if is_remote(source):
        root = f"{str(source).rstrip('/')}/"
        videos = [video.removeprefix(root) for video in videos_at(root)]
    else:
        videos = list(walk_videos(source))
    if not videos:
        raise UserError(f"{source} holds no videos")
    targets = _targets(videos)
    if part is not None:
        videos = names_of_part(
            videos, part, of_sizes=lambda names: sizes_of_files([_inside(source, name) for name in names])
        )
    out.mkdir(parents=True, exist_ok=True)
    summary = Summary()
    pool: Pool[tuple[str, str, str, EncodingSettings]]
    if make_pool is None:
        pool = IsolatedPool(encode_job, num_processes=workers, timeout_s=timeout_sec, memory_bytes=_MEMORY_BYTES)
    else:
        pool = make_pool(encode_job, timeout_sec, _MEMORY_BYTES)
    # What failed is tried again by each run; damaged videos are done, and stay named.
    failed_file, damaged_file = (out / name_for_part(name, part) for name in (FAILED_FILE, DAMAGED_FILE))
    with (
        _claimed(out, settings, part),
        pool,
        failed_file.open("w", encoding="utf-8", errors="surrogateescape") as failed,
        damaged_file.open("a", encoding="utf-8", errors="surrogateescape") as damaged,
    ):

        def fail(path: str, reason: str) -> None:
            summary.failed += 1
            print(f"{path}\t{reason}", file=failed, flush=True)

        for (path, _, target, _), outcome in pool.run(_jobs(source, out, settings, videos, targets, summary, fail)):
            encoded = outcome.value
            if outcome.ending == "disk full":
                raise UserError(f"{outcome.reason}: make room, and the same command goes on")
            if not isinstance(encoded, Encoded):
                part_of(Path(target)).unlink(missing_ok=True)  # of a process that was killed
                fail(path, encoded or outcome.reason)
            else:
                summary.add(encoded)
                if encoded.damage:
                    print(f"{path}\t{encoded.frames} frames; {encoded.damage}", file=damaged, flush=True)
            progress(summary.done + summary.failed + summary.there, len(videos), summary)
    return summary


def _jobs(
    source: str | Path,
    out: Path,
    settings: EncodingSettings,
    videos: list[str],
    targets: dict[str, str],
    summary: Summary,
    fail: Callable[[str, str], None],
) -> Iterator[tuple[str, str, str, EncodingSettings]]:
    """Videos that are still to do; others are counted."""
    folder = None
    inside = None if is_remote(source) else Path(source).resolve()
    for path in videos:
        target = out / _target(path)
        if target.parent != folder:
            folder = target.parent
            folder.mkdir(parents=True, exist_ok=True)
            if inside is not None and folder.resolve().is_relative_to(inside):
                raise UserError(f"{folder} is a link into {source}, which is not written to")
        first = targets[_target(path)]
        if first != path:
            fail(path, f"{Path(first).name} has the same name without suffix")
        elif target.exists():
            summary.there += 1
        else:
            yield path, _inside(source, path), str(target), settings


def _inside(source: str | Path, path: str) -> str:
    """Not `joined`: a key of a store may begin with a slash."""
    return f"{str(source).rstrip('/')}/{path}"


def _target(path: str) -> str:
    """The name of the copy, in the folder of copies and never outside it: keys of a store may hold `//`."""
    head, separator, name = re.sub("/+", "/", path).lstrip("/").rpartition(os.sep)
    return f"{head}{separator}{name.rpartition('.')[0]}.mp4"


def _targets(videos: list[str]) -> dict[str, str]:
    """Each name of a copy with the first video that has it, of all parts."""
    targets: dict[str, str] = {}
    for path in videos:
        targets.setdefault(_target(path), path)
    return targets


@contextlib.contextmanager
def _claimed(out: Path, settings: EncodingSettings, part: Part | None) -> Iterator[None]:
    """Has a folder for one run alone; or for the parts of one division, each once."""
    locks = _LOCK.replace(".lock", "-*-of-{}.lock")
    with contextlib.ExitStack() as held:
        try:
            # Of a part only while it begins.
            begins = held.enter_context(FileLock(out / _LOCK).acquire(timeout=0 if part is None else _BEGIN_S))
            beside = set(out.glob(locks.format("*"))) - set(out.glob(locks.format(part.count)) if part else [])
            for other in beside:
                with FileLock(other).acquire(timeout=0):
                    pass
            _claim(out, settings)
            if part is not None:
                held.enter_context(FileLock(out / name_for_part(_LOCK, part)).acquire(timeout=0))
                begins.release()
        except Timeout:
            raise UserError(f"another reencode writes to {out}: wait for it, or choose another folder") from None
        yield


def _check_folders(given: str | Path, out: Path) -> None:
    if is_remote(given):
        return
    source = Path(given)
    if not source.is_dir():
        raise UserError(f"no folder {source}")
    here, there = source.resolve(), out.resolve()
    if there.is_relative_to(here) or here.is_relative_to(there):
        raise UserError(
            f"the folders overlap ({source} and {out}): give a folder beside the source, which stays as it is"
        )


def _claim(out: Path, settings: EncodingSettings) -> None:
    """One folder holds videos of one kind."""
    file = out / SETTINGS_FILE
    wanted = asdict(settings)
    if file.exists():
        held = json.loads(file.read_text())
        if held != wanted:
            differing = ", ".join(
                f"{key} {held.get(key)}, not {wanted[key]}" for key in wanted if held.get(key) != wanted[key]
            )
            raise UserError(f"{out} holds videos of other settings ({differing}): choose another folder")
    elif next(walk_videos(out), None) is not None:
        raise UserError(f"{out} holds videos that this tool did not write: choose another folder")
    with whole_text(file) as text:  # half of it, from a full disk, would end all later runs
        text.write(json.dumps(wanted, indent=2) + "\n")
