"""A folder of videos re-encoded into another one, many at once, each in a process that may crash.

A video is done when its file has its name, so that an interrupted run can be resumed.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from filelock import FileLock, Timeout

from octvideo.data.preparation.encoding import Encoded, EncodingSettings, encode_job
from octvideo.errors import UserError
from octvideo.files import part_of, walk_videos
from octvideo.video.isolated import IsolatedPool

SETTINGS_FILE, FAILED_FILE, DAMAGED_FILE = "reencode.json", "reencode_failed.txt", "reencode_damaged.txt"
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


def reencode(
    source: Path,
    out: Path,
    settings: EncodingSettings,
    *,
    workers: int,
    timeout_sec: float,
    progress: Callable[[int, int, Summary], None],
) -> Summary:
    """Re-encodes every video under `source` to the same name under `out`, with the suffix .mp4.

    Written beside the videos: reencode.json (the settings), reencode_failed.txt and reencode_damaged.txt
    (path, tab, reason).

    Args:
        source: folder of videos; nothing in it is touched.
        out: folder to write, neither in `source` nor around it.
        settings: how.
        workers: videos at once.
        timeout_sec: longest time without a new frame.
        progress: is told videos done, videos in all, and the summary so far.

    Raises:
        UserError: the folders overlap, `out` holds videos of other settings, or another run writes to it.
    """
    _check_folders(source, out)
    videos = list(walk_videos(source))
    if not videos:
        raise UserError(f"{source} holds no videos")
    out.mkdir(parents=True, exist_ok=True)
    try:
        lock = FileLock(out / ".reencode.lock").acquire(timeout=0)
    except Timeout:
        raise UserError(f"another reencode writes to {out}: wait for it, or choose another folder") from None
    summary = Summary()
    pool: IsolatedPool[tuple[str, str, str, EncodingSettings]] = IsolatedPool(
        encode_job, num_processes=workers, timeout_s=timeout_sec, memory_bytes=_MEMORY_BYTES
    )
    # What failed is tried again by each run; damaged videos are done, and stay named.
    with lock:
        _claim(out, settings)
        with (
            pool,
            (out / FAILED_FILE).open("w", encoding="utf-8", errors="surrogateescape") as failed,
            (out / DAMAGED_FILE).open("a", encoding="utf-8", errors="surrogateescape") as damaged,
        ):

            def fail(path: str, reason: str) -> None:
                summary.failed += 1
                print(f"{path}\t{reason}", file=failed, flush=True)

            for (path, _, target, _), outcome in pool.run(_jobs(source, out, settings, videos, summary, fail)):
                encoded = outcome.value
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
    source: Path,
    out: Path,
    settings: EncodingSettings,
    videos: list[str],
    summary: Summary,
    fail: Callable[[str, str], None],
) -> Iterator[tuple[str, str, str, EncodingSettings]]:
    """Videos that are still to do; others are counted."""
    folder, taken = "", dict[str, str]()  # targets in one folder
    inside = source.resolve()
    for path in videos:
        head, _, name = path.rpartition(os.sep)
        target = out / head / f"{name.rpartition('.')[0]}.mp4"
        if head != folder or not taken:
            folder, taken = head, {}
            target.parent.mkdir(parents=True, exist_ok=True)
            if target.parent.resolve().is_relative_to(inside):
                raise UserError(f"{target.parent} is a link into {source}, which is not written to")
        if target.name in taken:
            fail(path, f"{taken[target.name]} has the same name without suffix")
            continue
        taken[target.name] = name
        if target.exists():
            summary.there += 1
        else:
            yield path, str(source / path), str(target), settings


def _check_folders(source: Path, out: Path) -> None:
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
    file.write_text(json.dumps(wanted, indent=2) + "\n")
