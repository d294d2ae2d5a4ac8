"""What tests have isolated processes do. They import this module alone: it must stay light."""

from __future__ import annotations

import ctypes
import errno
import os
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from octvideo.video.checking import Check, stamp_of

MB = 2**20


def act(item: Any, alive: Callable[[], None]) -> Any:
    """What the tests ask a process to do."""
    kind, *rest = item
    if kind == "pid":
        return os.getpid()
    if kind == "blocked":
        return [int(one) for one in signal.pthread_sigmask(signal.SIG_BLOCK, [])]
    if kind == "sleep":
        time.sleep(rest[0])
    elif kind == "hang":  # native, and no other thread gets the interpreter
        Path(rest[0]).write_text(str(os.getpid()))
        ctypes.PyDLL(None).pause()
    elif kind == "alive":
        for _ in range(rest[0]):
            time.sleep(0.6)  # no two signs are sent within half a second
            alive()
    elif kind == "crash":
        ctypes.string_at(0)
    elif kind == "ring":
        signal.raise_signal(signal.SIGALRM)
    elif kind == "exit":
        os._exit(3)
    elif kind == "raise":
        raise ValueError("two\nlines")
    elif kind == "full":
        raise OSError(errno.ENOSPC, "No space left on device", "a.mp4")
    elif kind == "too large":
        np.empty(2**60, np.uint8)
    elif kind == "grow":
        held = []
        while True:
            held.append(np.ones(8 * MB, np.uint8))
    elif kind == "leave a thread":
        threading.Thread(target=time.sleep, args=(60,), daemon=True).start()
        return os.getpid()
    elif kind == "hold":
        act.held = np.ones(rest[0] * MB, np.uint8)  # type: ignore[attr-defined]
        return os.getpid()
    return kind


def broken(item: Any, alive: Callable[[], None]) -> None:
    raise AssertionError("never called")


def misbehave(item: object, alive: object) -> tuple[str, str, float]:
    case = item[0]  # type: ignore[index]
    if case.number == 1:
        raise KeyError("a bug")
    if case.number == 2:
        Path(item[1], "temporary").touch()  # type: ignore[index]
    return "frames", "many", 100.0 if case.number == 3 else 0.0


def by_name(item: tuple[str, str, str], alive: Callable[[], None]) -> Check:
    name = Path(item[0]).stem
    if name == "crash":
        os.kill(os.getpid(), signal.SIGSEGV)
    if name == "hang":
        time.sleep(60)
    held = []
    while name == "grow":
        held.append(bytearray(b"x") * 2**23)
    return Check("ok", 1, 1, stamp=stamp_of(item[1]))


def at_once(item: tuple[str, str, str], alive: Callable[[], None]) -> Check:
    return Check("unreadable" if item[0].endswith("7.mp4") else "ok", 1, 1, "odd number", stamp=(1, 2))
