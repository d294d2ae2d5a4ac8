"""Training and evaluation as a LightningModule: batches in, weights, metrics and score files out."""

from octvideo.training.callbacks import ResumeHint, WriteScores, checkpoint_callbacks
from octvideo.training.module import VideoClassifier
from octvideo.training.run_folder import RunFolder
from octvideo.training.schedule import Schedule

__all__ = ["ResumeHint", "RunFolder", "Schedule", "VideoClassifier", "WriteScores", "checkpoint_callbacks"]
