"""Results of many videos in one file, a line of JSON each, so that a run that was stopped goes on where it was."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

from octvideo.inference.predictor import Prediction
from octvideo.json_lines import JsonLines, Words
from octvideo.video import VideoReadError

_KIND = "octvideo infer 1"
_WORDS = Words("file of results", "another model, or of other settings", "name another file")


def as_record(result: Prediction | VideoReadError) -> dict[str, Any]:
    """{"path", "top": [{"name", "score"}], "seconds": {...}}, or {"path", "reason"} of a video that can't be read."""
    if isinstance(result, VideoReadError):
        return {"path": str(result.path), "reason": result.reason}
    return {
        "path": result.path,
        "top": [{"name": name, "score": score} for name, score in result.top],
        "seconds": {name: round(value, 4) for name, value in asdict(result.timing).items()},
    }


class ResultFile:
    """Lines as of `as_record`, behind a first one that says what made them.

    Args:
        path: written anew, or gone on with.
        made_by: {"weights": ..., "sha256": ..., ...}: what must be the same for all results in it.

    Raises:
        UserError: see `JsonLines`.
    """

    def __init__(self, path: str | Path, made_by: dict[str, Any]) -> None:
        self._lines = JsonLines(Path(path), {"results": _KIND, **made_by}, _WORDS)
        self.path = self._lines.file
        self.done: set[str] = set()
        self.unreadable = 0
        for entry in self._lines.entries():
            if "path" in entry:
                self._count(entry)

    def add(self, result: Prediction | VideoReadError) -> None:
        """Writes a line."""
        record = as_record(result)
        self._lines.add(record)
        self._count(record)

    def _count(self, record: dict[str, Any]) -> None:
        self.done.add(record["path"])
        self.unreadable += "reason" in record

    def close(self) -> None:
        """Lets others write it."""
        self._lines.close()
