"""Data sets for Lightning: random clips to train on, and whole videos with all their views to evaluate.

A video that can't be read becomes a `Failure` in place of its item; what happens then is for training/ to decide.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Generator, Tensor
from torch.utils.data import Dataset

from octvideo.batches import Failure
from octvideo.data.augment import Augmentation, ClipTransform, apply_transform, sample_transform
from octvideo.data.records import VideoRecord
from octvideo.data.shards import source_of
from octvideo.seeds import seed_of
from octvideo.video import (
    Decoder,
    ShortVideo,
    VideoReadError,
    VideoViews,
    ViewSettings,
    crop_and_resize,
    decode_views,
    random_clip,
    read_frames,
)


@dataclass(frozen=True)
class Item:
    """One video as it goes into a batch.

    Args:
        video: uint8 (C, T, S, S) for training; for evaluation all its views, not cut yet.
        label: class id, -1 where unknown.
        index: place in the data set.
        path: of the file.
    """

    video: Tensor | VideoViews
    label: int
    index: int
    path: str


def item_generator(seed: int, epoch: int, index: int) -> Generator:
    """The randomness of one item: it depends on nothing else, not on workers, processes or what came before."""
    return Generator().manual_seed(seed_of(seed, epoch, index, "clip"))


class TrainingClips(Dataset[Item | Failure]):
    """One random clip of each video; its items are asked for by (epoch, index).

    Args:
        records: the videos.
        augment: of the clips.
        clip_frames: T.
        frame_stride: from one frame of a clip to the next.
        short_video: what follows the last frame of a video shorter than a clip.
        target_fps: clips are frames of a clock of this rate; None counts each video's own frames.
        seed: of all randomness.
        decoder: see `octvideo.video.read_frames`.
    """

    def __init__(
        self,
        records: Sequence[VideoRecord],
        augment: Augmentation,
        *,
        clip_frames: int,
        frame_stride: int,
        short_video: ShortVideo = "repeat_last",
        target_fps: float | None = None,
        seed: int = 0,
        decoder: Decoder = "auto",
    ) -> None:
        self.records, self.augment, self.seed, self.decoder = records, augment, seed, decoder
        self.clip_frames, self.frame_stride, self.short_video = clip_frames, frame_stride, short_video
        self.target_fps = target_fps

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, key: tuple[int, int]) -> Item | Failure:
        epoch, index = key
        record = self.records[index]
        generator = item_generator(self.seed, epoch, index)
        state = generator.get_state()
        size = self.augment.crop_px
        after_clip = state
        transform: ClipTransform | None = None

        def clip_of(num_frames: int) -> Tensor:
            nonlocal after_clip
            generator.set_state(state)  # a second call, for a file with fewer frames than announced, draws alike
            clip = random_clip(
                num_frames,
                clip_frames=self.clip_frames,
                frame_stride=self.frame_stride,
                generator=generator,
                short_video=self.short_video,
            )
            after_clip = generator.get_state()
            return clip

        def region(frames: Tensor) -> Tensor:
            """The same of all frames, however they come: (n, S, S, C)."""
            nonlocal transform
            generator.set_state(after_clip)
            transform = sample_transform(
                self.augment, height=frames.shape[1], width=frames.shape[2], generator=generator
            )
            return crop_and_resize(frames, transform.box, (size, size)).permute(0, 2, 3, 1)

        try:
            read = read_frames(
                source_of(record), clip_of, decoder=self.decoder, resize=region, target_fps=self.target_fps
            )
        except VideoReadError as error:
            return Failure(record.path, error.reason, index)
        assert transform is not None  # drawn with the frames
        clip = read.frames[read.places].permute(0, 3, 1, 2)  # (T,C,S,S)
        return Item(apply_transform(clip, transform), record.label, index, record.path)  # (C,T,S,S)


class EvaluationVideos(Dataset[Item | Failure]):
    """Every view of each video as one item, so that no video is ever split. They are cut where the network is.

    Args:
        records: the videos.
        views: which views.
        decoder: see `octvideo.video.read_frames`.
    """

    def __init__(self, records: Sequence[VideoRecord], views: ViewSettings, *, decoder: Decoder = "auto") -> None:
        self.records, self.views, self.decoder = records, views, decoder

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: int) -> Item | Failure:
        record = self.records[index]
        try:
            views = decode_views(source_of(record), self.views, decoder=self.decoder)
        except VideoReadError as error:
            return Failure(record.path, error.reason, index)
        return Item(views, record.label, index, record.path)
