"""Data sets for Lightning: random clips to train on, and whole videos with all their views to evaluate.

A video that can't be read becomes a `Failure` in place of its item; what happens then is for training/ to decide.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Generator, Tensor
from torch.utils.data import Dataset

from octvideo.batches import Failure
from octvideo.data.augment import Augmentation, ClipTransform, apply_transform, sample_transform
from octvideo.data.records import VideoRecord
from octvideo.data.shards import source_of
from octvideo.seeds import seed_of
from octvideo.stores import shown
from octvideo.video import (
    Decoder,
    Sampling,
    ShortVideo,
    VideoReadError,
    VideoViews,
    ViewSettings,
    crop_and_resize,
    decode_views,
    random_clip,
    random_segments,
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
        others: class ids beside the first, where a video has several labels.
    """

    video: Tensor | VideoViews
    label: int
    index: int
    path: str
    others: tuple[int, ...] = ()


def item_generator(seed: int, epoch: int, index: int, repeat: int = 0) -> Generator:
    """The randomness of one item: it depends on nothing else, not on workers, processes or what came before."""
    return Generator().manual_seed(seed_of(seed, epoch, index, *([repeat] if repeat else []), "clip"))


class TrainingClips(Dataset[Item | list[Item] | Failure]):
    """One random clip of each video; its items are asked for by (epoch, index). Where a video comes several times in an
    epoch it is (epoch, index, times before), and each time another clip. With repeats an item is a list of them: the
    same frames, decoded once, and augmented each time anew.

    Args:
        records: the videos.
        augment: of the clips.
        clip_frames: T.
        frame_stride: from one frame of a clip to the next.
        short_video: what follows the last frame of a video shorter than a clip.
        target_fps: clips are frames of a clock of this rate; None counts each video's own frames.
        sampling: see `octvideo.video.ViewSettings`; of segments, a random frame of each.
        seed: of all randomness.
        decoder: see `octvideo.video.read_frames`.
        repeats: clips of each video.
        flipped: for each class the class that it is in a mirror, (K,); None where all are themselves.
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
        sampling: Sampling = "dense",
        seed: int = 0,
        decoder: Decoder = "auto",
        repeats: int = 1,
        flipped: Sequence[int] | None = None,
    ) -> None:
        self.records, self.augment, self.seed, self.decoder = records, augment, seed, decoder
        self.clip_frames, self.frame_stride, self.short_video = clip_frames, frame_stride, short_video
        self.target_fps, self.sampling, self.repeats, self.flipped = target_fps, sampling, repeats, flipped

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, key: tuple[int, ...]) -> Item | list[Item] | Failure:
        epoch, index, *times_before = key
        record = self.records[index]
        before = sum(times_before) * self.repeats
        generators = [item_generator(self.seed, epoch, index, before + repeat) for repeat in range(self.repeats)]
        states = [generator.get_state() for generator in generators]
        size = self.augment.crop_px
        transforms: list[ClipTransform] = []

        def clip_of(num_frames: int) -> Tensor:
            # A second call, for a file with fewer frames than announced, draws alike.
            first = item_generator(self.seed, epoch, index, before)
            if self.sampling == "dense":
                clip = random_clip(
                    num_frames,
                    clip_frames=self.clip_frames,
                    frame_stride=self.frame_stride,
                    generator=first,
                    short_video=self.short_video,
                )
            else:
                clip = random_segments(num_frames, self.sampling, clip_frames=self.clip_frames, generator=first)
            states[0] = first.get_state()
            return clip

        def regions(frames: Tensor) -> Tensor:
            """The same of all frames, however they come: (n, repeats, S, S, C)."""
            nonlocal transforms
            for generator, state in zip(generators, states, strict=True):
                generator.set_state(state)
            transforms = [
                sample_transform(
                    self.augment,
                    height=frames.shape[1],
                    width=frames.shape[2],
                    generator=generator,
                    clip_frames=self.clip_frames,
                )
                for generator in generators
            ]
            small = [
                crop_and_resize(frames, transform.box, (size, size)).permute(0, 2, 3, 1) for transform in transforms
            ]
            return torch.stack(small, 1) if self.repeats > 1 else small[0].unsqueeze(1)

        try:
            read = read_frames(
                source_of(record), clip_of, decoder=self.decoder, resize=regions, target_fps=self.target_fps
            )
        except VideoReadError as error:
            return Failure(shown(record.path), error.reason, index)
        items = [
            Item(
                apply_transform(read.frames[:, repeat].permute(0, 3, 1, 2), transform, read.places),  # (C,T,S,S)
                self._label(record.label, is_flipped=transform.flip),
                index,
                shown(record.path),
                tuple(self._label(other, is_flipped=transform.flip) for other in record.others),
            )
            for repeat, transform in enumerate(transforms)
        ]
        return items[0] if self.repeats == 1 else items

    def _label(self, label: int, *, is_flipped: bool) -> int:
        return self.flipped[label] if is_flipped and self.flipped is not None and label >= 0 else label


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
            return Failure(shown(record.path), error.reason, index)
        return Item(views, record.label, index, shown(record.path), record.others)
