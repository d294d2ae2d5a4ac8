"""UCF101's ucfTrainTestlist, and the split files of HMDB51 and J-HMDB."""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from octvideo.class_names import read_class_names
from octvideo.data.preparation.official import Listed, Official, need_one
from octvideo.errors import UserError
from octvideo.files import read_text, text_lines

_UCF_FOLDERS = ["ucfTrainTestlist", "UCF101TrainTestSplits-RecognitionTask/ucfTrainTestlist", "annotations"]
_HMDB_FOLDERS = ["testTrainMulti_7030_splits", "test_train_splits/testTrainMulti_7030_splits", "test_train_splits"]
_HMDB_FILE = re.compile(r"(?P<name>.+)_test_split(?P<split>\d+)\.txt")
_HMDB_PARTS = {"1": "train", "2": "test"}  # 0: in neither


def ucf101_lists(root: Path, annotations: Path | None) -> Official:
    """UCF101: classInd.txt (`1 Archery`), trainlist01.txt (`class/file.avi 1`), testlist01.txt (`class/file.avi`).

    Args:
        root: of the data set.
        annotations: folder of the lists; None looks in the usual ones.

    Raises:
        UserError: with file and line.
    """
    folder = need_one(
        annotations or root, ["classInd.txt"], [] if annotations else _UCF_FOLDERS, "lists of UCF101"
    ).parent
    classes = read_class_names(folder / "classInd.txt")
    ids = {name: number for number, name in enumerate(classes)}
    splits = {}
    files = [folder / "classInd.txt"]
    for split in (1, 2, 3):
        for part in ("train", "test"):
            file = folder / f"{part}list{split:02d}.txt"
            if file.is_file():
                splits[f"{part}{split}"] = partial(_ucf_videos, file, ids)
                files.append(file)
    if not splits:
        raise UserError(f"{folder} has no trainlist01.txt, testlist01.txt ...")
    return Official(classes, splits, files)


def _ucf_videos(file: Path, ids: dict[str, int]) -> Iterator[Listed]:
    for where, words in _lines(file):
        class_name, _, name = words[0].rpartition("/")
        if class_name not in ids:
            raise UserError(f"{where}: {class_name!r} is no class of classInd.txt")
        label = ids[class_name]
        if len(words) > 1 and words[1] != str(label + 1):
            raise UserError(f"{where}: number {words[1]}, but classInd.txt gives {class_name} number {label + 1}")
        stem = name.rpartition(".")[0]
        yield Listed((f"{class_name}/{stem}", stem), label)


def hmdb_lists(root: Path, annotations: Path | None) -> Official:
    """HMDB51 and J-HMDB: a file a class and split, `brush_hair_test_split1.txt`, of lines `file.avi 0|1|2`.

    Args:
        root: of the data set.
        annotations: folder of the lists; None looks in the usual ones.

    Raises:
        UserError: with file and line.
    """
    places = [annotations] if annotations else [root / name for name in [*_HMDB_FOLDERS, "splits", "annotations", ""]]
    files: dict[tuple[str, str], Path] = {}
    for place in places:
        if place.is_dir():
            matches = [(match, file) for file in sorted(place.iterdir()) if (match := _HMDB_FILE.fullmatch(file.name))]
            files = {(match["name"], match["split"]): file for match, file in matches}
        if files:
            break
    if not files:
        looked = ", ".join(map(str, places))
        raise UserError(
            f"no split files: looked for <class>_test_split1.txt in {looked}; --annotations names the folder"
        )
    classes = sorted({name for name, _ in files})
    splits = {}
    for split in sorted({split for _, split in files}):
        lacking = [name for name in classes if (name, split) not in files]
        if lacking:
            raise UserError(f"split {split} has no file {lacking[0]}_test_split{split}.txt, but other classes have one")
        of_split = [(label, name, files[name, split]) for label, name in enumerate(classes)]
        for value, part in _HMDB_PARTS.items():
            splits[f"{part}{split}"] = partial(_hmdb_videos, of_split, value)
    return Official(classes, splits, list(files.values()))


def _hmdb_videos(files: list[tuple[int, str, Path]], wanted: str) -> Iterator[Listed]:
    for label, class_name, file in files:
        for where, words in _lines(file):
            name, value = " ".join(words[:-1]), words[-1]
            if value not in ("0", "1", "2") or not name:
                raise UserError(f"{where}: got {' '.join(words)!r}, expected 'file.avi 0', 1 or 2")
            if value == wanted:
                yield Listed((f"{class_name}/{name.rpartition('.')[0]}",), label)


def _lines(file: Path) -> Iterator[tuple[str, list[str]]]:
    """Where, and the words of each line that has any."""
    for number, line in enumerate(text_lines(read_text(file, names=True)), 1):
        if words := line.split():
            yield f"{file}:{number}", words
