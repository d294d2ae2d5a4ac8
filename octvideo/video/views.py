"""All views of one video: decoded once, each distinct frame resized once."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

import numpy as np
import torch
from torch import Tensor

from octvideo.errors import UserError
from octvideo.video.frames import Frames
from octvideo.video.reader import Decoder, read_frames
from octvideo.video.sampling import ShortVideo, uniform_clips
from octvideo.video.source import Source
from octvideo.video.transforms import evaluation_crops, resize_short_side


@dataclass(frozen=True)
class ViewSettings:
    """How views are cut from a video. The defaults are the protocol of I3D 8x8 on Kinetics: 10 clips x 3 crops.

    Args:
        clip_frames: T.
        frame_stride: from one frame of a clip to the next.
        num_clips: spread evenly over the video; one is the middle.
        num_crops: 1 (centre) or 3 along the longer side.
        short_side_px: that frames are resized to.
        crop_px: side of the square crops.
        short_video: what follows the last frame where a video is shorter than a clip.
        target_fps: clips are frames of a clock of this rate, whatever the video's own, and frame_stride counts its
            ticks; None counts the video's frames.

    Raises:
        UserError: a value that can't be meant.
    """

    clip_frames: int = 8
    frame_stride: int = 8
    num_clips: int = 10
    num_crops: int = 3
    short_side_px: int = 256
    crop_px: int = 256
    short_video: ShortVideo = "repeat_last"
    target_fps: float | None = None

    def __post_init__(self) -> None:
        for name in ("clip_frames", "frame_stride", "num_clips", "short_side_px", "crop_px"):
            if getattr(self, name) < 1:
                raise UserError(f"{name}: got {getattr(self, name)}, expected 1 or more")
        if self.num_crops not in (1, 3):
            raise UserError(f"num_crops: got {self.num_crops}, expected 1 (centre) or 3 (along the longer side)")
        if self.crop_px > self.short_side_px:
            raise UserError(f"crop_px: got {self.crop_px}, expected at most short_side_px ({self.short_side_px})")
        if self.short_video not in ("repeat_last", "loop"):
            raise UserError(f"short_video: got {self.short_video!r}, expected 'repeat_last' or 'loop'")
        if self.target_fps is not None and not 0 < self.target_fps <= 1000:
            raise UserError(f"target_fps: got {self.target_fps}, expected more than 0 and at most 1000, or none")

    @property
    def num_views(self) -> int:
        """V = num_clips * num_crops; view number = clip * num_crops + crop."""
        return self.num_clips * self.num_crops

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for a checkpoint or a JSON file; no `target_fps` where there is none, as older versions."""
        return {key: value for key, value in asdict(self).items() if (key, value) != ("target_fps", None)}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> ViewSettings:
        """What `as_dict` gave.

        Raises:
            UserError: a key that this version does not know.
        """
        unknown = sorted(set(values) - {field.name for field in fields(cls)})
        if unknown:
            raise UserError(f"view settings: got unknown {', '.join(unknown)}; a newer octvideo may have written them")
        return cls(**values)


def read_views(path: Source, settings: ViewSettings, *, decoder: Decoder = "auto") -> Tensor:
    """Reads all views of a video.

    Args:
        path: of the video; or its content.
        settings: which views.
        decoder: see `read_frames`.

    Returns:
        uint8 (V, C, T, crop_px, crop_px), view number = clip * num_crops + crop; in memory channels last.

    Raises:
        VideoReadError: the video can't be read.
    """
    return cut_views(decode_clips(path, settings, decoder=decoder), settings)


def decode_clips(path: Source, settings: ViewSettings, *, decoder: Decoder = "auto") -> Frames:
    """The first half of `read_views`: the distinct frames of all clips, `places` (num_clips, T).

    Raises:
        VideoReadError: the video can't be read.
    """

    def clips_of(num_frames: int) -> Tensor:
        return uniform_clips(
            num_frames,
            num_clips=settings.num_clips,
            clip_frames=settings.clip_frames,
            frame_stride=settings.frame_stride,
            short_video=settings.short_video,
        )

    return read_frames(path, clips_of, decoder=decoder, target_fps=settings.target_fps)


def cut_views(read: Frames, settings: ViewSettings) -> Tensor:
    """The second half of `read_views`: frames resized once and cut, uint8 (V, C, T, crop_px, crop_px)."""
    frames = resize_short_side(read.frames, settings.short_side_px)  # (D,C,h,w)
    boxes = evaluation_crops(*frames.shape[-2:], num_crops=settings.num_crops, crop_px=settings.crop_px)
    size = settings.crop_px
    shape = (settings.num_clips, settings.num_crops, settings.clip_frames, size, size, 3)
    # numpy asks the system for huge pages; 50 MB in small ones cost 30 ms of page faults, decoding a video 200 ms.
    views = torch.from_numpy(np.empty(shape, np.uint8))
    for crop, box in enumerate(boxes):
        # Pixels stay together as decoded: a crop is copied row by row, a frame in one piece. Writing planes
        # instead took about twice as long (41-54 against 24 ms for 30 views of 256 pixels).
        cut = box.of(frames).permute(0, 2, 3, 1)  # (D,S,S,C), a view
        for clip, places in enumerate(read.places.tolist()):
            for t, place in enumerate(places):
                views[clip, crop, t].copy_(cut[place])
    return views.flatten(0, 1).permute(0, 4, 1, 2, 3)  # (V,C,T,S,S)
