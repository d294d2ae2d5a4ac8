"""What each augmentation costs: training clips of the plain recipe beside those with one thing more, and with all."""

from __future__ import annotations

import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from lab.benchmark.report import Sheet
from lab.loading.ways import Recipe, Video
from lab.timing import rounds_of
from octvideo.batches import Failure
from octvideo.data import TrainingClips, VideoRecord
from octvideo.errors import UserError

PLAIN, MODERN = "plain", "modern: RandAugment, erasing"
# timm's A1 and A2 have RandAugment and no colours; erasing is PySlowFast's for small data sets.
_MODERN = {"policy": "rand", "policy_ops": 2, "policy_magnitude": 9, "erase": 0.25}
_CHANGES: dict[str, dict[str, Any]] = {
    PLAIN: {},
    "RandAugment": {"policy": "rand"},
    "TrivialAugment": {"policy": "trivial"},
    "erasing (always)": {"erase": 1.0},
    "colour": {"colour": 0.4},
    "hue": {"hue": 0.1},
    "grey (always)": {"grey": 1.0},
    "blur (always)": {"blur": 1.0},
    MODERN: _MODERN,
}
_REPEATS = ", data.repeats "


def augmentation_costs(videos: Sequence[Video], recipe: Recipe, *, rounds: int) -> dict[str, list[float]]:
    """CPU milliseconds a clip, a number per round; of this thread alone.

    Args:
        videos: each of which gives an item in each turn, with other draws in each round.
        recipe: the plain one.
        rounds: after one that warms up.
    """
    records = [VideoRecord(video.path, 0) for video in videos]

    def clips(changes: Mapping[str, Any], repeats: int) -> TrainingClips:
        views, augment = recipe.views, replace(recipe.augment, **changes)
        return TrainingClips(
            records, augment, clip_frames=views.clip_frames, frame_stride=views.frame_stride, repeats=repeats
        )

    alone = {name: clips(changes, 1) for name, changes in _CHANGES.items()}
    repeated = {
        f"{name}{_REPEATS}{repeats}": clips(_CHANGES[name], repeats) for repeats in (2, 4) for name in (PLAIN, MODERN)
    }
    sets = alone | repeated
    numbers = {name: iter(range(10**9)) for name in sets}

    def turn(name: str) -> float:
        dataset, epoch = sets[name], next(numbers[name])
        started = time.process_time()
        for index in range(len(records)):
            item = dataset[epoch, index]
            if isinstance(item, Failure):
                raise UserError(f"cannot read video '{item.path}': {item.reason}")
        return 1000 * (time.process_time() - started) / (len(records) * dataset.repeats)

    found = list(rounds_of({name: partial(turn, name) for name in sets}, rounds=rounds))
    return {name: [measured[name] for measured in found] for name in sets}


def costs_sheet(costs: Mapping[str, Sequence[float]], recipe: Recipe, num_videos: int) -> Sheet:
    """A line per recipe: milliseconds, and ratios of the same round with their quartiles."""
    lines: list[tuple[str, ...]] = []
    for name, times in costs.items():
        base = name.partition(_REPEATS)[0]
        per_view = _ratio(times, costs[base]) if base != name else ""
        lines.append((name, f"{statistics.median(times):.2f}", _ratio(times, costs[PLAIN]), per_view))
    views, size = recipe.views, recipe.augment.crop_px
    title = f"Training clips of {views.clip_frames} frames, every {views.frame_stride}, {size} pixels"
    notes = (f"{num_videos} videos; median CPU ms of one thread; ratios of the same round (quartiles)",)
    return Sheet(title, ("recipe", "ms a clip", "times plain", "times itself without repeats"), lines, notes)


def _ratio(times: Sequence[float], others: Sequence[float]) -> str:
    ratios = [ours / other for ours, other in zip(times, others, strict=True)]
    cell = f"{statistics.median(ratios):.2f}"
    if len(ratios) == 1:
        return cell
    low, _, high = statistics.quantiles(ratios, n=4, method="inclusive")
    return f"{cell} ({low:.2f}-{high:.2f})"
