"""Clips of the demo's test videos, and where the moving object is in them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from octvideo.data.synthetic import CLASS_NAMES, OPPOSITES, boxes_of, read_settings, videos_of
from octvideo.errors import UserError
from octvideo.inference.checkpoint import find_checkpoint, network_of_checkpoint
from octvideo.inference.preparation import Normaliser
from octvideo.video import Box, ViewSettings, decode_views

# The object is near the middle of frames. Crops of larger frames, at their corners, do not have it there so often.
_LARGER, _NUM_CLIPS = 1.25, 3


@dataclass(frozen=True)
class Demo:
    """Networks that were trained on the demo, and its test videos.

    Args:
        root: of the data set.
        networks: by the names of their runs, in eval.
        views: how the first one's clips are cut.
        mean, std: of pixels.
    """

    root: Path
    networks: dict[str, nn.Module]
    views: ViewSettings
    mean: tuple[float, ...]
    std: tuple[float, ...]

    @classmethod
    def read(cls, root: Path, runs: list[str], runs_dir: str) -> Demo:
        """Loads the last checkpoint of each run.

        Raises:
            UserError: no such data or run, or a run on other classes.
        """
        read_settings(root)
        networks: dict[str, nn.Module] = {}
        settings: dict[str, Any] = {}
        for run in runs:
            networks[run], settings = network_of_checkpoint(find_checkpoint(run, runs_dir))
            if tuple(settings["class_names"]) != CLASS_NAMES:
                raise UserError(f"{run} has other classes than the demo: give runs of octvideo fit -c demo")
        return cls(root, networks, settings["views"], settings["mean"], settings["std"])


@dataclass(frozen=True)
class DemoClip:
    """One clip.

    Args:
        pixels: normalised, (3, T, S, S).
        label: its class.
        scene: of the video; the videos of opposite classes show the same one.
        boxes: of the object, in the clip's pixels, (T, 4): left, top, right, bottom.
        corner: of the crop, 0 to 3.
    """

    pixels: Tensor
    label: int
    scene: tuple[int, int]
    boxes: np.ndarray
    corner: int


def demo_clips(demo: Demo) -> Iterator[DemoClip]:
    """All test videos, three clips each, four crops each: at the corners of frames a quarter larger than in tests."""
    settings = read_settings(demo.root)
    views = replace(
        demo.views, num_clips=_NUM_CLIPS, num_crops=1, short_side_px=round(_LARGER * demo.views.short_side_px)
    )
    normalise = Normaliser(demo.mean, demo.std, torch.device("cpu"))
    indices = views.clips(settings.num_frames).numpy()  # (num_clips,T)
    for class_name, number, path in videos_of(settings, "test"):
        found = decode_views(demo.root / path, views)
        height, width = found.frames.shape[1:3]
        far = height - views.crop_px, width - views.crop_px
        corners = [Box(y, x, views.crop_px, views.crop_px) for y in (0, far[0]) for x in (0, far[1])]
        clips = normalise(replace(found, boxes=tuple(corners)).cut())
        boxes = boxes_of(settings, "test", class_name, number).numpy() * (height / settings.height)  # (frames,4)
        pair = next(n for n, names in enumerate(OPPOSITES) if class_name in names)
        for n, pixels in enumerate(clips):
            clip, corner = divmod(n, len(corners))
            edge = np.array([corners[corner].left, corners[corner].top] * 2)
            label = CLASS_NAMES.index(class_name)
            yield DemoClip(pixels, label, (pair, number), boxes[indices[clip]] - edge, corner)
