"""The official lists and the files on the disk compared: lists for octvideo, missing videos, extra videos."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

from octvideo.class_names import ClassIndex, class_difference
from octvideo.data.flips import sided_classes
from octvideo.data.kinetics import GoodCopies, VideoFiles
from octvideo.data.preparation.official import Listed, Official
from octvideo.errors import UserError
from octvideo.files import json_text, read_text, text_lines, whole_text
from octvideo.video import FrameNames
from octvideo.video.image_frames import image_names

# What this tool wrote it may write again; any other file of that name is the user's.
_MARK = "# Written by octvideo"


@dataclass(frozen=True)
class SplitCount:
    """How much of one list is there.

    Args:
        name: of the list.
        listed: videos in the official list.
        found: of these, on the disk.
    """

    name: str
    listed: int
    found: int

    @property
    def missing(self) -> int:
        return self.listed - self.found


@dataclass(frozen=True)
class Report:
    """What `compare` found.

    Args:
        splits: list by list.
        files: videos on the disk.
        extra: of these, in no list.
        replaced: listed videos whose good copy is taken.
        num_classes: K.
        folder: of the lists.
        frames: names of images, where videos are folders of them.
        num_swapped: pairs of classes that a flip swaps; flip_labels.yaml has them.
    """

    splits: list[SplitCount]
    files: int
    extra: int
    replaced: int
    num_classes: int
    folder: Path
    frames: FrameNames | None = None
    num_swapped: int = 0

    @property
    def missing(self) -> int:
        """Listed videos that are not there."""
        return sum(split.missing for split in self.splits)


def compare(official: Official, root: Path, out: Path, *, lists: bool = True) -> Report:
    """Looks for every listed video, and writes what came of it.

    Files written in `out`: {split}.txt (`path label`, paths from `root`), classes.txt, and flip_labels.yaml where a
    flip swaps classes, if wanted; missing.txt (list, name) and extra.txt (path). Each appears whole, or not at all.

    Args:
        official: the lists.
        root: of the data set.
        out: folder to write; made if it is not there.
        lists: whether to write lists for octvideo, beside missing and extra videos.

    Raises:
        UserError: a file of the user's is in the way, or none of the videos is there.
    """
    names = [f"{name}.txt" for name in [*(official.splits if lists else []), "missing", "extra"]]
    if len(set(names)) < len(names):
        raise UserError(f"two lists have one name: {', '.join(names)}")
    swaps = sided_classes(official.classes) if lists else {}
    for name in [*names, *(["flip_labels.yaml"] if swaps else [])]:
        _refuse_other(out / name)
    classes = "".join(f"{name}\n" for name in official.classes)
    if lists:
        _refuse_other_classes(out / "classes.txt", classes)
    copies = GoodCopies(root, official.replacements)
    disk = VideoFiles(root, leave_out=copies.folders, images=official.frames is not None)
    splits = []
    out.mkdir(parents=True, exist_ok=True)
    with ExitStack() as stack:
        names_of = official.classes if ClassIndex(official.classes).numbers_mislead else None
        files = {name: _Writer(stack.enter_context(whole_text(out / name)), name, names_of) for name in names}
        for split, read in official.splits.items():
            to_list = files.get(f"{split}.txt") if lists else None
            others = frozenset(official.splits) - {split}
            found = _compare_split(
                split, others, read(), (disk, copies, official.frames), to_list, files["missing.txt"]
            )
            splits.append(found)
        extra = 0
        for path in disk.unused():
            files["extra.txt"].line(path)
            extra += 1
        if not any(split.found for split in splits):
            first = next(listed for read in official.splits.values() for listed in read())
            raise UserError(
                f"none of the {sum(split.listed for split in splits)} videos of {official.sources[0].parent} is under "
                f"{root}, which holds {len(disk.paths)} videos: looked for files such as {first.names[0]}.*"
            )
    if lists and not (out / "classes.txt").exists():
        with whole_text(out / "classes.txt") as text:
            text.write(classes)
    if swaps:
        with whole_text(out / "flip_labels.yaml") as text:
            text.write(f"{_MARK} prepare: what a flip makes of each other\n")
            text.writelines(f"{json_text(one)}: {json_text(other)}\n" for one, other in swaps.items())
    how = {"frames": official.frames, "num_swapped": len(swaps)}
    return Report(splits, len(disk.paths), extra, copies.used, len(official.classes), out, **how)  # type: ignore[arg-type]


def _compare_split(
    name: str,
    others: frozenset[str],
    videos: Iterator[Listed],
    place: tuple[VideoFiles, GoodCopies, FrameNames | None],
    to_list: _Writer | None,
    missing: _Writer,
) -> SplitCount:
    disk, copies, frames = place
    listed = found = 0
    for video in videos:
        listed += 1
        path = disk.use(video.path) if video.path else disk.find(video.names, split=name, others=others)
        if path is None:
            missing.line(f"{name}\t{video.names[0]}")
            continue
        num_images = None
        if frames is not None:
            images = image_names(disk.root / path)
            num_images = len(images)
            if list(images) != [frames[n] for n in range(num_images)]:
                missing.line(f"{name}\t{video.names[0]}\tits {num_images} images are not {frames[0]}, {frames[1]}, ...")
                continue
        found += 1
        if to_list is not None:
            to_list.video(copies.of(video.names[-1]) or path, (video.label, *video.more), num_images)
    return SplitCount(name, listed, found)


class _Writer:
    """Lines of a list."""

    def __init__(self, file: TextIO, name: str, names: list[str] | None) -> None:
        # An id could be read as the name of another class: then names, after a comma.
        self._file, self._names = file, names
        self.line(f"{_MARK} prepare: {'path label' if name not in ('missing.txt', 'extra.txt') else name[:-4]}")

    def line(self, text: str) -> None:
        self._file.write(f"{text}\n")

    def video(self, path: str, labels: tuple[int, ...], num_images: int | None) -> None:
        if "\n" in path or "\r" in path:
            raise UserError(f"{path!r}: a list can't hold a name with a line break in it; rename the file")
        # A line that begins with # or a space would be read as something else.
        unnamed = self._names is None or labels[0] < 0
        label = ";".join(str(label) if unnamed else self._names[label] for label in labels)  # type: ignore[index]
        images = "" if num_images is None else f" {num_images}"
        # A folder without a label ends with the number of its images.
        ending = "" if images and labels[0] < 0 else f"{' ' if unnamed else ','}{label}"
        self.line(f"{'./' if path[0] in '# ' else ''}{path}{images}{ending}")


def _refuse_other(file: Path) -> None:
    if not file.exists():
        return
    if not file.read_bytes().startswith(_MARK.encode()):
        raise UserError(f"{file} is there and not written by this tool: choose another folder with -o")


def _refuse_other_classes(file: Path, classes: str) -> None:
    if not file.exists():
        return
    held, wanted = [line.strip() for line in text_lines(read_text(file)) if line.strip()], classes.splitlines()
    if held != wanted:
        raise UserError(
            f"{file} is there and holds other classes ({class_difference(held, wanted)}): choose another "
            "folder with -o, or move it away; what was trained with it needs it where it is"
        )
