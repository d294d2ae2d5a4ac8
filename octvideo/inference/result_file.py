"""Results of many videos in one file, a line of JSON each, so that a run that was stopped goes on where it was."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any, BinaryIO

from octvideo.errors import UserError
from octvideo.inference.predictor import Prediction
from octvideo.video import VideoReadError


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
    """A file that holds what made the results ({"weights", ...}) in its first line, and a result in each other one.

    Lines are written as results come; one that a kill has cut off is overwritten by the next run.

    Args:
        path: written anew, or gone on with.
        made_by: what must be the same for all results in it.

    Raises:
        UserError: the file holds something else, or results of others, or can't be written.
    """

    def __init__(self, path: str | Path, made_by: dict[str, str]) -> None:
        self.path = Path(path)
        try:
            self._file: BinaryIO = self.path.open("r+b" if self.path.exists() else "w+b")
        except OSError as error:
            raise UserError(f"can't write results to {self.path} ({error.strerror})") from error
        try:
            self.done = self._read(made_by)
        except UserError:
            self._file.close()
            raise
        if self._file.tell() == 0:
            self._write(made_by)

    def _read(self, made_by: dict[str, str]) -> set[str]:
        """Paths of the results that are there; the file's position is then behind the last whole line."""
        done, end = set(), 0
        for number, line in enumerate(self._file):
            is_cut_off = not line.endswith(b"\n")
            if is_cut_off and (number > 0 or _as_line(made_by).startswith(line)):
                break
            try:
                record = json.loads(line.decode("utf-8", "surrogateescape"))
                if number > 0:
                    done.add(record["path"])
            except (ValueError, KeyError, TypeError) as error:
                raise UserError(
                    f"line {number + 1} of {self.path} is no result of infer, expected a line of JSON: name a file "
                    "that an earlier run with --output has written, or one that is not there"
                ) from error
            if number == 0 and record != made_by:
                raise UserError(
                    f"{self.path} holds results of {record}, expected {made_by}: name another file, or run as before"
                )
            end += len(line)
        self._file.seek(end)
        self._file.truncate()
        return done

    def add(self, result: Prediction | VideoReadError) -> None:
        """Writes a line."""
        record = as_record(result)
        self._write(record)
        self.done.add(record["path"])

    def _write(self, record: dict[str, Any]) -> None:
        self._file.write(_as_line(record))
        self._file.flush()

    def close(self) -> None:
        self._file.close()


def _as_line(record: dict[str, Any]) -> bytes:
    return (json.dumps(record, ensure_ascii=False) + "\n").encode("utf-8", "surrogateescape")
