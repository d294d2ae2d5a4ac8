"""Labelled clips in folds without a shared source, and their frames."""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from octvideo.errors import UserError
from octvideo.files import whole_file
from octvideo.video import evaluation_crops, read_frames, resize_short_side

# Columns of clips.csv that have a meaning here, by the names that they may have.
_COLUMNS = {"path": ("path",), "label": ("label",), "fold": ("fold", "fold5"), "source": ("source_video", "source")}


@dataclass(frozen=True)
class Clips:
    """The N clips of a folder, in the order of its clips.csv.

    Args:
        folder: that paths are relative to; its name is that of the data.
        paths: of the clips.
        labels: int64 (N,), indices of `classes`.
        classes: names, sorted.
        folds: int64 (N,).
        sources: the video that each clip was cut from.
    """

    folder: Path
    paths: list[str]
    labels: Tensor
    classes: list[str]
    folds: Tensor
    sources: list[str]

    @property
    def name(self) -> str:
        return self.folder.resolve().name

    def test(self, fold: int) -> Tensor:
        """Indices of the clips of a fold."""
        return (self.folds == fold).nonzero().flatten()

    def train(self, fold: int) -> Tensor:
        """Indices of all other clips."""
        return (self.folds != fold).nonzero().flatten()


def read_clips(folder: Path) -> Clips:
    """Reads clips.csv: columns path, label, fold (or fold5), source_video (or source).

    Raises:
        UserError: it is not there, lacks a column, has no two folds, or has a source in two folds.
    """
    file = folder / "clips.csv"
    if not file.is_file():
        raise UserError(f"no clips.csv in {folder}: expected columns path, label, fold and source_video")
    with file.open(encoding="utf-8", newline="") as lines:
        reader = csv.DictReader(lines)
        there = reader.fieldnames or ()
        names = {meaning: next((name for name in own if name in there), "") for meaning, own in _COLUMNS.items()}
        if missing := [" or ".join(_COLUMNS[meaning]) for meaning, name in names.items() if not name]:
            raise UserError(f"{file}: no column {missing[0]}")
        rows = [{meaning: row[name] for meaning, name in names.items()} for row in reader]
    fold_of: dict[str, str] = {}
    for row in rows:
        if fold_of.setdefault(row["source"], row["fold"]) != row["fold"]:
            raise UserError(f"{file}: clips of {row['source']} are in two folds, so that a test would know them")
    if len(set(fold_of.values())) < 2:
        raise UserError(f"{file}: expected two folds or more")
    classes = sorted({row["label"] for row in rows})
    return Clips(
        folder,
        [row["path"] for row in rows],
        torch.tensor([classes.index(row["label"]) for row in rows]),
        classes,
        torch.tensor([int(row["fold"]) for row in rows]),
        [row["source"] for row in rows],
    )


def load_frames(
    clips: Clips,
    cache: Path,
    *,
    num_frames: int,
    px: int,
    watch: Callable[[Iterable[str]], Iterable[str]] = iter,
) -> Tensor:
    """The centre squares of frames at even distances of each clip, decoded once.

    Args:
        clips: to read.
        cache: folder for what was decoded.
        num_frames: T, of each clip.
        px: side of the squares.
        watch: sees the clips' paths go by.

    Returns:
        uint8 (N, T, 3, px, px).
    """
    file = cache / f"{clips.name}_frames{num_frames}_{px}.pt"
    if file.is_file():
        return torch.load(file, weights_only=True, mmap=True)  # type: ignore[no-any-return]

    def squares(frames: Tensor) -> Tensor:
        small = resize_short_side(frames, px)  # (T,C,h,w)
        (box,) = evaluation_crops(*small.shape[2:], num_crops=1, crop_px=px)
        return box.of(small.permute(0, 2, 3, 1)).permute(0, 3, 1, 2).contiguous()

    read = []
    for path in watch(clips.paths):
        found = read_frames(clips.folder / path, lambda count: _middles(count, num_frames), resize=squares)
        read.append(found.frames[found.places])
    frames = torch.stack(read)
    cache.mkdir(parents=True, exist_ok=True)
    with whole_file(file) as part:
        torch.save(frames, part)
    return frames


def _middles(count: int, parts: int) -> Tensor:
    """The middle of each of so many even parts."""
    return ((torch.arange(parts) + 0.5) * count / parts).long()
