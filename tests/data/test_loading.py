"""Orders over epochs and processes, batches, and a loader that goes on in the middle of an epoch."""

from __future__ import annotations

import hashlib
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, Dataset

from octvideo.batches import Failure
from octvideo.data.dataset import Item
from octvideo.data.loading import Collate, EvaluationBatches, MovableBatch, ResumableLoader, TrainingBatches
from octvideo.video import Box, VideoViews

SIZES = [1, 2, 3, 7, 8, 9, 30]


def order(num_items: int, epoch: int, *, seed: int = 0, rank: int = 0, world_size: int = 1, size: int = 1) -> list[int]:
    batches = TrainingBatches(num_items, size, seed=seed, rank=rank, world_size=world_size)
    batches.set_epoch(epoch)
    keys = [key for batch in batches for key in batch]
    assert all(key[0] == epoch for key in keys)
    return [index for _, index in keys]


# ── evaluation ──────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("num_items", [0, *SIZES])
@pytest.mark.parametrize("world_size", [1, 2, 3, 8])
@pytest.mark.parametrize("batch_size", [1, 2, 5])
def test_every_item_is_evaluated_exactly_once(num_items: int, world_size: int, batch_size: int) -> None:
    ranks = [EvaluationBatches(num_items, batch_size, rank=rank, world_size=world_size) for rank in range(world_size)]
    batches = [list(rank) for rank in ranks]
    assert sorted(index for rank in batches for batch in rank for index in batch) == list(range(num_items))
    # All call the network equally often; those that have run out have empty batches.
    assert {len(rank) for rank in batches} == {len(ranks[0])} and len(batches[0]) == len(ranks[0]) >= 1
    assert all(len(batch) <= batch_size for rank in batches for batch in rank)
    assert list(ranks[0]) == batches[0]  # again


# ── training ────────────────────────────────────────────────────────────────────────────────────────────────


def test_the_order_is_a_function_of_seed_and_epoch() -> None:
    orders = {(seed, epoch): tuple(order(30, epoch, seed=seed)) for seed in range(3) for epoch in range(3)}
    assert len(set(orders.values())) == 9
    torch.manual_seed(5)
    assert all(tuple(order(30, epoch, seed=seed)) == known for (seed, epoch), known in orders.items())
    assert all(sorted(known) == list(range(30)) for known in orders.values())


@pytest.mark.parametrize("num_items", SIZES)
@pytest.mark.parametrize("world_size", [1, 2, 3, 4])
@pytest.mark.parametrize("batch_size", [1, 2, 5])
def test_processes_share_an_epoch_without_overlap(num_items: int, world_size: int, batch_size: int) -> None:
    ranks = [
        TrainingBatches(num_items, batch_size, seed=0, rank=rank, world_size=world_size) for rank in range(world_size)
    ]
    batches = [list(rank) for rank in ranks]
    items = [key for rank in batches for batch in rank for key in batch]
    assert len(items) == len(set(items))
    assert {len(rank) for rank in batches} == {len(ranks[0])}
    full = num_items // world_size // batch_size
    if full:  # only a remainder is left out
        assert all(len(batch) == batch_size for rank in batches for batch in rank)
        assert num_items - len(items) < world_size * (batch_size + 1)
    else:  # a data set smaller than a batch is one batch
        assert len(ranks[0]) == 1 and len(items) == num_items


def test_other_epochs_leave_other_items_out() -> None:
    left_out = {tuple(sorted(set(range(9)) - set(order(9, epoch, size=4)))) for epoch in range(20)}
    assert len(left_out) > 5


def test_lightning_finds_set_epoch() -> None:
    batches = TrainingBatches(4, 2, seed=0)
    assert batches.sampler is batches


# ── batches ─────────────────────────────────────────────────────────────────────────────────────────────────


def item(index: int, value: int = 0) -> Item:
    return Item(torch.full((2, 3, 4), value, dtype=torch.uint8), index + 10, index, f"{index}.mp4")


def test_a_batch_lists_its_failures_beside_its_items() -> None:
    failure = Failure("x.mp4", "no such file", 7)
    batch = Collate((2, 3, 4))([item(3, 1), failure, item(5, 2)])
    assert batch["video"].shape == (2, 2, 3, 4) and batch["video"][:, 0, 0, 0].tolist() == [1, 2]
    assert batch["label"].tolist() == [13, 15] and batch["index"].tolist() == [3, 5]
    assert batch["label"].dtype == batch["index"].dtype == torch.int64
    assert batch["path"] == ["3.mp4", "5.mp4"] and batch["failures"] == [failure]


@pytest.mark.parametrize("items", [[], [Failure("x.mp4", "no such file", 7)]])
def test_a_batch_without_items_has_their_shape(items: list[Item | Failure]) -> None:
    batch = Collate((2, 3, 4))(items)
    assert batch["video"].shape == (0, 2, 3, 4) and batch["video"].dtype == torch.uint8
    assert batch["label"].shape == batch["index"].shape == (0,)
    assert batch["path"] == [] and batch["failures"] == items


def views(height: int, width: int) -> VideoViews:
    """2 clips x 2 crops of 3 frames."""
    frames = torch.randint(0, 256, (3, height, width, 3), dtype=torch.uint8)
    return VideoViews(frames, np.array([[0, 1], [2, 2]]), (Box(0, 0, 4, 4), Box(0, width - 4, 4, 4)))


def test_videos_to_evaluate_stay_as_they_are() -> None:
    videos = [views(4, 6), views(8, 4)]
    batch = Collate(None)([Item(video, 0, n, f"{n}.mp4") for n, video in enumerate(videos)])
    assert all(got is given for got, given in zip(batch["video"], videos, strict=True))
    assert Collate(None)([Failure("x.mp4", "no such file", 7)])["video"] == []


class AllViews(Dataset[Item]):
    def __getitem__(self, index: int) -> Item:
        torch.manual_seed(index)
        return Item(views(4 + index, 6), 0, index, f"{index}.mp4")

    def __len__(self) -> int:
        return 3


def test_clips_of_one_video_lie_apart_in_a_batch() -> None:
    videos: list[Any] = [[Item(torch.zeros(1), n, n, f"{n}") for _ in range(2)] for n in range(3)]
    batch = Collate((1,))([videos[0], Failure("bad", "broken", 7), *videos[1:]])
    assert batch["index"].tolist() == [0, 1, 2, 0, 1, 2] and batch["video"].shape == (6, 1)
    assert [failure.index for failure in batch["failures"]] == [7]


def test_views_cross_processes_as_frames() -> None:
    loader = DataLoader(AllViews(), batch_size=2, num_workers=2, collate_fn=Collate(None))
    got = [video for batch in loader for video in batch["video"]]
    for index, video in enumerate(got):
        expected = AllViews()[index].video
        assert isinstance(expected, VideoViews) and torch.equal(video.cut(), expected.cut())
        assert video.boxes == expected.boxes and video.frames.is_shared()
    assert len(got) == 3


# ── going on ────────────────────────────────────────────────────────────────────────────────────────────────


class Echo(Dataset[Item]):
    """Items that hold their own key."""

    def __getitem__(self, key: tuple[int, int]) -> Item:
        return Item(torch.tensor(key), key[0], key[1], f"{key}")


def counters(processed: int = 0) -> SimpleNamespace:
    return SimpleNamespace(ready=processed, started=processed, processed=processed, completed=processed)


class Loop:
    """Of Lightning's Trainer what a loader reads and sets."""

    def __init__(self, *, window: int = 1, epoch: int = 0) -> None:
        self.progress = SimpleNamespace(current=counters(), is_last_batch=False)
        self.fit_loop = SimpleNamespace(
            epoch_loop=SimpleNamespace(batch_progress=self.progress),
            epoch_progress=SimpleNamespace(current=counters(epoch)),
        )
        self.accumulate_grad_batches = window


def loader(
    num_items: int = 11, size: int = 2, num_workers: int = 0, *, ranks: tuple[int, int] = (0, 1), **loop: int
) -> ResumableLoader:
    batches = TrainingBatches(num_items, size, seed=3, rank=ranks[0], world_size=ranks[1])
    settings = {"num_workers": num_workers, "persistent_workers": num_workers > 0}
    trainer = Loop(**loop)
    return ResumableLoader(Echo(), batches, digest="d", trainer=trainer, collate_fn=Collate((2,)), **settings)


def start(loader: ResumableLoader, epoch: int) -> ResumableLoader:
    """As Lightning does before each epoch."""
    loader.batch_sampler.sampler.set_epoch(epoch)  # type: ignore[union-attr]
    return loader


def keys(batches: list[MovableBatch]) -> list[list[tuple[int, int]]]:
    return [[(int(e), int(i)) for e, i in batch["video"]] for batch in batches]


def epoch_of(loader: ResumableLoader, epoch: int) -> list[list[tuple[int, int]]]:
    return keys(list(start(loader, epoch)))


def behind(loader: ResumableLoader, epoch: int, batches: int) -> dict[str, Any]:
    """What is saved when Lightning has processed so many batches of an epoch."""
    start(loader, epoch)
    loader.trainer.progress.current = counters(batches)
    return loader.state_dict()


def test_the_order_of_an_epoch_is_drawn_by_a_seed_of_sha256() -> None:
    seed = int.from_bytes(hashlib.sha256(b"3/4/order").digest()[:7], "little")
    expected = torch.randperm(9, generator=torch.Generator().manual_seed(seed)).tolist()
    assert order(9, 4, seed=3) == expected


@pytest.mark.parametrize("num_workers", [0, 2])
@pytest.mark.parametrize("done", [0, 1, 3, 4])
def test_a_resume_gives_exactly_the_remaining_batches(num_workers: int, done: int) -> None:
    whole = epoch_of(loader(), 4)
    assert len(whole) == 5
    state = behind(loader(), 4, done)
    assert state == {"epoch": 4, "videos": 2 * done, "seed": 3, "digest": "d"}
    second = loader(num_workers=num_workers, epoch=4)
    second.load_state_dict(state)
    assert epoch_of(second, 4) == whole[done:]
    assert second.trainer.progress.current == counters(done)
    assert epoch_of(second, 5) == epoch_of(loader(), 5)  # the next one is whole


def test_a_second_resume_in_the_same_epoch_counts_from_its_start() -> None:
    whole = epoch_of(loader(), 0)
    second = loader()
    second.load_state_dict({"epoch": 0, "videos": 4, "seed": 3, "digest": "d"})
    state = behind(second, 0, 3)
    assert state["videos"] == 6
    third = loader()
    third.load_state_dict(state)
    assert epoch_of(third, 0) == whole[3:]


def test_an_epoch_cut_short_does_not_cut_the_next_one() -> None:
    """limit_train_batches ends an epoch before the loader's end, and the checkpoint is written there."""
    second = loader(epoch=1)
    second.load_state_dict(behind(loader(), 0, 2))
    assert epoch_of(second, 1) == epoch_of(loader(), 1)


def test_batches_that_wait_for_an_optimiser_step_are_not_counted() -> None:
    assert [behind(loader(window=3), 0, done)["videos"] for done in range(6)] == [0, 0, 0, 6, 6, 6]


@pytest.mark.parametrize("num_items", [7, 11, 24, 30])
@pytest.mark.parametrize(("size", "world"), [(4, 1), (2, 2), (1, 3)])
@pytest.mark.parametrize(("new_size", "new_world"), [(1, 1), (3, 1), (2, 2), (1, 4), (9, 2)])
def test_other_batches_and_processes_go_on_with_the_rest_each_once(
    num_items: int, size: int, world: int, new_size: int, new_world: int
) -> None:
    parts = [epoch_of(loader(num_items, size, ranks=(rank, world)), 2) for rank in range(world)]
    for done in range(len(parts[0])):
        state = behind(loader(num_items, size, ranks=(0, world)), 2, done)
        resumed = [loader(num_items, new_size, ranks=(rank, new_world), epoch=2) for rank in range(new_world)]
        for one in resumed:
            one.load_state_dict(state)
        rests = [epoch_of(one, 2) for one in resumed]
        seen = [key for rank in parts for batch in rank[:done] for key in batch]
        rest = [key for rank in rests for batch in rank for key in batch]
        assert len(set(seen + rest)) == len(seen) + len(rest) and len(rest) > 0
        left = num_items - len(seen)
        full = new_size * new_world
        assert len(rest) == (left // full * full or left)
        # Every process ends its epoch with equally many batches, as Lightning counts them, as in any other epoch.
        assert {len(one) for one in rests} == {len(rests[0])}
        assert {one.trainer.progress.current.ready + len(r) for one, r in zip(resumed, rests, strict=True)} == {
            len(resumed[0])
        }


def test_the_length_is_that_of_a_whole_epoch() -> None:
    resumed = loader()
    resumed.load_state_dict({"epoch": 0, "videos": 4, "seed": 3, "digest": "d"})
    assert len(resumed) == len(loader()) == 5
    assert isinstance(resumed, DataLoader)
