"""A process that is told JSON lines on stdin and answers in JSON lines on stdout."""

from __future__ import annotations

import contextlib
import json
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

Message = dict[str, Any]


class EndedError(RuntimeError):
    """The process is no more; says with which code, and its last line."""


class Child:
    """Such a process, as its parent has it.

    Args:
        module: that it runs.
        arguments: of it.
        log: file for what it says beside its answers; appended to.
        environment: added to this process's.
    """

    def __init__(
        self, module: str, arguments: Sequence[str], log: Path, environment: Mapping[str, str] | None = None
    ) -> None:
        path = os.pathsep.join(folder for folder in sys.path if folder)
        own = {**os.environ, "PYTHONPATH": path, "PYTHONUNBUFFERED": "1", **(environment or {})}
        self._log, self._lines = log, queue.Queue[str]()
        with log.open("a", encoding="utf-8") as file:
            self.process = subprocess.Popen(
                [sys.executable, "-m", module, *arguments], env=own, text=True, stdin=subprocess.PIPE,
                stdout=subprocess.PIPE, stderr=file, start_new_session=True,  # Ctrl-C is its parent's to hear
            )  # fmt: skip
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        with contextlib.suppress(ValueError):  # closed
            for line in self.process.stdout:
                self._lines.put(line)
        self._lines.put("")

    def tell(self, content: Message) -> None:
        """Gives it something to do."""
        assert self.process.stdin is not None
        with contextlib.suppress(OSError):  # `hear` says that it has ended
            self.process.stdin.write(json.dumps(content) + "\n")
            self.process.stdin.flush()

    def hear(self, seconds: float) -> Message:
        """Its next answer.

        Args:
            seconds: to wait for it.

        Raises:
            TimeoutError: there was none.
            EndedError: there will be none.
        """
        try:
            line = self._lines.get(timeout=max(0.0, seconds)) if seconds > 0 else self._lines.get_nowait()
        except queue.Empty:
            raise TimeoutError from None
        if not line:
            self._lines.put("")  # for who asks again
            code = self.process.wait()
            said = [
                text for text in self._log.read_text(encoding="utf-8", errors="replace").splitlines() if text.strip()
            ]
            raise EndedError(f"its process ended with code {code}: {said[-1] if said else 'it said nothing'}")
        return json.loads(line)

    def close(self) -> None:
        """Ends it."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        with contextlib.suppress(OSError):
            self.process.stdin.close()  # type: ignore[union-attr]


def serve(
    answer: Callable[[Message, Callable[[Message], None]], bool], ready: Callable[[], None] | None = None
) -> None:
    """What such a process does: it answers each line until stdin ends, as where its parent is no more.

    Args:
        answer: gets what it is told, and a function that sends an answer; returns whether it goes on.
        ready: called first.
    """
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # what libraries print is no answer
    threading.Thread(target=_end_with, args=(os.getppid(),), daemon=True).start()

    def send(content: Message) -> None:
        print(json.dumps(content), file=answers)

    if ready is not None:
        ready()
        send({"ready": True})
    for line in sys.stdin:
        if not answer(json.loads(line), send):
            return


def _end_with(parent: int) -> None:
    """Ends this process where its parent has ended, as by SIGKILL."""
    while os.getppid() == parent:
        time.sleep(1)
    os._exit(1)
