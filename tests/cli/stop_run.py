"""Callbacks that end a run as Ctrl-C, a kill or a bug would, or note what it sees; for processes that tests start."""

from __future__ import annotations

import multiprocessing
import os
import shutil
import signal
from pathlib import Path
from typing import Any, Literal

from lightning.pytorch.callbacks import Callback


class StopRun(Callback):
    """Sends a signal to its own process, and SIGTERM to those that load videos too.

    Args:
        step: after so many optimizer steps, when the next batch begins.
        how: "SIGINT" is Ctrl-C.
    """

    def __init__(self, step: int, how: Literal["SIGINT", "SIGTERM", "SIGKILL"]) -> None:
        self._step, self._signal = step, signal.Signals[how]

    def on_train_batch_start(self, trainer: Any, *args: Any) -> None:
        if trainer.global_step == self._step:
            # The end of a job is told to all its processes.
            others = multiprocessing.active_children() if self._signal == signal.SIGTERM else []
            for pid in (*[process.pid for process in others], os.getpid()):
                os.kill(pid, self._signal)


class KeepRuns(Callback):
    """Copies runs/ to "as it was left", which is what a kill at that moment leaves, and ends the run.

    Args:
        step: after so many optimizer steps, when the next batch begins.
    """

    def __init__(self, step: int) -> None:
        self._step = step

    def on_train_batch_start(self, trainer: Any, *args: Any) -> None:
        if trainer.global_step == self._step:
            shutil.copytree("runs", "as it was left")
            raise KeyboardInterrupt


class Bug(Callback):
    """Has one."""

    def on_train_start(self, *args: Any) -> None:
        raise KeyError("a bug")


class Unbuildable(Callback):
    """Has one before it is there."""

    def __init__(self) -> None:
        raise KeyError("a bug")


class NoteVideos(Callback):
    """Adds a line to a file for each trained batch: epoch, optimizer steps before it, numbers of its videos.

    Args:
        file: of the first process; others add their rank to its name.
    """

    def __init__(self, file: str) -> None:
        self._file, self._before = file, 0

    def on_train_batch_start(self, trainer: Any, *args: Any) -> None:
        self._before = trainer.global_step

    def on_train_batch_end(self, trainer: Any, module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        with Path(f"{self._file}{trainer.global_rank or ''}").open("a", encoding="utf-8") as file:
            print(trainer.current_epoch, self._before, *batch["index"].tolist(), file=file)
