"""One run, one folder: what lies in runs/<name>/, and how a run begins, continues or is found again.

runs/<name>/
  config.yaml          everything the run was started with
  checkpoints/         last.ckpt (every epoch, --checkpoint_minutes within), best.ckpt (where there is a validation set)
  metrics.csv          every logged number; events.out.tfevents.* are the same for TensorBoard
  scores.npz, predictions.csv, metrics_test.json     written by `test`
  unreadable.txt       videos that training or validation could not read; unreadable_test.txt: those of `test`
  predict/             scores.npz and predictions.csv, written by `predict`
"""

from __future__ import annotations

import csv
from dataclasses import dataclass
from pathlib import Path

from octvideo.errors import UserError
from octvideo.files import whole_text

# Only files that a run wrote itself are ever removed.
_WRITTEN = (
    "checkpoints/*.ckpt",
    "checkpoints/.*.ckpt.part",
    "metrics.csv",
    "config*.yaml",
    "events.out.tfevents.*",
    "scores.npz",
    "predictions.csv",
    "metrics_*.json",
    "unreadable*.txt",
    "predict/scores.npz",
    "predict/predictions.csv",
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
    def metrics_csv(self) -> Path:
        return self.path / "metrics.csv"

    def check_free(self, *, overwrite: bool) -> None:
        """Refuses a folder that holds a run, unless `overwrite`.

        Raises:
            UserError: it does.
        """
        if self.last.exists() and not overwrite:
            raise UserError(
                f"{self.path} already holds a run: add --resume to continue it, --name OTHER to train beside it, "
                "or --overwrite to replace it"
            )

    def start(self, *, overwrite: bool) -> None:
        """Makes sure that a new run mixes with nothing of an older one.

        Raises:
            UserError: the folder already holds a run and `overwrite` is off.
        """
        self.check_free(overwrite=overwrite)
        for file in [file for pattern in _WRITTEN for file in self.path.glob(pattern)]:
            file.unlink()

    def checkpoint(self, which: str) -> Path:
        """The checkpoint called "best" or "last".

        Raises:
            UserError: there is none, with what to do.
        """
        path = self.checkpoints / f"{which}.ckpt"
        if not path.exists():
            raise UserError(
                f"no {which} checkpoint: looked for {path}; train first (octvideo fit), or give --ckpt PATH "
                "or --name RUN"
            )
        return path

    def best_or_last(self) -> Path:
        """best.ckpt where validation chose one, else last.ckpt."""
        best = self.checkpoints / "best.ckpt"
        return best if best.exists() else self.checkpoint("last")

    def forget_after(self, step: int) -> None:
        """Drops rows of metrics.csv later than `step`: an interrupted epoch is trained, and logged, again."""
        if not self.metrics_csv.exists():
            return
        with self.metrics_csv.open(newline="", encoding="utf-8") as file:
            reader = csv.DictReader(file)
            names = list(reader.fieldnames or [])
            # A kill may have cut the last row short.
            rows = [row for row in reader if (row["step"] or "").isdecimal() and int(row["step"]) < step]
        if not rows:
            self.metrics_csv.unlink()
            return
        with whole_text(self.metrics_csv) as file:
            writer = csv.DictWriter(file, fieldnames=names)
            writer.writeheader()
            writer.writerows(rows)
