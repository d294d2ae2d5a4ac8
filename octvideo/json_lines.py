"""A file of JSON objects, one in a line, that grows while long work is done, so that a stop or a kill loses none."""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from octvideo.errors import UserError
from octvideo.files import json_text
from octvideo.stores import StoredCopy

_LONGEST = 2**20  # bytes of a line


@dataclass(frozen=True)
class Words:
    """For errors.

    Args:
        what: the file is: "journal".
        others: what it is of where it does not fit: "another check".
        instead: what to do: "give another folder".
    """

    what: str
    others: str
    instead: str


class JsonLines:
    """Lines after a first one, which says what they belong to. A file that is there is continued.

    Lines are ASCII: names that are no text are escaped, as JSON does it. One process at a time has the file. A line
    that a kill has cut off is taken away.

    Args:
        file: made if it is not there, in a folder that is; or one that is kept at an address.
        settings: the first line. Its first item tells this kind of file from all others; the rest must be the same when
            a file is continued.
        words: for errors.

    Raises:
        UserError: the file is something else, or of other settings, or another process has it, or it can't be written.
    """

    def __init__(self, file: Path | StoredCopy, settings: dict[str, Any], words: Words) -> None:
        self.name, self._stored = str(file), file if isinstance(file, StoredCopy) else None
        file = file.path if isinstance(file, StoredCopy) else file
        self.file, self._settings, self._words = file, settings, words
        try:
            if file.exists() and not file.is_file():  # a pipe, a device
                raise UserError(f"{self.name} is no file: {words.instead}")
            self._descriptor = os.open(file, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o666)
        except OSError as error:
            raise UserError(f"can't write {file}: {error.strerror}") from error
        try:
            self._lock()
            self._begin()
            if self._stored is not None:
                self._stored.upload()  # who may not write there hears it before the work
        except BaseException:
            os.close(self._descriptor)
            if self._stored is not None:
                self._stored.release()
            raise

    def close(self) -> None:
        """Lets others write it; one that is kept at an address is put there first.

        Raises:
            UserError: it can't be put there.
        """
        try:
            if self._stored is not None:
                self._stored.close()
        finally:
            os.close(self._descriptor)

    def add(self, entry: dict[str, Any]) -> None:
        """Writes a line. It reaches the system at once, whatever becomes of this process."""
        left = memoryview(_line(entry))
        try:
            while left:  # a disk that is nearly full takes a part
                left = left[os.write(self._descriptor, left) :]
        except OSError as error:
            raise UserError(f"can't write {self.file}: {error.strerror}") from error
        if self._stored is not None:
            self._stored.grown()

    def entries(self) -> Iterator[dict[str, Any]]:
        """All that was added, oldest first."""
        with self.file.open("rb") as lines:
            next(lines, None)
            for line in lines:
                entry = _parsed(line)
                if entry is not None:
                    yield entry

    def _lock(self) -> None:
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)  # gone with the process
        except BlockingIOError as error:
            raise UserError(f"another process writes {self.name}: wait for it, or {self._words.instead}") from error
        except OSError:  # a file system without locks
            pass

    def _begin(self) -> None:
        with self.file.open("rb") as lines:
            first = lines.readline()
            size = lines.seek(0, os.SEEK_END)
            lines.seek(max(0, size - _LONGEST))
            torn = len(lines.read().rpartition(b"\n")[2])  # bytes after the last whole line
        if torn == size and _line(self._settings).startswith(first):  # new, or killed while it wrote the first line
            os.ftruncate(self._descriptor, 0)
            self.add(self._settings)
            return
        settings = _parsed(first)
        kind = next(iter(self._settings))
        if settings is None or settings.get(kind) != self._settings[kind]:
            raise UserError(f"{self.name} is no {self._words.what} of this tool: {self._words.instead}")
        if key := first_difference(self._settings, {key: settings.get(key) for key in self._settings}):
            raise UserError(
                f"{self.name} is of {self._words.others} ({key}: {settings.get(key)!r}, now {self._settings[key]!r}): "
                f"{self._words.instead}"
            )
        if torn:  # killed while it wrote another line
            os.ftruncate(self._descriptor, size - torn)


def first_line(file: Path | StoredCopy) -> dict[str, Any] | None:
    """The settings that a file has as its first line; None where it is no such file, or none at all."""
    file = file.path if isinstance(file, StoredCopy) else file
    if not file.is_file():  # reading a pipe would wait
        return None
    try:
        with file.open("rb") as lines:
            return _parsed(lines.readline(_LONGEST))
    except OSError:
        return None


def first_difference(one: dict[str, Any], other: dict[str, Any]) -> str | None:
    """The first of two files' settings that differs; None where both are of the same.

    Weights of one checksum are the same, by whatever path they were given.
    """
    for key in {**one, **other}:
        same_weights = key == "weights" and one.get("sha256") and one["sha256"] == other.get("sha256")
        if one.get(key) != other.get(key) and not same_weights:
            return key
    return None


def _line(entry: dict[str, Any]) -> bytes:
    return json_text(entry).encode() + b"\n"


def _parsed(line: bytes) -> dict[str, Any] | None:
    try:
        entry = json.loads(line)
    except ValueError:
        return None
    return entry if isinstance(entry, dict) else None
