"""Training and evaluation as a LightningModule: batches in, weights, metrics and score files out.

scoring_module.py     how a network is run, and scores whole videos
module.py             VideoClassifier: how it learns
schedule.py           the learning rate
freezing.py           which parameters learn
blocks.py             where a network divides
parameter_groups.py   how fast each parameter learns, and what decays
averaging.py          an average of the weights, which is evaluated and saved in their place
gradient_checkpoints.py   blocks computed again in the backward pass: memory for time
distillation.py       a trained network teaches another
losses.py             the loss of labels: weights of classes, focus
mixing.py             mixup and CutMix
precise_bn.py         statistics of batch norm over many batches
steps.py              steps that are not finite, and other troubles of a step
unreadable.py         videos that can't be read
results.py            one pass of evaluation: metrics, scores
checkpoint_block.py   what a checkpoint says of its network
run_folder.py         the files of a run
callbacks.py          checkpoints, a word on how to resume, the files of a run
lightning_parts.py    loggers and checkpoint files
"""

from octvideo.training.callbacks import ResumeHint, WriteScores, checkpoint_callbacks
from octvideo.training.module import VideoClassifier
from octvideo.training.run_folder import RunFolder
from octvideo.training.schedule import Schedule

__all__ = ["ResumeHint", "RunFolder", "Schedule", "VideoClassifier", "WriteScores", "checkpoint_callbacks"]
