"""An order in which classes come equally often: counts by hand, over epochs, processes and a resume."""

from __future__ import annotations

from collections import Counter
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from octvideo.data.balance import ClassBalance
from octvideo.data.loading import ResumableLoader, TrainingBatches
from octvideo.data.records import VideoList, VideoRecord

LABELS = [0] * 7 + [1] + [3] * 2  # class 2 has no video


def balance(seed: int = 0, labels: list[int] = LABELS) -> ClassBalance:
    videos = VideoList(VideoRecord(f"{n}.mp4", label) for n, label in enumerate(labels))
    return ClassBalance(videos.members(4), len(videos), seed=seed)


def test_each_class_comes_equally_often_and_each_of_its_videos() -> None:
    order = balance()
    assert len(order) == 9  # 10 videos of 3 classes: 3 rounds
    seen = Counter[int]()
    for epoch in range(14):  # 42 rounds: 6 times all of class 0, 21 times all of class 3
        videos, _ = order.epoch(epoch)
        rounds = torch.tensor(LABELS)[videos].view(3, 3)
        assert (rounds.sort(1).values == torch.tensor([0, 1, 3])).all()
        seen.update(videos.tolist())
    assert [seen[n] for n in range(10)] == [6] * 7 + [42] + [21] * 2


def test_the_order_is_a_function_of_seed_and_epoch() -> None:
    orders = {(seed, epoch): tuple(balance(seed).epoch(epoch)[0].tolist()) for seed in range(3) for epoch in range(3)}
    assert len(set(orders.values())) == 9
    torch.manual_seed(5)
    assert tuple(balance(2).epoch(1)[0].tolist()) == orders[2, 1]
    classes = {tuple(torch.tensor(LABELS)[torch.tensor(order)].tolist()) for order in orders.values()}
    assert len(classes) > 5  # nor do classes take turns in one order


def test_a_video_that_comes_again_is_counted() -> None:
    videos, before = balance().epoch(0)
    found = Counter[int]()
    for video, times in zip(videos.tolist(), before.tolist(), strict=True):
        assert times == found[video]
        found[video] += 1
    assert max(before) == 2  # the only video of class 1


@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_processes_share_an_epoch(world_size: int) -> None:
    ranks = [
        TrainingBatches(10, 1, seed=0, rank=rank, world_size=world_size, balance=balance())
        for rank in range(world_size)
    ]
    keys = [key for rank in ranks for batch in rank for key in batch]
    assert len(keys) == len(set(keys)) == 9 // world_size * world_size
    counts = Counter(LABELS[index] for _, index, _ in keys)
    assert max(counts.values()) - min(counts.values()) <= 1


def counters(processed: int = 0) -> SimpleNamespace:
    return SimpleNamespace(ready=processed, started=processed, processed=processed, completed=processed)


def loader_of(labels: list[int], *, processed: int = 0) -> ResumableLoader:
    """In the second epoch, after so many batches, with what a loader reads of Lightning's Trainer."""
    loop = SimpleNamespace(
        epoch_loop=SimpleNamespace(batch_progress=SimpleNamespace(current=counters(processed), is_last_batch=False)),
        epoch_progress=SimpleNamespace(current=counters(1)),
    )
    trainer = SimpleNamespace(fit_loop=loop, accumulate_grad_batches=1)
    batches = TrainingBatches(10, 2, seed=3, balance=balance(3, labels))
    data: Any = range(10)
    return ResumableLoader(data, batches, digest="d", trainer=trainer)


def test_it_goes_on_in_the_middle_of_an_epoch() -> None:
    state = loader_of(LABELS, processed=2).state_dict()
    assert state["videos"] == 4
    whole, other = loader_of(LABELS), loader_of(LABELS, processed=2)
    other.load_state_dict(state)
    assert list(other.batches) == list(whole.batches)[2:] != []


def test_other_labels_are_another_order(caplog: pytest.LogCaptureFixture) -> None:
    other = loader_of([*LABELS[:-1], 2], processed=2)
    other.load_state_dict(loader_of(LABELS, processed=2).state_dict())
    assert other.batches.resumed_items == 0
    assert "another data.sampler, or with other labels" in caplog.text


def test_a_shuffled_epoch_has_keys_of_two() -> None:
    """Its clips are drawn as they were before there was another order."""
    assert TrainingBatches(10, 2, seed=3).order_name == "shuffle"
    assert all(len(key) == 2 for batch in TrainingBatches(10, 2, seed=3) for key in batch)


def test_an_epoch_in_a_line() -> None:
    said = [ClassBalance([torch.arange(2), torch.arange(2, 2 + n)], 2 + n, seed=0).described("ab") for n in (2, 6)]
    assert said == [
        "balanced: an epoch has 2 clips of each of 2 classes (of videos a has 2)",
        "balanced: an epoch has 4 clips of each of 2 classes (of videos a has 2, b has 6)",
    ]


def test_a_class_goes_through_its_videos_in_another_order_each_time() -> None:
    balance = ClassBalance([torch.arange(8), torch.arange(8, 16)], 16, seed=3)  # each class once an epoch
    turns = [[video for video in balance.epoch(epoch)[0].tolist() if video < 8] for epoch in range(3)]
    assert all(sorted(turn) == list(range(8)) for turn in turns) and turns[0] != turns[1] != turns[2]
