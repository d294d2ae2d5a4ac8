"""One run, one folder: what lies in runs/<name>/, and how a run begins, continues or is found again.

runs/<name>/
  config.yaml          everything the run was started with
  checkpoints/         last.ckpt (every epoch), best.ckpt (where there is a validation set)
  metrics.csv          every logged number; events.out.tfevents.* are the same for TensorBoard
  scores.npz, predictions.csv, metrics_test.json     written by `test`
"""

from __future__ import annotations

import csv
from dataclasses import dataclass
from pathlib import Path

from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.loggers.csv_logs import ExperimentWriter

from octvideo.errors import UserError

# Only files that a run wrote itself are ever removed.
_WRITTEN = (
    "checkpoints/*.ckpt",
    "metrics.csv",
    "config*.yaml",
    "events.out.tfevents.*",
    "scores.npz",
    "predictions.csv",
    "metrics_*.json",
)


@dataclass(frozen=True)
class RunFolder:
    """The files of one run.

    Args:
        path: runs/<name>.
    """

    path: Path

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    @property
    def last(self) -> Path:
        return self.checkpoints / "last.ckpt"

    @property
    def best(self) -> Path:
        return self.checkpoints / "best.ckpt"

    @property
    def metrics_csv(self) -> Path:
        return self.path / "metrics.csv"

    def start(self, *, overwrite: bool) -> None:
        """Makes sure that a new run mixes with nothing of an older one.

        Raises:
            UserError: the folder already holds a run and `overwrite` is off.
        """
        held = [file for pattern in _WRITTEN for file in self.path.glob(pattern)]
        if self.last.exists() and not overwrite:
            raise UserError(
                f"{self.path} already holds a run: add --resume to continue it, --name OTHER to train "
                "beside it, "
                "or --overwrite to replace it"
            )
        for file in held:
            file.unlink()

    def checkpoint(self, which: str) -> Path:
        """The checkpoint called "best" or "last".

        Raises:
            UserError: there is none, with what to do.
        """
        path = {"best": self.best, "last": self.last}[which]
        if not path.exists():
            raise UserError(
                f"no {which} checkpoint: looked for {path}; train first (octvideo fit), or give --ckpt PATH "
                "or --name RUN"
            )
        return path

    def best_or_last(self) -> Path:
        """best.ckpt where validation chose one, else last.ckpt."""
        return self.best if self.best.exists() else self.checkpoint("last")

    def forget_after(self, step: int) -> None:
        """Drops rows of metrics.csv later than `step`: an interrupted epoch is trained, and logged, again."""
        if not self.metrics_csv.exists():
            return
        with self.metrics_csv.open(newline="") as file:
            reader = csv.DictReader(file)
            names = list(reader.fieldnames or [])
            rows = [row for row in reader if int(row["step"] or 0) < step]
        if not rows:
            self.metrics_csv.unlink()
            return
        with self.metrics_csv.open("w", newline="") as file:
            writer = csv.DictWriter(file, fieldnames=names)
            writer.writeheader()
            writer.writerows(rows)


class _AppendingWriter(ExperimentWriter):
    """Goes on with the metrics.csv that is there; Lightning's own deletes it, and with it the curves of a
    resumed run.
    """

    def _check_log_dir_exists(self) -> None:
        path = Path(self.metrics_file_path)
        if path.exists():
            with path.open(newline="") as file:
                self.metrics_keys = list(csv.DictReader(file).fieldnames or [])


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
