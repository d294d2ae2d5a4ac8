"""How far long work is: a bar on a terminal; elsewhere, as in a log file, a line now and then."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterable, Iterator
from datetime import timedelta
from typing import TypeVar

from rich.console import Console
from rich.progress import BarColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.progress import Progress as Bar

Item = TypeVar("Item")

# Short work is done before its first line.
LINE_EVERY_S = 30.0


class Progress:
    """Says on stderr how far work is, from `with` to its end; without `with`, nothing.

    Args:
        text: what is done.
        total: of the steps, if it is known.
        in_bytes: steps are bytes.
    """

    def __init__(self, text: str = "", total: int | None = None, *, in_bytes: bool = False) -> None:
        self._text, self._total, self._in_bytes = text, total, in_bytes
        self._done, self._said, self._started = 0, "", time.monotonic()
        self._console, self._over = Console(stderr=True, soft_wrap=True), threading.Event()
        self._bar: Bar | None = None
        if self._console.is_terminal:
            columns = (TextColumn("{task.description}", markup=False), BarColumn(), TimeElapsedColumn())
            self._bar = Bar(
                *columns, TimeRemainingColumn(), console=self._console, transient=True, redirect_stdout=False
            )
            self._task = self._bar.add_task("", total=None)
        self._lines = threading.Thread(target=self._tell, daemon=True)

    def __enter__(self) -> Progress:
        self.begin(self._text, self._total)
        if self._bar is not None:
            self._bar.start()
        else:
            self._lines.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.stop()
        else:
            self._over.set()
            self._lines.join()

    def begin(self, text: str, total: int | None = None) -> None:
        """Starts the next part of the work, at 0 of its steps."""
        self._text, self._started = text, time.monotonic()
        if self._bar is not None:
            self._bar.reset(self._task)
        self._total, self._said = total, ""
        self.update(0)

    def update(self, done: int | None = None, *, total: int | None = None, said: str | None = None) -> None:
        """Notes how far it is.

        Args:
            done: steps; None leaves them, as below.
            total: of the steps.
            said: what else there is to say.
        """
        self._done = self._done if done is None else done
        self._total = self._total if total is None else total
        self._said = self._said if said is None else said
        if self._bar is not None:
            self._bar.update(self._task, completed=self._done, total=self._total, description=self._state())

    def advance(self) -> None:
        """One more step is done."""
        self.update(self._done + 1)

    def print(self, line: str) -> None:
        """Prints a line that stays."""
        self._console.print(line, markup=False, highlight=False)

    @contextlib.contextmanager
    def hidden(self) -> Iterator[None]:
        """Takes the bar away while others print on the same terminal."""
        if self._bar is not None:
            self._bar.stop()
        yield
        if self._bar is not None:
            self._bar.start()

    def _state(self) -> str:
        counts = [count for count in (self._done, self._total) if count]
        if self._in_bytes:
            rate = self._done / 1e6 / max(time.monotonic() - self._started, 0.001)
            far = " of ".join(f"{count / 1e6:,.1f} MB" for count in counts) + f", {rate:.1f} MB/s"
        else:
            far = " of ".join(f"{count:,}" for count in ([self._done, self._total] if self._total else counts))
        return f"{self._text}: " + ", ".join(filter(None, [far, self._said]))

    def _tell(self) -> None:
        while not self._over.wait(LINE_EVERY_S):
            took = timedelta(seconds=int(time.monotonic() - self._started))
            with contextlib.suppress(OSError, ValueError):  # nobody reads
                self.print(f"{self._state()} ({took})")


def track(items: Iterable[Item], text: str, total: int | None = None) -> Iterator[Item]:
    """The items, saying how many of them are done."""
    with Progress(text, total if total is not None else len(items)) as progress:  # type: ignore[arg-type]
        for item in items:
            yield item
            progress.advance()
