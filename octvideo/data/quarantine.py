"""The quarantine list: videos that data sets leave out, a line each, `path<TAB>reason`.

    # paths start from /data/kinetics400
    train/abseiling/a.mp4	cannot be decoded
    train/abseiling/b.mp4

octvideo check writes it, people may write it too: the reason may be missing, and lines that start with # are
remarks. Paths are absolute, or start from the folder that the first line names, or from data.root where the data
has moved. A tab, a line break, a backslash or a # in front is written with a backslash: \\t \\n \\r \\\\ \\#.
"""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Iterable
from pathlib import Path

from octvideo.data.records import VideoList
from octvideo.errors import UserError
from octvideo.files import text_lines, whole_text
from octvideo.stores import StoredFolder, is_remote, joined, read_text, shown

log = logging.getLogger("octvideo.data")

QUARANTINE = "quarantine.txt"
_ROOT = "# paths start from "
_ESCAPES = {"\\": "\\\\", "\t": "\\t", "\n": "\\n", "\r": "\\r"}
_GONE = "no such file"


class Quarantine:
    """Videos to leave out, known by the real folder that they lie in and by their name there.

    So `data/k400/train/a.mp4` is found by its absolute path, and where `data/k400` is a link.

    Args:
        file: the list.
        root: of the data set.

    Raises:
        UserError: the list can't be read.
    """

    def __init__(self, file: str | Path, *, root: str | Path) -> None:
        self.file, self._root = file, str(root)
        self._folders: dict[str, str] = {}
        self._entries: dict[str, tuple[str, str]] = {}  # place → path and reason as written
        listed_root, entries = read_quarantine(file)
        for path, reason in entries:
            for start in dict.fromkeys([str(root), *([listed_root] if listed_root else [])]):
                self._entries[self._place(joined(start, path))] = path, reason

    def __contains__(self, path: str) -> bool:
        return self._place(path) in self._entries

    def leave_out(self, records: VideoList, source: str | Path) -> VideoList:
        """The others; says how many were left out.

        Raises:
            UserError: there are no others.
        """
        # Names in archives start from where the files once were; entries of such names, from data.root.
        paths = (joined(self._root, r.path) if r.archive else r.path for r in records)
        kept = [index for index, path in enumerate(paths) if path not in self]
        if not kept:
            raise UserError(f"{source}: all of its {len(records)} videos are in the quarantine list {self.file}")
        if len(kept) < len(records):
            out = len(records) - len(kept)
            log.warning("%s: %d of its %d videos are left out, as %s says", source, out, len(records), self.file)
            return records.take(kept)
        return records

    def warn_of_strangers(self) -> None:
        """Says which entries name no file: another folder is meant, or the list is of other data."""
        places: dict[str, list[str]] = {}
        for place, (path, reason) in self._entries.items():
            if reason != _GONE:
                places.setdefault(path, []).append(place)
        strangers = [
            path
            for path, where in places.items()
            if not any(is_remote(place) or os.path.lexists(place) for place in where)
        ]
        if strangers:
            count = f"{len(strangers)} of its {len({path for path, _ in self._entries.values()})} entries"
            advice = f"paths in it are absolute, or start from data.root or from the folder that its line '{_ROOT}...'"
            log.warning("%s: %s name no file, the first %r: %s names", self.file, count, strangers[0], advice)

    def _place(self, path: str) -> str:
        if is_remote(path):
            return shown(path)
        folder, name = os.path.split(os.path.abspath(path))  # noqa: PTH100
        if folder not in self._folders:  # few, where files are many
            self._folders[folder] = os.path.realpath(folder)
        return f"{self._folders[folder]}/{name}"


def read_quarantine(file: str | Path) -> tuple[str | None, list[tuple[str, str]]]:
    """The folder that a list names, if any, and its entries, path and reason.

    Raises:
        UserError: the list can't be read.
    """
    root, entries = None, []
    for line in text_lines(read_text(file, names=True)):
        if line.startswith(_ROOT):
            root = _unescaped(line.removeprefix(_ROOT))
        elif line.strip() and not line.startswith("#"):
            path, _, reason = line.partition("\t")
            entries.append((_unescaped(path), _unescaped(reason)))
    return root, entries


def put_quarantine(folder: StoredFolder, root: str, entries: Iterable[tuple[str, str]]) -> int:
    """`write_quarantine`, of a folder in a store.

    Raises:
        UserError: another file has this name, or the store can't be read or written.
    """
    file, there = folder.here / QUARANTINE, folder.read(QUARANTINE)
    file.unlink(missing_ok=True)
    if there is not None:
        file.write_bytes(there)
    number = write_quarantine(file, root, entries, told=folder / QUARANTINE)
    folder.put(file, QUARANTINE)
    return number


def write_quarantine(file: Path, root: str, entries: Iterable[tuple[str, str]], *, told: str | None = None) -> int:
    """Writes a list in place of an older one, and never half of it; returns the number of entries.

    Args:
        told: its name for errors, where it is not its own.
        entries: path and reason of each video, in any order; processes find them in another one each time.
            The list is sorted by path, so that the same videos give the same file.

    Raises:
        UserError: another file has this name.
    """
    if file.exists() and not file.read_bytes().startswith(_ROOT.encode()):
        raise UserError(
            f"{told or file} is there and was not written by this tool: move it, or write to another folder"
        )
    number = 0
    with whole_text(file) as text:
        text.write(
            f"{_ROOT}{_escaped(root)}\n# a rerun writes this file anew; give it to a data set as data.quarantine\n"
        )
        for path, reason in sorted(entries):
            text.write(f"{_escaped(path)}\t{_escaped(reason)}\n")
            number += 1
    return number


def _escaped(text: str) -> str:
    text = re.sub(r"[\\\t\n\r]", lambda match: _ESCAPES[match[0]], text)
    return f"\\{text}" if text.startswith("#") else text


def _unescaped(text: str) -> str:
    known = {"t": "\t", "n": "\n", "r": "\r", "\\": "\\", "#": "#"}
    return re.sub(r"\\([tnr\\#])", lambda match: known[match[1]], text)


def printable(text: str) -> str:
    """A name as a terminal can show it: line breaks and bytes that are not text as escapes."""
    text = "".join(char if char.isprintable() or "\ud800" <= char <= "\udfff" else repr(char)[1:-1] for char in text)
    return text.encode("utf-8", "backslashreplace").decode()
