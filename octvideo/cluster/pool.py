"""Items worked on by Ray actors: each gives one result, whatever becomes of the processes and the nodes.

A batch is given to an actor while it works on another. An actor that dies, or shows no sign of life, may have met its
end by one of the videos of its batch, or by none: a node was switched off, somebody killed it. So those that have no
result are given again, each alone. What ends two processes alone is to blame, and that is its result.

A node whose disk is full gets nothing for a minute; what it could not write is given to the others.
"""

from __future__ import annotations

import contextlib
import os
import pickle
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

from octvideo.cluster.connection import ray_library
from octvideo.errors import UserError
from octvideo.files import full_disk_in_words, is_full_disk

Item = TypeVar("Item")

_DEATHS = 2  # of processes that had an item alone
_MESSAGES_S = 200.0  # that the driver takes from all actors
_LOOK_S = 5.0  # from one look at the nodes to the next
_STARTS = 3  # that fail before the run does
_FULL_S = 60.0  # that a node with a full disk is left alone


class Worker(Protocol):
    """What an actor does. It is pickled, and comes to each actor as it was."""

    def begin(self) -> Any:
        """Loads what is needed, once; returns what there is to know of it."""

    def work(self, items: Sequence[Any], /) -> Iterator[Any]:
        """A result for each item, in order; None in between is a sign of life.

        Raises:
            OSError: this machine's disk is full.
        """


@dataclass(frozen=True)
class Lost:
    """The result of an item that ended its process.

    Args:
        reason: in one line.
    """

    reason: str


@dataclass(frozen=True)
class _DiskFull:
    """In place of results: why an actor could write no more."""

    reason: str


@dataclass
class _Call:
    """Items that were given to an actor, and how many have a result."""

    items: list[Any]
    results: Any  # ray's generator
    is_alone: bool
    done: int = 0


@dataclass(eq=False)
class _Actor:
    """The driver's side of an actor.

    Args:
        handle: ray's.
        node: its id, where the actor is.
        beginning: what `begin` will return; None once it has.
        calls: the first of which it works on.
        heard: when it last gave a sign of life.
    """

    handle: Any
    node: str
    beginning: Any
    calls: deque[_Call] = field(default_factory=deque)
    heard: float = 0.0


class RayPool(Generic[Item]):
    """Actors of a connected cluster, as many as it has room for; they follow its nodes as these come and go.

    Args:
        worker: what they do.
        cpus: of an actor; its threads, too.
        gpus: of an actor.
        timeout_s: without a result or another sign of life.
        batch: items that are given at once, at most. Between two batches an actor decodes nothing ahead.
        tell: is told what goes wrong without being the end, in one line.

    Raises:
        UserError: Ray is not installed.
    """

    def __init__(
        self,
        worker: Worker,
        *,
        cpus: float = 1.0,
        gpus: float = 0.0,
        timeout_s: float = 600.0,
        batch: int = 32,
        tell: Callable[[str], None] = lambda line: None,
    ) -> None:
        self._ray = ray_library()
        errors = self._ray.exceptions
        self._gone = (errors.RayActorError, errors.ActorUnschedulableError)  # an actor, or its node before it began
        self.worker = worker
        self._cpus, self._gpus, self._timeout_s, self.tell = cpus, gpus, timeout_s, tell
        self._batch = batch
        self._actors: list[_Actor] = []
        self.num_ready = 0  # actors that have begun
        self._failed_starts = Counter[str]()  # by node, since one began there
        self._looked, self._had_room = 0.0, True
        self._full: dict[str, float] = {}  # nodes, and when they were found to be

    def __enter__(self) -> RayPool[Item]:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Ends the actors."""
        while self._actors:
            self._kill(self._actors[-1])

    @property
    def room(self) -> int:
        """Actors that the cluster has room for, were it empty."""
        return sum(self._rooms().values())

    @property
    def state(self) -> str:
        """How many there are, in words, for a progress bar."""
        return f"{self.num_ready} process" + ("" if self.num_ready == 1 else "es")

    def begin(self) -> Any:
        """Starts one actor, and returns what its `begin` does; the others start when there is work.

        Raises:
            UserError: the cluster has no room for one, or what `begin` raises.
        """
        rooms = self._rooms()
        if not rooms:
            raise UserError(
                f"no node of the cluster has {self._cpus:g} CPUs{f' and {self._gpus:g} GPUs' if self._gpus else ''}, "
                "which a process here is asked to have: give fewer with --ray_cpus, --ray_gpus"
            )
        while True:
            actor = self._start(min(rooms, key=self._failed_starts.__getitem__), rooms)
            try:
                about = self._ray.get(actor.beginning)
            except self._gone as error:
                self._not_begun(actor, error)
                if not (rooms := self._rooms()):
                    raise UserError("no node of the cluster is left") from error
                continue
            except self._ray.exceptions.RayTaskError as error:
                raise _of_task(error) from error
            self._begun(actor)
            return about

    def run(self, items: Iterable[Item], total: int) -> Iterator[tuple[Item, Any]]:
        """Each item with its result, or `Lost`, in the order of finishing. Items are taken when an actor is free.

        Args:
            items: to work on; they can be keys.
            total: of them.

        Raises:
            UserError: actors can't begin, or no disk has room.
            Exception: what `work` raises.
        """
        waiting, again, alone = iter(items), deque[Item](), deque[Item]()
        deaths: dict[Item, int] = {}
        left, more = total, total > 0

        def batch() -> list[Item]:
            nonlocal more
            size = max(1, min(self._batch, left // (4 * max(self.num_ready, 1))))
            found = [again.popleft() for _ in range(min(size, len(again)))]
            while more and len(found) < size:
                try:
                    found.append(next(waiting))
                except StopIteration:
                    more = False
            return found

        def give() -> None:
            for actor in self._actors:
                if actor.beginning is not None or any(call.is_alone for call in actor.calls):
                    continue
                if alone and not actor.calls:
                    self._give(actor, [alone.popleft()], is_alone=True)
                while not (alone or len(actor.calls) >= 2) and (found := batch()):
                    self._give(actor, found)

        def ended(actor: _Actor, why: str, *, is_late: bool) -> Iterator[tuple[Item, Any]]:
            self._kill(actor)
            self._looked = 0.0  # another one takes its place
            for number, call in enumerate(actor.calls):
                rest = call.items[call.done :]
                if number > 0:  # it had not come to them
                    again.extendleft(reversed(rest))
                    continue
                for item in rest:
                    deaths[item] = deaths.get(item, 0) + call.is_alone
                    if call.is_alone and (is_late or deaths[item] >= _DEATHS):
                        yield item, Lost(why)
                    else:
                        alone.append(item)
            if actor.calls:
                self.tell(f"a process of the cluster ended ({why}); what it had begun is done again, one by one")

        while more or again or alone or any(actor.calls for actor in self._actors):
            self._follow_nodes()
            give()
            for actor in self._ready():
                if actor.beginning is not None:
                    self._finish_beginning(actor)
                    continue
                call = actor.calls[0]
                try:
                    results = self._ray.get(next(call.results))
                except StopIteration:
                    actor.calls.popleft()
                    if call.done < len(call.items):
                        raise RuntimeError(f"{len(call.items) - call.done} items came back without a result") from None
                    results = []
                except self._gone as error:
                    for found in ended(actor, _reason(error), is_late=False):
                        left -= 1
                        yield found
                    continue
                except self._ray.exceptions.RayTaskError as error:
                    raise _of_task(error) from error
                actor.heard = time.monotonic()
                if isinstance(results, _DiskFull):
                    for given in actor.calls:
                        again.extend(given.items[given.done :])
                    self._leave(actor, results.reason)
                    continue
                for result in results:
                    call.done += 1
                    left -= 1
                    yield call.items[call.done - 1], result
            for actor in [actor for actor in self._actors if actor.calls]:
                if time.monotonic() - actor.heard > self._timeout_s:
                    why = f"timeout: no sign of life for {self._timeout_s:g} s"
                    for found in ended(actor, why, is_late=True):
                        left -= 1
                        yield found

    # ── actors ────────────────────────────────────────────────────────────────────────────────────────────────

    def _rooms(self) -> dict[str, int]:
        """The nodes by id, with how many actors each holds, were it empty; those with room that are not full."""
        now = time.monotonic()
        self._full = {node: since for node, since in self._full.items() if now - since < _FULL_S}
        found = {}
        for node in self._ray.nodes():
            if node["Alive"] and node["NodeID"] not in self._full:
                cpus, gpus = (node["Resources"].get(kind, 0.0) for kind in ("CPU", "GPU"))
                fit = [int(there // asked) for there, asked in ((cpus, self._cpus), (gpus, self._gpus)) if asked]
                if min(fit):
                    found[node["NodeID"]] = min(fit)
        return found

    def _follow_nodes(self) -> None:
        if time.monotonic() - self._looked < _LOOK_S and self._actors:
            return
        self._looked = time.monotonic()
        rooms = self._rooms()
        if self._had_room and not rooms:
            self.tell("no node of the cluster is left that has room for a process: waiting for one")
        self._had_room = bool(rooms)
        for actor in [actor for actor in self._actors if actor.beginning is not None and actor.node not in rooms]:
            self._kill(actor)
        here = Counter(actor.node for actor in self._actors)
        for node, room in rooms.items():
            for _ in range(room - here[node]):
                self._start(node, rooms)

    def _start(self, node: str, rooms: Mapping[str, int]) -> _Actor:
        where = self._ray.util.scheduling_strategies.NodeAffinitySchedulingStrategy(node, soft=False)
        how = {"num_cpus": self._cpus, "num_gpus": self._gpus, "max_restarts": 0, "max_task_retries": 0}
        every_s = max(1.0, sum(rooms.values()) / _MESSAGES_S)
        remote = self._ray.remote(_Process).options(scheduling_strategy=where, **how)
        handle = remote.remote(pickle.dumps(self.worker), str(Path.cwd()), max(int(self._cpus), 1), every_s)
        actor = _Actor(handle, node, handle.begin.remote())
        self._actors.append(actor)
        return actor

    def _leave(self, actor: _Actor, reason: str) -> None:
        """Gives no more to a node whose disk is full."""
        names = {node["NodeID"]: node["NodeManagerHostname"] for node in self._ray.nodes()}
        self._full[actor.node] = time.monotonic()
        self._kill(actor)
        if not self._rooms():
            raise UserError(f"no machine of the cluster has room: {reason}; make some, and the same command goes on")
        self.tell(f"{names.get(actor.node, actor.node)} gets nothing for {_FULL_S:g} s: {reason}")

    def _give(self, actor: _Actor, items: list[Item], *, is_alone: bool = False) -> None:
        if not actor.calls:
            actor.heard = time.monotonic()
        results = actor.handle.work.options(num_returns="streaming").remote(items)
        actor.calls.append(_Call(items, results, is_alone))

    def _ready(self) -> list[_Actor]:
        """Actors that have something to say; waits a second for the first."""
        by_ref = {
            (actor.calls[0].results if actor.beginning is None else actor.beginning): actor
            for actor in self._actors
            if actor.calls or actor.beginning is not None
        }
        refs = list(by_ref)
        if not refs:
            time.sleep(0.2)
            return []
        ready, _ = self._ray.wait(refs, num_returns=1, timeout=1.0)
        if ready and len(refs) > 1:
            ready, _ = self._ray.wait(refs, num_returns=len(refs), timeout=0)
        return [by_ref[ref] for ref in ready]

    def _finish_beginning(self, actor: _Actor) -> None:
        try:
            self._ray.get(actor.beginning)
        except (*self._gone, self._ray.exceptions.RayTaskError) as error:
            self._not_begun(actor, error)
        else:
            self._begun(actor)

    def _begun(self, actor: _Actor) -> None:
        actor.beginning = None
        self.num_ready += 1
        del self._failed_starts[actor.node]

    def _not_begun(self, actor: _Actor, error: Exception) -> None:
        self._kill(actor)
        self._looked = time.monotonic()  # another one after a while
        self._failed_starts[actor.node] += 1
        why = _of_task(error) if isinstance(error, self._ray.exceptions.RayTaskError) else _reason(error)
        # A node that is gone may take several with it.
        rooms = self._rooms()
        if rooms and not self.num_ready and all(self._failed_starts[node] >= _STARTS for node in rooms):
            raise UserError(f"{_STARTS} processes of the cluster could not begin: {why}")
        self.tell(f"a process of the cluster could not begin: {why}")

    def _kill(self, actor: _Actor) -> None:
        if actor in self._actors:
            self._actors.remove(actor)
            self.num_ready -= actor.beginning is None
        with contextlib.suppress(Exception):  # it may be gone, and its cluster too
            self._ray.kill(actor.handle)


def _reason(error: Exception) -> str:
    """Why an actor ended, in words that are short."""
    text = " ".join(str(error).split()).partition("Some common causes")[0]  # which name all signals
    if "node" in text.lower() and "died" in text.lower() and "The actor died unexpectedly before" not in text:
        return "its node is gone"
    for name in ("SIGSEGV", "SIGKILL", "SIGABRT", "SIGBUS", "OOM", "out of memory"):
        if name in text:
            return f"crashed, {name}"
    return "killed or crashed"


def _of_task(error: Any) -> Exception:
    """What was raised in an actor."""
    cause = getattr(error, "cause", None)
    return cause if isinstance(cause, Exception) else RuntimeError(str(error).strip().splitlines()[-1])


# ── in the process ──────────────────────────────────────────────────────────────────────────────────────────


class _Process:
    """An actor: it loads once, and works on batches, one after the other."""

    def __init__(self, worker: bytes, folder: str, threads: int, every_s: float) -> None:
        self._pickled, self._folder, self._threads, self._every_s = worker, folder, threads, every_s

    def begin(self) -> Any:
        # Before torch is imported, which unpickling does.
        os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
        os.environ["OMP_NUM_THREADS"] = str(self._threads)
        try:
            os.chdir(self._folder)  # where relative paths start
        except OSError as error:
            raise UserError(
                f"no folder {self._folder} on {os.uname().nodename}: machines of the cluster need the same folders"
            ) from error
        self._worker: Worker = pickle.loads(self._pickled)
        try:
            return self._worker.begin()
        except UserError as error:  # a file that the others have
            raise UserError(f"{error} (on {os.uname().nodename})") from error

    def work(self, items: list[Any]) -> Iterator[list[Any] | _DiskFull]:
        """Results, some at a time."""
        kept: list[Any] = []
        told = time.monotonic()
        try:
            for result in self._worker.work(items):
                if result is not None:
                    kept.append(result)
                if time.monotonic() - told >= self._every_s:
                    yield kept
                    kept, told = [], time.monotonic()
        except OSError as error:
            if not is_full_disk(error):
                raise
            yield kept
            yield _DiskFull(full_disk_in_words(error))
            return
        yield kept
