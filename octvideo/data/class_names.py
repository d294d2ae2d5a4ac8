"""Class names in the order of their ids: lists that ship with the package, files of the user's, folder names."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path

from octvideo.errors import UserError

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
        try:
            text = Path(source).read_text(encoding="utf-8-sig")  # some editors begin a file with a mark
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(
                f"no class names at {source} ({error}): give a text file with a name a line, "
                f"or one of {', '.join(SHIPPED)}"
            ) from error
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


def folder_class_names(folder: Path) -> list[str]:
    """Names of the class folders in `folder`, sorted.

    Raises:
        UserError: it has no folders.
    """
    names = sorted(entry.name for entry in folder.iterdir() if entry.is_dir() and not entry.name.startswith("."))
    if not names:
        raise UserError(f"{folder} has no class folders: expected {folder}/<class>/<video>")
    return names


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
