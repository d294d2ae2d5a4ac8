"""Class folders of the user's own, split into training, validation and test."""

from __future__ import annotations

import os
import re
from collections import Counter, defaultdict
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from octvideo.class_names import folder_class_names, some
from octvideo.data.preparation.official import Listed, Official
from octvideo.errors import UserError
from octvideo.files import walk_videos
from octvideo.seeds import digest_of

# Folders that are a split, not classes -> data.<role> that takes them.
_SPLITS = {
    "train": "train", "training": "train", "val": "val", "valid": "val", "validation": "val",
    "test": "test", "testing": "test",
}  # fmt: skip


def folder_lists(
    root: Path,
    shares: dict[str, float],
    *,
    group: str | None = None,
    seed: int = 0,
    leave_out: frozenset[Path] = frozenset(),
) -> Official:
    """A split of root/<class>/.../video that has about the asked share of each class on each side.

    The same videos, shares and seed give the same split on every machine. Folders without videos are no classes.

    Args:
        root: of class folders.
        shares: of the lists beside train: {"val": .1, "test": .2}.
        group: regular expression, searched in each path (class/video.mp4). Videos with the same match (its first
            group, where it has one) come from one source, and are never on two sides.
        seed: another seed, another split.
        leave_out: folders in `root` that are no class.

    Raises:
        UserError: shares that leave nothing, no class folders, or such as are a split already, a video in no class
            folder or without a match.
    """
    for name, share in shares.items():
        if not 0 <= share < 1:
            raise UserError(f"{name}: got {share}, expected a share from 0 to 1")
    if sum(shares.values()) >= 1:
        raise UserError(f"the shares {shares} leave nothing to train on")
    try:
        pattern = None if group is None else re.compile(group)
    except re.error as error:
        raise UserError(f"--group {group!r} is no regular expression: {error}") from error
    classes = folder_class_names(root, leave_out=leave_out)
    groups: dict[str, list[str]] = defaultdict(list)
    for path in walk_videos(root, leave_out=leave_out):
        if os.sep not in path:
            raise UserError(f"{root / path} lies in no class folder: expected {root}/<class>/{Path(path).name}")
        groups[_group_of(path, pattern)].append(path)
    _refuse_split(root, classes)
    chosen = _assign(groups, {name: share for name, share in shares.items() if share > 0}, seed)
    ids = {name: number for number, name in enumerate(classes)}
    splits = {name: partial(_listed, videos, ids) for name, videos in chosen.items()}
    return Official(classes, splits, [root], notes=list(_notes(classes, chosen)))


def _refuse_split(root: Path, classes: list[str]) -> None:
    """With `train` and `test` as classes, nothing but a score too good to be true would say what is wrong."""
    if len(classes) < 2 or not all(name.lower() in _SPLITS for name in classes):
        return
    roles = {_SPLITS[name.lower()]: name for name in classes}
    words = [f"--data.{role} {roles.get(role, 'null')}" for role in ("train", "val", "test")]
    raise UserError(
        f"{root} is split already, its folders are {', '.join(classes)}: such folders need no lists. Train with "
        f"octvideo fit ... --data.root {root} {' '.join(words)} --data.classes null"
    )


def _notes(classes: list[str], chosen: dict[str, list[str]]) -> Iterator[str]:
    for split, videos in chosen.items():
        lacking = sorted(set(classes) - {_class_of(path) for path in videos})
        if lacking:
            advice = "" if split == "train" else f" (a class needs more videos, or --{split} a larger share)"
            yield f"{split}.txt has no video of {some(lacking)}{advice}"


def _group_of(path: str, pattern: re.Pattern[str] | None) -> str:
    if pattern is None:
        return path
    match = pattern.search(path)
    if match is None:
        raise UserError(f"--group {pattern.pattern!r} does not match {path}: every video needs a source")
    return (match[1] if pattern.groups else match[0]) or ""


def _assign(groups: dict[str, list[str]], shares: dict[str, float], seed: int) -> dict[str, list[str]]:
    """Groups in an order that only their names and the seed decide; each goes where it helps the shares most."""
    total = Counter(_class_of(path) for paths in groups.values() for path in paths)
    chosen: dict[str, list[str]] = {"train": [], **{name: [] for name in shares}}
    held: dict[str, Counter[str]] = {name: Counter() for name in shares}
    for key in sorted(groups, key=lambda key: digest_of(seed, key)):
        counts = Counter(_class_of(path) for path in groups[key])
        gains = {}
        for name, share in shares.items():
            # How much nearer to its target each class of the group comes, in videos.
            wanted = {label: share * total[label] - held[name][label] for label in counts}
            gains[name] = sum(abs(wanted[label]) - abs(wanted[label] - n) for label, n in counts.items())
        best = max(gains, key=gains.__getitem__, default="train")
        if gains and gains[best] > 0:
            held[best] += counts
            chosen[best] += groups[key]
        else:
            chosen["train"] += groups[key]
    return {name: sorted(paths) for name, paths in chosen.items()}


def _class_of(path: str) -> str:
    return path.partition(os.sep)[0]


def _listed(paths: list[str], ids: dict[str, int]) -> Iterator[Listed]:
    return (Listed((path,), ids[_class_of(path)], path) for path in paths)
