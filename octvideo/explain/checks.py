"""Whether saliency says anything: does it find what is known to be there, and does it depend on what was learnt?"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch
from torch import nn

from octvideo.explain.saliency import PathName, Saliency


class PointingTrial(NamedTuple):
    """One clip of the pointing game.

    Args:
        hit: whether the strongest point lies in the box.
        chance: the share of the clip's area that the box has at that time: what a random point would hit.
        centre_hit: whether the middle of the clip lies in the box then: what a map that never looks would hit.
    """

    hit: bool
    chance: float
    centre_hit: bool


def pointing_trial(saliency: Saliency, path: PathName, boxes: np.ndarray) -> PointingTrial | None:
    """The pointing game (Zhang et al. 2016, arXiv 1608.00507): is the strongest point of a map on the object?

    The point is the middle of the strongest cell, in space and time. Of frames that share a time step the boxes are
    joined, for the hit and for chance alike.

    Args:
        saliency: of the clip.
        path: whose map.
        boxes: of the object in each frame of the clip, in its pixels, (T, 4): left, top, right, bottom.

    Returns:
        None where all of the map is 0, so that there is no strongest point: it counts as a miss.
    """
    maps = saliency.maps[path]
    if not maps.max() > 0:
        return None
    step, row, column = np.unravel_index(int(maps.argmax()), maps.shape)
    _, height, width = saliency.clip_shape
    x, y = (column + 0.5) * width / maps.shape[2], (row + 0.5) * height / maps.shape[1]
    return _trial(_joined(boxes, saliency.step_of_frame == step), x, y, height, width)


def pointing_chance(saliency: Saliency, boxes: np.ndarray) -> float:
    """What a random point of the clip, in space and time, would hit on average; boxes as `pointing_trial` has them."""
    _, height, width = saliency.clip_shape
    steps = saliency.step_of_frame
    return float(
        np.mean([_trial(_joined(boxes, steps == step), 0, 0, height, width).chance for step in np.unique(steps)])
    )


def _joined(boxes: np.ndarray, frames: np.ndarray) -> np.ndarray:
    """The box around the boxes of some frames; empty ones do not count."""
    own = boxes[frames & (boxes[:, 2] > boxes[:, 0]) & (boxes[:, 3] > boxes[:, 1])]
    return np.concatenate([own[:, :2].min(0), own[:, 2:].max(0)]) if len(own) else np.zeros(4)


def _trial(box: np.ndarray, x: float, y: float, height: int, width: int) -> PointingTrial:
    left, top, right, bottom = np.clip(box, 0, [width, height, width, height])

    def inside(x: float, y: float) -> bool:
        return bool(left <= x < right and top <= y < bottom)

    chance = float((right - left) * (bottom - top) / (width * height))
    return PointingTrial(inside(x, y), chance, inside(width / 2, height / 2))


# ── weights that are shuffled ───────────────────────────────────────────────────────────────────────────────────────


def shuffled_networks(network: nn.Module, *, seed: int = 0) -> Iterator[tuple[str, nn.Module]]:
    """Copies of a network in which more and more layers have lost what they learnt, from the last one on.

    The check is that of Adebayo et al. 2018 (arXiv 1810.03292, cascading randomisation): an explanation that stays the
    same says nothing about the network. Each weight tensor's values change places, so that their distribution stays.
    The vectors of a norm change places together, so that means fit variances.

    Args:
        network: left as it is.
        seed: of the places.

    Returns:
        The path of the module that was shuffled last, and the network; the next one changes the same copy further.
    """
    shuffled = copy.deepcopy(network)
    generator = torch.Generator().manual_seed(seed)
    own = [
        (name, module)
        for name, module in shuffled.named_modules()
        if next(module.parameters(recurse=False), None) is not None
    ]
    for name, module in reversed(own):
        tensors = [*module.parameters(recurse=False), *module.buffers(recurse=False)]
        vectors: dict[int, torch.Tensor] = {}
        with torch.no_grad():
            for x in tensors:
                if not x.is_floating_point():
                    continue
                if x.dim() == 1:
                    order = vectors.setdefault(len(x), torch.randperm(len(x), generator=generator))
                else:
                    order = torch.randperm(x.numel(), generator=generator)
                x.copy_(x.flatten()[order.to(x.device)].view_as(x))
        yield name, shuffled


def rank_correlation(one: np.ndarray, other: np.ndarray) -> float:
    """Spearman's rank correlation of two maps; values that are equal share their ranks' mean.

    Returns:
        From -1 to 1; 0 where one of them has one value alone, and orders nothing.

    Example:
        >>> rank_correlation(np.array([1, 2, 3]), np.array([10, 40, 90]))
        1.0
    """
    ranks = []
    for values in (one, other):
        _, place, count = np.unique(values.ravel(), return_inverse=True, return_counts=True)
        mean_rank = np.cumsum(count) - (count - 1) / 2
        ranks.append(mean_rank[place.ravel()] - (values.size + 1) / 2)
    size = float(np.sqrt((ranks[0] ** 2).sum() * (ranks[1] ** 2).sum()))
    return round(float((ranks[0] * ranks[1]).sum()) / size, 12) if size > 0 else 0.0
