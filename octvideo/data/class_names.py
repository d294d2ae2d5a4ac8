"""Class names in the order of their ids: lists that ship with the package, files of the user's, folder names."""

from __future__ import annotations

import difflib
import logging
import os
from collections.abc import Collection, Sequence
from importlib.resources import files
from pathlib import Path

from octvideo.errors import UserError
from octvideo.files import is_hidden, read_text, walk_videos

log = logging.getLogger("octvideo.data")

# Ids are alphabetical over the raw names; sorting sanitised folder names would swap some of them.
SHIPPED = ("kinetics400", "kinetics600", "kinetics700")


def read_class_names(source: str | Path) -> list[str]:
    """Class names from a shipped list or a file.

    Args:
        source: "kinetics400", "kinetics600", "kinetics700", or a text file with a name a line, in the order of
            the ids.

    Returns:
        K names.

    Raises:
        UserError: there is no such file, it is empty, or a name is there twice.

    Example:
        >>> names = read_class_names("kinetics400")
        >>> len(names), names[0]
        (400, 'abseiling')
    """
    if source in SHIPPED:
        text = files("octvideo.data").joinpath(f"labels/{source}.txt").read_text(encoding="utf-8")
    else:
        if not Path(source).is_file():
            raise UserError(
                f"no class names at {source}: give a text file with a name a line, or one of {', '.join(SHIPPED)}"
            )
        text = read_text(source)
    return class_names_of(text, source)


def class_names_of(text: str, source: str | Path) -> list[str]:
    """Class names from the text of a file, a name a line.

    Args:
        text: of the file.
        source: for messages.

    Raises:
        UserError: there are none, or a name is there twice.
    """
    names = [line.strip() for line in text.splitlines() if line.strip()]
    if not names:
        raise UserError(f"{source} holds no class names: expected a name a line")
    twice = sorted({name for name in names if names.count(name) > 1}) if len(set(names)) < len(names) else []
    if twice:
        raise UserError(f"{source} has the class {twice[0]!r} more than once")
    return names


def folder_class_names(folder: Path, *, leave_out: Collection[Path] = ()) -> list[str]:
    """Names of the class folders in `folder`, sorted: those that hold videos; others are named in a warning.

    Args:
        folder: of the classes.
        leave_out: folders in it that are no class.

    Raises:
        UserError: it has none.
    """
    names = sorted({path.partition(os.sep)[0] for path in walk_videos(folder, leave_out=leave_out) if os.sep in path})
    if not names:
        raise UserError(f"{folder} has no class folders with videos: expected {folder}/<class>/<video>")
    others = {entry.name for entry in folder.iterdir() if entry.is_dir() and entry not in leave_out} - set(names)
    if empty := sorted(name for name in others if not is_hidden(name)):
        log.warning("%s: folders without videos are no classes: %s", folder, some(empty))
    return names


def some(names: Sequence[str]) -> str:
    """The first names of many, for a message."""
    return ", ".join(map(repr, names[:5])) + (f" and {len(names) - 5} more" if len(names) > 5 else "")


class ClassIndex:
    """Ids of class names; spaces and underscores are alike where that is not ambiguous, as folders are often renamed.

    Args:
        names: K of them, in the order of their ids.
    """

    def __init__(self, names: Sequence[str]) -> None:
        self.names = list(names)
        self._exact = {name: number for number, name in enumerate(self.names)}
        loose: dict[str, list[int]] = {}
        for number, name in enumerate(self.names):
            loose.setdefault(_loosely(name), []).append(number)
        self._loose = {key: numbers[0] for key, numbers in loose.items() if len(numbers) == 1}

    def find(self, name: str) -> int | None:
        """The id of a class, or None."""
        return self._exact.get(name, self._loose.get(_loosely(name)))

    def suggestion(self, name: str) -> str:
        """', did you mean ...' where a class has nearly this name, else ''."""
        near = difflib.get_close_matches(name, self.names, n=1)
        return f", did you mean {near[0]!r}?" if near else ""


def _loosely(name: str) -> str:
    return name.replace("_", " ").replace("-", " ").strip().lower()
