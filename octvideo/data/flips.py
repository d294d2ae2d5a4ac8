"""What a class is in a mirror: what goes from left to right goes from right to left."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import yaml

from octvideo.class_names import ClassIndex, some
from octvideo.errors import UserError
from octvideo.stores import read_text

_OTHER_SIDE = {"left": "right", "right": "left", "clockwise": "counterclockwise", "counterclockwise": "clockwise"}
_SIDES = re.compile(rf"(?<![a-z])({'|'.join(_OTHER_SIDE)})(?![a-z])", re.IGNORECASE)


def read_swaps(file: str | Path) -> dict[str, str]:
    """Pairs of classes from a YAML file, `move_left: move_right` a line.

    Raises:
        UserError: it holds something else.
    """
    try:
        held = yaml.safe_load(read_text(file))
    except yaml.YAMLError as error:
        raise UserError(f"{file} can't be read as YAML: {' '.join(str(error).split())}") from error
    if not isinstance(held, dict) or not held or not all(isinstance(value, str | int) for value in held.values()):
        raise UserError(f"{file}: got other YAML than pairs of classes, expected `name: name` lines")
    return {str(name): str(other) for name, other in held.items()}


def flipped_classes(swaps: Mapping[str, str], class_names: Sequence[str]) -> list[int]:
    """For each class the id of the class that it is in a mirror, (K,).

    Args:
        swaps: pairs, each of which counts both ways.
        class_names: K of them.

    Raises:
        UserError: a name that is no class, or a class with two partners.

    Example:
        >>> flipped_classes({"move left": "move right"}, ["jump", "move_left", "move_right"])
        [0, 2, 1]
    """
    index, partners = ClassIndex(class_names), dict[int, int]()
    for pair in swaps.items():
        one, other = (index.need(name, "data.flip_labels") for name in pair)
        for number, partner in ((one, other), (other, one)):
            if partners.setdefault(number, partner) != partner:
                raise UserError(
                    f"data.flip_labels: the class {class_names[number]!r} has two partners, "
                    f"{class_names[partners[number]]!r} and {class_names[partner]!r}: expected one"
                )
    return [partners.get(number, number) for number in range(len(class_names))]


def sided_classes(class_names: Sequence[str]) -> dict[str, str]:
    """Pairs of classes whose names differ by left and right, or clockwise and counterclockwise, alone: a flip makes one
    of the other.
    """
    names, found = set(class_names), dict[str, str]()
    for name in class_names:
        other = _SIDES.sub(lambda match: _other_side(match[0]), name)
        if other != name and other in names and other not in found:
            found[name] = other
    return found


def _other_side(word: str) -> str:
    other = _OTHER_SIDE[word.lower()]
    return other.upper() if word.isupper() else other.capitalize() if word[0].isupper() else other


def warning_of_sides(class_names: Sequence[str]) -> str:
    """What to say of classes that a flip would give the other's label; "" where there is none."""
    if not (pairs := sided_classes(class_names)):
        return ""
    shown = some([f"{one} / {other}" for one, other in pairs.items()])
    return (
        f"augment.flip mirrors clips of classes that a mirror swaps, {shown}, and their labels stay: "
        "give the pairs in data.flip_labels, or --data.augment.flip 0"
    )
