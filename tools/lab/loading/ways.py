"""Ways to read one training clip, or all views of one video: ours, the least that is possible, and other libraries';
and the share of each stage of ours.
"""

from __future__ import annotations

import pickle
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from multiprocessing.reduction import ForkingPickler
from typing import Any, TypeVar

import av
import numpy as np
import torch
import torch.multiprocessing  # so that pickled tensors go through shared memory
from torch import Tensor
from torch.utils.data import SequentialSampler

from octvideo.batches import Failure
from octvideo.data import Augmentation, EvaluationVideos, TrainingClips, VideoRecord
from octvideo.data.augment import apply_transform, sample_transform
from octvideo.data.dataset import Item, item_generator
from octvideo.data.loading import Collate, MovableBatch
from octvideo.errors import UserError
from octvideo.video import (
    Decoder,
    VideoReadError,
    VideoViews,
    ViewSettings,
    clip_span,
    crop_and_resize,
    evaluation_crops,
    random_clip,
    read_frames,
    resize_short_side,
    uniform_clips,
)
from octvideo.video.decord_reader import decord

FLOOR = "bare decoder"
T = TypeVar("T")


@dataclass(frozen=True)
class Recipe:
    """What is read. The defaults are those of I3D 8x8 on Kinetics.

    Args:
        views: of a video in evaluation; clips in training have as many frames, as far apart.
        augment: of training clips.
    """

    views: ViewSettings = field(default_factory=ViewSettings)
    augment: Augmentation = field(default_factory=Augmentation)


@dataclass(frozen=True)
class Video:
    """A file to measure with.

    Args:
        path: of it.
        width, height: of its frames.
        num_frames: that it shows.
        decoder: "decord" where it reads the file, else "pyav".
    """

    path: str
    width: int
    height: int
    num_frames: int
    decoder: str


# A turn: it gets a number, that of the round, and does the same work whenever it gets the same one.
Turn = Callable[[int], object]


def look_at(path: str) -> Video:
    """The facts of a file.

    Raises:
        VideoReadError: it can't be read.
    """
    first = partial(read_frames, path, lambda num_frames: torch.zeros(1, dtype=torch.int64))
    try:
        read = first(decoder="decord")
    except VideoReadError:
        read = first()
    height, width = read.frames.shape[1:3]
    return Video(path, width, height, read.num_frames, read.decoder)


def clip_ways(video: Video, recipe: Recipe, *, peers: bool) -> dict[str, Turn]:
    """Ways to read one random training clip; ours and the bare decoder's are the same clip in each round."""
    ways = _ours_and_bare(video, partial(_our_clip, video.path, recipe), partial(_bare_clip, video, recipe))
    return ways | (_peers(partial(_pytorchvideo_clip, video, recipe)) if peers else {})


def view_ways(video: Video, recipe: Recipe, *, peers: bool) -> dict[str, Turn]:
    """Ways to read all views of one video; ours and the bare decoder's are not cut yet."""
    views = recipe.views
    ways = _ours_and_bare(video, partial(_our_views, video.path, views), partial(_bare_views, video, views))
    ways["an open per view"] = partial(_open_per_view, video, views)
    return ways | (_peers(partial(_pytorchvideo_views, video, views)) if peers else {})


def _ours_and_bare(video: Video, ours: Callable[[Decoder, int], object], bare: Turn) -> dict[str, Turn]:
    ways: dict[str, Turn] = {"octvideo": partial(ours, "auto"), FLOOR: bare}
    return ways | ({"octvideo (decord)": partial(ours, "decord")} if video.decoder == "decord" else {})


def _peers(way: Callable[[str, int], object]) -> dict[str, Turn]:
    return {f"pytorchvideo ({decoder})": partial(way, decoder) for decoder in ("decord", "pyav")}


def usable(
    made: Mapping[str, T], left_out: Callable[[str, Exception], None], run: Callable[[T], object]
) -> dict[str, T]:
    """Without the peers that fail: one that can't be imported, or can't read a video, is no reason to stop.

    Args:
        made: ways or loaders, by name.
        left_out: is told the name and the error of each that is left out.
        run: does the work of one once.
    """
    kept = {}
    for name, one in made.items():
        try:
            if name.startswith("pytorchvideo"):
                run(one)
        except Exception as error:
            left_out(name, error)
        else:
            kept[name] = one
    return kept


# ── ours ────────────────────────────────────────────────────────────────────────────────────────────────────


def training_clips(paths: list[str], recipe: Recipe, decoder: Decoder = "auto") -> TrainingClips:
    """Our data set for training."""
    return TrainingClips(
        [VideoRecord(path, 0) for path in paths],
        recipe.augment,
        clip_frames=recipe.views.clip_frames,
        frame_stride=recipe.views.frame_stride,
        decoder=decoder,
    )


def _our_clip(path: str, recipe: Recipe, decoder: Decoder, number: int) -> None:
    _check(training_clips([path], recipe, decoder)[number, 0])


def _our_views(path: str, settings: ViewSettings, decoder: Decoder, number: int) -> None:
    _check(EvaluationVideos([VideoRecord(path, 0)], settings, decoder=decoder)[0])


def _check(item: object) -> None:
    if isinstance(item, Failure):
        raise UserError(f"cannot read video '{item.path}': {item.reason}")


# ── the least that is possible ──────────────────────────────────────────────────────────────────────────────


def bare_frames(video: Video, numbers: Tensor) -> Tensor:
    """Distinct frames (D, H, W, C), by the decoder that suits the file, without a look at whether they are right."""
    wanted = numbers.unique().tolist()
    if video.decoder == "decord":
        reader = decord.VideoReader(video.path, ctx=decord.cpu(0), num_threads=1)
        batch = reader.get_batch(wanted)
        del reader  # it would go on decoding
        # pytorchvideo switches decord's output to torch for the whole process.
        return batch if isinstance(batch, Tensor) else torch.from_dlpack(batch.to_dlpack())
    images = list(_pyav_images(video.path, wanted))
    return torch.from_numpy(np.stack(images))


def _pyav_images(path: str, wanted: list[int]) -> Iterator[np.ndarray]:
    remaining = iter(wanted)
    following = next(remaining)
    with av.open(path) as container:
        stream = container.streams.video[0]
        stream.thread_count, stream.thread_type = 1, "NONE"
        for number, frame in enumerate(container.decode(stream)):
            if number == following:
                yield frame.to_ndarray(format="rgb24")
                if (following := next(remaining, -1)) < 0:
                    return


def _bare_clip(video: Video, recipe: Recipe, number: int) -> None:
    generator = item_generator(0, number, 0)
    views = recipe.views
    numbers = random_clip(
        video.num_frames, clip_frames=views.clip_frames, frame_stride=views.frame_stride, generator=generator
    )
    transform = sample_transform(recipe.augment, height=video.height, width=video.width, generator=generator)
    size = recipe.augment.crop_px
    crop_and_resize(bare_frames(video, numbers), transform.box, (size, size))


def _clips_of(num_frames: int, settings: ViewSettings) -> Tensor:
    return uniform_clips(
        num_frames,
        num_clips=settings.num_clips,
        clip_frames=settings.clip_frames,
        frame_stride=settings.frame_stride,
    )


def _bare_views(video: Video, settings: ViewSettings, number: int) -> None:
    resize_short_side(bare_frames(video, _clips_of(video.num_frames, settings)), settings.short_side_px)


# ── others ──────────────────────────────────────────────────────────────────────────────────────────────────


def _cut(frames: Tensor, crop: int, settings: ViewSettings) -> Tensor:
    """One crop of resized frames (T, C, h, w), (C, T, S, S)."""
    boxes = evaluation_crops(*frames.shape[-2:], num_crops=settings.num_crops, crop_px=settings.crop_px)
    return boxes[crop].of(frames.permute(0, 2, 3, 1)).permute(3, 0, 1, 2).contiguous()


def _open_per_view(video: Video, settings: ViewSettings, number: int) -> None:
    """As PySlowFast, VideoMAE and GluonCV do: opens the video for each view, decodes, resizes and crops."""
    for view in range(settings.num_views):
        clip, crop = divmod(view, settings.num_crops)
        frames = bare_frames(video, _clips_of(video.num_frames, settings)[clip])  # (D,H,W,C)
        _cut(resize_short_side(frames, settings.short_side_px), crop, settings)


def pytorchvideo_clips(videos: list[Video], recipe: Recipe, decoder: str, *, seed: int = 0) -> Any:
    """pytorchvideo's data set for training: a random clip of each video, once."""
    from pytorchvideo.data import LabeledVideoDataset
    from pytorchvideo.data.clip_sampling import RandomClipSampler

    generator = torch.Generator().manual_seed(seed)
    size, (low, high) = recipe.augment.crop_px, recipe.augment.short_side_px

    def transform(sample: dict[str, Any]) -> Tensor:
        frames = _subsampled(sample["video"], recipe.views)
        # Its users resize whole frames before they crop (ShortSideScale, RandomCrop).
        short_side_px = int(torch.randint(low, high + 1, (), generator=generator))
        small = resize_short_side(frames, short_side_px)  # (T,C,h,w)
        top, left = (int(torch.randint(side - size + 1, (), generator=generator)) for side in small.shape[-2:])
        small = small[..., top : top + size, left : left + size]
        is_flipped = float(torch.rand((), generator=generator)) < recipe.augment.flip
        return (small.flip(-1) if is_flipped else small).transpose(0, 1).contiguous()

    files = [(video.path, {"label": 0}) for video in videos]
    sampler = RandomClipSampler(_clip_seconds(videos[0], recipe.views))
    return LabeledVideoDataset(files, sampler, SequentialSampler, transform, decode_audio=False, decoder=decoder)


def _pytorchvideo_clip(video: Video, recipe: Recipe, decoder: str, number: int) -> None:
    next(iter(pytorchvideo_clips([video], recipe, decoder, seed=number)))


def _pytorchvideo_views(video: Video, settings: ViewSettings, decoder: str, number: int) -> None:
    """Its data set, with transforms of torchvision: its own do not import beside torchvision >= 0.17."""
    from pytorchvideo.data import LabeledVideoDataset
    from pytorchvideo.data.clip_sampling import ConstantClipsPerVideoSampler

    def transform(sample: dict[str, Any]) -> Tensor:
        frames = _subsampled(sample["video"], settings)
        return _cut(resize_short_side(frames, settings.short_side_px), sample["aug_index"], settings)

    sampler = ConstantClipsPerVideoSampler(_clip_seconds(video, settings), settings.num_clips, settings.num_crops)
    files = [(video.path, {"label": 0})]
    dataset = LabeledVideoDataset(files, sampler, SequentialSampler, transform, decode_audio=False, decoder=decoder)
    num_views = sum(1 for _ in dataset)
    if num_views != settings.num_views:
        raise RuntimeError(f"it gave {num_views} of {settings.num_views} views")


def _subsampled(clip: Tensor, settings: ViewSettings) -> Tensor:
    """Frames (T, H, W, C) of a clip (C, t, H, W) that holds every frame of its duration, as float32."""
    places = torch.linspace(0, clip.shape[1] - 1, settings.clip_frames).long()  # as UniformTemporalSubsample
    return clip[:, places].permute(1, 2, 3, 0)


def _clip_seconds(video: Video, settings: ViewSettings) -> float:
    with av.open(video.path) as container:
        fps = float(container.streams.video[0].average_rate or 30)
    return clip_span(settings.clip_frames, settings.frame_stride) / fps


# ── the stages of ours ──────────────────────────────────────────────────────────────────────────────────


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
    clip = apply_transform(read.frames.permute(0, 3, 1, 2), transform, read.places)
    watch.lap(ARRANGE)
    _across(Collate(clip.shape)([Item(clip, 0, 0, video.path)]))
    watch.lap(TRANSPORT)
    return watch.stages


def view_stages(video: Video, recipe: Recipe, number: int) -> dict[str, float]:
    """Milliseconds by stage for all views of a video."""
    views = recipe.views

    def smaller(frames: Tensor) -> Tensor:
        return resize_short_side(frames, views.short_side_px).permute(0, 2, 3, 1)

    watch = _Stopwatch()
    read = _timed_read(watch, video, lambda num_frames: _clips_of(num_frames, views), smaller)
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
