"""How many views of a video a time allows: the most, from one up to the model's own, by a measurement on a real video.

What a video takes is what it takes by itself, one thing after the other: it is opened, decoded, cut and computed. In a
row of videos the next one is decoded beside the engine, which takes less, never more.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from octvideo.inference.engine import Engine
from octvideo.inference.preparation import Timing, on_device
from octvideo.video import ImageFrames, VideoArray, ViewSettings, decode_views

# Views are chosen to take this share of the budget at most: other videos take longer than the one that is measured.
_SHARE = 0.9
_TURNS = 2  # of a measurement, of which the shorter counts: noise only adds


@dataclass(frozen=True)
class ViewsChoice:
    """What a budget became.

    Args:
        views: that were chosen.
        timing: of the video that was measured, with these views.
        budget_sec: what a video may take.
        engine: with its precision, in words.
    """

    views: ViewSettings
    timing: Timing
    budget_sec: float
    engine: str

    @property
    def keeps(self) -> bool:
        """Whether the video that was measured took no longer than the budget; else there is no smaller choice."""
        return self.timing.total <= self.budget_sec

    def __str__(self) -> str:
        network = self.timing.engine / self.views.num_views
        parts = f"decoding {_ms(self.timing.decode)}, cutting {_ms(self.timing.prepare)}, network {_ms(network)} a view"
        about = f"about {_ms(self.timing.total)} ms a video ({parts})"
        if self.keeps:
            return f"budget {_ms(self.budget_sec)} ms: {self.views.name} views by {self.engine}, {about}"
        even = f"even {self.views.name} views by {self.engine} take {about}"
        return f"budget {_ms(self.budget_sec)} ms is not kept: {even}. They are used"


def _ms(seconds: float) -> str:
    milliseconds = 1000 * seconds
    return f"{milliseconds:.0f}" if milliseconds >= 10 else f"{milliseconds:.2g}"


def ladder(own: ViewSettings) -> list[ViewSettings]:
    """Views to choose from, from 1x1 up to the model's own; each is of more views than the one before.

    Clips come before crops: moments that are not seen are lost, and a centre crop has most of the picture.
    """
    steps = [replace(own, num_clips=clips, num_crops=1) for clips in range(1, own.num_clips + 1)]
    if own.num_crops > 1:
        with_crops = [replace(own, num_clips=clips) for clips in range(1, own.num_clips + 1)]
        steps += [step for step in with_crops if step.num_views > own.num_clips]
    return steps


def choose_views(
    own: ViewSettings, budget_sec: float, measure: Callable[[ViewSettings], Timing]
) -> tuple[ViewSettings, Timing]:
    """The most views that fit, and what they take; 1x1 where nothing does.

    One view is measured first. From each measurement follows what others take, about: decoding as much, and the rest in
    proportion to their number. The most that would fit are measured next, or the next step where none would: on a GPU
    views of one call take little more than one. What is chosen has been measured, and the step after it was too much.

    Args:
        own: the model's views, the most that are tried.
        budget_sec: what a video may take.
        measure: what a video takes with some views.
    """
    steps, most = ladder(own), _SHARE * budget_sec
    fits, too_many = 0, len(steps)
    best = latest = measure(steps[0])
    measured = 0
    if best.total > most:
        return steps[0], best
    while too_many - fits > 1:
        each = (latest.prepare + latest.engine) / steps[measured].num_views
        expected = [latest.decode + each * step.num_views for step in steps[fits + 1 : too_many]]
        measured = fits + max(1, sum(seconds <= most for seconds in expected))
        latest = measure(steps[measured])
        if latest.total <= most:
            fits, best = measured, latest
        else:
            too_many = measured
    return steps[fits], best


def measured_video(
    video: str | Path | VideoArray | ImageFrames,
    views: ViewSettings,
    normalise: Callable[[Tensor], Tensor],
    engine: Engine,
    *,
    views_per_chunk: int,
    device: torch.device,
    clock: Callable[[], float] = time.perf_counter,
    turns: int = _TURNS,
) -> Timing:
    """What a video takes by itself, the shortest of some turns; its total is the sum of the parts.

    Args:
        video: path or frames.
        views: that are cut from it.
        normalise, views_per_chunk, device: as `prepared_chunks` has them.
        engine: of the views.
        clock: gives seconds.
        turns: 1 or more.

    Raises:
        VideoReadError: the video can't be read.
    """
    found = []
    with torch.inference_mode():
        for _ in range(turns):
            timing, start = Timing(), clock()
            frames = on_device(decode_views(video, views), device)
            timing.decode = clock() - start
            logits = []
            for first in range(0, views.num_views, views_per_chunk):
                start = clock()
                clips = normalise(frames.cut(first, min(first + views_per_chunk, views.num_views)))
                cut = clock()
                logits.append(engine(clips))
                timing.prepare += cut - start
                timing.engine += clock() - cut
            start = clock()
            torch.cat(logits).float().softmax(1).mean(0).cpu()  # on a GPU this waits for all calls
            timing.engine += clock() - start
            timing.total = timing.decode + timing.prepare + timing.engine
            found.append(timing)
    return min(found, key=lambda one: one.total)


def kept_in_words(seconds: Sequence[float], budget_sec: float) -> str:
    """How long videos took in the end, in a line: median, and how many were over the budget."""
    over = sum(one > budget_sec for one in seconds)
    videos = f"{len(seconds)} video" + "s" * (len(seconds) > 1)
    share = f"{over} of them over it ({100 * over / len(seconds):.0f} %)" if over else "none over it"
    return f"budget {_ms(budget_sec)} ms: {videos} took {_ms(statistics.median(seconds))} ms each (median), {share}"
