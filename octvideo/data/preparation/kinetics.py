"""Kinetics' official lists: csv with a header, or the same lines without one (as .txt)."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path

from octvideo.class_names import ClassIndex, read_class_names
from octvideo.data.kinetics import read_rows, replacement_folder
from octvideo.data.preparation.official import Listed, Official, find_one
from octvideo.errors import UserError

_FOLDERS = ["annotations"]
_SPLITS = ("train", "val", "test")
# The .txt of Kinetics-600 is the complete one, its csv is not.
_SUFFIXES = {"kinetics600": (".txt", ".csv")}


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
            f"Get them with: octvideo prepare download {name} {root} --splits annotations"
        )
    classes = read_class_names(name)
    index = ClassIndex(classes)
    splits = {split: partial(_videos, file, index, split != "test") for split, file in found.items()}
    return Official(classes, splits, list(found.values()), replacement_folder(root))


def _videos(file: Path, classes: ClassIndex, labelled: bool) -> Iterator[Listed]:
    for row in read_rows(file, classes=classes, labelled=labelled):
        yield Listed((row.name, row.youtube_id), row.label)
