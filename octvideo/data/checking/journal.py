"""The journal of a check: a JSON object a line, written as each file is done, so that a kill loses none of them."""

from __future__ import annotations

import fcntl
import json
import os
from array import array
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from octvideo.errors import UserError
from octvideo.video.checking import Check

_KIND = "octvideo check 1"


class Journal:
    """What is known of each file, in `folder/journal.jsonl`; the last line of a file counts.

    The first line has the settings. Names are escaped as JSON does it, those that are no text too: a line is ASCII.

    Args:
        folder: made if it is not there.
        root: that names start from.
        decoder: that files are read with.

    Raises:
        UserError: the journal is of another check, or another process writes it.
    """

    def __init__(self, folder: Path, *, root: str, decoder: str) -> None:
        self.file = folder / "journal.jsonl"
        self._settings = {"journal": _KIND, "root": root, "decoder": decoder}
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._descriptor = os.open(self.file, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o666)
        except OSError as error:
            raise UserError(f"can't write to {folder}: {error.strerror}") from error
        try:
            self._lock()
            self._begin()
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Journal:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Lets others write it."""
        os.close(self._descriptor)

    def add(self, name: str, check: Check) -> None:
        """Writes a line. It reaches the system at once, whatever becomes of this process."""
        size, changed = check.stamp or (None, None)
        self._write(
            {
                "path": name,
                "verdict": check.verdict,
                "frames": check.num_frames,
                "announced": check.num_announced,
                "reason": check.reason,
                "seconds": round(check.seconds, 3),
                "size": size,
                "mtime_ns": changed,
            }
        )

    def lines(self) -> Iterator[dict[str, Any]]:
        """All that was written on files, oldest first."""
        with self.file.open("rb") as lines:
            for line in lines:
                entry = _parsed(line)
                if entry is not None and "path" in entry:
                    yield entry

    def known(self) -> Known:
        """What the journal says of files as they are."""
        known = Known()
        for entry in self.lines():
            known.add(entry)
        return known

    def not_ok(self) -> dict[str, dict[str, Any]]:
        """The last line of each file that is not ok, by name."""
        found: dict[str, dict[str, Any]] = {}
        for entry in self.lines():
            if entry["verdict"] == "ok":
                found.pop(entry["path"], None)
            else:
                found[entry["path"]] = entry
        return found

    def _lock(self) -> None:
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)  # gone with the process
        except BlockingIOError as error:
            raise UserError(f"another process writes {self.file}: wait for it, or give another folder") from error
        except OSError:  # a file system without locks
            pass

    def _begin(self) -> None:
        with self.file.open("rb") as lines:
            first = lines.readline()
            size = lines.seek(0, os.SEEK_END)
            torn = size > 0 and (lines.seek(-1, os.SEEK_END), lines.read(1))[1] != b"\n"
        settings = _parsed(first)
        if settings is None and torn and size == len(first) and first[:5] == b'{"jou'[:size]:
            os.ftruncate(self._descriptor, 0)  # killed while it wrote the first line
            size = 0
        if size == 0:
            self._write(self._settings)
            return
        if settings is None or settings.get("journal") != _KIND:
            raise UserError(f"{self.file} is no journal of this tool: give another folder")
        for key, expected in self._settings.items():
            if settings.get(key) != expected:
                raise UserError(
                    f"{self.file} is of another check ({key}: {settings.get(key)!r}, now {expected!r}): "
                    "give another folder"
                )
        if torn:  # killed while it wrote another line
            os.write(self._descriptor, b"\n")

    def _write(self, entry: dict[str, Any]) -> None:
        try:
            os.write(self._descriptor, json.dumps(entry).encode() + b"\n")
        except OSError as error:  # a full disk
            raise UserError(f"can't write {self.file}: {error.strerror}") from error


class Known:
    """Stamps and verdicts of many files, 24 bytes and a place in a table each: hashes stand for names."""

    _VERDICTS = ("ok", "partly", "unreadable")

    def __init__(self) -> None:
        self._rows: dict[int, int] = {}
        self._sizes, self._changes, self._verdicts = array("q"), array("q"), array("b")

    def __len__(self) -> int:
        return len(self._rows)

    def add(self, entry: dict[str, Any]) -> None:
        """A line of the journal; it takes the place of an earlier one."""
        row = self._rows.setdefault(hash(entry["path"]), len(self._sizes))
        if row == len(self._sizes):
            for column in (self._sizes, self._changes, self._verdicts):
                column.append(0)
        self._sizes[row] = -1 if entry["size"] is None else entry["size"]
        self._changes[row] = -1 if entry["mtime_ns"] is None else entry["mtime_ns"]
        self._verdicts[row] = self._VERDICTS.index(entry["verdict"])

    def verdict(self, name: str, stamp: tuple[int, int]) -> str | None:
        """None for a file that is new, has changed, or could not be had."""
        row = self._rows.get(hash(name))
        if row is None or (self._sizes[row], self._changes[row]) != stamp:
            return None
        return self._VERDICTS[self._verdicts[row]]

    def __contains__(self, name: str) -> bool:
        return hash(name) in self._rows


def _parsed(line: bytes) -> dict[str, Any] | None:
    try:
        entry = json.loads(line)
    except ValueError:
        return None
    return entry if isinstance(entry, dict) else None
