"""metrics.csv and TensorBoard's events of a run: one file each in the run folder, that a resumed run goes on with; and
a place in that folder for other loggers."""

from __future__ import annotations

import csv
import importlib
import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from lightning.pytorch.loggers.csv_logs import ExperimentWriter
from lightning.pytorch.utilities.rank_zero import rank_zero_only

from octvideo.training.run_folder import RunFolder

# Lightning's own loggers want a `save_dir`, others don't: here all are told apart from a given one by their default.
for _init in (CSVLogger.__init__, TensorBoardLogger.__init__):
    _signature = inspect.signature(_init)
    _parameters = [p.replace(default=".") if p.name == "save_dir" else p for p in _signature.parameters.values()]
    _init.__signature__ = _signature.replace(parameters=_parameters)  # type: ignore[attr-defined, union-attr]


def save_in(folder: RunFolder, class_path: str, init_args: Any) -> None:
    """Gives a logger that is to be built, and was given no `save_dir`, its place in a run's folder.

    Args:
        folder: the run.
        class_path: of the logger.
        init_args: by name, its arguments, which are changed.
    """
    module, _, name = class_path.rpartition(".")
    init: Callable[..., None] = getattr(importlib.import_module(module), name).__init__
    default = getattr(inspect.signature(init).parameters.get("save_dir"), "default", None)
    if isinstance(default, str) and init_args["save_dir"] == default:
        init_args["save_dir"] = str(folder.path / default)


class _AppendingWriter(ExperimentWriter):
    """Goes on with the metrics.csv that is there; Lightning's own deletes it, and with it the curves of a
    resumed run.
    """

    def _check_log_dir_exists(self) -> None:
        path = Path(self.metrics_file_path)
        if path.exists():
            with path.open(newline="", encoding="utf-8") as file:
                self.metrics_keys = list(csv.DictReader(file).fieldnames or [])

    def save(self) -> None:
        """Without Lightning's hparams.yaml, which is empty here: config.yaml has everything."""
        super(ExperimentWriter, self).save()


class RunCSVLogger(CSVLogger):
    """Lightning's CSVLogger for a run folder: appends on resume, and writes at every logged step so a kill
    loses none.
    """

    def __init__(self, folder: RunFolder) -> None:
        super().__init__(folder.path.parent, name=folder.path.name, version="", flush_logs_every_n_steps=1)
        self._folder = folder
        self._writer: _AppendingWriter | None = None

    @property
    def experiment(self) -> ExperimentWriter:
        # Set lazily, as Lightning's own does: only the first rank ever asks.
        if self._writer is None:
            self._folder.path.mkdir(parents=True, exist_ok=True)
            self._writer = _AppendingWriter(str(self._folder.path))
            self._experiment = self._writer
        return self._writer


class RunBoardLogger(TensorBoardLogger):
    """Lightning's TensorBoardLogger for a run folder.

    Args:
        folder: the run.
        first_step: of a resumed run; what an interrupted epoch had logged after it is hidden.
    """

    def __init__(self, folder: RunFolder, *, first_step: int) -> None:
        super().__init__(folder.path.parent, name=folder.path.name, version="", purge_step=first_step or None)

    @rank_zero_only
    def save(self) -> None:
        """Without Lightning's hparams.yaml."""
        self.experiment.flush()
