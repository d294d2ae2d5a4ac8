"""metrics.csv and TensorBoard's events of a run: one file each in the run folder, that a resumed run goes on with."""

from __future__ import annotations

import csv
from pathlib import Path

from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from lightning.pytorch.loggers.csv_logs import ExperimentWriter
from lightning.pytorch.utilities.rank_zero import rank_zero_only

from octvideo.training.run_folder import RunFolder


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
