"""Kinetics' official lists: csv with a header, or the same lines without one (as .txt)."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from octvideo.data.class_names import ClassIndex, read_class_names
from octvideo.data.kinetics import REPLACEMENT_FOLDERS, is_kinetics_csv, read_rows
from octvideo.data.preparation.official import Listed, Official, find_one
from octvideo.errors import UserError
from octvideo.files import read_text

_FOLDERS = ["annotations"]
_SPLITS = ("train", "val", "test")
# The .txt of Kinetics-600 is the complete one, its csv is not.
_SUFFIXES = {"kinetics600": (".txt", ".csv")}
_FILE_NAME = re.compile(r"(?P<name>(?P<id>[\w-]{11})_\d{6}_\d{6})(?:\.\w+)?$")


def kinetics_lists(root: Path, name: str, annotations: Path | None) -> Official:
    """Kinetics-400, 600 or 700 as far as its lists are there.

    Args:
        root: of the data set.
        name: "kinetics400", "kinetics600" or "kinetics700".
        annotations: folder of the lists; None looks in `root` and `root/annotations`.

    Raises:
        UserError: there is no list.
    """
    suffixes = _SUFFIXES.get(name, (".csv", ".txt"))
    found: dict[str, Path] = {}
    for split in _SPLITS:
        stems = [split, f"kinetics_{split}", f"{name}_{split}", *(["validate", "validation"] if split == "val" else [])]
        files = [f"{stem}{suffix}" for suffix in suffixes for stem in stems]
        file = find_one(annotations, files, []) if annotations else find_one(root / "annotations", files, [])
        # root/train.txt may be a list that this tool wrote.
        file = file or (None if annotations else find_one(root, [f for f in files if f.endswith(".csv")], []))
        if file is not None:
            found[split] = file
    if not found:
        places = annotations or f"{root / 'annotations'} and {root}"
        raise UserError(
            f"no lists of {name}: looked for train{suffixes[0]}, val{suffixes[0]} ... in {places}. "
            f"Get them with: python tools/prepare_dataset.py download {name} {root} --splits annotations"
        )
    classes = read_class_names(name)
    index = ClassIndex(classes)
    splits = {split: partial(_videos, file, index, split != "test") for split, file in found.items()}
    replacements = [root / folder for folder in REPLACEMENT_FOLDERS if (root / folder).is_dir()]
    return Official(classes, splits, list(found.values()), replacements[:1])


def _videos(file: Path, classes: ClassIndex, labelled: bool) -> Iterator[Listed]:
    if is_kinetics_csv(file):
        for row in read_rows(file, classes=classes, labelled=labelled):
            yield Listed((row.name, row.youtube_id), row.label)
    else:
        yield from _without_header(file, classes, labelled)


def _without_header(file: Path, classes: ClassIndex, labelled: bool) -> Iterator[Listed]:
    """label,id,start,end[,split], or class/{id}_{start}_{end}[.mp4], a video a line."""
    with io.StringIO(read_text(file), newline="") as text:
        for number, fields in enumerate(csv.reader(text), 1):
            if not fields or not "".join(fields).strip():
                continue
            where = f"{file}:{number}"
            if len(fields) >= 4:
                label_name, youtube_id = fields[0].strip(), fields[1].strip()
                try:
                    name = f"{youtube_id}_{int(float(fields[2])):06d}_{int(float(fields[3])):06d}"
                except ValueError:
                    raise _unknown(where, fields) from None
            else:
                match = _FILE_NAME.search(fields[0].strip().split()[0] if len(fields) == 1 else "")
                if match is None:
                    raise _unknown(where, fields)
                name, youtube_id = match["name"], match["id"]
                label_name = Path(fields[0]).parent.name
            label = classes.find(label_name) if label_name else None
            if label is None and (labelled or label_name):
                raise UserError(f"{where}: {label_name!r} is no class of this data set{classes.suggestion(label_name)}")
            yield Listed((name, youtube_id), -1 if label is None else label)


def _unknown(where: str, fields: list[str]) -> UserError:
    return UserError(
        f"{where}: got {','.join(fields)!r}, expected label,youtube_id,time_start,time_end[,split], "
        "or class/{id}_{start}_{end}.mp4"
    )
