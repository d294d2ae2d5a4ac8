"""Batches, as data/ makes them and training/ receives them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, TypedDict

import torch
from torch import Tensor


@dataclass(frozen=True)
class Failure:
    """A video that could not be read.

    Args:
        path: of the file.
        reason: in one line.
        index: in the data set.
    """

    path: str
    reason: str
    index: int


class Views(Protocol):
    """All V views of one video, cut when they are wanted: octvideo.video's VideoViews."""

    @property
    def num_views(self) -> int:
        """V."""

    def cut(self, start: int, stop: int, /) -> Tensor:
        """Views [start, stop), uint8 (n, C, T, S, S)."""

    def to(self, device: torch.device, /) -> Views:
        """The same on a device, where they are then cut."""


class Batch(TypedDict):
    """N videos, and those that could not be read; N may be 0.

    Keys:
        video: for training uint8 clips (N, C, T, S, S); for evaluation N `Views`, or all views cut, uint8
            (N, V, C, T, S, S).
        label: class ids, int64 (N,), -1 where unknown; of several labels the first.
        others: class ids beside the first, int64 (N, M), filled up with -1; M is 0 where each video has one label.
        index: in the data set, int64 (N,).
        path: of the files, N.
        failures: beside the N.
    """

    video: Tensor | Sequence[Views]
    label: Tensor
    others: Tensor
    index: Tensor
    path: list[str]
    failures: list[Failure]
