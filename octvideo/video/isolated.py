"""Work in processes that can be killed: a native hang, crash or runaway growth becomes a result.

Decoders are C libraries. What goes wrong in them can't be caught: a crash takes its process along, a hang holds it
for good. So files that nobody vouches for are decoded in processes of their own, which are reused for many files
and replaced after a kill::

    with IsolatedPool(decode, num_processes=4, timeout_s=60, memory_bytes=2**30) as pool:
        for path, outcome in pool.run(paths):  # in the order of finishing
            ...

Processes come from a fork server that has imported everything once and runs no threads (on macOS, where forks
are not safe even so, each starts anew). They end with their parent, also when that is killed: a thread of theirs
waits for its end, and the system's alarm clock ends those whose native code lets no thread run.

Memory is watched rather than limited. RLIMIT_AS counts addresses, of which torch and each thread reserve gigabytes
that are never used; it turns growth into failed allocations, which native code answers with crashes; and macOS
ignores it. A thread looks at what the process holds in RAM twenty times a second; between two looks a
process can still write some hundred MB.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import resource
import signal
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection, wait
from typing import Any, Generic, Literal, Protocol, TypeVar

from octvideo.files import full_disk_in_words, is_full_disk

Item = TypeVar("Item")
Ending = Literal["returned", "raised", "timeout", "crashed", "out of memory", "disk full"]


class Alive(Protocol):
    """A sign of life, with how far the work is, if that is known."""

    def __call__(self, done: int = 0, total: int = 0, /) -> None: ...


Work = Callable[[Any, Alive], Any]

_LONGEST_FOLDER = 70  # bytes; a forkserver's socket has 32 more
_START_S = 300  # for imports on a slow disk; they count in no file's time
_GRACE_S = 5  # the alarm clock is for those whose parent is gone
_LOOK_S = 0.05
_SIGN_S = 0.5  # signs of life may be given for every frame
_ONE_STARTS = threading.Lock()
_OUT_OF_MEMORY = 86  # exit code; any that Python and signals do not use


@dataclass(frozen=True)
class Outcome:
    """How the work on one item ended.

    Args:
        ending: "returned", or what went wrong.
        value: that the work returned.
        reason: of any other ending, in one line: "timeout: no sign of life for 10 s", "crashed (signal 11, SIGSEGV)".
        details: traceback, where it raised.
    """

    ending: Ending
    value: Any = None
    reason: str = ""
    details: str = ""


class Pool(Protocol[Item]):
    """What is asked of an `IsolatedPool` by those who give it work; its processes may be elsewhere."""

    def __enter__(self) -> Any: ...

    def __exit__(self, *error: Any) -> None: ...

    def run(
        self, items: Iterable[Item], tell: Callable[[Item, int, int], None] = ..., /
    ) -> Iterator[tuple[Item, Outcome]]:
        """Each item with its outcome, in the order of finishing."""


class IsolatedPool(Generic[Item]):
    """Processes that work on one item each at a time.

    Args:
        work: from (item, alive) to a value; importable by name, as are items and values picklable. It may call
            `alive` to have the time counted from there again.
        num_processes: at once; they start when there is work.
        timeout_s: for an item, or from one `alive` to the next.
        memory_bytes: that a process may grow by, over what it has after its start.
    """

    def __init__(self, work: Work, *, num_processes: int, timeout_s: float, memory_bytes: int) -> None:
        self._settings = (work, timeout_s, memory_bytes)
        self._num_processes, self._timeout_s, self._memory_bytes = num_processes, timeout_s, memory_bytes
        self._idle: list[_Process] = []
        self.num_started = 0

    def __enter__(self) -> IsolatedPool[Item]:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Ends the processes."""
        while self._idle:
            self._idle.pop().end()

    def run(
        self, items: Iterable[Item], tell: Callable[[Item, int, int], None] = lambda item, done, total: None
    ) -> Iterator[tuple[Item, Outcome]]:
        """Each item with its outcome, in the order of finishing. Items are taken when a process is free for them.

        Args:
            items: to work on.
            tell: called, about twice a second, with an item, and done and total of its work's sign of life.

        Raises:
            RuntimeError: a process can't even start.
        """
        waiting = iter(items)
        busy: dict[Connection, tuple[_Process, Item]] = {}
        more = True
        try:
            while True:
                while more and len(busy) < self._num_processes:
                    try:
                        item = next(waiting)
                    except StopIteration:
                        more = False
                        break
                    process = self._free_process()
                    busy[process.connection] = process, item
                    process.give(item)
                if not busy:
                    return
                for connection in self._ready(busy):
                    process, item = busy[connection]
                    outcome = process.outcome()
                    if outcome is None:
                        tell(item, *process.far)
                    else:
                        del busy[connection]
                        if process.reusable:
                            self._idle.append(process)
                        yield item, outcome
        finally:
            for process, _ in busy.values():
                process.end()

    def _free_process(self) -> _Process:
        if self._idle:
            return self._idle.pop()
        self.num_started += 1
        return _Process(*self._settings)

    def _ready(self, busy: dict[Connection, Any]) -> list[Connection]:
        """Those of which there is something to know: a message, the end of the process, or of its time."""
        left = min(process.deadline for process, _ in busy.values()) - time.monotonic()
        ready = wait(list(busy), timeout=max(left, 0))
        now = time.monotonic()
        late = [connection for connection, (process, _) in busy.items() if process.deadline <= now]
        return [connection for connection in busy if connection in ready or connection in late]


class _Process:
    """The parent's side of one process."""

    def __init__(self, work: Work, timeout_s: float, memory_bytes: int) -> None:
        context = _context(work)
        self.connection, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs, work, timeout_s, memory_bytes), daemon=True)
        with _main_left_alone(work), _no_interrupts():
            self._process.start()
        theirs.close()  # the process has its own; when that closes, we see it
        self._timeout_s, self._memory_bytes = timeout_s, memory_bytes
        self._started = False
        self.far = (0, 0)  # done and total, as its work has said
        self.reusable = True
        self.deadline = float("inf")

    def give(self, item: Any) -> None:
        self.deadline = time.monotonic() + self._timeout_s + (0 if self._started else _START_S)
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # its end is seen at the other side
            self.connection.send(item)

    def outcome(self) -> Outcome | None:
        """None where it only said that it lives."""
        if not self.connection.poll():
            self.end()
            return self._late()
        try:
            message = self.connection.recv()
        except (EOFError, ConnectionResetError):
            return self._ended()
        self._started = True
        self.deadline = time.monotonic() + self._timeout_s
        if message[0] is None:
            self.far = message[1]
            return None
        outcome, self.reusable = message
        if not self.reusable:
            self.end()
        return outcome

    def _late(self) -> Outcome:
        return Outcome("timeout", reason=f"timeout: no sign of life for {self._timeout_s:g} s")

    def _ended(self) -> Outcome:
        self._process.join(10)
        code = self._process.exitcode
        self.end()
        if not self._started:
            raise RuntimeError(f"a process for decoding can't start (exit code {code}); its own error is above")
        if code == _OUT_OF_MEMORY:
            return Outcome("out of memory", reason=_too_large(self._memory_bytes))
        if code == -signal.SIGALRM:  # the alarm clock came first: this process had to wait, or was stopped
            return self._late()
        if code is None or code >= 0:
            return Outcome("crashed", reason=f"crashed (exit code {code})")
        with contextlib.suppress(ValueError):
            name = signal.Signals(-code).name
            hint = ", maybe for want of memory" if name == "SIGKILL" else ""
            return Outcome("crashed", reason=f"crashed (signal {-code}, {name}{hint})")
        return Outcome("crashed", reason=f"crashed (signal {-code})")

    def end(self) -> None:
        self.reusable = False
        self._process.kill()
        # A process that the kernel holds (a disk that is gone) does not even end when killed: it is abandoned.
        self._process.join(1)
        self.connection.close()


def _too_large(limit: int) -> str:
    return f"out of memory: it takes more than {limit / 2**30:.3g} GiB"


def _context(work: Work) -> Any:
    # The socket of a forkserver lies in the folder for temporary files, and its path may have 107 bytes.
    if sys.platform == "darwin" or len(os.fsencode(tempfile.gettempdir())) > _LONGEST_FOLDER:
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    # Imported once, by the server, if this process has none yet.
    context.set_forkserver_preload([__name__, work.__module__])
    return context


@contextlib.contextmanager
def _main_left_alone(work: Work) -> Iterator[None]:
    """New processes do not run the main program's file again, as Python has it.

    They need nothing of it, it may take seconds to import, and a script without `if __name__ == "__main__"` would
    start processes without end.
    """
    main = sys.modules["__main__"]
    with _ONE_STARTS:  # another thread's would take the empty names for the main program's own
        names = [name for name in ("__file__", "__spec__") if hasattr(main, name) and work.__module__ != "__main__"]
        kept = {name: getattr(main, name) for name in names}
        try:
            for name in names:
                setattr(main, name, None)
            yield
        finally:
            for name, value in kept.items():
                setattr(main, name, value)


@contextlib.contextmanager
def _no_interrupts() -> Iterator[None]:
    """New processes do not see a Ctrl-C, which would end their imports with a traceback. It waits for us meanwhile."""
    resource_tracker.ensure_running()  # which unblocks what it blocks: not in here
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


# ── in the process ──────────────────────────────────────────────────────────────────────────────────────────


def _serve(connection: Connection, work: Work, timeout_s: float, memory_bytes: int) -> None:
    _behave()
    start = private_bytes()
    threading.Thread(target=_watch, args=(start + memory_bytes,), daemon=True).start()
    num_threads = threading.active_count()
    next_sign = 0.0

    def alive(done: int = 0, total: int = 0, /) -> None:
        nonlocal next_sign
        if (now := time.monotonic()) >= next_sign:
            next_sign = now + min(_SIGN_S, timeout_s / 4)
            signal.alarm(int(timeout_s + _GRACE_S) + 1)
            connection.send((None, (done, total)))

    with contextlib.suppress(EOFError, BrokenPipeError, ConnectionResetError):  # the parent is gone, or done
        connection.send((None, (0, 0)))
        while True:
            item = connection.recv()
            signal.alarm(int(timeout_s + _GRACE_S) + 1)
            outcome = _attempt(work, item, alive, memory_bytes)
            signal.alarm(0)
            # What one item leaves (memory, a thread that does not end) must not be counted as another's.
            reusable = private_bytes() < start + memory_bytes // 2 and threading.active_count() <= num_threads
            connection.send((outcome, reusable))


def _behave() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent, which ends us
    signal.signal(signal.SIGALRM, signal.SIG_DFL)  # ends the process without asking Python
    _, hard = resource.getrlimit(resource.RLIMIT_CORE)
    resource.setrlimit(resource.RLIMIT_CORE, (0, hard))  # crashes are expected, gigabytes of each are not
    silence = os.open(os.devnull, os.O_RDWR)
    for descriptor in (0, 1, 2):  # the last words of C libraries would tear the parent's progress bar
        os.dup2(silence, descriptor)
    os.close(silence)
    import torch  # here, since a fork server may be somebody else's, and decoders come after torch

    torch.set_num_threads(1)


def _watch(limit: int) -> None:
    parent = multiprocessing.parent_process()
    while parent is not None and parent.is_alive():
        if private_bytes() > limit:
            os._exit(_OUT_OF_MEMORY)
        parent.join(_LOOK_S)
    os._exit(1)


def _attempt(work: Work, item: Any, alive: Alive, memory_bytes: int) -> Outcome:
    try:
        return Outcome("returned", work(item, alive))
    except MemoryError:
        return Outcome("out of memory", reason=_too_large(memory_bytes))
    except Exception as error:
        if isinstance(error, OSError) and is_full_disk(error):
            return Outcome("disk full", reason=full_disk_in_words(error))
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        return Outcome("raised", reason=reason, details=traceback.format_exc())


def private_bytes() -> int:
    """Memory of this process in RAM, without that of files and libraries; on macOS all, and the most it ever was."""
    try:
        with open("/proc/self/statm", "rb") as file:  # noqa: PTH123 (twenty times a second)
            _, resident, shared, *_ = map(int, file.read().split())
        return (resident - shared) * resource.getpagesize()
    except OSError:
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak if sys.platform == "darwin" else peak * 1024
