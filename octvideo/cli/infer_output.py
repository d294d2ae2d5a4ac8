"""What `octvideo infer` writes: text, JSON, or a line of a file for each video."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from octvideo.files import json_text
from octvideo.inference.predictor import Prediction
from octvideo.json_lines import JsonLines, Words
from octvideo.stores import StoredCopy, by_shown
from octvideo.video import VideoReadError

Kind = Literal["result", "reason", "again"]
RESULTS = "octvideo infer 1"
_ERRORS = 5  # that are printed of those that a file has
_WORDS = Words("file of results", "another model, or of other settings", "name another file")


class Text:
    """Results as text, when they are there."""

    def __init__(self, *, timing: bool) -> None:
        self._timing, self._between = timing, ""
        self.num_unreadable = 0  # of videos that an earlier run has tried

    def add(self, result: Prediction | VideoReadError) -> None:
        """The path of a video, then a line for each class, then where the time went."""
        if isinstance(result, VideoReadError):
            return
        lines = [self._between + result.path, *(f"  {100 * score:5.1f} %  {name}" for name, score in result.top)]
        if result.labels is not None:
            lines.append(f"  labels: {', '.join(result.labels) or 'none'}")
        if self._timing:
            timing = result.timing
            ratio = timing.total / timing.engine if timing.engine else float("nan")
            lines.append(
                f"  engine {timing.engine:.2f} s of {timing.total:.2f} s in all (x {ratio:.3f}); "
                f"beside it: decode {timing.decode:.2f} s, prepare {timing.prepare:.2f} s"
            )
        print("\n".join(lines), flush=True)
        self._between = "\n"

    def end(self) -> None:
        """All is said."""


class Json:
    """One JSON object, at the end."""

    def __init__(self, made_by: dict[str, Any]) -> None:
        self._content: dict[str, Any] = {**made_by, "videos": [], "errors": []}
        self.num_unreadable = 0  # see `Text`

    def add(self, result: Prediction | VideoReadError) -> None:
        """Keeps the result for the end."""
        self._content["videos" if isinstance(result, Prediction) else "errors"].append(as_record(result))

    def end(self) -> None:
        """Prints them all."""
        print(json_text(self._content, indent=2))


class ResultFile:
    """Lines as of `as_record`, after a first one that says what made them: a run that was stopped goes on with them.

    Args:
        path: written anew, or gone on with; here, or at an address.
        made_by: {"weights": ..., "sha256": ..., ...}: what must be the same for all results in it.

    Raises:
        UserError: see `JsonLines`.
    """

    def __init__(self, path: Path | StoredCopy, made_by: dict[str, Any]) -> None:
        self.num_unreadable = 0  # see `Text`
        self._lines = JsonLines(path, {"results": RESULTS, **made_by}, _WORDS)
        self._troubles: dict[str, Kind] = {}  # of videos that an earlier run could not read
        self._counts = Counter[str]()

    def left(self, videos: Sequence[str], *, retry: bool = False) -> list[str]:
        """The videos that are not in the file, each once, and those that may be read now; says how many are there.
        Asked once, before any of them is added.

        Args:
            videos: all that are asked for.
            retry: takes all again that could not be read.
        """
        names, there = by_shown(videos), dict[str, Kind]()
        for entry in self._lines.entries():
            if (path := entry.get("path")) is not None:
                path = names[path] if names.get(path) == path else path  # a long list is not held twice
                there[path] = _kind_of(entry)
        self._counts = Counter(there.values())
        self._troubles = {path: kind for path, kind in there.items() if kind != "result"}
        open_kinds = ("again", "reason") if retry else ("again",)
        left = [video for path, video in names.items() if there.get(path, "again") in open_kinds]
        self.num_unreadable = 0 if retry else sum(self._troubles.get(path) == "reason" for path in names)
        if len(left) < len(names):
            done = f"{len(names) - len(left):,} of {len(names):,} videos are in {self._lines.name} already"
            broken = f", {self.num_unreadable:,} of them can't be read: --retry tries those again"
            print(done + (broken if self.num_unreadable else ""), file=sys.stderr)
        return left

    def add(self, result: Prediction | VideoReadError) -> None:
        """Writes a line."""
        record = as_record(result)
        self._lines.add(record)
        if (before := self._troubles.pop(record["path"], None)) is not None:
            self._counts[before] -= 1
        self._counts[_kind_of(record)] += 1

    def end(self) -> None:
        """Lets others write the file, and says what is in it."""
        self._lines.close()
        total = self._counts.total()
        unreadable = total - self._counts["result"]
        broken = f", {unreadable:,} of them of videos that can't be read" if unreadable else ""
        print(f"{total:,} results are in {self._lines.name}{broken}", file=sys.stderr)


def _kind_of(record: dict[str, Any]) -> Kind:
    return "result" if "reason" not in record else "again" if record.get("again") else "reason"


def as_record(result: Prediction | VideoReadError) -> dict[str, Any]:
    """{"path", "top": [{"name", "score"}], "labels", "seconds": {...}}, labels where a video may have several; or
    {"path", "reason"} of a video that can't be read, with "again": true where that may pass.
    """
    if isinstance(result, VideoReadError):
        return {"path": result.path, "reason": result.reason, **({"again": True} if result.may_pass else {})}
    return {
        "path": result.path,
        "top": [{"name": name, "score": score} for name, score in result.top],
        **({} if result.labels is None else {"labels": result.labels}),
        "seconds": {name: round(value, 4) for name, value in vars(result.timing).items()},
    }


def say_errors(errors: Sequence[object], file: str | None) -> None:
    """Prints why videos can't be read.

    Args:
        errors: all there are.
        file: that has them, too, so that a few will do.
    """
    shown_errors = errors if file is None else errors[:_ERRORS]
    for error in shown_errors:
        print(f"error: {error}", file=sys.stderr)
    if more := len(errors) - len(shown_errors):
        print(f"error: {more:,} more can't be read, or not to their end; {file} says why", file=sys.stderr)
