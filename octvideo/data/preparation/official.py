"""The official lists of a data set in one form, whatever files they come in."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from octvideo.errors import UserError


@dataclass(frozen=True, slots=True)
class Listed:
    """One video as the official lists name it.

    Args:
        names: that its file may have, the likeliest first: without suffix, with the folder where it matters.
        label: class id, -1 where unknown.
        path: of the file in the data set's folder, where the list comes from there.
    """

    names: tuple[str, ...]
    label: int
    path: str | None = None


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
    """

    classes: list[str]
    splits: Mapping[str, Callable[[], Iterator[Listed]]]
    sources: list[Path]
    replacements: Path | None = None
    notes: list[str] = field(default_factory=list)


def find_one(root: Path, names: list[str], folders: list[str]) -> Path | None:
    """The first file of these names in `root` or these folders of it."""
    for folder in [root, *(root / name for name in folders)]:
        for name in names:
            if (folder / name).is_file():
                return folder / name
    return None


def need_one(root: Path, names: list[str], folders: list[str], what: str) -> Path:
    """Like `find_one`.

    Raises:
        UserError: there is none.
    """
    found = find_one(root, names, folders)
    if found is None:
        places = ", ".join(str(place) for place in [root, *(root / name for name in folders)])
        raise UserError(f"no {what}: looked for {' or '.join(names)} in {places}; --annotations names the folder")
    return found
