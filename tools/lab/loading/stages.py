"""The share of each stage of our loading, in CPU time of one thread."""

from __future__ import annotations

import pickle
import time
from collections.abc import Callable
from multiprocessing.reduction import ForkingPickler
from typing import Any

import torch
import torch.multiprocessing  # so that pickled tensors go through shared memory
from torch import Tensor

from lab.loading.ways import Recipe, Video
from octvideo.data.augment import flip_and_colour, sample_transform
from octvideo.data.dataset import Item, item_generator
from octvideo.data.loading import Collate, MovableBatch
from octvideo.video import (
    VideoViews,
    crop_and_resize,
    evaluation_crops,
    random_clip,
    read_frames,
    resize_short_side,
    uniform_clips,
)

PROBE, DECODE, RESIZE, ARRANGE, TRANSPORT = (
    "open, look through packets", "decode", "crop, resize", "flip, copy", "collate, transport",
)  # fmt: skip


class _Stopwatch:
    """CPU milliseconds since the last lap, added up by stage."""

    def __init__(self) -> None:
        self.stages = dict.fromkeys((PROBE, DECODE, RESIZE, ARRANGE, TRANSPORT), 0.0)
        self._last = time.process_time()

    def lap(self, stage: str) -> None:
        now = time.process_time()
        self.stages[stage] += 1000 * (now - self._last)
        self._last = now


def clip_stages(video: Video, recipe: Recipe, number: int) -> dict[str, float]:
    """Milliseconds by stage for the training clip that `TrainingClips` gives in epoch `number`."""
    generator = item_generator(0, number, 0)
    views, size = recipe.views, recipe.augment.crop_px
    transform: Any = None

    def choose(num_frames: int) -> Tensor:
        return random_clip(
            num_frames, clip_frames=views.clip_frames, frame_stride=views.frame_stride, generator=generator
        )

    def region(frames: Tensor) -> Tensor:
        nonlocal transform
        if transform is None:
            height, width = frames.shape[1:3]
            transform = sample_transform(recipe.augment, height=height, width=width, generator=generator)
        return crop_and_resize(frames, transform.box, (size, size)).permute(0, 2, 3, 1)

    watch = _Stopwatch()
    read = _timed_read(watch, video, choose, region)
    clip = flip_and_colour(read.frames[read.places].permute(0, 3, 1, 2), transform)
    watch.lap(ARRANGE)
    _across(Collate(clip.shape)([Item(clip, 0, 0, video.path)]))
    watch.lap(TRANSPORT)
    return watch.stages


def view_stages(video: Video, recipe: Recipe, number: int) -> dict[str, float]:
    """Milliseconds by stage for all views of a video."""
    views = recipe.views

    def choose(num_frames: int) -> Tensor:
        return uniform_clips(
            num_frames, num_clips=views.num_clips, clip_frames=views.clip_frames, frame_stride=views.frame_stride
        )

    watch = _Stopwatch()
    read = _timed_read(
        watch, video, choose, lambda frames: resize_short_side(frames, views.short_side_px).permute(0, 2, 3, 1)
    )
    boxes = evaluation_crops(*read.frames.shape[1:3], num_crops=views.num_crops, crop_px=views.crop_px)
    item = Item(VideoViews(read.frames, read.places.numpy(), tuple(boxes)), 0, 0, video.path)
    watch.lap(ARRANGE)
    _across(Collate(None)([item]))
    watch.lap(TRANSPORT)
    return watch.stages


def _timed_read(
    watch: _Stopwatch, video: Video, choose: Callable[[int], Tensor], resize: Callable[[Tensor], Tensor]
) -> Any:
    """Reads; whatever happens before frames are chosen is the look through the packets."""

    def timed_choose(num_frames: int) -> Tensor:
        watch.lap(PROBE)
        return choose(num_frames)

    def timed_resize(frames: Tensor) -> Tensor:
        watch.lap(DECODE)
        small = resize(frames)
        watch.lap(RESIZE)
        return small

    read = read_frames(video.path, timed_choose, resize=timed_resize)
    watch.lap(DECODE)
    return read


def _across(batch: MovableBatch) -> None:
    """A batch as it crosses processes: written to shared memory and looked at, a byte of each page."""
    got = pickle.loads(ForkingPickler.dumps(batch))
    for video in got["video"]:
        frames = video.frames if isinstance(video, VideoViews) else video
        int(torch.empty(0, dtype=torch.uint8).set_(frames.untyped_storage())[::4096].sum())
