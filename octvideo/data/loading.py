"""In which order items come, on which process, and as which batches.

The order of an epoch is a function of (seed, epoch), so a run repeats; each process takes every world-size-th
item. A loader counts the batches that it gave away, and goes on there after a resume.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Sampler, default_collate

from octvideo.data.dataset import Failure, Item
from octvideo.video import VideoViews


class Batch:
    """Videos on their way to the network, by key as in a dictionary (see `Collate`).

    It is none, since Lightning walks into dictionaries, lists and dataclasses, to move them to a device or to convert
    their floats for a precision, and stops at frozen ones. Of this it calls `to`, and DataLoader `pin_memory`.

    Args:
        content: "video" is a tensor or a list of VideoViews; other tensors move too, and the rest stays.
    """

    def __init__(self, content: Mapping[str, Any]) -> None:
        self._content = dict(content)

    def __getitem__(self, key: str) -> Any:
        return self._content[key]

    def __iter__(self) -> Iterator[Tensor]:
        """The labels alone: Lightning looks there for the number of videos that a logged value is the mean of."""
        yield self["label"]

    def to(self, device: torch.device | str) -> Batch:
        """The same on a device; without waiting where it is in pinned memory."""
        return self._each(
            lambda tensor: tensor.to(device, non_blocking=tensor.is_pinned()), lambda views: views.to(device)
        )

    def pin_memory(self) -> Batch:
        """The same in pinned memory, as DataLoader asks for."""
        return self._each(Tensor.pin_memory, VideoViews.pin_memory)

    def _each(self, of_tensor: Callable[[Tensor], Tensor], of_views: Callable[[VideoViews], VideoViews]) -> Batch:
        changed = {key: of_tensor(part) if isinstance(part, Tensor) else part for key, part in self._content.items()}
        if not isinstance(self["video"], Tensor):
            changed["video"] = [of_views(views) for views in self["video"]]
        return Batch(changed)


class TrainingBatches(Sampler[list[tuple[int, int]]]):
    """Batches of (epoch, index) in a new order each epoch; the last, smaller one is left out.

    Args:
        num_items: of the data set.
        batch_size: on this process.
        seed: of the orders.
        rank: of this process.
        world_size: number of processes; all get equally many batches.
    """

    def __init__(self, num_items: int, batch_size: int, *, seed: int, rank: int = 0, world_size: int = 1) -> None:
        self.num_items, self.batch_size, self.seed = num_items, batch_size, seed
        self.rank, self.world_size = rank, world_size
        self.epoch = 0
        self.resume_epoch = self.resume_batch = 0  # where a resumed run begins

    @property
    def sampler(self) -> TrainingBatches:
        """Where Lightning looks for `set_epoch`."""
        return self

    def set_epoch(self, epoch: int) -> None:
        """Lightning calls this before each epoch."""
        self.epoch = epoch

    @property
    def first_batch(self) -> int:
        """Of this epoch: 0, unless a checkpoint was written in the middle of it."""
        return self.resume_batch if self.epoch == self.resume_epoch else 0

    def __len__(self) -> int:
        # A data set smaller than a batch is one batch.
        return max(self.num_items // self.world_size // self.batch_size, 1)

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        generator = torch.Generator().manual_seed(1_000_003 * self.seed + self.epoch)
        order = torch.randperm(self.num_items, generator=generator)[self.rank :: self.world_size]
        for batch in range(self.first_batch, len(self)):
            items = order[batch * self.batch_size : (batch + 1) * self.batch_size]
            yield [(self.epoch, index) for index in items.tolist()]


class EvaluationBatches(Sampler[list[int]]):
    """Every item once, in order, over all processes together: none is repeated to make the counts equal.

    Processes that have run out get empty batches: each must call the network equally often, or the others wait.

    Args:
        num_items: of the data set.
        batch_size: on this process.
        rank: of this process.
        world_size: number of processes.
    """

    def __init__(self, num_items: int, batch_size: int, *, rank: int = 0, world_size: int = 1) -> None:
        self.batch_size = batch_size
        self.items = range(rank, num_items, world_size)
        most = -(-num_items // world_size)
        self.num_batches = max(-(-most // batch_size), 1)

    def __len__(self) -> int:
        return self.num_batches

    def __iter__(self) -> Iterator[list[int]]:
        for batch in range(self.num_batches):
            yield list(self.items[batch * self.batch_size : (batch + 1) * self.batch_size])


class Collate:
    """Items to a batch; failures are listed beside the videos that could be read.

    Args:
        shape: of a training clip; None for evaluation, where the sizes of frames differ.
    """

    def __init__(self, shape: Sequence[int] | None) -> None:
        self.shape = shape

    def __call__(self, items: Sequence[Item | Failure]) -> Batch:
        """By key: video, uint8 (N, ...) of clips or a list of N VideoViews; label (N,), index (N,), path (N) and
        failures.
        """
        good = [item for item in items if isinstance(item, Item)]
        content = {
            "video": self._stack([item.video for item in good]),
            "label": torch.tensor([item.label for item in good], dtype=torch.int64),
            "index": torch.tensor([item.index for item in good], dtype=torch.int64),
            "path": [item.path for item in good],
            "failures": [item for item in items if isinstance(item, Failure)],
        }
        return Batch(content)

    def _stack(self, videos: list[Any]) -> Tensor | list[VideoViews]:
        if self.shape is None:
            return videos
        if not videos:
            return torch.empty(0, *self.shape, dtype=torch.uint8)
        return default_collate(videos)  # in a loading process, straight into shared memory


class ResumableLoader(DataLoader[Any]):
    """A DataLoader over `TrainingBatches` that Lightning saves in checkpoints, and that goes on where it was."""

    _given = 0  # batches of this epoch

    def __iter__(self) -> Iterator[Batch]:  # type: ignore[override]
        assert isinstance(self.batch_sampler, TrainingBatches)
        self._given = self.batch_sampler.first_batch
        for batch in super().__iter__():
            self._given += 1
            yield batch

    def state_dict(self) -> dict[str, int]:
        """The epoch, and how many of its batches were given away: 0 at its end."""
        assert isinstance(self.batch_sampler, TrainingBatches)
        return {"epoch": self.batch_sampler.epoch, "batches": self._given % len(self)}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Starts that epoch behind so many batches. Any other starts at 0: an epoch may end before its last batch."""
        assert isinstance(self.batch_sampler, TrainingBatches)
        self.batch_sampler.resume_epoch, self.batch_sampler.resume_batch = state["epoch"], state["batches"]
