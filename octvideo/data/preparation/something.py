"""Something-Something v2's lists: labels.json, train.json, validation.json, test.json."""

from __future__ import annotations

import json
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

from octvideo.class_names import read_class_names
from octvideo.data.preparation.official import Listed, Official, find_one, need_one
from octvideo.errors import UserError
from octvideo.files import read_text

_FOLDERS = ["labels", "annotations", "something-something-v2-annotations"]
_LONG = "something-something-v2-"
_SPLITS = {"train": "train", "val": "validation", "test": "test"}


def something_lists(root: Path, annotations: Path | None) -> Official:
    """Something-Something v2; the label of a video is its template without brackets, as labels.json spells it.

    Args:
        root: of the data set.
        annotations: folder of the lists; None looks in the usual ones.

    Raises:
        UserError: with file and video.
    """
    place, folders = annotations or root, [] if annotations else _FOLDERS
    file = need_one(place, [f"{_LONG}labels.json", "labels.json"], folders, "lists of Something-Something v2")
    classes = read_class_names(file)
    ids = {name: number for number, name in enumerate(classes)}
    splits, sources = {}, [file]
    for split, name in _SPLITS.items():
        listed = find_one(place, [f"{_LONG}{name}.json", f"{name}.json"], folders)
        if listed is not None:
            splits[split] = partial(_videos, listed, ids, split != "test")
            sources.append(listed)
    if not splits:
        raise UserError(f"{file.parent} has labels.json, but no {_LONG}train.json, {_LONG}validation.json ...")
    return Official(classes, splits, sources)


def _videos(file: Path, ids: dict[str, int], labelled: bool) -> Iterator[Listed]:
    for entry in _read(file):
        if not isinstance(entry, dict) or "id" not in entry:
            raise UserError(f"{file}: expected a list of videos with 'id' and 'template', got {entry!r}")
        template = entry.get("template", "").replace("[", "").replace("]", "")
        if labelled and template not in ids:
            raise UserError(f"{file}: video {entry['id']}: {template!r} is no class of labels.json")
        yield Listed((str(entry["id"]),), ids.get(template, -1))


def _read(file: Path) -> Any:
    try:
        return json.loads(read_text(file))
    except json.JSONDecodeError as error:
        raise UserError(f"{file} can't be read as JSON: {error}") from error
