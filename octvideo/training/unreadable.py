"""A video that can't be read: an error in evaluation, a bounded and counted skip in training."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from typing import Literal, TypeVar

import torch

from octvideo.batches import Failure
from octvideo.errors import UserError

OnUnreadable = Literal["raise", "count"]
T = TypeVar("T")

log = logging.getLogger("octvideo.training")


def gathered(value: T) -> list[T]:
    """The values of all processes, in their order; every process must call it."""
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return [value]
    values = [value] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(values, value)
    return values


class UnreadableVideos:
    """Counts videos that could not be read in one pass over the data, and logs each file once.

    Args:
        role: "training", "validation", "test": for the messages.
    """

    def __init__(self, role: str) -> None:
        self.role = role
        self.count = 0  # this pass
        self.paths: dict[str, str] = {}  # path → reason, all passes

    def start_pass(self) -> None:
        """Begins a new pass: the count starts again, the files already named stay known."""
        self.count = 0

    def add(self, failures: Iterable[Failure]) -> None:
        """Counts and logs the failures of one batch."""
        for failure in failures:
            self.count += 1
            if failure.path not in self.paths:
                self.paths[failure.path] = failure.reason
                log.warning("skipped in %s: cannot read video '%s': %s", self.role, failure.path, failure.reason)

    def raise_first(self, failures: Iterable[Failure]) -> None:
        """Stops an evaluation at its first unreadable video.

        Raises:
            UserError: with file and reason.
        """
        for failure in failures:
            raise UserError(
                f"cannot read video '{failure.path}': {failure.reason}. The {self.role} stopped, since a figure over "
                "fewer videos is another figure; to leave such videos out and count them: --model.on_unreadable count"
            )

    def check_bound(self, num_items: int, max_fraction: float) -> None:
        """Holds the bound on skipped training videos.

        Args:
            num_items: items of the whole pass on this process.
            max_fraction: share of them that may be skipped.

        Raises:
            UserError: the bound is passed.
        """
        if self.count > max_fraction * num_items:
            path, reason = next(iter(self.paths.items()))
            raise UserError(
                f"{self.count} of {num_items} videos of this epoch could not be read, more than the "
                f"{max_fraction:.1%} that model.max_unreadable_fraction allows; the first: '{path}': {reason}. "
                "Look at the data (octvideo check), and leave such videos out by --data.quarantine: "
                "unreadable.txt of this run is a list for it; or raise the bound"
            )

    def gather(self) -> None:
        """Learns of the videos that other processes could not read; every process must call it."""
        self.paths = {path: reason for part in gathered(self.paths) for path, reason in part.items()}

    def summary(self) -> str:
        """A line on all passes, and the first twenty videos; empty where every video could be read."""
        if not self.paths:
            return ""
        named = "\n".join(f"  {path}: {reason}" for path, reason in list(self.paths.items())[:20])
        more = f"\n  and {len(self.paths) - 20} more" if len(self.paths) > 20 else ""
        return f"{len(self.paths)} videos could not be read in {self.role}:\n{named}{more}"
