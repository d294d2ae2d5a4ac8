"""An order of training videos in which every class comes equally often, however many videos each has.

Rounds follow each other over all epochs. Each round has one video of every class, the classes in a new order. A class
goes through its videos again and again, each time in a new order, one a round::

    videos: a 0 1 2 3 4 5 6   b 7   c 8 9        an epoch: 10 // 3 = 3 rounds
    epoch 1:  b7 a3 c9 | c8 b7 a0 | a5 b7 c8     epoch 2:  a6 c9 b7 | ...

So an epoch has about as many clips as there are videos, and all of them are seen equally often within their class: no
video of a large class waits longer than its turn. An order is a function of (seed, epoch) and of the labels.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property

import torch
from torch import Generator, Tensor

from octvideo.seeds import digest_of, seed_of


class ClassBalance:
    """Epochs of whole rounds.

    Args:
        members: for each class its videos, as places in the data set; classes without one are left out. A video with
            several labels is a member of each of their classes.
        num_videos: of the data set.
        seed: of the orders.
    """

    def __init__(self, members: Sequence[Tensor], num_videos: int, *, seed: int) -> None:
        self.members = {number: videos for number, videos in enumerate(members) if len(videos)}
        self.rounds, self.seed = max(num_videos // len(self.members), 1), seed

    def __len__(self) -> int:
        """Clips of an epoch: the same for all."""
        return self.rounds * len(self.members)

    @cached_property
    def name(self) -> str:
        """Of the order: another one where a label has changed."""
        held = digest_of(*((number, *videos.tolist()) for number, videos in self.members.items()))
        return f"balanced {held[:8].hex()}"

    def epoch(self, epoch: int) -> tuple[Tensor, Tensor]:
        """The videos of an epoch in their order, and for each how often it came before in it: int64 (L,), (L,)."""
        first = epoch * self.rounds
        columns = [self._turns(number, first) for number in self.members]
        generator = Generator().manual_seed(seed_of(self.seed, epoch, "rounds"))
        order = torch.rand(self.rounds, len(columns), generator=generator).argsort(dim=1, stable=True)  # (R,C)
        videos = torch.stack(columns, 1).gather(1, order).flatten()  # (L,)
        return videos, _times_before(videos)

    def _turns(self, number: int, first: int) -> Tensor:
        """Whose turn it is in each round from `first` on: int64 (R,)."""
        videos = self.members[number]
        cycles = range(first // len(videos), (first + self.rounds - 1) // len(videos) + 1)
        if len(videos) == 1:
            return videos.expand(self.rounds)
        turns = []
        for cycle in cycles:
            generator = Generator().manual_seed(seed_of(self.seed, number, cycle, "class"))
            turns.append(videos[torch.randperm(len(videos), generator=generator)])
        start = first - cycles[0] * len(videos)
        return torch.cat(turns)[start : start + self.rounds]

    def described(self, class_names: Sequence[str]) -> str:
        """An epoch in a line."""
        few = min(self.members, key=lambda number: len(self.members[number]))
        many = max(self.members, key=lambda number: len(self.members[number]))
        counts = [f"{class_names[number]} has {len(self.members[number])}" for number in dict.fromkeys((few, many))]
        clips = f"{self.rounds} clip" + ("s" if self.rounds > 1 else "")
        return f"balanced: an epoch has {clips} of each of {len(self.members)} classes (of videos {', '.join(counts)})"


def _times_before(videos: Tensor) -> Tensor:
    order = videos.argsort(stable=True)
    _, counts = torch.unique_consecutive(videos[order], return_counts=True)
    starts = (counts.cumsum(0) - counts).repeat_interleave(counts)
    times = torch.empty_like(videos)
    times[order] = torch.arange(len(videos)) - starts
    return times
