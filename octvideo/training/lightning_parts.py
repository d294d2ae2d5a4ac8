"""Lightning's parts, changed where they do not fit: loggers that a resumed run continues, one file each in the run
folder; checkpoints that are whole or not there; hints left out; the end of a run of several processes.
"""

from __future__ import annotations

import csv
import importlib
import inspect
import logging
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from lightning.pytorch.loggers.csv_logs import ExperimentWriter
from lightning.pytorch.plugins.io import TorchCheckpointIO
from lightning.pytorch.plugins.layer_sync import LayerSync
from lightning.pytorch.utilities.rank_zero import rank_zero_only
from torch import distributed, nn

from octvideo.files import whole_file
from octvideo.training.run_folder import RunFolder

# Lightning's own loggers require a `save_dir`. A default here tells a `save_dir` that was given from one that was not.
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
    """Continues the metrics.csv that is there; Lightning's own deletes it, and with it the curves of a resumed run."""

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


class WholeFiles(TorchCheckpointIO):
    """Writes a checkpoint beside the one that it replaces, and renames it when it is complete.

    Lightning's own writes to the system's temporary folder and then moves: where that is another file system, the move
    is a copy over the old checkpoint, and a run that is killed meanwhile has neither.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        """Writes `path`, with its folder."""
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        with whole_file(path, to_disk=True) as part, part.open("wb") as file:
            torch.save(checkpoint, file)


_HINTS = (
    ".*does not have many workers.*",
    ".*The `srun` command is available.*",
    ".*is smaller than the logging interval.*",
    ".*treespec.*is deprecated.*",
    ".*isinstance.treespec, LeafSpec.*",
    ".*predict returned None.*",
    ".*You are using a custom batch sampler.*",
    ".*in eval mode at the start of training.*",  # what is frozen is in eval mode
    ".*exists and is not empty.*",  # the checkpoints of a resumed run
    ".*Total length of `list` across ranks is zero.*",  # no validation set
    ".*callbacks used to create the checkpoint need to be provided.*",
)


def quiet_lightning() -> None:
    """Drops Lightning's advertisements, and hints that a user of the tools can do nothing about."""
    logger = logging.getLogger("lightning.pytorch.utilities.rank_zero")
    logger.addFilter(lambda record: "Tip:" not in record.getMessage())
    for message in _HINTS:
        warnings.filterwarnings("ignore", message=message)


def leave_process_group() -> None:
    """Ends the connections between the processes of a run that has ended.

    Lightning leaves Gloo's threads (NCCL's it ends) to the end of the process, when Python is gone. A finished run was
    once seen to die there: "terminate called without an active exception", exit code 134. Not with torch 2.6, whose
    Gloo may wait for ever here.
    """
    if distributed.is_available() and distributed.is_initialized() and not torch.__version__.startswith("2.6."):
        distributed.destroy_process_group()


class KeepNorms(LayerSync):
    """Stands where `--trainer.sync_batchnorm` is asked for, and leaves the model's norms as they are: Lightning's
    SyncBatchNorm knows no octave layers, and `VideoClassifier` synchronises norms by itself.
    """

    def apply(self, model: nn.Module) -> nn.Module:
        """The model."""
        return model

    def revert(self, model: nn.Module) -> nn.Module:
        """The model."""
        return model
