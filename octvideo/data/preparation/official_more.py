"""The official lists of Diving48, Jester and Charades: JSON, csv with semicolons, csv with many actions in a cell."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

from octvideo.class_names import read_class_names
from octvideo.data.preparation.official import Listed, Official, files_of_splits, need_one
from octvideo.errors import UserError
from octvideo.files import read_text, text_lines
from octvideo.video import FrameNames

_DIVING_FOLDERS = ["annotations", "lists"]


def diving48_lists(root: Path, annotations: Path | None) -> Official:
    """Diving48: Diving48_vocab.json (`["Back", "15som", "05Twis", "FREE"]`, a class each), Diving48_V2_train.json and
    Diving48_V2_test.json (`{"vid_name": ..., "label": ...}`, a video each). The lists without V2 have wrong labels.

    Args:
        root: of the data set.
        annotations: folder of the lists; None looks in the usual ones.

    Raises:
        UserError: with file and video.
    """
    place, folders = annotations or root, [] if annotations else _DIVING_FOLDERS
    vocabulary = need_one(place, ["Diving48_vocab.json"], folders, "lists of Diving48")
    parts = _json(vocabulary)
    if not isinstance(parts, list) or not all(isinstance(names, list) and names for names in parts):
        raise UserError(f'{vocabulary}: expected a list of classes such as ["Back", "15som", "05Twis", "FREE"]')
    classes = [" ".join(map(str, names)) for names in parts]
    files = files_of_splits(vocabulary.parent, {split: f"Diving48_V2_{split}.json" for split in ("train", "test")})
    splits = {split: partial(_diving48_videos, file, len(classes)) for split, file in files.items()}
    return Official(classes, splits, [vocabulary, *files.values()])


def _diving48_videos(file: Path, num_classes: int) -> Iterator[Listed]:
    for entry in _json(file):
        label = entry.get("label") if isinstance(entry, dict) else None
        if not isinstance(label, int) or "vid_name" not in entry:
            raise UserError(f"{file}: expected a list of videos with 'vid_name' and 'label', got {entry!r}")
        if not 0 <= label < num_classes:
            raise UserError(f"{file}: video {entry['vid_name']}: label {label}, expected 0 to {num_classes - 1}")
        yield Listed((str(entry["vid_name"]),), label)


_JESTER_FOLDERS = ["labels", "annotations", "label"]
_JESTER_SPLITS = {"train": "train", "val": "validation", "test": "test"}
JESTER_NAMES, JESTER_FPS = FrameNames("{:05d}.jpg"), 12.0  # as the data set's own description has them


def jester_lists(root: Path, annotations: Path | None) -> Official:
    """Jester: jester-v1-labels.csv (a class a line), jester-v1-train.csv (`34870;Drumming Fingers`), -validation.csv,
    and -test.csv (`1004`). Its videos are folders of images, `20bn-jester-v1/34870/00001.jpg`.

    Args:
        root: of the data set.
        annotations: folder of the lists; None looks in the usual ones.

    Raises:
        UserError: with file and line.
    """
    place, folders = annotations or root, [] if annotations else _JESTER_FOLDERS
    labels = need_one(place, ["jester-v1-labels.csv"], folders, "lists of Jester")
    classes = read_class_names(labels)
    ids = {name: number for number, name in enumerate(classes)}
    files = files_of_splits(labels.parent, {split: f"jester-v1-{name}.csv" for split, name in _JESTER_SPLITS.items()})
    splits = {split: partial(_jester_videos, file, ids, split != "test") for split, file in files.items()}
    return Official(classes, splits, [labels, *files.values()], frames=JESTER_NAMES)


def _jester_videos(file: Path, ids: dict[str, int], labelled: bool) -> Iterator[Listed]:
    for number, line in enumerate(text_lines(read_text(file)), 1):
        name, _, label = (part.strip() for part in line.partition(";"))
        if not name:
            continue
        if labelled and label not in ids:
            raise UserError(f"{file}:{number}: {label!r} is no class of jester-v1-labels.csv")
        yield Listed((name,), ids.get(label, -1))


_CHARADES_FOLDERS = ["Charades", "annotations"]


def charades_lists(root: Path, annotations: Path | None) -> Official:
    """Charades: Charades_v1_classes.txt (`c000 Holding some clothes`), Charades_v1_train.csv and Charades_v1_test.csv,
    whose column `actions` names each action with its seconds, `c092 11.90 21.20;c147 0.00 12.60`.

    A video has all classes of its actions. Those without any are left out, as Charades' own evaluation does.

    Args:
        root: of the data set.
        annotations: folder of the lists; None looks in the usual ones.

    Raises:
        UserError: with file and line.
    """
    place, folders = annotations or root, [] if annotations else _CHARADES_FOLDERS
    file = need_one(place, ["Charades_v1_classes.txt"], folders, "lists of Charades")
    named = [line.split(maxsplit=1) for line in text_lines(read_text(file)) if line.strip()]
    if bad := next((words for words in named if len(words) < 2), None):
        raise UserError(f"{file}: got {bad[0]!r}, expected lines such as 'c000 Holding some clothes'")
    ids = {code: number for number, (code, _) in enumerate(named)}
    files = files_of_splits(file.parent, {split: f"Charades_v1_{split}.csv" for split in ("train", "test")})
    splits = {split: partial(_charades_videos, listed, ids) for split, listed in files.items()}
    notes = []
    for listed in files.values():
        if empty := sum(not actions for _, _, actions in _charades_rows(listed)):
            notes.append(f"{empty} videos of {listed.name} have no action, and are in no list")
    return Official([name.strip() for _, name in named], splits, [file, *files.values()], notes=notes)


def _charades_videos(file: Path, ids: dict[str, int]) -> Iterator[Listed]:
    for where, name, actions in _charades_rows(file):
        codes = [action.split()[0] for action in actions.split(";") if action.strip()]
        if unknown := next((code for code in codes if code not in ids), None):
            raise UserError(f"{where}: {unknown!r} is no class of Charades_v1_classes.txt")
        if codes:
            first, *more = sorted({ids[code] for code in codes})
            yield Listed((name,), first, more=tuple(more))


def _charades_rows(file: Path) -> Iterator[tuple[str, str, str]]:
    """Where, the id, and the actions of each row."""
    rows = csv.DictReader(text_lines(read_text(file)))
    try:
        for row in rows:
            if not row.get("id") or row.get("actions") is None:
                raise UserError(f"{file}:{rows.line_num}: expected a csv with the columns 'id' and 'actions'")
            yield f"{file}:{rows.line_num}", row["id"], row["actions"].strip()
    except csv.Error as error:
        raise UserError(f"{file} can't be read as csv: {error}") from error


def _json(file: Path) -> Any:
    try:
        return json.loads(read_text(file))
    except json.JSONDecodeError as error:
        raise UserError(f"{file} can't be read as JSON: {error}") from error
