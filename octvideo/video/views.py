"""All views of one video: decoded once, each distinct frame resized once, and cut when a network wants them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, fields, replace
from fractions import Fraction
from typing import Any, get_args

import numpy as np
import torch
from torch import Tensor

from octvideo.errors import UserError
from octvideo.video.frames import Source, VideoArray
from octvideo.video.image_frames import ImageFrames
from octvideo.video.reader import Decoder, read_frames
from octvideo.video.sampling import ShortVideo, uniform_clips, wanted_frames
from octvideo.video.segments import Sampling, segment_clips
from octvideo.video.transforms import Box, evaluation_crops, resize_short_side


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
        sampling: "dense" clips are of neighbours, frame_stride apart; "segments" and "segments_ssv2" have a frame of
            each of T parts of the video, and no frame_stride or short_video: see octvideo/video/segments.py.

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
    sampling: Sampling = "dense"

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
        if self.sampling not in get_args(Sampling):
            raise UserError(f"sampling: got {self.sampling!r}, expected 'dense', 'segments' or 'segments_ssv2'")

    @property
    def num_views(self) -> int:
        """V = num_clips * num_crops; view number = clip * num_crops + crop."""
        return self.num_clips * self.num_crops

    @property
    def name(self) -> str:
        """Clips x crops: "10x3"."""
        return f"{self.num_clips}x{self.num_crops}"

    def clips(self, num_frames: int) -> Tensor:
        """Frame indices of the clips of a video, int64 (num_clips, clip_frames)."""
        if self.sampling != "dense":
            how = {"num_clips": self.num_clips, "clip_frames": self.clip_frames}
            return segment_clips(num_frames, self.sampling, **how)
        return uniform_clips(
            num_frames,
            num_clips=self.num_clips,
            clip_frames=self.clip_frames,
            frame_stride=self.frame_stride,
            short_video=self.short_video,
        )

    @property
    def typical_bytes(self) -> int:
        """Of the frames of a video of 16:9, if no two clips share any."""
        return self.num_clips * self.clip_frames * 3 * self.short_side_px**2 * 16 // 9

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for a checkpoint or a JSON file; what older versions did not know only where it is used."""
        unused = {"target_fps": None, "sampling": "dense"}
        return {key: value for key, value in asdict(self).items() if key not in unused or value != unused[key]}

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


@dataclass(frozen=True)
class VideoViews:
    """All views of one video, not cut yet: each distinct frame once, and where the views lie in them.

    Ten clips x three crops overlap: they take twice the memory of their distinct frames. So a loading process sends
    this, a GPU receives this, and views are cut there, some at a time.

    Args:
        frames: distinct and resized, uint8 (D, h, w, C).
        places: of the frames of each clip among the D, int64 (num_clips, T). In numpy: one more tensor would
            cost a loading process time, whatever its size.
        boxes: of the crops, all of one size.
    """

    frames: Tensor
    places: np.ndarray
    boxes: tuple[Box, ...]

    @property
    def num_views(self) -> int:
        """V; view number = clip * num_crops + crop."""
        return len(self.places) * len(self.boxes)

    @property
    def alike(self) -> tuple[bool, bool]:
        """Whether all of several clips show the same frames, and all of several crops the same region."""
        clips = len(self.places) > 1 and bool((self.places == self.places[0]).all())
        return clips, len(self.boxes) > 1 == len(set(self.boxes))

    def cut(self, start: int = 0, stop: int | None = None) -> Tensor:
        """Views [start, stop), uint8 (n, C, T, crop_px, crop_px) on the frames' device; in memory channels last."""
        numbers = range(self.num_views)[start:stop]
        size = self.boxes[0]
        shape = (len(numbers), self.places.shape[1], size.height, size.width, self.frames.shape[3])
        if self.frames.device.type == "cpu":
            # numpy asks the system for huge pages; small ones cost page faults.
            views = torch.from_numpy(np.empty(shape, np.uint8))
        else:
            views = self.frames.new_empty(shape)
        places = torch.from_numpy(self.places)
        if self.frames.is_cuda:  # without waiting for what the GPU still has to compute
            places = places.pin_memory()
        places = places.to(self.frames.device, non_blocking=True)
        for n, number in enumerate(numbers):
            clip, crop = divmod(number, len(self.boxes))
            # Pixels stay together as decoded: a crop is copied row by row. Writing planes instead takes twice as long.
            torch.index_select(self.boxes[crop].of(self.frames), 0, places[clip], out=views[n])
        return views.permute(0, 4, 1, 2, 3)  # (n,C,T,S,S)

    def to(self, device: torch.device | str) -> VideoViews:
        """The same on a device; without waiting where the frames are in pinned memory."""
        return replace(self, frames=self.frames.to(device, non_blocking=self.frames.is_pinned()))

    def pin_memory(self) -> VideoViews:
        """The same in pinned memory, as DataLoader asks for."""
        return replace(self, frames=self.frames.pin_memory())


def read_views(path: Source | ImageFrames, settings: ViewSettings, *, decoder: Decoder = "auto") -> Tensor:
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
    return decode_views(path, settings, decoder=decoder).cut()


def decode_views(
    path: Source | VideoArray | ImageFrames,
    settings: ViewSettings,
    *,
    decoder: Decoder = "auto",
    on_frames: Callable[[], object] = bool,
) -> VideoViews:
    """The same, not cut yet. Of a video in memory, too, which needs no decoder.

    Args:
        path, settings, decoder: see `read_views`.
        on_frames: called for every piece of up to 64 MB of frames that is decoded.

    Raises:
        VideoReadError: the video can't be read.
        UserError: an array of frames that are none.
    """

    def smaller(frames: Tensor) -> Tensor:
        on_frames()
        return resize_short_side(frames, settings.short_side_px).permute(0, 2, 3, 1)

    if isinstance(path, VideoArray):
        frames, places = _of_array(path, settings)
        frames = smaller(frames)
    else:
        read = read_frames(path, settings.clips, decoder=decoder, resize=smaller, target_fps=settings.target_fps)
        frames, places = read.frames, read.places
    boxes = evaluation_crops(*frames.shape[1:3], num_crops=settings.num_crops, crop_px=settings.crop_px)
    return VideoViews(frames, places.numpy(), tuple(boxes))


def _of_array(video: VideoArray, settings: ViewSettings) -> tuple[Tensor, Tensor]:
    """The distinct frames of all clips, uint8 (D, H, W, C), and the places of the clips' frames among them."""
    frames = video.checked_frames()
    frame_sec = 1 / Fraction(video.fps).limit_denominator(1001)
    wanted, places, _ = wanted_frames(settings.clips, range(len(frames) + 1), frame_sec, settings.target_fps)
    return frames[wanted], places
