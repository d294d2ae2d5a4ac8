"""Which videos, and which class each has: lists in the formats of the field, and folders of classes.

Formats of lists, told apart line by line and split from the right, since paths hold spaces::

    dir/a clip.mp4 12          mmaction2, PySlowFast: ids (any run of spaces, tabs, commas, semicolons)
    dir/a clip.mp4,wave        class name, after a comma, semicolon or tab, or after the suffix of a video
    "dir/a, b.mp4","wave"      quotes of csv
    dir/a clip.mp4             no label, for prediction
    dir/a clip.mp4 wave;sit    several labels, names or ids, where videos may have them; ids also after spaces or commas
    path,label                 as first line: columns by name, in any order, among any others
    label,youtube_id,...       the official csv of Kinetics, see kinetics.py

Where videos may have several labels, a name that holds a semicolon stands in quotes: wave;"stand; sit".
A number is an id. Where classes are called by numbers it is a name after a comma, semicolon or tab; after a space the
whole list decides, and is refused where both would do. Empty lines and lines that start with # are passed over.
Errors name file and line.
"""

from __future__ import annotations

import csv
import functools
import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from octvideo.class_names import ClassIndex, is_number
from octvideo.data.kinetics import is_kinetics_csv, read_kinetics_csv
from octvideo.data.records import VideoList, VideoRecord
from octvideo.errors import UserError
from octvideo.files import VIDEO_SUFFIXES, is_video, read_text, text_lines, walk_videos

LIST_SUFFIXES = frozenset({".txt", ".csv", ".tsv", ".lst", ".list"})
_SUFFIXES = "|".join(map(re.escape, VIDEO_SUFFIXES))
_AFTER_VIDEO = re.compile(rf"(.*(?:{_SUFFIXES}))([\s,;]+)(.*)", re.IGNORECASE)  # path, what is between, label
_NUMBERED = re.compile(r"(.*[^\s,;])([\s,;]+)(-?\d+)")
_NAMED = re.compile(r"(.*\S)(\s*[\t,;]\s*)([^\t,;]*)")
# Columns that lists of the field call so, the likeliest first.
_PATHS = ("path", "file_path", "filepath", "video_path", "file", "filename", "file_name", "video", "video_name")
_LABELS = ("label", "class", "class_name", "label_name", "category", "action", "label_id", "class_id")
_CHECKED = 64  # files looked for before a run starts: a wrong root misses all of them


def read_records(
    source: Path, *, root: Path, classes: ClassIndex, labelled: bool = True, several: bool = False
) -> VideoList:
    """The videos of a list or a folder of classes, whatever its layout.

    Args:
        source: list file, or folder with one folder per class (or of videos, where `labelled` is off).
        root: what relative paths in a list start from.
        classes: of the data set.
        labelled: every video must have a label.
        several: a video may have several labels in a list.

    Raises:
        UserError: with file and line; or there is no video.
    """
    if source.is_dir():
        records = VideoList(_read_folder(source, classes, labelled))
    elif source.is_file() and is_kinetics_csv(source):
        records = read_kinetics_csv(source, root=root, classes=classes, labelled=labelled)
    else:
        records = VideoList(_read_list(source, root, classes, labelled, several))
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


def _read_folder(folder: Path, classes: ClassIndex, labelled: bool) -> Iterator[VideoRecord]:
    for path in walk_videos(folder):
        name, inside, _ = path.partition(os.sep)
        label = classes.find(name) if inside else None
        if label is None and labelled:
            if not inside:
                raise UserError(f"{folder / path} lies in no class folder: expected {folder}/<class>/{path}")
            classes.need(name, str(folder / name))
        yield VideoRecord(os.path.join(folder, path), -1 if label is None else label)  # noqa: PTH118 (a Path is slow)


def _read_list(file: Path, root: Path, classes: ClassIndex, labelled: bool, several: bool) -> Iterator[VideoRecord]:
    if is_video(file.name):
        raise UserError(f"{file} is a video: expected a list of videos, or a folder of them")
    lines = functools.partial(_lines, file, root, classes, several)
    bare = (
        (where, label) for where, _, _, labels, between in lines() for label in labels if not _may_name(label, between)
    )
    are_names = classes.numbers_are_names(bare)
    for where, text, path, labels, between in lines():
        found = (classes.id_of(label, where, is_name=are_names or _may_name(label, between)) for label in labels)
        number, *others = dict.fromkeys(found) or [-1]
        if labelled and -1 in (number, *others):
            raise UserError(f"{where}: got {text!r}, expected 'path label'")
        if -1 in others or (number < 0 and others):
            raise UserError(f"{where}: got -1, which is no label, beside others")
        yield VideoRecord(str(root / path), number, None, tuple(others))


def _may_name(label: str, between: str) -> bool:
    """Whether a label may be a class's name, by what stands between it and the path."""
    return not is_number(label) or not between.isspace() or "\t" in between


def _lines(
    file: Path, root: Path, classes: ClassIndex, several: bool
) -> Iterator[tuple[str, str, str, list[str], str]]:
    """For each line that names a video: where it is, its text, path, labels, and what stands before these."""
    columns: tuple[str, list[str], int, int] | None = None
    is_first = True
    for number, line in enumerate(text_lines(read_text(file, names=True)), 1):
        text, where = line.strip(), f"{file}:{number}"
        if not text or text.startswith("#"):
            continue
        if is_first:
            is_first, columns = False, _columns(text)
            if columns is not None:
                continue
        if columns is not None:
            path, between, label = _cells_of(text, where, *columns)
        else:
            match = _AFTER_VIDEO.fullmatch(text) if several and not text.startswith('"') else None
            if match is None or is_video(match[3]):
                path, between, label = _split(text, where, root, classes)
            else:
                path, between, label = match.groups()
        labels = [label] if label else []
        yield where, text, path, _several(label, where, classes) if several and label else labels, between


def _several(text: str, where: str, classes: ClassIndex) -> list[str]:
    """The labels of a video."""
    if re.fullmatch(r"(-?\d+[\s,;]+)+-?\d+", text):
        return re.split(r"[\s,;]+", text)
    parts = _csv(text, ";")
    if classes.find(text) is None or len(parts) == 1:  # one may be in quotes
        if not parts or "" in parts:
            raise UserError(f"{where}: got the labels {text!r}, expected 'path label;label'")
        return parts
    if all(classes.find(part) is not None for part in parts):
        raise UserError(f"{where}: {text!r} is a class, and so is each part of it: rename the class")
    return [text]


def _columns(text: str) -> tuple[str, list[str], int, int] | None:
    """Delimiter, all columns, and those of path and label, where a line is the first of a csv."""
    delimiter = next((mark for mark in "\t;," if mark in text), " ")
    names = [name.lower() for name in _csv(text, delimiter)]
    found = [next((names.index(name) for name in known if name in names), None) for known in (_PATHS, _LABELS)]
    return None if None in found else (delimiter, names, *found)  # type: ignore[return-value]


def _cells_of(text: str, where: str, delimiter: str, columns: list[str], path: int, label: int) -> tuple[str, str, str]:
    cells = _csv(text, delimiter)
    if len(cells) != len(columns):
        raise UserError(
            f"{where}: got {len(cells)} columns, expected those of the first line, {delimiter.join(columns)}; "
            f"a path that holds {delimiter!r} needs quotes"
        )
    return cells[path], " " if columns[label].endswith("_id") else delimiter, cells[label]


def _csv(text: str, delimiter: str) -> list[str]:
    try:
        cells = next(csv.reader([text], delimiter=delimiter, skipinitialspace=True, strict=True))
    except csv.Error:  # quotes that are none
        return []
    return [cell.strip() for cell in cells]


def _split(text: str, where: str, root: Path, classes: ClassIndex) -> tuple[str, str, str]:
    """Path, what stands between, and label."""
    for delimiter in ",;\t " if '"' in (text[0], text[-1]) else "":
        cells = _csv(text, delimiter)
        if len(cells) == 2 or (len(cells) == 1 and cells[0] != text):
            return cells[0], delimiter, "".join(cells[1:])
    match = _AFTER_VIDEO.fullmatch(text)
    if match is None or is_video(match[3]):
        match = _NUMBERED.fullmatch(text)
    if match is None:  # a path without a suffix, whose end the names of classes tell
        match, (path, _, word) = _NAMED.fullmatch(text), text.rpartition(" ")
        if path and classes.find(word) is not None and (match is None or classes.find(match[3]) is None):
            return path.strip(), " ", word
        return (text, "", "") if match is None or is_video(match[3]) else (match[1], match[2], match[3])
    path, between, label = match.groups()
    # TSN's lists, `folder num_frames label`, are of extracted frames; others give start and end, or several labels.
    head = re.match(r"^(.*\S)[\s,;]+-?\d+$", path)
    if head and (root / head[1]).is_dir():
        raise UserError(f"{where}: {head[1]} is a folder of frames; octvideo reads video files, 'path label'")
    if re.fullmatch(r"(-?\d+[\s,;]+)+-?\d+", label):
        raise UserError(f"{where}: got several numbers after {path}, expected 'path label'")
    if re.search(r"[,;\t]", label) and classes.find(label) is None:
        raise UserError(
            f"{where}: got {label!r} after {path}, expected one label: 'path,label'; several, 'path label;label', are "
            "for model.loss bce"
        )
    return path, between, label
