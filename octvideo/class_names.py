"""Class names in the order of their ids: where they come from, what a label means, how two lists of them compare."""

from __future__ import annotations

import csv
import difflib
import json
import logging
import os
import re
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

from octvideo.errors import UserError
from octvideo.files import is_hidden, walk_videos
from octvideo.stores import is_remote, read_text

log = logging.getLogger("octvideo.data")

# Ids are alphabetical over the raw names; sorting sanitised folder names would swap some of them.
SHIPPED = ("kinetics400", "kinetics600", "kinetics700")

_FORMS = "a name a line in the order of the ids, `id name` lines, or JSON: a list of names, {name: id} or {id: name}"
_JSON = re.compile(r'\s*(\{|\[\s*["\[{\d\]])')  # and not "[Something] falls", a class of Something-Something
_ID_FIRST = re.compile(r"(?P<id>\d+)(?:\s*[,;]\s*|[.:)]?\s+)(?P<name>\S.*)")
_ID_LAST = re.compile(r"(?P<name>.*\S)\s*[\t,;]\s*(?P<id>\d+)")  # not after a space: "level 1" is a name
_COLUMN = r"(?:id|idx|index|(?:class|label)(?:_id|_name)?|name)?"
_HEADER = re.compile(rf"{_COLUMN}\s*[\s,;]\s*{_COLUMN}", re.IGNORECASE)
_NUMBER = re.compile(r"-?\d+")


def read_class_names(source: str | Path) -> list[str]:
    """Class names from a shipped list or a file.

    Args:
        source: "kinetics400", "kinetics600", "kinetics700", or a file: see `class_names_of`.

    Returns:
        K names.

    Raises:
        UserError: there is no such file, it is empty, or can't be understood.

    Example:
        >>> names = read_class_names("kinetics400")
        >>> len(names), names[0]
        (400, 'abseiling')
    """
    if source in SHIPPED:
        text = files("octvideo").joinpath(f"data/labels/{source}.txt").read_text(encoding="utf-8")
    else:
        if not is_remote(source) and not Path(source).is_file():
            raise UserError(
                f"no class names at {source}: give a text file with a name a line, or one of {', '.join(SHIPPED)}"
            )
        text = read_text(source)
    return class_names_of(text, source)


def class_names_of(text: str, source: str | Path) -> list[str]:
    """Class names from the text of a file: a name a line, `id name` or `name,id` lines, or JSON.

    Args:
        text: of the file. Ids count from 0 or from 1: here they give the order alone.
        source: for messages.

    Raises:
        UserError: there are none, a name is there twice, or ids are missing or ambiguous.
    """
    names = _names_of_json(text, source) if _JSON.match(text) else _names_of_lines(text, source)
    if not names:
        raise UserError(f"{source} holds no class names: expected {_FORMS}")
    twice = sorted({name for name in names if names.count(name) > 1}) if len(set(names)) < len(names) else []
    if twice:
        raise UserError(f"{source} has the class {twice[0]!r} more than once")
    return names


def _names_of_lines(text: str, source: str | Path) -> list[str]:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    has_header = len(lines) > 1 and _HEADER.fullmatch(lines[0]) is not None
    for form in (_ID_FIRST, _ID_LAST):
        matches = [match for line in lines[has_header:] if (match := form.fullmatch(line))]
        if matches and len(matches) == len(lines) - has_header:
            return _by_id([(int(match["id"]), _unquoted(match["name"])) for match in matches], source)
    if has_header:
        raise UserError(f"{source}: below {lines[0]!r} not every line is an id and a name: expected {_FORMS}")
    return lines


def _unquoted(name: str) -> str:
    return next(csv.reader([name]))[0] if name.startswith('"') else name


def _names_of_json(text: str, source: str | Path) -> list[str]:
    try:
        held = json.loads(text)
    except ValueError as error:
        raise UserError(f"{source} can't be read as JSON: {error}") from error
    if isinstance(held, list) and all(isinstance(name, str) and name.strip() for name in held):
        return [name.strip() for name in held]
    if isinstance(held, dict) and held:
        of_names = all(type(value) is int or (isinstance(value, str) and value.isdecimal()) for value in held.values())
        of_ids = all(key.isdecimal() and isinstance(value, str) for key, value in held.items())
        if of_names and of_ids:
            raise UserError(
                f"{source}: of two numbers in quotes either may be the id: write {{name: id}}, ids without them"
            )
        if of_names or of_ids:
            return _by_id([(int(v), k) if of_names else (int(k), v) for k, v in held.items()], source)
    raise UserError(f"{source}: got other JSON than class names: expected {_FORMS}")


def _by_id(numbered: list[tuple[int, str]], source: str | Path) -> list[str]:
    """Names in the order of ids that start at 0 or 1."""
    numbered = sorted(numbered)
    first = min(numbered[0][0], 1) if numbered else 0
    for expected, (number, name) in enumerate(numbered, first):
        if number != expected:
            raise UserError(
                f"{source}: the classes are not numbered from {first} to {first + len(numbered) - 1}: "
                f"{name!r} has {number}, and none has {expected}. Write {_FORMS}"
            )
    return [name for _, name in numbered]


def folder_class_names(folder: Path, *, leave_out: Collection[Path] = ()) -> list[str]:
    """Names of the class folders in `folder`, sorted, by number where all are numbers: those that hold videos; others
    are named in a warning.

    Args:
        folder: of the classes.
        leave_out: folders in it that are no class.

    Raises:
        UserError: it has none, or the name of one is not text, which files of classes and checkpoints hold.
    """
    names = sorted({path.partition(os.sep)[0] for path in walk_videos(folder, leave_out=leave_out) if os.sep in path})
    if not names:
        raise UserError(f"{folder} has no class folders with videos: expected {folder}/<class>/<video>")
    if other := next((name for name in names if re.search("[\0-\x1f\ud800-\udfff]", name)), None):
        raise UserError(f"{folder / other}: a class can't be called {other!r}: rename the folder, in UTF-8")
    others = {entry.name for entry in folder.iterdir() if entry.is_dir() and entry not in leave_out} - set(names)
    if empty := sorted(name for name in others if not is_hidden(name)):
        log.warning("%s: folders without videos of their own are no classes: %s", folder, some(empty))
    return sorted(names, key=int) if all(map(str.isdecimal, names)) else names


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
        # Classes '1', '2', '3' have the ids 0, 1, 2: a number in a list may be either.
        self.numbers_mislead = any(name.isdecimal() and int(name) != number for name, number in self._exact.items())

    def find(self, name: str) -> int | None:
        """The id of a class, or None."""
        if is_number(name):
            return self._exact.get(name)
        return self._exact.get(name, self._loose.get(_loosely(name)))

    def need(self, name: str, where: str) -> int:
        """The id of a class.

        Args:
            name: of it.
            where: it stands, for the message.

        Raises:
            UserError: there is no such class.
        """
        found = self.find(name)
        if found is None:
            near = difflib.get_close_matches(name, self.names, n=1)
            hint = f", did you mean {near[0]!r}?" if near else ""
            raise UserError(f"{where}: {name!r} is no known class{hint}")
        return found

    def id_of(self, label: str, where: str, *, is_name: bool) -> int:
        """The id that a label means, -1 for the label -1.

        Args:
            label: a name or an id.
            where: it stands, for the message.
            is_name: whether a number is a class's name, where there is such a class.

        Raises:
            UserError: there is no such class.
        """
        if not is_number(label) or (is_name and self.find(label) is not None):
            return self.need(label, where)
        number = int(label)
        if is_name and self.numbers_mislead and number >= 0:
            raise UserError(
                f"{where}: no class is called {label}: classes of this data set have numbers for names, so a label "
                f"after a comma, a semicolon or a tab is a name; write an id after a space, 'path {label}'"
            )
        if not -1 <= number < len(self.names):
            raise UserError(f"{where}: label {number}, expected 0 to {len(self.names) - 1} (ids start at 0)")
        return number

    def numbers_are_names(self, labels: Iterable[tuple[str, str]]) -> bool:
        """Whether numbers are names of classes, for a whole list in which no comma says so; else they are ids.

        Args:
            labels: where each number stands, and the number.

        Raises:
            UserError: all of them can be either, and would mean other classes.
        """
        numbers = [(where, label) for where, label in labels if label != "-1"] if self.numbers_mislead else []
        if not all(label in self._exact for _, label in numbers):
            return False
        differing = [(where, label) for where, label in numbers if self._exact[label] != int(label)]
        if differing and all(int(label) < len(self.names) for _, label in numbers):
            (where, label), other = differing[0], self.names[int(differing[0][1])]
            raise UserError(
                f"{where}: the label {label} is the class called {label!r} (id {self._exact[label]}) if it is a name, "
                f"and the class called {other!r} if it is an id; all numbers here can be both. Write names, after a "
                f"comma: 'path,{label}' or 'path,{other}'"
            )
        return bool(differing)


class UnreadLabels(ClassIndex):
    """In the place of a data set's classes, where labels are not read: none is a class, and none is a mistake."""

    def __init__(self) -> None:
        super().__init__([])

    def need(self, name: str, where: str) -> int:
        """-1."""
        return -1

    def id_of(self, label: str, where: str, *, is_name: bool) -> int:
        """-1."""
        return -1


def is_number(label: str) -> bool:
    """Whether a label may be an id: a number, or -1 for none."""
    return bool(_NUMBER.fullmatch(label))


def _loosely(name: str) -> str:
    return name.replace("_", " ").replace("-", " ").strip().lower()


@dataclass(frozen=True)
class ClassMatch:
    """How the classes that weights were trained on compare with those of the data.

    Args:
        order: for each class of the data its row in the weights' head; None where the classes are other ones.
        said: what the user should know of it, "" where the classes are the same in the same order.
    """

    order: list[int] | None
    said: str = ""

    @property
    def reorders(self) -> bool:
        """Whether rows of the head change their places."""
        return self.order is not None and self.order != sorted(self.order)

    def needed_order(self) -> list[int]:
        """The order, for a checkpoint that continues with its own head.

        Raises:
            UserError: it was trained on other classes.
        """
        if self.order is None:
            raise UserError(
                f"the checkpoint was trained on {self.said}: give its classes in data.classes, or start a new head "
                "from its weights with --init"
            )
        return self.order


def match_classes(trained: Sequence[str] | None, own: Sequence[str]) -> ClassMatch:
    """Compares by name, and spaces and underscores are alike as in `ClassIndex`; the only place that decides this.

    Args:
        trained: names that came with weights. None, or the numbers that stand for names where there were none, are
            taken for the data's in its order.
        own: names of the data, K of them.

    Example:
        >>> match_classes(["wave", "sit"], ["sit", "wave"]).order
        [1, 0]
    """
    own = list(own)
    numbers = trained is not None and list(trained) == [str(number) for number in range(len(trained))]
    if trained is None or (numbers and not all(map(str.isdecimal, own))):
        if trained is not None and len(trained) != len(own):
            return ClassMatch(None, f"{len(trained)} classes without names, and the data has {len(own)}")
        return ClassMatch(list(range(len(own))), "no class names: its classes are taken for the data's in their order")
    index = ClassIndex(trained)
    order = [index.find(name) for name in own]
    if len(own) != len(trained) or set(order) != set(range(len(own))):
        return ClassMatch(None, f"other classes than the data ({class_difference(trained, own)})")
    rows = [number for number in order if number is not None]
    moved = next((number for number, row in enumerate(rows) if number != row), None)
    if moved is None:
        return ClassMatch(rows)
    return ClassMatch(
        rows,
        f"the same classes in another order: its head is re-ordered by name ({own[moved]!r} {rows[moved]} -> {moved})",
    )


def class_difference(theirs: Sequence[str], own: Sequence[str]) -> str:
    """What other names `theirs` are than `own`, for a message."""
    parts = []
    for word, held, others in (("with", theirs, own), ("without", own, theirs)):
        index = ClassIndex(others)
        if names := [name for name in held if index.find(name) is None]:
            parts.append(f"{word} {some(names)}")
    return ", ".join(parts) or "in another order"
