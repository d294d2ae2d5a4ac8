"""The official lists of Kinetics-400/600/700 beside the videos, in either layout of the field.

Lists: label,youtube_id,time_start,time_end,split[,is_cc], with or without that first line; the test csv may lack the
label; Kinetics-600's .txt are class/{id}_{start}_{end}.mp4.
Files: {id}_{start:06d}_{end:06d}.mp4 (the CVDF archives, flat or in class folders) or {class}/{id}.mp4.
Ids have 11 characters and may begin with - or _. Many listed videos are gone from YouTube: missing videos are
counted and said, never replaced. Good copies of broken files (CVDF's archive of replacements, unpacked) are used.
"""

from __future__ import annotations

import csv
import logging
import os
import re
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from octvideo.class_names import ClassIndex
from octvideo.data.records import VideoList, VideoRecord
from octvideo.errors import UserError
from octvideo.files import read_text, text_lines, walk_videos
from octvideo.video.image_frames import folders_of_images

log = logging.getLogger("octvideo.data")

# Where the scripts of CVDF unpack replacement_for_corrupted_k400.tgz, and where it unpacks by itself.
_REPLACEMENT_FOLDERS = ("replacement/replacement_for_corrupted_k400", "replacement_for_corrupted_k400", "replacement")
_ID = re.compile(r"[\w-]{11}")
_FILE_NAME = re.compile(r"(?:.*/)?((?P<id>[\w-]{11})_\d{6}_\d{6})(?:\.\w+)?")
_COLUMNS = ("label", "youtube_id", "time_start", "time_end", "split")


@dataclass(frozen=True)
class KineticsRow:
    """One line of the csv.

    Args:
        name: {id}_{start:06d}_{end:06d}.
        youtube_id: 11 characters.
        label: class id, -1 where the csv has no labels.
        split: the column, or "".
    """

    name: str
    youtube_id: str
    label: int
    split: str


def is_kinetics_csv(file: Path) -> bool:
    """Whether a file starts as the official csv does, with its header or without."""
    with file.open("rb") as content:
        first = content.read(200).decode("utf-8", "replace").replace("\0", "")  # of UTF-16 too
    fields = next(csv.reader(first.splitlines()), [])
    return "youtube_id" in fields or (len(fields) >= 4 and bool(_ID.fullmatch(fields[1])) and fields[2].isdecimal())


def read_rows(file: Path, *, classes: ClassIndex, labelled: bool = True) -> Iterator[KineticsRow]:
    """The lines of an official list, one at a time.

    Args:
        file: the list.
        classes: of the data set.
        labelled: every row must have a label.

    Raises:
        UserError: with file and line.
    """
    columns: Sequence[str] = _COLUMNS
    try:
        rows = csv.reader(text_lines(read_text(file)))
        for fields in rows:
            if rows.line_num == 1 and "youtube_id" in fields:
                columns = fields
            elif fields and "".join(fields).strip():
                yield _row(fields, columns, f"{file}:{rows.line_num}", classes, labelled)
    except csv.Error as error:
        raise UserError(f"{file} can't be read as csv: {error}") from error


def _row(fields: list[str], columns: Sequence[str], where: str, classes: ClassIndex, labelled: bool) -> KineticsRow:
    row = dict(zip(columns, fields, strict=False))
    try:
        if len(fields) == 1 and (match := _FILE_NAME.fullmatch(fields[0].split()[0])):
            label, name, youtube_id = Path(fields[0]).parent.name, match[1], match["id"]
        else:
            label, youtube_id = row.get("label", "").strip(), row["youtube_id"].strip()
            name = f"{youtube_id}_{int(float(row['time_start'])):06d}_{int(float(row['time_end'])):06d}"
    except (KeyError, ValueError) as error:
        raise UserError(
            f"{where}: got {','.join(fields)!r}, expected {','.join(_COLUMNS)} or class/{{id}}_{{start}}_{{end}}.mp4"
        ) from error
    if labelled and not label:
        raise UserError(f"{where}: no label; a csv without labels is for prediction")
    return KineticsRow(name, youtube_id, classes.need(label, where) if label else -1, row.get("split", ""))


def read_kinetics_csv(file: Path, *, root: Path, classes: ClassIndex, labelled: bool = True) -> VideoList:
    """The videos of an official csv that are on the disk.

    Args:
        file: the csv.
        root: with the videos under {split}/, {name of the csv}/, videos/ or right there.
        classes: of the data set.
        labelled: every row must have a label.

    Raises:
        UserError: with file and line; or none of its videos is there.
    """
    files: VideoFiles | None = None
    copies = GoodCopies(root, replacement_folder(root))
    missing: list[str] = []

    def found() -> Iterator[VideoRecord]:
        nonlocal files
        for row in read_rows(file, classes=classes, labelled=labelled):
            if files is None:
                folders = [root / name for name in (row.split, file.stem, "videos") if name and (root / name).is_dir()]
                tried = (VideoFiles(folder, leave_out=copies.folders) for folder in [*folders, root])
                files = next((files for files in tried if files.paths), VideoFiles(root))
            path = files.find((row.name, row.youtube_id), split=row.split)
            if path is None:
                missing.append(row.name)
            else:
                good = copies.of(row.youtube_id)
                # Joined as text, since a Path for each of 240,000 files takes seconds.
                path = os.path.join(files.root, path) if good is None else os.path.join(root, good)  # noqa: PTH118
                yield VideoRecord(path, row.label)

    records = VideoList(found())
    total = len(records) + len(missing)
    if total and not records:
        raise UserError(
            f"none of the {total} videos of {file} is under {root}: looked for files such as {missing[0]}.mp4 "
            f"in {root}, {root / file.stem} and class folders in them. data/README.md tells how to get them"
        )
    if missing:
        count, are = len(missing), "is" if len(missing) == 1 else "are"
        log.warning("%s lists %d videos, %d of them %s not there (the first: %s)", file, total, count, are, missing[0])
    if copies.used:
        log.info("%s: %d videos are taken from %s", file, copies.used, *copies.folders)
    return records


class VideoFiles:
    """The videos under a folder, found by `stem` or `folder/stem`, so that another suffix is no other video.

    Args:
        root: the folder.
        leave_out: folders in it that are not looked into.
        images: a video is a folder that holds images.
    """

    def __init__(self, root: Path, *, leave_out: frozenset[Path] = frozenset(), images: bool = False) -> None:
        folders = (os.path.relpath(folder, root) for folder in folders_of_images(root)) if images else ()
        self.root, self.paths = root, list(folders if images else walk_videos(root, leave_out=leave_out))
        self._by_stem: dict[str, list[str]] = defaultdict(list)
        for path in self.paths:
            name = path.rpartition(os.sep)[2]
            self._by_stem[name if images else name.rpartition(".")[0]].append(path)
        self._used: set[str] = set()

    def find(self, names: tuple[str, ...], *, split: str = "", others: frozenset[str] = frozenset()) -> str | None:
        """The path of the first of these names that is there; it then counts as used.

        Args:
            names: see `Listed`.
            split: of the list; what lies in a folder of this name is taken first.
            others: splits whose folders are not looked into: a video called by its id alone is another one there.
        """
        for name in names:
            folder, _, stem = name.rpartition("/")
            for path in sorted(self._by_stem.get(stem, ()), key=lambda path: split not in _outer_folders(path)):
                in_other = others and others.intersection(_outer_folders(path))
                if not in_other and (not folder or path.rpartition(os.sep)[0].rpartition(os.sep)[2] == folder):
                    return self.use(path)
        return None

    def use(self, path: str) -> str:
        """Marks one of `paths` as used, and gives it back."""
        self._used.add(path)
        return path

    def unused(self) -> Iterator[str]:
        """Files that no `find` has given."""
        return (path for path in self.paths if path not in self._used)


def _outer_folders(path: str) -> list[str]:
    """The two outermost, train/ or videos/train/ in Kinetics."""
    return path.split(os.sep)[:-1][:2]  # noqa: PTH206 (a Path is slow)


def replacement_folder(root: Path) -> Path | None:
    """The folder of good copies of broken videos, where there is one."""
    return next((root / name for name in _REPLACEMENT_FOLDERS if (root / name).is_dir()), None)


class GoodCopies:
    """Good copies of broken videos, found as CVDF's own script does: by the first 11 characters of their names.

    Args:
        root: of the data set.
        folder: that holds them, in `root`; None where there are none.
    """

    def __init__(self, root: Path, folder: Path | None) -> None:
        self.folders = frozenset([folder] if folder else [])
        self.used = 0
        self._paths = {
            os.path.basename(path)[:11]: str((folder / path).relative_to(root))  # noqa: PTH119
            for folder in self.folders
            for path in walk_videos(folder)
        }

    def of(self, youtube_id: str) -> str | None:
        """The path of a video's good copy, from the root, which then counts as used."""
        path = self._paths.get(youtube_id)
        self.used += path is not None
        return path
