"""The journal of a check: a line for each file, written as it is done, so that a kill loses none of them."""

from __future__ import annotations

from array import array
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from octvideo.errors import UserError
from octvideo.json_lines import JsonLines, Words
from octvideo.video.checking import Check

_KIND = "octvideo check 1"
_WORDS = Words("journal", "another check", "give another folder")


class Journal:
    """What is known of each file, in `folder/journal.jsonl`; the last line of a file counts.

    Args:
        folder: made if it is not there.
        root: that names start from.
        decoder: that files are read with.

    Raises:
        UserError: the journal is of another check, or another process writes it.
    """

    def __init__(self, folder: Path, *, root: str, decoder: str) -> None:
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"can't write to {folder}: {error.strerror}") from error
        self.file = folder / "journal.jsonl"
        self._lines = JsonLines(self.file, {"journal": _KIND, "root": root, "decoder": decoder}, _WORDS)

    def __enter__(self) -> Journal:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Lets others write it."""
        self._lines.close()

    def add(self, name: str, check: Check) -> None:
        """Writes a line."""
        size, changed = check.stamp or (None, None)
        self._lines.add(
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
        return (entry for entry in self._lines.entries() if "path" in entry)

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
