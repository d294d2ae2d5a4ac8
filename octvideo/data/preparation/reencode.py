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
from octvideo.files import is_video, part_of, walk_videos, whole_text, writing_in
from octvideo.parts import Part, names_of_part, sizes_of_files
from octvideo.stores import StoredCopy, StoredFolder, is_remote, shown, videos_at
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
    out: Path | StoredFolder,
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
        out: folder to write, neither in `source` nor around it. Into a store each video is put when it is whole.
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
    here = out.here if isinstance(out, StoredFolder) else out
    here.mkdir(parents=True, exist_ok=True)
    summary = Summary()
    pool: Pool[tuple[str, str, str, EncodingSettings]]
    if make_pool is None:
        pool = IsolatedPool(encode_job, num_processes=workers, timeout_s=timeout_sec, memory_bytes=_MEMORY_BYTES)
    else:
        pool = make_pool(encode_job, timeout_sec, _MEMORY_BYTES)
    with (
        _claimed(here, out, settings, part),
        pool,
        _StoredLists(out, part) if isinstance(out, StoredFolder) else _Lists(out, part) as lists,
        contextlib.nullcontext() if isinstance(out, StoredFolder) else writing_in(out, ".mp4"),
    ):

        def fail(path: str, reason: str) -> None:
            summary.failed += 1
            lists.fail(path, reason)

        for (path, _, target, _), outcome in pool.run(_jobs(source, out, settings, videos, targets, summary, fail)):
            encoded = outcome.value
            if outcome.ending == "disk full":
                raise UserError(f"{outcome.reason}: make room, and the same command goes on")
            if not isinstance(encoded, Encoded):
                if not is_remote(target):
                    part_of(Path(target)).unlink(missing_ok=True)  # of a process that was killed
                fail(path, encoded or outcome.reason)
            else:
                summary.add(encoded)
                if encoded.damage:
                    lists.damage(path, f"{encoded.frames} frames; {encoded.damage}")
            progress(summary.done + summary.failed + summary.there, len(videos), summary)
    return summary


class _Lists:
    """What failed, which each run tries again, and what was damaged, which is done and stays named; in a folder."""

    def __init__(self, folder: Path, part: Part | None) -> None:
        self._failed_file = folder / name_for_part(FAILED_FILE, part)
        self._damaged_file = folder / name_for_part(DAMAGED_FILE, part)

    def __enter__(self) -> _Lists:
        self._failed = self._failed_file.open("w", encoding="utf-8", errors="surrogateescape")
        self._damaged = self._damaged_file.open("a", encoding="utf-8", errors="surrogateescape")
        return self

    def __exit__(self, *_: object) -> None:
        self._failed.close()
        self._damaged.close()

    def fail(self, path: str, reason: str) -> None:
        """A video of which there is nothing."""
        print(f"{path}\t{reason}", file=self._failed, flush=True)

    def damage(self, path: str, reason: str) -> None:
        """A video of which there is what could be decoded."""
        print(f"{path}\t{reason}", file=self._damaged, flush=True)


class _StoredLists(_Lists):
    """The same in a store: put there at the end, damaged videos now and then."""

    def __init__(self, folder: StoredFolder, part: Part | None) -> None:
        super().__init__(folder.here, part)
        self._folder = folder
        self._copy = StoredCopy(folder.address_of(self._damaged_file.name))

    def __enter__(self) -> _Lists:
        self._damaged_file = self._copy.path
        return super().__enter__()

    def __exit__(self, *_: object) -> None:
        super().__exit__()
        try:
            self._folder.put(self._failed_file, self._failed_file.name)
        finally:
            self._copy.close()

    def damage(self, path: str, reason: str) -> None:
        super().damage(path, reason)
        self._copy.grown()


def _jobs(
    source: str | Path,
    out: Path | StoredFolder,
    settings: EncodingSettings,
    videos: list[str],
    targets: dict[str, str],
    summary: Summary,
    fail: Callable[[str, str], None],
) -> Iterator[tuple[str, str, str, EncodingSettings]]:
    """Videos that are still to do; others are counted."""
    folder = None
    inside = None if is_remote(source) else Path(source).resolve()
    sizes = out.sizes() if isinstance(out, StoredFolder) else {}
    for path in videos:
        name = _target(path)
        target = out.address_of(name) if isinstance(out, StoredFolder) else out / name
        if isinstance(target, Path) and target.parent != folder:
            folder = target.parent
            folder.mkdir(parents=True, exist_ok=True)
            if inside is not None and folder.resolve().is_relative_to(inside):
                raise UserError(f"{folder} is a link into {source}, which is not written to")
        first = targets[name]
        if first != path:
            fail(path, f"{Path(first).name} has the same name without suffix")
        elif target.exists() if isinstance(target, Path) else sizes.get(name):
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
def _claimed(here: Path, out: Path | StoredFolder, settings: EncodingSettings, part: Part | None) -> Iterator[None]:
    """Has a folder for one run alone; or for the parts of one division, each once. Of a store it is so on one machine
    alone: the same video is there the same, whoever puts it there.
    """
    locks = _LOCK.replace(".lock", "-*-of-{}.lock")
    with contextlib.ExitStack() as held:
        try:
            # Of a part only while it begins.
            begins = held.enter_context(FileLock(here / _LOCK).acquire(timeout=0 if part is None else _BEGIN_S))
            beside = set(here.glob(locks.format("*"))) - set(here.glob(locks.format(part.count)) if part else [])
            for other in beside:
                with FileLock(other).acquire(timeout=0):
                    pass
            _claim(here, out, settings)
            if part is not None:
                held.enter_context(FileLock(here / name_for_part(_LOCK, part)).acquire(timeout=0))
                begins.release()
        except Timeout:
            raise UserError(f"another reencode writes to {out}: wait for it, or choose another folder") from None
        yield


def _check_folders(given: str | Path, out: Path | StoredFolder) -> None:
    if is_remote(given) and isinstance(out, StoredFolder):
        one, other = f"{str(given).rstrip('/')}/", f"{out.address}/"
        if one.startswith(other) or other.startswith(one):
            raise UserError(
                f"the folders overlap ({shown(str(given))} and {out}): give a folder beside the source, which stays as "
                "it is"
            )
    if is_remote(given):
        return
    source = Path(given)
    if not source.is_dir():
        raise UserError(f"no folder {source}")
    if isinstance(out, StoredFolder):
        return
    here, there = source.resolve(), out.resolve()
    if there.is_relative_to(here) or here.is_relative_to(there):
        raise UserError(
            f"the folders overlap ({source} and {out}): give a folder beside the source, which stays as it is"
        )


def _claim(here: Path, out: Path | StoredFolder, settings: EncodingSettings) -> None:
    """One folder holds videos of one kind."""
    file = here / SETTINGS_FILE
    wanted = asdict(settings)
    if isinstance(out, StoredFolder):
        there = out.read(SETTINGS_FILE)
        has_videos = there is None and any(map(is_video, out.sizes()))
    else:
        there = file.read_bytes() if file.exists() else None
        has_videos = there is None and next(walk_videos(out), None) is not None
    if there is not None:
        held = json.loads(there)
        if held != wanted:
            differing = ", ".join(
                f"{key} {held.get(key)}, not {wanted[key]}" for key in wanted if held.get(key) != wanted[key]
            )
            raise UserError(f"{out} holds videos of other settings ({differing}): choose another folder")
    elif has_videos:
        raise UserError(f"{out} holds videos that this tool did not write: choose another folder")
    with whole_text(file) as text:  # half of it, from a full disk, would end all later runs
        text.write(json.dumps(wanted, indent=2) + "\n")
    if isinstance(out, StoredFolder):
        out.put(file, SETTINGS_FILE)
