"""Checking a whole data set: every file decoded, in processes that can be killed, and each result kept as it comes.

`select` finds the files, `Journal` keeps what is known of each through kills and reruns, `check_all` runs the check.
"""

from __future__ import annotations

import contextlib
import os
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from octvideo.class_names import ClassIndex
from octvideo.data.manifest import LIST_SUFFIXES, read_records
from octvideo.data.shards import source_of
from octvideo.errors import UserError
from octvideo.files import VIDEO_SUFFIXES, is_video, walk_videos
from octvideo.json_lines import JsonLines, Words, first_line
from octvideo.parts import Part, names_of_part, sizes_of_files
from octvideo.stores import StoredCopy, StoredFolder, add_shown, file_name, is_remote, shown, videos_at
from octvideo.video import Decoder, FrameFolder, FrameNames
from octvideo.video.checking import Check, check_of, check_video, stamp_of
from octvideo.video.isolated import IsolatedPool, Pool, Work

# ── which files ───────────────────────────────────────────────────────────────────────────────────────────────────────


@dataclass
class Selection:
    """Files to check, each once.

    Args:
        root: folder that their names start from.
        names: from the root where they lie in it, else absolute.
        num_twice: files that were named more than once.
        num_passed_over: files of folders that are not called like videos.
        closed: folders that can't be listed, with the reason.
        images: what belongs to a name that is a folder of images.
        addresses: what belongs to a name that is an address: the same with its secrets.
    """

    root: str
    names: list[str] = field(default_factory=list)
    num_twice: int = 0
    num_passed_over: int = 0
    closed: list[tuple[str, str]] = field(default_factory=list)
    images: dict[str, FrameFolder] = field(default_factory=dict)
    addresses: dict[str, str] = field(default_factory=dict)

    def path_of(self, name: str) -> str:
        """What is opened for a name."""
        return self.addresses[name] if name in self.addresses else os.path.join(self.root, name)  # noqa: PTH118


def select(
    sources: Sequence[str | Path], *, root: str | Path | None = None, frames: FrameNames | None = None
) -> Selection:
    """The files of all sources; links are followed.

    Args:
        sources: videos; folders, searched for files that are called like videos; lists and csv, known by their
            suffix (`LIST_SUFFIXES`); or addresses of these.
        root: that paths in lists, and the names of files, start from; None takes the folder that all sources share.
            Videos behind addresses are named by these.
        frames: names of images: lists are of folders of extracted frames.

    Raises:
        UserError: a source is not there, or lists no video, or two addresses differ in secrets alone.
    """
    local = [Path(source) for source in sources if not is_remote(source)]
    for source in local:
        if not os.path.lexists(source):
            raise UserError(f"nothing at {source}: expected a video, a folder, a list or a csv of Kinetics")
    if root is None and not local:
        root = str(sources[0]).rstrip("/")
    elif root is None:
        folders = [source if source.is_dir() else source.absolute().parent for source in local]
        root = Path(os.path.commonpath([folder.absolute() for folder in folders]))
    elif not is_remote(root) and not Path(root).is_dir():
        raise UserError(f"no folder {root}")
    selection = Selection(shown(str(root)) if is_remote(root) else os.path.abspath(root))  # noqa: PTH100
    real_folders: dict[str, str] = {}
    seen: set[int] = set()
    for given in sources:
        before = len(seen) + selection.num_twice
        for path, images in _paths(given, root, selection, frames):
            if is_remote(path):
                if add_shown(selection.addresses, path):
                    selection.names.append(shown(path))
                else:
                    selection.num_twice += 1
                continue
            folder, base = os.path.split(os.path.abspath(path))  # noqa: PTH100
            if folder not in real_folders:
                real_folders[folder] = os.path.realpath(folder)
            # Hashes take far less memory than 240,000 strings; a collision is as good as impossible.
            key = hash((real_folders[folder], base))
            if key in seen:
                selection.num_twice += 1
                continue
            seen.add(key)
            name = f"{folder.rstrip('/')}/{base}".removeprefix(selection.root.rstrip("/") + "/")
            selection.names.append(name)
            if images is not None:
                selection.images[name] = images
        is_folder = not is_remote(given) and Path(given).is_dir()
        if is_folder and len(seen) + selection.num_twice == before and not selection.closed:
            raise UserError(f"no videos in {given}: looked for {', '.join(sorted(VIDEO_SUFFIXES))}")
    return selection


def part_of_selection(selection: Selection, part: Part) -> Selection:
    """The same with the names of a part alone."""
    names = names_of_part(
        selection.names,
        part,
        of_sizes=lambda names: sizes_of_files([selection.path_of(name) for name in names]),
    )
    return replace(selection, names=names)


def _paths(
    given: str | Path, root: str | Path, selection: Selection, frames: FrameNames | None
) -> Iterator[tuple[str, FrameFolder | None]]:
    source = Path(file_name(str(given))) if is_remote(given) else Path(given)
    if is_remote(given) and source.suffix.lower() not in LIST_SUFFIXES:
        yield from ((video, None) for video in videos_at(str(given)))
    elif not is_remote(given) and source.is_dir():

        def passed_over(path: str) -> None:
            selection.num_passed_over += 1

        def closed(folder: str, reason: str) -> None:
            selection.closed.append((folder, reason))

        videos = walk_videos(source, on_other=passed_over, on_closed=closed)
        yield from ((os.path.join(source, path), None) for path in videos)  # noqa: PTH118
    elif source.suffix.lower() not in LIST_SUFFIXES:
        yield str(source), None
    else:
        records = read_records(given, root=root, classes=_AnyClass(), labelled=False, frames=frames)
        for record in records:
            video = source_of(record)
            yield record.path, video if isinstance(video, FrameFolder) else None


class _AnyClass(ClassIndex):
    """Every name and number is a class: for checking, labels do not matter."""

    def __init__(self) -> None:
        super().__init__([])
        self.names = range(2**62)  # type: ignore[assignment]

    def find(self, name: str) -> int | None:
        return None if is_video(name) else 0


# ── what is known of each ─────────────────────────────────────────────────────────────────────────────────────────────


_KIND = "octvideo check 1"
_WORDS = Words("journal", "another check", "give another folder")


class Journal(JsonLines):
    """What is known of each file, in `folder/journal.jsonl`; the last line of a file counts.

    Args:
        folder: made if it is not there; or in a store.
        root: that names start from.
        decoder: that files are read with.
        part: of the files, if they are not all.

    Raises:
        UserError: the journal is of another check, or another process writes it.
    """

    def __init__(self, folder: Path | StoredFolder, *, root: str, decoder: str, part: Part | None = None) -> None:
        file: Path | StoredCopy
        if isinstance(folder, StoredFolder):
            file = StoredCopy(folder.address_of("journal.jsonl"))
        else:
            try:
                folder.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise UserError(f"can't write to {folder}: {error.strerror}") from error
            file = folder / "journal.jsonl"
        settings: dict[str, Any] = {"journal": _KIND, "root": root, "decoder": decoder}
        if part is not None or (first_line(file) or {}).get("part"):
            settings["part"] = None if part is None else str(part)
        super().__init__(file, settings, _WORDS)

    def __enter__(self) -> Journal:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def add_check(self, name: str, check: Check) -> None:
        """Writes a line."""
        size, changed = check.stamp or (None, None)
        frames = {"frames": check.num_frames, "announced": check.num_announced}
        told = {"reason": check.reason, "seconds": round(check.seconds, 3)}
        line = {"path": name, "verdict": check.verdict, **frames, **told, "size": size, "mtime_ns": changed}
        self.add({**line, "again": True} if check.may_pass else line)

    def known(self) -> dict[str, tuple[str, tuple[int | None, int | None]]]:
        """By name, the last verdict on each file and its stamp then; none of those that a network's trouble hid."""
        known: dict[str, tuple[str, tuple[int | None, int | None]]] = {}
        for line in self.entries():
            known.pop(line["path"], None)
            if not line.get("again"):
                known[line["path"]] = line["verdict"], (line["size"], line["mtime_ns"])
        return known

    def not_ok(self) -> dict[str, dict[str, Any]]:
        """The last line of each file that is not ok, by name."""
        found: dict[str, dict[str, Any]] = {}
        for entry in self.entries():
            if entry["verdict"] == "ok":
                found.pop(entry["path"], None)
            else:
                found[entry["path"]] = entry
        return found


# ── the check ─────────────────────────────────────────────────────────────────────────────────────────────────────────


_REASONS = 1000  # kinds that are counted one by one


@dataclass
class Summary:
    """What came of a check, in bounded memory.

    Args:
        verdicts: of the files of this run's selection.
        num_known: of them that an earlier run had looked at.
        reasons: why files are not ok, of the files that this run has looked at.
        examples: a file for each reason.
    """

    verdicts: Counter[str] = field(default_factory=Counter)
    num_known: int = 0
    reasons: Counter[str] = field(default_factory=Counter)
    examples: dict[str, str] = field(default_factory=dict)

    def add(self, name: str, check: Check) -> None:
        """One file."""
        self.verdicts[check.verdict] += 1
        if check.verdict == "ok":
            return
        reason = "fewer frames can be read than announced" if check.verdict == "partly" else check.reason
        if reason not in self.reasons and len(self.reasons) >= _REASONS:
            reason = "other reasons"
        self.reasons[reason] += 1
        self.examples.setdefault(reason, name)


def check_all(
    selection: Selection,
    journal: Journal,
    *,
    decoder: Decoder,
    num_processes: int,
    timeout_s: float,
    memory_bytes: int,
    again: bool = False,
    tell: Callable[[Summary, str], None] = lambda summary, name: None,
    tell_within: Callable[[str, int, int], None] = lambda name, done, total: None,
    work: Work = check_video,
    make_pool: Callable[[Work, float, int], Pool[tuple[str, str | FrameFolder, Decoder]]] | None = None,
) -> Summary:
    """Decodes what the journal does not know yet.

    Args:
        selection: of files.
        journal: that results go to, one by one.
        decoder: see `read_frames`.
        num_processes: that decode.
        timeout_s: without a new piece of a video.
        memory_bytes: that a process may grow by.
        again: looks again at what was not ok.
        tell: called after each file, with its name.
        tell_within: called now and then within one, with its name, frames read and in all.
        work: that is done on each.
        make_pool: of work, seconds and bytes; None makes one of `num_processes` here.
    """
    known, summary = journal.known(), Summary()

    def unknown() -> Iterator[tuple[str, str | FrameFolder, Decoder]]:
        for name in selection.names:
            path = selection.path_of(name)
            verdict, stamp = known.get(name, (None, None))
            # A file that can't be had may come back. Addresses are not asked for their stamps, which may take hours.
            if verdict is not None and (stamp == (None, None) if is_remote(path) else _stamp_now(path) != stamp):
                verdict = None
            if verdict is None or (again and verdict != "ok"):
                yield name, selection.images.get(name, path), decoder
            else:
                summary.verdicts[verdict] += 1
                summary.num_known += 1
                tell(summary, name)

    pool: Pool[tuple[str, str | FrameFolder, Decoder]]
    if make_pool is None:
        pool = IsolatedPool(work, num_processes=num_processes, timeout_s=timeout_s, memory_bytes=memory_bytes)
    else:
        pool = make_pool(work, timeout_s, memory_bytes)
    with pool:
        for (name, path, _), outcome in pool.run(unknown(), lambda item, *far: tell_within(item[0], *far)):
            check = check_of(str(path), outcome)
            journal.add_check(name, check)
            summary.add(name, check)
            tell(summary, name)
    return summary


def _stamp_now(path: str) -> tuple[int, int] | None:
    with contextlib.suppress(OSError):
        return stamp_of(path)
    return None
