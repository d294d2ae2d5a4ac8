"""`--on ray`: what a process on a cluster does for each command, and how commands ask for it.

Each worker is the command's own work for some videos; what is written about them, the command writes itself.
"""

from __future__ import annotations

import argparse
import contextlib
import errno
import functools
import math
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

from octvideo.cli.arguments import Parser
from octvideo.cluster.connection import connected
from octvideo.cluster.pool import Lost, RayPool, Worker
from octvideo.data.workers import available_cpus
from octvideo.video.isolated import IsolatedPool, Outcome, Work

Item = TypeVar("Item")


def ray_arguments(parser: Parser, *, gpus: bool = True) -> None:
    """The options of a cluster."""
    group = parser.add_argument_group("many machines (pip install 'octvideo[ray]')")
    parser.shared("on", "ray_cpus", *(["ray_gpus"] if gpus else []), group=group)
    if gpus:
        parser.shared("ray_timeout", group=group)


@contextlib.contextmanager
def ray_pool(
    args: argparse.Namespace,
    worker: Worker,
    tell: Callable[[str], None] | None = None,
    *,
    timeout_s: float | None = None,
    batch: int,
) -> Iterator[RayPool[Any]]:
    """Processes that work on the cluster of `--on`; see `RayPool`. What is told goes to the standard error, unless
    `tell` takes it.
    """
    tell = tell or functools.partial(print, file=sys.stderr)
    with connected(args.on, cpus=available_cpus(), tell=tell) as cluster:
        how = {"cpus": args.ray_cpus, "gpus": getattr(args, "ray_gpus", 0.0), "batch": batch}
        with RayPool[Any](worker, timeout_s=timeout_s or args.ray_timeout, tell=tell, **how) as pool:
            tell(f"Ray: {cluster}, room for {pool.room} of the processes here")
            yield pool


@dataclass
class IsolatedWorker:
    """Does each item in a process of its own that can be killed, as one machine does.

    Args:
        job: its work.
        timeout_s, memory_bytes: see `IsolatedPool`.
    """

    job: Work
    timeout_s: float
    memory_bytes: int
    _pool: IsolatedPool[Any] | None = field(default=None, init=False)

    def begin(self) -> None:
        """Makes the pool."""
        how: dict[str, Any] = {"timeout_s": self.timeout_s, "memory_bytes": self.memory_bytes}
        self._pool = IsolatedPool(self.job, num_processes=1, **how)

    def work(self, items: Sequence[Any]) -> Iterator[Outcome]:
        """Outcomes."""
        assert self._pool is not None
        for _, outcome in self._pool.run(items):  # in order, of one process
            if outcome.ending == "disk full":
                raise OSError(errno.ENOSPC, outcome.reason)
            yield outcome


class RayIsolatedPool(Generic[Item]):
    """An `IsolatedPool` whose processes are on a cluster.

    Args:
        args: with the options of the cluster.
        total: items that there are, about.
        tell: see `RayPool`.
        work, timeout_s, memory_bytes: see `IsolatedPool`.
    """

    def __init__(
        self,
        args: argparse.Namespace,
        total: int,
        tell: Callable[[str], None],
        work: Work,
        timeout_s: float,
        memory_bytes: int,
    ) -> None:
        # Which item hangs is seen where it is worked on.
        self._pool = ray_pool(args, IsolatedWorker(work, timeout_s, memory_bytes), tell, timeout_s=math.inf, batch=4)
        self._ray: RayPool[Item] | None = None
        self._total = total

    def __enter__(self) -> RayIsolatedPool[Item]:
        self._ray = self._pool.__enter__()
        self._ray.begin()
        return self

    def __exit__(self, *error: Any) -> None:
        self._pool.__exit__(*error)

    def run(
        self, items: Iterable[Item], tell: Callable[[Item, int, int], None] = lambda item, done, total: None, /
    ) -> Iterator[tuple[Item, Outcome]]:
        """Each item with its outcome, in the order of finishing; how far each is comes from here alone."""
        assert self._ray is not None
        for item, result in self._ray.run(items, self._total):
            yield item, Outcome("crashed", reason=result.reason) if isinstance(result, Lost) else result


def isolated_on_ray(
    args: argparse.Namespace, total: int, tell: Callable[[str], None]
) -> Callable[[Work, float, int], RayIsolatedPool[Any]] | None:
    """What makes the pool of a command with `--on`; None without it."""
    return None if args.on is None else functools.partial(RayIsolatedPool[Any], args, total, tell)
