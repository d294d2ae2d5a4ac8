"""Which videos, and which class each has: lists in the formats of the field, and folders of classes.

Formats of lists, told apart line by line and split from the right, since paths hold spaces::

    dir/a clip.mp4 12          mmaction2, PySlowFast: ids (any run of spaces, tabs, commas, semicolons)
    dir/a clip.mp4,wave        class name, after a comma, semicolon or tab, or after the suffix of a video
    "dir/a, b.mp4","wave"      quotes of csv
    dir/a clip.mp4             no label, for prediction
    dir/a clip.mp4 wave;sit    several labels, names or ids, where videos may have them; ids also after spaces or commas
    path,label                 as first line: columns by name, in any order, among any others
    label,youtube_id,...       the official csv of Kinetics, see kinetics.py
    folder 120 12              extracted frames, where the names of images are given, see frame_lists.py

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
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from octvideo.class_names import ClassIndex, is_number
from octvideo.data.frame_lists import split_frames
from octvideo.data.kinetics import is_kinetics_csv, read_kinetics_csv
from octvideo.data.records import FrameRange, VideoList, VideoRecord
from octvideo.errors import UserError
from octvideo.files import VIDEO_SUFFIXES, is_video, text_lines, walk_videos
from octvideo.stores import StoreError, check_stores, exists, file_name, is_remote, joined, read_text, shown
from octvideo.video import FrameNames

LIST_SUFFIXES = frozenset({".txt", ".csv", ".tsv", ".lst", ".list"})
_SUFFIXES = "|".join(map(re.escape, VIDEO_SUFFIXES))
_AFTER_VIDEO = re.compile(rf"(.*(?:{_SUFFIXES}))([\s,;]+)(.*)", re.IGNORECASE)  # path, what is between, label
_NUMBERED = re.compile(r"(.*[^\s,;])([\s,;]+)(-?\d+)")
_NAMED = re.compile(r"(.*\S)(\s*[\t,;]\s*)([^\t,;]*)")
# Columns that lists of the field call so, the likeliest first.
_PATHS = ("path", "file_path", "filepath", "video_path", "file", "filename", "file_name", "video", "video_name")
_LABELS = ("label", "class", "class_name", "label_name", "category", "action", "label_id", "class_id")
_CHECKED = 64  # files looked for before a run starts: a wrong root misses all of them
_ASKED_FOR = 3  # the same behind addresses


def read_records(
    source: str | Path,
    *,
    root: str | Path,
    classes: ClassIndex,
    labelled: bool = True,
    several: bool = False,
    frames: FrameNames | None = None,
    fps: float | None = None,
) -> VideoList:
    """The videos of a list or a folder of classes, whatever its layout.

    Args:
        source: list file, or its address, or folder with one folder per class (or of videos, where `labelled` is off).
        root: what relative paths in a list start from, a folder or an address.
        classes: of the data set.
        labelled: every video must have a label.
        several: a video may have several labels in a list.
        frames: names of images: lists are of folders of extracted frames. None reads videos.
        fps: of extracted frames.

    Raises:
        UserError: with file and line; or there is no video.
    """
    if is_remote(source) or is_remote(root):
        return _read_remote(str(source), root, classes, labelled, several, frames)
    source, root = Path(source), Path(root)
    if frames is not None and (source.is_dir() or not source.is_file() or is_kinetics_csv(source)):
        raise UserError(f"{source}: with data.frame_names expected a list of lines 'folder num_frames label'")
    if source.is_dir():
        records = VideoList(_read_folder(source, classes, labelled))
    elif source.is_file() and is_kinetics_csv(source):
        records = read_kinetics_csv(source, root=root, classes=classes, labelled=labelled)
    else:
        lines = functools.partial(_lines, source, root, classes, several, frames, fps)
        records = VideoList(_read_list(source, root, classes, labelled, lines))
    if not records:
        raise UserError(f"{source} lists no video")
    return records


def _read_remote(
    source: str, root: str | Path, classes: ClassIndex, labelled: bool, several: bool, frames: FrameNames | None
) -> VideoList:
    """`read_records` of a list that lies behind an address, or is of videos that do."""
    if frames is not None:
        raise UserError(f"{shown(source)}: data.frame_names is for folders on this machine, not behind addresses")
    if not is_remote(source) and (Path(source).is_dir() or is_kinetics_csv(Path(source))):
        raise UserError(f"{source}: with data.root {shown(str(root))} expected a list of lines 'path label'")
    lines = functools.partial(_lines, source, root, classes, several, None, None)
    records = VideoList(_read_list(source, root, classes, labelled, lines))
    if not records:
        raise UserError(f"{shown(source)} lists no video")
    check_stores(record.path for record in records)
    return records


def check_files(records: Sequence[VideoRecord], source: str | Path, advice: str = "") -> None:
    """Looks for some of the files, evenly spread, before hours of work start.

    Raises:
        UserError: none of them is there; single missing ones are left to reading.
    """
    some = records[:: max(len(records) // _CHECKED, 1)]
    if any(is_remote(record.path) for record in some):
        some = some[:: max(len(some) // _ASKED_FOR, 1)]

    def is_there(record: VideoRecord) -> bool:
        if is_remote(record.path):
            try:
                return exists(record.path)
            except StoreError as error:
                raise UserError(f"can't reach {shown(record.path)} of {shown(str(source))}: {error}") from None
        return Path(record.path).is_file() if record.frames is None else Path(record.path).is_dir()

    missing = [record.path for record in some if not is_there(record)]
    if len(missing) == len(some):
        first = missing[0] if is_remote(missing[0]) else str(Path(missing[0]).absolute())
        raise UserError(
            f"none of the videos of {shown(str(source))} is there: looked for {len(missing)} of its {len(records)}, "
            f"the first {shown(first)}. Paths in a list start from data.root. {advice}".rstrip()
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


class _Line(NamedTuple):
    """A line of a list that names a video.

    Args:
        where: it stands, for messages.
        text: of it.
        path: of the video.
        labels: none, one, or several.
        between: what stands before the labels.
        frames: of a folder of images.
    """

    where: str
    text: str
    path: str
    labels: list[str]
    between: str
    frames: FrameRange | None

    def may_name(self, label: str) -> bool:
        """Whether a label may be a class's name, by what stands between it and the path."""
        return not is_number(label) or not self.between.isspace() or "\t" in self.between


def _read_list(
    file: str | Path, root: str | Path, classes: ClassIndex, labelled: bool, lines: Callable[[], Iterator[_Line]]
) -> Iterator[VideoRecord]:
    if is_video(file_name(str(file))):
        raise UserError(f"{shown(str(file))} is a video: expected a list of videos, or a folder of them")
    bare = ((line.where, label) for line in lines() for label in line.labels if not line.may_name(label))
    are_names = classes.numbers_are_names(bare)
    for line in lines():
        found = (classes.id_of(label, line.where, is_name=are_names or line.may_name(label)) for label in line.labels)
        number, *others = dict.fromkeys(found) or [-1]
        if labelled and -1 in (number, *others):
            expected = "path label" if line.frames is None else "folder num_frames label"
            raise UserError(f"{line.where}: got {line.text!r}, expected '{expected}'")
        if -1 in others or (number < 0 and others):
            raise UserError(f"{line.where}: got -1, which is no label, beside others")
        yield VideoRecord(joined(root, line.path), number, None, frames=line.frames, others=tuple(others))


def _lines(
    file: str | Path, root: str | Path, classes: ClassIndex, several: bool, names: FrameNames | None, fps: float | None
) -> Iterator[_Line]:
    frames = None

    def labels_of(text: str, where: str) -> list[str]:
        return _several(text, where, classes) if several and text else [text] if text else []

    columns: tuple[str, list[str], int, int] | None = None
    is_first = True
    for number, line in enumerate(text_lines(read_text(file, names=True)), 1):
        text, where = line.strip(), f"{shown(str(file))}:{number}"
        if not text or text.startswith("#"):
            continue
        if names is not None:
            path, frames, between, label = split_frames(text, where, root=Path(root), names=names, fps=fps)
            if not several:
                _check_is_one(label, path, where, classes)
            yield _Line(where, text, path, labels_of(label, where), between, frames)
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
        yield _Line(where, text, path, labels_of(label, where), between, frames)


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


def _split(text: str, where: str, root: str | Path, classes: ClassIndex) -> tuple[str, str, str]:
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
    if head and not is_remote(root) and (Path(root) / head[1]).is_dir():
        raise UserError(
            f"{where}: {head[1]} is a folder of frames: say how its images are called, such as "
            "data.frame_names 'img_{:05d}.jpg'; or give video files, 'path label'"
        )
    if re.fullmatch(r"(-?\d+[\s,;]+)+-?\d+", label):
        raise UserError(f"{where}: got several numbers after {path}, expected 'path label'")
    _check_is_one(label, path, where, classes)
    return path, between, label


def _check_is_one(label: str, path: str, where: str, classes: ClassIndex) -> None:
    """Refuses several labels, unless all of it is a class's name."""
    if re.search(r"[,;\t]", label) and classes.find(label) is None:
        raise UserError(
            f"{where}: got {label!r} after {path}, expected one label: 'path,label'; several, 'path label;label', are "
            "for model.loss bce and octvideo shards --several_labels"
        )
