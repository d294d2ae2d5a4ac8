"""Which videos, and which class each has: lists in the formats of the field, and folders of classes.

Formats of lists, told apart line by line and split from the right, since paths hold spaces::

    dir/a clip.mp4 12          mmaction2, PySlowFast: ids (any run of spaces, tabs, commas, semicolons)
    dir/a clip.mp4,wave        class name, after a comma, semicolon or tab, or behind the suffix of a video
    "dir/a, b.mp4","wave"      quotes of csv
    dir/a clip.mp4             no label, for prediction
    path,label                 as first line: columns by name, in any order, among any others
    label,youtube_id,...       the official csv of Kinetics, see kinetics.py

A number is an id. Where classes are called by numbers it is a name after a comma, semicolon or tab; after a space the
whole list decides, and is refused where both would do. Empty lines and lines that start with # are passed over.
Errors name file and line.
"""

from __future__ import annotations

import csv
import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from octvideo.class_names import ClassIndex
from octvideo.data.records import VideoList, VideoRecord
from octvideo.errors import UserError
from octvideo.video import VIDEO_SUFFIXES

_SUFFIXES = "|".join(re.escape(suffix) for suffix in sorted(VIDEO_SUFFIXES))
_BEHIND_VIDEO = re.compile(rf"(?P<path>.*(?:{_SUFFIXES}))(?P<between>[\s,;]+)(?P<label>.*)", re.IGNORECASE)
_NUMBERED = re.compile(r"(?P<path>.*[^\s,;])(?P<between>[\s,;]+)(?P<label>-?\d+)")
_NAMED = re.compile(r"(?P<path>.*\S)(?P<between>\s*[\t,;]\s*)(?P<label>[^\t,;]*)")
_NUMBER = re.compile(r"-?\d+")
# Columns that lists of the field call so, the likeliest first.
_PATH_COLUMNS = ("path", "file_path", "filepath", "video_path", "file", "filename", "file_name", "video", "video_name")
_LABEL_COLUMNS = ("label", "class", "class_name", "label_name", "category", "action", "label_id", "class_id", "target")
_KINETICS_LINE = re.compile(r"^[^,]+,[\w-]{11},\d+,\d+,\w+$")  # label,youtube_id,time_start,time_end,split
_CHECKED = 64  # files looked for before a run starts: a wrong root misses all of them


def read_records(source: Path, *, root: Path, classes: ClassIndex | None, labelled: bool = True) -> VideoList:
    """The videos of a list or a folder of classes.

    Args:
        source: list file, or folder with one folder per class (or of videos, where `labelled` is off).
        root: what relative paths in a list start from.
        classes: to check labels against; None takes any number.
        labelled: every video must have a label.

    Raises:
        UserError: with file and line; or there is no video.
    """
    found = _read_folder(source, classes, labelled) if source.is_dir() else _read_list(source, root, classes, labelled)
    records = VideoList(found)
    if not records:
        raise UserError(f"{source} lists no video")
    return records


def check_files(records: Sequence[VideoRecord], source: str | Path, advice: str = "") -> None:
    """Looks for some of the files, evenly spread, before hours of work start.

    Raises:
        UserError: none of them is there; single missing ones are left to reading.
    """
    some = records[:: max(len(records) // _CHECKED, 1)]
    missing = [record.path for record in some if not Path(record.path).is_file()]
    if len(missing) == len(some):
        raise UserError(
            f"none of the videos of {source} is there: looked for {len(missing)} of its {len(records)}, the first "
            f"{Path(missing[0]).absolute()}. Paths in a list start from data.root. {advice}".rstrip()
        )


def _read_folder(folder: Path, classes: ClassIndex | None, labelled: bool) -> Iterator[VideoRecord]:
    # Links are followed: class folders are often links into a larger data set.
    for here, folders, files in os.walk(folder, followlinks=True):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        videos = sorted(name for name in files if _is_video(name) and not name.startswith("."))
        if not videos:
            continue
        inside = Path(here).relative_to(folder).parts
        label = classes.find(inside[0]) if classes is not None and inside else None
        if label is None and labelled:
            if not inside:
                raise UserError(f"{folder / videos[0]} lies in no class folder: expected {folder}/<class>/{videos[0]}")
            (classes or ClassIndex([])).need(inside[0], str(folder / inside[0]))
        for name in videos:
            yield VideoRecord(os.path.join(here, name), -1 if label is None else label)  # noqa: PTH118 (a Path is slow)


def _is_video(name: str) -> bool:
    return os.path.splitext(name)[1].lower() in VIDEO_SUFFIXES  # noqa: PTH122


class _Line(NamedTuple):
    """One video of a list.

    Args:
        where: file and line.
        text: the line.
        path: of the video; None where the line has to be split.
        label: "" where it has none.
        is_name: whether what stands between them says that the label is a name.
    """

    where: str
    text: str
    path: str | None = None
    label: str = ""
    is_name: bool = True


def _read_list(file: Path, root: Path, classes: ClassIndex | None, labelled: bool) -> Iterator[VideoRecord]:
    numbers = ((line.where, line.label) for line in _lines(file, root) if not line.is_name)
    are_names = classes is not None and classes.numbers_are_names(numbers)
    for line in _lines(file, root):
        path, label = _of_class(line, classes)
        number = -1
        if label and classes is None:
            number = _any_id(label, line.where)
        elif label and classes is not None:
            if re.search(r"[,;\t]", label) and classes.find(label) is None:
                raise UserError(f"{line.where}: got {label!r} behind {path}, expected one label: 'path,label'")
            number = classes.id_of(label, line.where, is_name=line.is_name or are_names)
        if number < 0 and labelled:
            raise UserError(f"{line.where}: got {line.text!r}, expected 'path label'")
        yield VideoRecord(str(root / path), number)


def _lines(file: Path, root: Path) -> Iterator[_Line]:
    """The lines that name a video, split as far as that needs no class names."""
    header: _Header | None = None
    is_first = True
    try:
        with file.open(encoding="utf-8-sig", errors="surrogateescape") as lines:
            for number, line in enumerate(lines, 1):
                text = line.strip()
                if not text or text.startswith("#"):
                    continue
                where = f"{file}:{number}"
                if number == 1 and _KINETICS_LINE.match(text):
                    raise UserError(
                        f"{file} looks like a csv of Kinetics without its first line: add "
                        "'label,youtube_id,time_start,time_end,split', or make lists with tools/prepare_dataset.py"
                    )
                if is_first:
                    is_first, header = False, _header_of(text)
                    if header is not None:
                        continue
                yield _split(text, where, root) if header is None else header.split(text, where)
    except OSError as error:
        raise UserError(f"can't read the list {file}: {error.strerror}") from error


class _Header(NamedTuple):
    """The first line of a csv.

    Args:
        delimiter: between the columns.
        columns: their names.
        path: number of the path's column.
        label: of the label's; None where there is none.
    """

    delimiter: str
    columns: list[str]
    path: int
    label: int | None

    def split(self, text: str, where: str) -> _Line:
        cells = next(csv.reader([text], delimiter=self.delimiter, skipinitialspace=True))
        if len(cells) != len(self.columns):
            raise UserError(
                f"{where}: got {len(cells)} columns, the first line has {len(self.columns)} "
                f"({self.delimiter.join(self.columns)}); a path that holds {self.delimiter!r} needs quotes"
            )
        label = "" if self.label is None else cells[self.label].strip()
        is_id = self.delimiter == " " or (self.label is not None and self.columns[self.label].endswith("_id"))
        return _Line(where, text, cells[self.path].strip(), label, is_name=not (is_id and _NUMBER.fullmatch(label)))


def _header_of(text: str) -> _Header | None:
    delimiter = next((mark for mark in "\t;," if mark in text), " ")
    columns = [cell.strip(' "').lower() for cell in text.split(delimiter)]
    path = next((columns.index(name) for name in _PATH_COLUMNS if name in columns), None)
    if path is None or _BEHIND_VIDEO.match(f"{text} "):
        return None
    label = next((columns.index(name) for name in _LABEL_COLUMNS if name in columns), None)
    return _Header(delimiter, columns, path, label)


def _split(text: str, where: str, root: Path) -> _Line:
    if (text.startswith('"') or text.endswith('"')) and (cells := _unquoted(text)) is not None:
        delimiter, path, label = cells
        return _Line(where, text, path, label, is_name=delimiter != " " or not _NUMBER.fullmatch(label))
    match = _BEHIND_VIDEO.fullmatch(text)
    if match is None or _is_video(match["label"]):
        match = _NUMBERED.fullmatch(text)
    if match is None:
        return _Line(where, text)
    path, between, label = match["path"], match["between"], match["label"]
    _refuse_more(path, label, where, root)
    return _Line(where, text, path, label, is_name=bool(set(between) & set(",;\t")) or not _NUMBER.fullmatch(label))


def _unquoted(text: str) -> tuple[str, str, str] | None:
    """Delimiter, path and label of a line in the quotes of csv."""
    for delimiter in ",;\t ":
        try:
            cells = next(csv.reader([text], delimiter=delimiter, skipinitialspace=True, strict=True))
        except csv.Error:
            continue
        if len(cells) == 2 or (len(cells) == 1 and cells[0] != text):
            return delimiter, cells[0].strip(), "".join(cells[1:]).strip()
    return None


def _of_class(line: _Line, classes: ClassIndex | None) -> tuple[str, str]:
    """Path and label of a line; which names there are decides where a path without a suffix ends."""
    if line.path is not None:
        return line.path, line.label
    named, (head, _, word) = _NAMED.fullmatch(line.text), line.text.rpartition(" ")
    if named and (classes is None or classes.find(named["label"]) is not None):
        return named["path"], named["label"]
    if head and classes is not None and classes.find(word) is not None:
        return head.strip(), word
    if named and not _is_video(named["label"]):  # else a name with a comma, and no label
        return named["path"], named["label"]
    return line.text, ""


def _any_id(label: str, where: str) -> int:
    if not _NUMBER.fullmatch(label):
        raise UserError(f"{where}: the label is a name, {label!r}; give the class names as data.classes")
    if int(label) < -1:
        raise UserError(f"{where}: label {label}, expected a class id")
    return int(label)


def _refuse_more(path: str, label: str, where: str, root: Path) -> None:
    """TSN's lists, `folder num_frames label`, are of extracted frames; others give start and end, or several labels."""
    head = re.match(r"^(.*\S)[\s,;]+-?\d+$", path)
    if head and (root / head[1]).is_dir():
        raise UserError(f"{where}: {head[1]} is a folder of frames; octvideo reads video files, 'path label'")
    if re.fullmatch(r"(-?\d+[\s,;]+)+-?\d+", label):
        raise UserError(f"{where}: got several numbers behind {path}, expected 'path label'")
