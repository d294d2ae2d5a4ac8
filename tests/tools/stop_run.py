"""Callbacks that end a run as Ctrl-C, a kill or a bug would, at a known place; for processes that tests start."""

from __future__ import annotations

import os
import signal
from typing import Any, Literal

from lightning.pytorch.callbacks import Callback


class StopRun(Callback):
    """Sends a signal to its own process.

    Args:
        step: after so many optimizer steps, when the next batch begins.
        how: "SIGINT" is Ctrl-C.
    """

    def __init__(self, step: int, how: Literal["SIGINT", "SIGTERM", "SIGKILL"]) -> None:
        self._step, self._signal = step, signal.Signals[how]

    def on_train_batch_start(self, trainer: Any, *args: Any) -> None:
        if trainer.global_step == self._step:
            os.kill(os.getpid(), self._signal)


class Bug(Callback):
    """Has one."""

    def on_train_start(self, *args: Any) -> None:
        raise KeyError("a bug")


class Unbuildable(Callback):
    """Has one before it is there."""

    def __init__(self) -> None:
        raise KeyError("a bug")
