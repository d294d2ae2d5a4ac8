"""Items depend on (seed, epoch, index) alone, and a video that can't be read becomes a Failure."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader

import octvideo.data.dataset as dataset_module
import octvideo.video.frames as frames_module
from octvideo.data import Augmentation, EvaluationVideos, Failure, TrainingClips, VideoRecord
from octvideo.data.augment import apply_transform, sample_transform
from octvideo.data.dataset import Item, item_generator
from octvideo.video import (
    Box,
    Decoder,
    Frames,
    VideoViews,
    ViewSettings,
    crop_and_resize,
    random_clip,
    read_frames,
    read_views,
)

AUGMENT = Augmentation(crop_px=32, short_side_px=(32, 40), flip=0.5, colour=0.2)


@pytest.fixture(scope="module")
def records(
    tmp_path_factory: pytest.TempPathFactory, encode: Callable[..., Path], moving: Callable[..., Tensor]
) -> list[VideoRecord]:
    folder = tmp_path_factory.mktemp("videos")
    frames = moving(30, 48, 64)
    return [
        VideoRecord(str(encode(folder / f"{n}.mp4", frames[n : n + length], g=8)), n % 3)
        for n, length in enumerate([20, 25, 6, 20])
    ]


def clips(records: list[VideoRecord], *, seed: int = 0, augment: Augmentation = AUGMENT) -> TrainingClips:
    return TrainingClips(records, augment, clip_frames=4, frame_stride=3, seed=seed)


def identity(items: list[Item]) -> list[Item]:
    return items


def videos_of(dataset: TrainingClips, keys: list[tuple[int, int]], num_workers: int) -> dict[tuple[int, int], Tensor]:
    """Items by key, loaded in the order of `keys`."""
    loader = DataLoader(dataset, sampler=keys, batch_size=2, num_workers=num_workers, collate_fn=identity)  # type: ignore[arg-type]
    items = [item for batch in loader for item in batch]
    return {key: item.video for key, item in zip(keys, items, strict=True)}


def test_items_do_not_depend_on_workers_order_or_the_global_seed(records: list[VideoRecord]) -> None:
    keys = [(epoch, index) for epoch in range(2) for index in range(4)]
    dataset = clips(records)
    alone = videos_of(dataset, keys, 0)
    for other in (keys, keys[::-1], keys[1::2] + keys[::2]):
        torch.manual_seed(len(other) + other[0][1])
        for num_workers in (0, 2):
            got = videos_of(dataset, other, num_workers)
            assert all(torch.equal(got[key], alone[key]) for key in keys)


def test_items_differ_between_epochs_seeds_and_places(records: list[VideoRecord]) -> None:
    twice = [records[0], records[0]]  # the same video
    items = [clips(twice, seed=seed)[epoch, index] for seed in (0, 1) for epoch in (0, 1) for index in (0, 1)]
    videos = {item.video.numpy().tobytes() for item in items if isinstance(item, Item)}
    assert len(videos) == 8


def test_generators_do_not_collide() -> None:
    seeds = {
        item_generator(seed, epoch, index).initial_seed()
        for seed in (0, 1, 11)
        for epoch in range(30)
        for index in range(30)
    }
    assert len(seeds) == 3 * 30 * 30


def test_repeats_are_the_same_frames_under_other_augmentations(
    records: list[VideoRecord], monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = []

    def spy(path: str, choose: Callable[[int], Tensor], **options: Any) -> Frames:
        opened.append(path)
        return read_frames(path, choose, **options)

    monkeypatch.setattr(dataset_module, "read_frames", spy)
    augment = Augmentation(crop_px=32, short_side_px=(32, 40), colour=0.2, policy="rand", erase=0.5)
    settings: dict[str, Any] = {"clip_frames": 4, "frame_stride": 3}
    repeated = TrainingClips(records, augment, **settings, repeats=3)
    items = repeated[5, 1]
    assert isinstance(items, list) and len(items) == 3 and opened == [records[1].path]
    first = TrainingClips(records, augment, **settings)[5, 1]
    assert isinstance(first, Item) and torch.equal(items[0].video, first.video)  # the first is that of no repeats
    # The reference: the frames of the first, each time augmented by the (epoch, index, repeat)'s own draws.
    frames = read_frames(records[1].path, torch.arange, decoder="pyav").frames
    numbers = random_clip(len(frames), clip_frames=4, frame_stride=3, generator=item_generator(0, 5, 1))
    for repeat in (1, 2):
        transform = sample_transform(
            augment, height=48, width=64, generator=item_generator(0, 5, 1, repeat), clip_frames=4
        )
        expected = apply_transform(crop_and_resize(frames[numbers], transform.box, (32, 32)), transform)
        assert torch.equal(items[repeat].video, expected)
    assert len({item.video.numpy().tobytes() for item in items}) == 3
    # A video that comes again goes on where its repeats were.
    again, sixth = repeated[5, 1, 1], TrainingClips(records, augment, **settings)[5, 1, 3]
    assert isinstance(again, list) and isinstance(sixth, Item) and torch.equal(again[0].video, sixth.video)


@pytest.mark.parametrize("index", range(4))
def test_an_item_is_a_random_clip_of_a_random_region(records: list[VideoRecord], index: int) -> None:
    """The reference: the same draws, then frame after frame."""
    item = clips(records)[5, index]
    assert isinstance(item, Item)
    assert (item.label, item.index, item.path) == (index % 3, index, records[index].path)
    assert item.video.shape == (3, 4, 32, 32) and item.video.dtype == torch.uint8
    frames = read_frames(item.path, torch.arange, decoder="pyav").frames
    generator = item_generator(0, 5, index)
    numbers = random_clip(len(frames), clip_frames=4, frame_stride=3, generator=generator)
    transform = sample_transform(AUGMENT, height=48, width=64, generator=generator)
    for t, number in enumerate(numbers.tolist()):
        expected = apply_transform(crop_and_resize(frames[[number]], transform.box, (32, 32)), transform)[:, 0]
        assert torch.equal(item.video[:, t], expected)


def test_a_video_with_fewer_frames_than_announced_draws_as_if_it_had_said_so(
    records: list[VideoRecord], monkeypatch: pytest.MonkeyPatch
) -> None:
    """`choose` is asked a second time there: what is drawn must not depend on that."""

    def asked_twice(path: str, choose: Callable[[int], Tensor], **options: Any) -> Frames:
        choose(1000)
        return read_frames(path, choose, **options)

    expected = clips(records)[0, 0]
    monkeypatch.setattr(dataset_module, "read_frames", asked_twice)
    got = clips(records)[0, 0]
    assert isinstance(got, Item) and isinstance(expected, Item)
    assert torch.equal(got.video, expected.video)


@pytest.mark.parametrize("decoder", ["auto", "pyav"])
def test_full_size_frames_of_a_clip_are_held_in_chunks(
    records: list[VideoRecord], monkeypatch: pytest.MonkeyPatch, decoder: Decoder
) -> None:
    """Whatever the chunks, one region is drawn for all of them."""
    data = TrainingClips(records, AUGMENT, clip_frames=6, frame_stride=2, decoder=decoder)
    expected, held = data[0, 1], []

    def spy(frames: Tensor, box: Box, size: tuple[int, int]) -> Tensor:
        held.append(len(frames))
        return crop_and_resize(frames, box, size)

    monkeypatch.setattr(dataset_module, "crop_and_resize", spy)
    monkeypatch.setattr(frames_module, "CHUNK_BYTES", 2 * 48 * 64 * 3)
    got = data[0, 1]
    assert isinstance(got, Item) and isinstance(expected, Item)
    assert torch.equal(got.video, expected.video)
    assert held == [2, 2, 2]


def test_evaluation_items_are_all_views(records: list[VideoRecord]) -> None:
    views = ViewSettings(clip_frames=4, frame_stride=2, num_clips=2, num_crops=3, short_side_px=32, crop_px=32)
    dataset = EvaluationVideos(records, views)
    assert len(dataset) == 4
    item = dataset[2]
    assert isinstance(item, Item) and isinstance(item.video, VideoViews) and item.video.num_views == 6
    assert (item.label, item.index, item.path) == (2, 2, records[2].path)
    assert torch.equal(item.video.cut(), read_views(records[2].path, views))


def test_failures_say_which_and_why(records: list[VideoRecord], tmp_path: Path) -> None:
    (tmp_path / "empty.mp4").touch()
    listed = [records[0], VideoRecord(str(tmp_path / "gone.mp4"), 1), VideoRecord(str(tmp_path / "empty.mp4"), 2)]
    training, evaluation = clips(listed), EvaluationVideos(listed, ViewSettings(short_side_px=32, crop_px=32))
    for index, reason in ((1, "no such file"), (2, "the file is empty")):
        expected = Failure(listed[index].path, reason, index)
        assert training[0, index] == expected and evaluation[index] == expected
    assert isinstance(training[0, 0], Item)


def test_clips_by_time(records: list[VideoRecord]) -> None:
    """The videos have 20 frames a second: a clip of every second tick of 40 is one of every frame."""
    by_time = TrainingClips(records[:1], AUGMENT, clip_frames=8, frame_stride=2, target_fps=40)
    item = by_time[0, 0]
    assert isinstance(item, Item) and item.video.shape[1] == 8
    same = (item.video[:, 1:] == item.video[:, :-1]).flatten(2).all(2).all(0)
    assert not same.any()  # eight frames, no one twice
    twice = TrainingClips(records[:1], AUGMENT, clip_frames=8, frame_stride=1, target_fps=40)[0, 0]
    assert isinstance(twice, Item)
    same = (twice.video[:, 1:] == twice.video[:, :-1]).flatten(2).all(2).all(0)
    assert same.sum() in (3, 4)
