"""In which order items come, on which process, and as which batches.

The order of an epoch is a function of (seed, epoch), so a run repeats; each process takes every world-size-th
item. So the first batches of all processes together are the first items of the order, whatever the batch size and the
number of processes: a resumed run starts after the items that have been trained on.
"""

from __future__ import annotations

import itertools
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, cast

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler, default_collate

from octvideo.batches import Batch, Failure
from octvideo.data.balance import ClassBalance
from octvideo.data.dataset import Item
from octvideo.seeds import seed_of
from octvideo.video import VideoViews

log = logging.getLogger("octvideo.data")


class MovableBatch:
    """A `Batch` on its way to the network, read by key.

    It is no dictionary, since Lightning walks into dictionaries, lists and dataclasses, to move them to a device or to
    convert their floats for a precision, and stops at frozen ones. Of this it calls `to`, and DataLoader `pin_memory`.

    Args:
        content: its tensors and VideoViews move to a device, and the rest stays.
    """

    def __init__(self, content: Batch) -> None:
        self._content: Mapping[str, Any] = dict(content)

    def __getitem__(self, key: str) -> Any:
        return self._content[key]

    def __iter__(self) -> Iterator[Tensor]:
        """The labels alone: Lightning looks there for the number of videos that a logged value is the mean of."""
        yield self["label"]

    def to(self, device: torch.device | str) -> MovableBatch:
        """The same on a device; without waiting where it is in pinned memory."""
        return self._each(
            lambda part: part.to(device, non_blocking=part.is_pinned()) if isinstance(part, Tensor) else part.to(device)
        )

    def pin_memory(self) -> MovableBatch:
        """The same in pinned memory, as DataLoader asks for."""
        return self._each(lambda part: part.pin_memory())

    def _each(self, change: Callable[[Any], Any]) -> MovableBatch:
        changed = {key: change(part) if isinstance(part, Tensor) else part for key, part in self._content.items()}
        if not isinstance(self["video"], Tensor):
            changed["video"] = [change(views) for views in self["video"]]
        return MovableBatch(cast(Batch, changed))


class TrainingBatches(Sampler[list[tuple[int, ...]]]):
    """Batches of (epoch, index) in a new order each epoch; the last, smaller one is left out.

    Args:
        num_items: of the data set.
        batch_size: items, which are videos, on this process.
        seed: of the orders.
        rank: of this process.
        world_size: number of processes; all get equally many batches.
        balance: the order, in which an item may come several times: keys are (epoch, index, times before). None is
            every item once.
    """

    def __init__(
        self,
        num_items: int,
        batch_size: int,
        *,
        seed: int,
        rank: int = 0,
        world_size: int = 1,
        balance: ClassBalance | None = None,
    ) -> None:
        self.num_items = num_items if balance is None else len(balance)  # of an epoch
        self.batch_size, self.seed, self.balance = batch_size, seed, balance
        self.rank, self.world_size = rank, world_size
        self.epoch = 0
        self.resumed_epoch = self.resumed_items = 0  # how many items of one epoch an earlier run was trained on

    @property
    def sampler(self) -> TrainingBatches:
        """Where Lightning looks for `set_epoch`."""
        return self

    def set_epoch(self, epoch: int) -> None:
        """Lightning calls this before each epoch."""
        self.epoch = epoch

    @property
    def first_item(self) -> int:
        """Of this epoch's order: 0, unless a checkpoint was written in the middle of it."""
        return self.resumed_items if self.epoch == self.resumed_epoch else 0

    @property
    def first_batch(self) -> int:
        """Of this epoch, counted so that it ends with as many batches as any other."""
        return len(self) - self._batches_of(self.num_items - self.first_item)

    def items_before(self, batch: int) -> int:
        """How many items of this epoch's order come before a batch, on all processes; from `first_batch` on."""
        in_batches = (batch - self.first_batch) * self.world_size * self.batch_size
        return min(self.first_item + in_batches, self.num_items)

    def _batches_of(self, items: int) -> int:
        # Fewer than a batch are one batch.
        return max(items // self.world_size // self.batch_size, 1 if items else 0)

    def __len__(self) -> int:
        return self._batches_of(self.num_items)

    @property
    def order_name(self) -> str:
        """Which order it is, beside its seed."""
        return "shuffle" if self.balance is None else self.balance.name

    def __iter__(self) -> Iterator[list[tuple[int, ...]]]:
        if self.balance is None:
            generator = torch.Generator().manual_seed(seed_of(self.seed, self.epoch, "order"))
            order = torch.randperm(self.num_items, generator=generator)[:, None]  # (L,1)
        else:
            order = torch.stack(self.balance.epoch(self.epoch), 1)  # (L,2)
        order = order[self.first_item :][self.rank :: self.world_size]
        for batch in range(len(self) - self.first_batch):
            items = order[batch * self.batch_size : (batch + 1) * self.batch_size]
            yield [(self.epoch, *item) for item in items.tolist()]


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
    """Items to a `Batch`; failures are listed beside the videos that could be read. Clips of one video lie apart, by
    as many clips as there are videos: neighbours in a batch are of different ones.

    Args:
        shape: of a training clip; None for evaluation, where the sizes of frames differ.
    """

    def __init__(self, shape: Sequence[int] | None) -> None:
        self.shape = shape

    def __call__(self, items: Sequence[Item | list[Item] | Failure]) -> MovableBatch:
        clips = [[item] if isinstance(item, Item) else item for item in items if not isinstance(item, Failure)]
        good = list(itertools.chain.from_iterable(zip(*clips, strict=True)))
        return MovableBatch(
            {
                "video": self._stack([item.video for item in good]),
                "label": torch.tensor([item.label for item in good], dtype=torch.int64),
                "others": _filled([item.others for item in good]),
                "index": torch.tensor([item.index for item in good], dtype=torch.int64),
                "path": [item.path for item in good],
                "failures": [item for item in items if isinstance(item, Failure)],
            }
        )

    def _stack(self, videos: list[Any]) -> Tensor | list[VideoViews]:
        if self.shape is None:
            return videos
        if not videos:
            return torch.empty(0, *self.shape, dtype=torch.uint8)
        return default_collate(videos)  # in a loading process, straight into shared memory


def _filled(others: Sequence[tuple[int, ...]]) -> Tensor:
    """int64 (N, M), the shorter ones filled up with -1."""
    most = max(map(len, others), default=0)
    return torch.tensor([[*some, *[-1] * (most - len(some))] for some in others], dtype=torch.int64).view(
        len(others), most
    )


class ResumableLoader(DataLoader[Any]):
    """A DataLoader over `TrainingBatches` that Lightning saves in checkpoints, and that resumes where it was.

    Args:
        clips: asked for by (epoch, index).
        batches: of them.
        digest: of the list of videos.
        trainer: Lightning's, which counts batches; None where nothing is saved.
        settings: as DataLoader has them.
    """

    def __init__(
        self, clips: Dataset[Any], batches: TrainingBatches, *, digest: str, trainer: Any = None, **settings: Any
    ) -> None:
        super().__init__(clips, batch_sampler=batches, **settings)
        self.batches, self.digest, self.trainer = batches, digest, trainer
        if trainer is not None:  # workers may ask for batches before Lightning says which epoch a resumed run is in
            batches.epoch = trainer.fit_loop.epoch_progress.current.processed

    def state_dict(self) -> dict[str, Any]:
        """The epoch, and how many videos of its order have gone into weights: those before the last optimiser step."""
        batches, trainer = self.batches, self.trainer
        done = trainer.fit_loop.epoch_loop.batch_progress.current.processed
        stepped = max(done - done % trainer.accumulate_grad_batches, batches.first_batch)
        place = {"epoch": batches.epoch, "videos": batches.items_before(stepped)}
        order = {} if batches.balance is None else {"order": batches.order_name}
        return {**place, "seed": batches.seed, "digest": self.digest, **order}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Resumes within the epoch of a checkpoint, with any batch size and any number of processes. Where that can't
        be, it starts the epoch anew and says so.
        """
        batches, loop = self.batches, self.trainer.fit_loop
        progress, epochs = loop.epoch_loop.batch_progress, loop.epoch_progress.current
        batches.epoch = batches.resumed_epoch = epochs.processed
        if state["epoch"] != epochs.processed:
            batches.resumed_items = 0  # that epoch was over; Lightning, where it counts steps, would end it once more
            if epochs.completed < epochs.processed:
                loop.epoch_progress.increment_completed()
        elif progress.is_last_batch and progress.current.processed == progress.current.ready:
            batches.resumed_items = batches.num_items  # what the last batch left out is not for this epoch
        elif reason := self._other(state):
            batches.resumed_items = 0
            if batches.rank == 0:
                log.warning("epoch %d starts anew: %s", batches.epoch + 1, reason)
        else:
            batches.resumed_items = state["videos"]
        # Lightning resumes after the batches that it had counted, whatever their size.
        if moved := batches.first_batch - progress.current.processed:
            for count in ("ready", "started", "processed", "completed"):
                setattr(progress.current, count, getattr(progress.current, count) + moved)
            progress.is_last_batch = batches.first_batch == len(batches)

    def _other(self, state: dict[str, Any]) -> str | None:
        """Why the order of items is another one than in the checkpoint."""
        if "digest" not in state:
            return "its checkpoint is of an older version, which drew the order of videos otherwise"
        if state["digest"] != self.digest:
            return "its checkpoint was trained on another list of videos, or with another quarantine list"
        if state["seed"] != self.batches.seed:
            return f"its checkpoint was trained with seed {state['seed']}, now it is {self.batches.seed}"
        if state.get("order", "shuffle") != self.batches.order_name:
            return "its checkpoint was trained with another data.sampler, or with other labels"
        return None
