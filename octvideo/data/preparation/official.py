"""The official lists of the published data sets, whatever files they come in, and how many videos each should have.

`Official` is the one form of them; a function for each family of data sets reads them into it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from octvideo.class_names import ClassIndex, read_class_names
from octvideo.data.kinetics import read_rows, replacement_folder
from octvideo.errors import UserError
from octvideo.files import read_text, text_lines
from octvideo.video import FrameNames


@dataclass(frozen=True, slots=True)
class Listed:
    """One video as the official lists name it.

    Args:
        names: that its file may have, the likeliest first: without suffix, with the folder where it matters.
        label: class id, -1 where unknown.
        path: of the file in the data set's folder, where the list comes from there.
        more: ids of further classes that the video has.
    """

    names: tuple[str, ...]
    label: int
    path: str | None = None
    more: tuple[int, ...] = ()


@dataclass(frozen=True)
class Official:
    """The official lists of a data set.

    Args:
        classes: K names in the order of their ids.
        splits: videos by the name of a list: "train", "val", or "train1", "test1" where there are several splits.
            Each call reads them anew.
        sources: the files that all this comes from.
        replacements: folder of good copies of broken files; see octvideo/data/kinetics.py.
        notes: what the user should know of the lists.
        frames: names of images, where videos are folders of them.
    """

    classes: list[str]
    splits: Mapping[str, Callable[[], Iterator[Listed]]]
    sources: list[Path]
    replacements: Path | None = None
    notes: list[str] = field(default_factory=list)
    frames: FrameNames | None = None


def _find_one(root: Path, names: list[str], folders: list[str]) -> Path | None:
    """The first file of these names in `root` or these folders of it."""
    for folder in [root, *(root / name for name in folders)]:
        for name in names:
            if (folder / name).is_file():
                return folder / name
    return None


def need_one(root: Path, names: list[str], folders: list[str], what: str) -> Path:
    """Like `_find_one`.

    Raises:
        UserError: there is none.
    """
    found = _find_one(root, names, folders)
    if found is None:
        places = ", ".join(str(place) for place in [root, *(root / name for name in folders)])
        raise UserError(f"no {what}: looked for {' or '.join(names)} in {places}; --annotations names the folder")
    return found


def files_of_splits(folder: Path, names: Mapping[str, str]) -> dict[str, Path]:
    """The lists that are there, by split.

    Args:
        folder: of all of them.
        names: of each split's file.

    Raises:
        UserError: none is there.
    """
    found = {split: folder / name for split, name in names.items() if (folder / name).is_file()}
    if not found:
        first, second, *more = names.values()
        raise UserError(f"{folder} has no {first}, {second}{' ...' if more else ''}")
    return found


# The .txt of Kinetics-600 is the complete one, its csv is not.
_KINETICS_SUFFIXES = {"kinetics600": (".txt", ".csv")}


def kinetics_lists(root: Path, name: str, annotations: Path | None) -> Official:
    """Kinetics-400, 600 or 700 as far as its lists are there.

    Args:
        root: of the data set.
        name: "kinetics400", "kinetics600" or "kinetics700".
        annotations: folder of the lists; None looks in `root` and `root/annotations`.

    Raises:
        UserError: there is no list.
    """
    suffixes = _KINETICS_SUFFIXES.get(name, (".csv", ".txt"))
    found: dict[str, Path] = {}
    for split in ("train", "val", "test"):
        stems = [split, f"kinetics_{split}", f"{name}_{split}", *(["validate", "validation"] if split == "val" else [])]
        files = [f"{stem}{suffix}" for suffix in suffixes for stem in stems]
        file = _find_one(annotations, files, []) if annotations else _find_one(root / "annotations", files, [])
        # root/train.txt may be a list that this tool wrote.
        file = file or (None if annotations else _find_one(root, [f for f in files if f.endswith(".csv")], []))
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
    splits = {split: partial(_kinetics_videos, file, index, split != "test") for split, file in found.items()}
    return Official(classes, splits, list(found.values()), replacement_folder(root))


def _kinetics_videos(file: Path, classes: ClassIndex, labelled: bool) -> Iterator[Listed]:
    for row in read_rows(file, classes=classes, labelled=labelled):
        yield Listed((row.name, row.youtube_id), row.label)


_SOMETHING_FOLDERS = ["labels", "annotations", "something-something-v2-annotations"]
_SOMETHING = "something-something-v2-"
_SOMETHING_SPLITS = {"train": "train", "val": "validation", "test": "test"}


def something_lists(root: Path, annotations: Path | None) -> Official:
    """Something-Something v2; the label of a video is its template without brackets, as labels.json spells it.

    Args:
        root: of the data set.
        annotations: folder of the lists; None looks in the usual ones.

    Raises:
        UserError: with file and video.
    """
    place, folders = annotations or root, [] if annotations else _SOMETHING_FOLDERS
    file = need_one(place, [f"{_SOMETHING}labels.json", "labels.json"], folders, "lists of Something-Something v2")
    classes = read_class_names(file)
    ids = {name: number for number, name in enumerate(classes)}
    splits, sources = {}, [file]
    for split, name in _SOMETHING_SPLITS.items():
        listed = _find_one(place, [f"{_SOMETHING}{name}.json", f"{name}.json"], folders)
        if listed is not None:
            splits[split] = partial(_something_videos, listed, ids, split != "test")
            sources.append(listed)
    if not splits:
        raise UserError(
            f"{file.parent} has labels.json, but no {_SOMETHING}train.json, {_SOMETHING}validation.json ..."
        )
    return Official(classes, splits, sources)


def _something_videos(file: Path, ids: dict[str, int], labelled: bool) -> Iterator[Listed]:
    try:
        entries = json.loads(read_text(file))
    except json.JSONDecodeError as error:
        raise UserError(f"{file} can't be read as JSON: {error}") from error
    for entry in entries:
        if not isinstance(entry, dict) or "id" not in entry:
            raise UserError(f"{file}: expected a list of videos with 'id' and 'template', got {entry!r}")
        template = entry.get("template", "").replace("[", "").replace("]", "")
        if labelled and template not in ids:
            raise UserError(f"{file}: video {entry['id']}: {template!r} is no class of labels.json")
        yield Listed((str(entry["id"]),), ids.get(template, -1))


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
    names = {f"{part}{split}": f"{part}list{split:02d}.txt" for split in (1, 2, 3) for part in ("train", "test")}
    files = files_of_splits(folder, names)
    splits = {split: partial(_ucf_videos, file, ids) for split, file in files.items()}
    return Official(classes, splits, [folder / "classInd.txt", *files.values()])


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


@dataclass(frozen=True)
class Published:
    """Counts to hold a copy of a data set against.

    Args:
        source: of the counts.
        classes: K.
        listed: videos in the official list of each split.
        files: videos in the public archive of each split, where it has fewer.
        total: files in all, where not every file is in a list.
    """

    source: str
    classes: int
    listed: dict[str, int] = field(default_factory=dict)
    files: dict[str, int] = field(default_factory=dict)
    total: int | None = None


PUBLISHED: dict[str, Published] = {
    "kinetics400": Published(
        "the CVDF archive (arrange_by_classes.py of cvdfoundation/kinetics-dataset)",
        400,
        {"train": 246_534, "val": 19_906, "test": 39_805},
        {"train": 240_258, "val": 19_881, "test": 38_685},
    ),
    "kinetics600": Published(
        "the CVDF archive (as FiftyOne's page of Kinetics-600 counts it)",
        600,
        {},
        {"train": 427_549, "val": 29_793, "test": 72_924},
    ),
    "kinetics700": Published(
        "Kinetics-700-2020 and its CVDF archive (as FiftyOne's page of Kinetics-700-2020 counts them)",
        700,
        {"train": 542_352, "val": 34_125, "test": 67_433},
        {"train": 534_073, "val": 33_914, "test": 64_260},
    ),
    "ucf101": Published(
        "UCF101 and its three splits for action recognition",
        101,
        {"train1": 9_537, "test1": 3_783, "train2": 9_586, "test2": 3_734, "train3": 9_624, "test3": 3_696},
        total=13_320,
    ),
    # The paper counts 6,849 clips, the archive has 6,766; each split takes 70 and 30 of each class.
    "hmdb51": Published(
        "HMDB51 and its three splits (70 and 30 videos of each class)",
        51,
        {f"{part}{split}": count for split in (1, 2, 3) for part, count in (("train", 3_570), ("test", 1_530))},
        total=6_766,
    ),
    "jhmdb": Published("J-HMDB", 21, total=928),
    "diving48": Published("Diving48", 48),
    "jester": Published("Jester v1 (20BN)", 27, {"train": 118_562, "val": 14_787}),
    "charades": Published("Charades (9,848 videos, 157 classes)", 157, total=9_848),
    "ssv2": Published("Something-Something v2", 174, {"train": 168_913, "val": 24_777, "test": 27_157}, total=220_847),
}
