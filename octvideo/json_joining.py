"""Files of JSON lines that were written in parts (octvideo/json_lines.py) become one, in the order of a list.

Lines are copied as they are. What is held of a file is where the lines of each video stand.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

from octvideo.errors import UserError
from octvideo.files import json_text, whole_file
from octvideo.json_lines import first_difference, first_line
from octvideo.stores import file_name

# The first item of a first line -> how much is known of a video by the last of its lines.
_KINDS: dict[tuple[str, str], Callable[[dict[str, Any]], int]] = {
    ("results", "octvideo infer 1"): lambda line: 2 if "top" in line else 1,
    ("results", "octvideo timeline 1"): lambda line: 0 if "windows" not in line else 1 if line["trouble"] else 2,
    ("journal", "octvideo check 1"): lambda line: 2 if line["verdict"] == "ok" else 1,
}
# How much is known where a try of a video ends: lines after that are of another one, which alone counts.
_ENDS = {"octvideo infer 1": (1, 2), "octvideo timeline 1": (1,)}


@dataclass(slots=True)
class _Lines:
    """The lines of a video in one file.

    Args:
        file: its number.
        known: see `_KINDS`.
        spans: first byte and the byte after the last, of lines that stand together.
    """

    file: int
    known: int
    spans: list[tuple[int, int]]


@dataclass
class Joined:
    """What was joined.

    Args:
        videos: in the joined file.
        unreadable: of them that can't be read, or not to their end.
        unfinished: of them that more lines are to come of.
        double: videos that were in several files, of which the best known was taken.
        missing: videos of the list that are in no file.
        not_listed: videos that are not in the list; they come last.
        spelt_otherwise: a missing video, and one that is not listed and ends as it does.
        missing_parts: such as 3/16, where the files say that they are parts of so many.
        cut_off: files with a last line that is not whole.
    """

    videos: int = 0
    unreadable: int = 0
    unfinished: list[str] = field(default_factory=list)
    double: list[str] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    not_listed: int = 0
    spelt_otherwise: tuple[str, str] | None = None
    missing_parts: list[str] = field(default_factory=list)
    cut_off: list[Path] = field(default_factory=list)


def join_lines(files: Sequence[Path], out: Path, names: Sequence[str] | None = None) -> Joined:
    """Writes the lines of all files into one.

    Args:
        files: of results of infer or timeline, or journals of check.
        out: written whole.
        names: the list, each name once, as the commands had it; None keeps the order of the files.

    Raises:
        UserError: a file is none of these, is of another model or other settings than the first, or is being written.
    """
    headers = [_header(file) for file in files]
    first = {key: value for key, value in headers[0].items() if key != "part"}
    for file, header in zip(files, headers, strict=True):
        if key := first_difference(first, {key: value for key, value in header.items() if key != "part"}):
            raise UserError(
                f"{file} is of another model, or of other settings, than {files[0]} "
                f"({key}: {header.get(key)!r} and {first.get(key)!r}): leave it out"
            )
    kind = next(iter(first.items()))
    known_by, try_ends = _KINDS[kind], _ENDS.get(kind[1], ())
    joined = Joined(missing_parts=_missing_parts(headers))
    with contextlib.ExitStack() as stack:
        contents = [stack.enter_context(_unwritten(file)) for file in files]
        found: dict[str, _Lines] = {}
        double: dict[str, None] = {}
        for number, content in enumerate(contents):
            lines, is_cut = _lines_of(number, content, known_by, try_ends)
            if is_cut:
                joined.cut_off.append(files[number])
            for path, one in lines.items():
                if path in found:
                    double[path] = None
                if path not in found or one.known > found[path].known:
                    found[path] = one
        joined.double = list(double)
        order: Sequence[str] = list(found)
        if names is not None:
            listed = set(names)
            joined.missing = [name for name in names if name not in found]
            rest = [path for path in found if path not in listed]
            joined.not_listed = len(rest)
            ends = {file_name(path): path for path in rest}
            pairs = ((name, ends[end]) for name in joined.missing if (end := file_name(name)) in ends)
            joined.spelt_otherwise = next(pairs, None)
            order = [name for name in names if name in found] + rest
        with whole_file(out, to_disk=True) as part, part.open("wb") as written:
            contents[0].seek(0)
            # As it was written, but for the part.
            own = contents[0].readline() if "part" not in headers[0] else json_text(first).encode() + b"\n"
            written.write(own)
            for path in order:
                one = found[path]
                for start, stop in one.spans:
                    contents[one.file].seek(start)
                    written.write(contents[one.file].read(stop - start))
    joined.videos = len(order)
    joined.unreadable = sum(one.known == 1 for one in found.values())
    joined.unfinished = [path for path in order if found[path].known == 0]
    return joined


def _header(file: Path) -> dict[str, Any]:
    header = first_line(file)
    if not header or next(iter(header.items())) not in _KINDS:
        expected = "the results of octvideo infer or timeline (-o FILE), or a journal of octvideo check"
        raise UserError(f"{file}: expected {expected}")
    return header


def _missing_parts(headers: Sequence[dict[str, Any]]) -> list[str]:
    there = {str(header["part"]) for header in headers if header.get("part")}
    counts = {int(part.partition("/")[2]) for part in there}
    if len(counts) != 1 or not all(header.get("part") for header in headers):
        return []
    (count,) = counts
    return [part for number in range(1, count + 1) if (part := f"{number}/{count}") not in there]


@contextlib.contextmanager
def _unwritten(file: Path) -> Iterator[BinaryIO]:
    with file.open("rb") as content:
        try:
            fcntl.flock(content, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise UserError(f"another process writes {file}: wait for it") from error
        except OSError:  # a file system without locks
            pass
        yield content


def _lines_of(
    number: int, content: BinaryIO, known_by: Callable[[dict[str, Any]], int], try_ends: Collection[int]
) -> tuple[dict[str, _Lines], bool]:
    """The videos of a file, and whether its last line is cut off; a video that was tried again has the lines of the
    last time.
    """
    found: dict[str, _Lines] = {}
    content.readline()
    stop = content.tell()
    for line in content:
        start, stop = stop, stop + len(line)
        if not line.endswith(b"\n"):
            return found, True
        try:
            entry = json.loads(line)
            path, known = entry["path"], known_by(entry)
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(f"{content.name}: got {line[:80]!r}, expected a line of results") from error
        one = found.setdefault(path, _Lines(number, known, []))
        if one.known in try_ends:
            one.spans.clear()
        one.known = known
        if one.spans and one.spans[-1][1] == start:
            one.spans[-1] = one.spans[-1][0], stop
        else:
            one.spans.append((start, stop))
    return found, False
