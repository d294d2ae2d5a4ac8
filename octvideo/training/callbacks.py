"""What a run keeps and says: checkpoints that a resume can trust, and a word on how to resume."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Iterable
from datetime import timedelta
from enum import Enum
from pathlib import Path
from typing import Any, cast

import lightning as L
import yaml
from lightning.pytorch.callbacks import Callback, ModelCheckpoint, RichProgressBar
from lightning.pytorch.cli import SaveConfigCallback
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities.exceptions import SIGTERMException

from octvideo.evaluation.report import metrics_table
from octvideo.evaluation.scores import VideoScores
from octvideo.files import json_text, whole_text
from octvideo.training.module import STEP_LOSS, VideoClassifier, epoch_of
from octvideo.training.run_folder import RunFolder
from octvideo.training.unreadable import UnreadableVideos

log = logging.getLogger("octvideo.training")

# A default of Timer is an enum, for which YAML has no word.
yaml.SafeDumper.add_multi_representer(Enum, lambda dumper, enum: dumper.represent_data(enum.value))


def checkpoint_callbacks(
    folder: RunFolder, *, every_minutes: float | None = None, monitor: str = "val/top1"
) -> list[Callback]:
    """best.ckpt by a metric of validation, last.ckpt at the end of epochs, and within them every so many minutes.

    Args:
        folder: the run.
        every_minutes: also writes last.ckpt within epochs; None does not.
        monitor: the metric, greater being better.
    """
    common: dict[str, Any] = {
        "dirpath": folder.checkpoints,
        # Else a resumed run writes last-v1.ckpt beside the last.ckpt that it came from.
        "enable_version_counter": False,
    }
    callbacks: list[Callback] = [
        BestCheckpoint(**common, filename="best", monitor=monitor, mode="max", auto_insert_metric_name=False),
        # Not `save_last`: that writes a second copy of whatever top-k has just saved.
        RunCheckpoint(**common, filename="last", every_n_epochs=1, save_on_train_epoch_end=True),
    ]
    if every_minutes is not None:
        interval = timedelta(minutes=every_minutes) or timedelta.resolution  # Lightning 2.5 takes 0 for never
        callbacks.append(CheckpointWithinEpochs(**common, filename="last", train_time_interval=interval))
    return callbacks


class RunCheckpoint(ModelCheckpoint):
    """ModelCheckpoint of a run whose folder may be moved or renamed. Lightning's own forgets the best score then, and
    a worse epoch replaces best.ckpt.
    """

    def on_load_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        """Finds this run's files in what the checkpoint has for `load_state_dict`.

        Where best.ckpt is not among them, the best score starts anew and a line says so: the checkpoint is another
        run's, whose best.ckpt stays there, or the file is gone.
        """
        state = checkpoint["callbacks"].get(self.state_key)
        if state is None:  # written by an older version, or without --checkpoint_minutes
            return

        def here(path: str) -> str:
            return str(Path(str(self.dirpath), Path(path).name)) if path else ""

        best = {here(path): score for path, score in state["best_k_models"].items()}
        # Asked once for all processes: one that sees other files than the first would wait for it for ever.
        missing = trainer.strategy.broadcast([path for path in best if not Path(path).is_file()])
        if missing:
            if trainer.is_global_zero:
                was = f"{float(state['best_model_score']):.4g} ({state['best_model_path']})"
                log.warning("the best %s starts anew: it was %s, and there is no %s", self.monitor, was, missing[0])
            del checkpoint["callbacks"][self.state_key]
            return
        paths = {key: here(state[key]) for key in ("best_model_path", "kth_best_model_path", "last_model_path")}
        state.update(paths, best_k_models=best, dirpath=self.dirpath)


class BestCheckpoint(RunCheckpoint):
    """RunCheckpoint that rests where there is no validation; Lightning's own stops such a run with an
    error.
    """

    def _can_choose(self, trainer: L.Trainer) -> bool:
        return self.monitor in trainer.callback_metrics

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if self._can_choose(trainer):
            super().on_validation_end(trainer, pl_module)

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if self._can_choose(trainer):
            super().on_train_epoch_end(trainer, pl_module)


class CheckpointWithinEpochs(RunCheckpoint):
    """RunCheckpoint that saves where an optimiser step has just been made: gradients that wait for one are in no
    checkpoint, but what their batches have done to norms is.
    """

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        done = batch_idx + 1
        stepped = done % trainer.accumulate_grad_batches == 0
        # A run that is resumed after such a batch would skip its validation.
        validates = done == trainer.num_training_batches or done % (trainer.val_check_batch or float("inf")) == 0
        if stepped and not validates:
            super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)


def is_sigterm(error: BaseException) -> bool:
    """Whether SIGTERM raised it: sent to this process, or to its loading processes, as the end of a job is to all."""
    if isinstance(error, SIGTERMException) or "killed by signal: Terminated" in str(error):
        return True
    # Where a batch is waited for, torch's loader says only that the process is gone, and has the signal as its cause.
    return error.__cause__ is not None and is_sigterm(error.__cause__)


class ResumeHint(Callback):
    """Says, after Ctrl-C and SIGTERM, which checkpoint is kept and which command resumes it.

    Args:
        folder: the run.
        command: what the user typed.
    """

    def __init__(self, folder: RunFolder, command: str) -> None:
        self._last, self._command = folder.last, command

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        fitting = trainer.is_global_zero and trainer.state.fn == TrainerFn.FITTING
        if not fitting or not (isinstance(exception, KeyboardInterrupt) or is_sigterm(exception)):
            return
        if self._last.exists():
            hint = f"{self._last} is kept. Go on with:\n  {self._command}"
        else:
            hint = "No checkpoint yet, the first epoch was not over: start again."
        print(f"\nStopped in {epoch_of(trainer)}. {hint}", file=sys.stderr)


class SaveRunConfig(SaveConfigCallback):
    """Saves the config of a fit as config.yaml in the run's folder, and that of a later test as config_test.yaml.

    That of a fit is written once a checkpoint to go on from has been taken: where it is refused, the run's config stays
    as it was. With FSDP checkpoints are read later.
    """

    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
        if trainer.state.fn != TrainerFn.FITTING:
            super().setup(trainer, pl_module, stage)

    def on_fit_start(self, trainer: Any, pl_module: Any) -> None:
        super().setup(trainer, pl_module, "fit")

    def save_config(self, trainer: Any, pl_module: Any, stage: str) -> None:
        name = getattr(stage, "value", stage)  # an enum whose str() is its own name
        folder = Path(trainer.default_root_dir)
        folder.mkdir(parents=True, exist_ok=True)
        file = folder / ("config.yaml" if name == "fit" else f"config_{name}.yaml")
        with whole_text(file) as text:
            text.write(self.parser.dump(self.config, skip_none=False))


class ProgressBar(RichProgressBar):
    """Lightning's, which counts epochs from 0, with epochs from 1 as everything else here has them; and with the loss,
    read every `log_every_n_steps`. What is logged for the bar is read at every step, for which a GPU is waited for.
    """

    _loss: float | None = None

    def get_metrics(self, trainer: L.Trainer, pl_module: L.LightningModule) -> Any:
        """What stands behind the bar."""
        progress = trainer.fit_loop.epoch_loop.batch_progress
        is_logged = progress.current.ready % max(trainer.log_every_n_steps, 1) == 0  # type: ignore[attr-defined]
        if (self._loss is None or is_logged or progress.is_last_batch) and STEP_LOSS in trainer.callback_metrics:
            self._loss = float(trainer.callback_metrics[STEP_LOSS])
        loss = {} if self._loss is None else {STEP_LOSS: self._loss}
        return {**super().get_metrics(trainer, pl_module), **loss}

    def _get_train_description(self, current_epoch: int) -> str:
        # As wide as the word below it, or the bars jump.
        return f"{epoch_of(self.trainer).capitalize():{len(self.validation_description)}}"

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        super().on_train_start(trainer, pl_module)
        # Lightning leaves it out where it resumes within an epoch, and the bar with it.
        self.on_train_epoch_start(trainer, pl_module)
        if self.progress is not None and self.train_progress_bar_id is not None:
            self.progress.update(self.train_progress_bar_id, completed=trainer.fit_loop.batch_idx + 1)


class WriteUnreadable(Callback):
    """Lists the videos that could not be read: the first on the screen, all in files of the run folder.

    After a fit, also one that ended with an error, unreadable.txt has those of training and validation; after a test
    or a prediction it is unreadable_test.txt, unreadable_predict.txt.

    Args:
        folder: the run.
        write: a file, from its path and pairs of a video's path and the reason.
    """

    def __init__(self, folder: RunFolder, write: Callable[[Path, Iterable[tuple[str, str]]], object]) -> None:
        self._folder, self._write_list = folder.path, write

    def on_fit_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._report(trainer, "unreadable.txt", self._of_fit(pl_module))

    def _of_fit(self, pl_module: L.LightningModule) -> list[UnreadableVideos]:
        module = cast(VideoClassifier, pl_module)
        validation = module.evaluation.videos
        return [module.unreadable, *([validation] if validation.role == "validation" else [])]

    def on_test_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._report(trainer, "unreadable_test.txt", [cast(VideoClassifier, pl_module).evaluation.videos])

    def on_predict_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._report(trainer, "unreadable_predict.txt", [cast(VideoClassifier, pl_module).evaluation.videos])

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        # Other processes may be gone: only what this one knows. Where that is nothing, an older list stays.
        paths = _paths(self._of_fit(pl_module)) if trainer.state.fn == TrainerFn.FITTING else {}
        if paths and trainer.is_global_zero:
            self._write("unreadable.txt", paths)

    def _report(self, trainer: L.Trainer, name: str, found: list[UnreadableVideos]) -> None:
        for videos in found:
            videos.gather()  # on every process
        if not trainer.is_global_zero:
            return
        for summary in filter(None, (videos.summary() for videos in found)):
            print(summary)
        self._write(name, _paths(found))

    def _write(self, name: str, paths: dict[str, str]) -> None:
        file = self._folder / name
        if paths:
            self._write_list(file, paths.items())
            print(f"all of them: {file}")
        else:
            file.unlink(missing_ok=True)  # of an earlier run


def _protocol(trainer: L.Trainer) -> dict[str, Any]:
    """How a test was made, as far as it is known: views, decoder, the list's name, precision."""
    data: Any = getattr(trainer, "datamodule", None)
    views, sources = getattr(data, "view_settings", None), getattr(data, "sources", {})
    return {
        "views": None if views is None else views.as_dict(),
        "decoder": getattr(data, "decoder", None),
        "videos": sources.get("test"),
        "precision": str(trainer.precision),
    }


def _paths(found: list[UnreadableVideos]) -> dict[str, str]:
    return {path: reason for videos in found for path, reason in videos.paths.items()}


class WriteScores(Callback):
    """After a test: scores.npz, predictions.csv, metrics_test.json in the run folder, and a table.

    A prediction writes the first two into predict/ of the run folder, and leaves those of a test alone.

    Args:
        folder: the run.
    """

    def __init__(self, folder: RunFolder) -> None:
        self._folder = folder.path

    def on_test_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        scores = self._write(trainer, pl_module, self._folder)
        if not trainer.is_global_zero:
            return
        metrics = {k.removeprefix("test/"): float(v) for k, v in trainer.callback_metrics.items()}
        metrics["videos"] = len(scores.paths)
        file = self._folder / "metrics_test.json"
        content = {"checkpoint": str(trainer.ckpt_path), **metrics, "protocol": _protocol(trainer)}
        file.write_text(json_text(content, indent=2) + "\n")
        print(metrics_table(scores))
        if skipped := int(metrics.get("unreadable", 0)):
            print(f"{skipped} videos could not be read and are in none of these figures")
        print(f"written: {self._folder / 'scores.npz'}, predictions.csv, {file.name}")

    def on_predict_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._write(trainer, pl_module, self._folder / "predict")
        if trainer.is_global_zero:
            print(f"written: {self._folder / 'predict' / 'scores.npz'}, predictions.csv")

    def _write(self, trainer: L.Trainer, pl_module: L.LightningModule, folder: Path) -> VideoScores:
        scores = cast(VideoClassifier, pl_module).gather_scores()  # on every process
        if trainer.is_global_zero:
            folder.mkdir(parents=True, exist_ok=True)
            scores.save(folder / "scores.npz")
            scores.save_csv(folder / "predictions.csv")
        return scores
