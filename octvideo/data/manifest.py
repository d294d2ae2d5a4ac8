"""Which videos, and which class each has: lists in the formats of the field, and folders of classes.

Formats of lists, told apart line by line and always split from the right, since paths hold spaces::

    dir/a clip.mp4 12          mmaction2, PySlowFast (numbers; any run of spaces, tabs, commas, semicolons)
    dir/a clip.mp4,wave        class name, after a comma, semicolon or tab (or a space, if it is one word)
    dir/a clip.mp4             no label, for prediction
    label,youtube_id,...       the official csv of Kinetics, see kinetics.py

Empty lines and lines that start with # are passed over. Errors name file and line.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from octvideo.data.class_names import ClassIndex
from octvideo.data.records import VideoList, VideoRecord
from octvideo.errors import UserError
from octvideo.files import is_video, read_text, text_lines, walk_videos

_NUMBERED = re.compile(r"^(?P<path>.*\S)[\s,;]+(?P<label>-?\d+)\s*$")
_NAMED = re.compile(r"^(?P<path>.*\S)\s*[\t,;]\s*(?P<label>[^\t,;]*\S)\s*$")
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
    for path in walk_videos(folder):
        name, inside, _ = path.partition(os.sep)
        label = classes.find(name) if classes is not None and inside else None
        if label is None and labelled:
            if not inside:
                raise UserError(f"{folder / path} lies in no class folder: expected {folder}/<class>/{path}")
            hint = classes.suggestion(name) if classes is not None else ""
            raise UserError(f"{folder}: the folder {name!r} is no class of this data set{hint}")
        yield VideoRecord(os.path.join(folder, path), -1 if label is None else label)  # noqa: PTH118 (a Path is slow)


def _read_list(file: Path, root: Path, classes: ClassIndex | None, labelled: bool) -> Iterator[VideoRecord]:
    for number, line in enumerate(text_lines(read_text(file, names=True)), 1):
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        if number == 1 and _KINETICS_LINE.match(line.strip()):
            raise UserError(
                f"{file} looks like a csv of Kinetics without its first line: add "
                "'label,youtube_id,time_start,time_end,split', or make lists with tools/prepare_dataset.py"
            )
        path, label = _parse(line.strip(), f"{file}:{number}", root, classes)
        if (label is None or label < 0) and labelled:
            raise UserError(f"{file}:{number}: got {line.strip()!r}, expected 'path label'")
        yield VideoRecord(str(root / path), -1 if label is None else label)


def _parse(line: str, where: str, root: Path, classes: ClassIndex | None) -> tuple[str, int | None]:
    if match := _NUMBERED.match(line):
        path, label = match["path"].rstrip(",; \t"), int(match["label"])
        _refuse_more_numbers(path, where, root)
        if label < -1 or (classes is not None and label >= len(classes.names)):
            top = "a class id" if classes is None else f"0 to {len(classes.names) - 1}"
            raise UserError(f"{where}: label {label}, expected {top}")
        return path, label
    match = _NAMED.match(line)
    if match and classes is not None and (found := classes.find(match["label"])) is not None:
        return match["path"], found
    head, _, last = line.rpartition(" ")
    if head and classes is not None and (found := classes.find(last)) is not None:
        return head.strip(), found
    if match and not is_video(match["label"]):  # else a name with a comma, and no label
        if classes is None:
            raise UserError(f"{where}: the label is a name, {match['label']!r}; give the class names as data.classes")
        hint = classes.suggestion(match["label"])
        raise UserError(f"{where}: {match['label']!r} is no class of this data set{hint}")
    return line, None


def _refuse_more_numbers(path: str, where: str, root: Path) -> None:
    """TSN's lists, `folder num_frames label`, are of extracted frames; others give start and end, or several labels."""
    head = re.match(r"^(.*\S)[\s,;]+-?\d+$", path)
    if head and (root / head[1]).is_dir():
        raise UserError(f"{where}: {head[1]} is a folder of frames; octvideo reads video files, 'path label'")
    if head and is_video(head[1]):
        raise UserError(f"{where}: got several numbers behind {head[1]}, expected 'path label'")
