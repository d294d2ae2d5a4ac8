"""The learning rate as a pure function of the position in training.

Lightning's scheduler objects carry state, and asking for the number of steps up front drops the loader's
place on resume (lightning#20550). A function of the epoch (with its fraction) has nothing to save and can't
disagree with a checkpoint.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import lightning as L

from octvideo.errors import UserError

ScheduleName = Literal["cosine", "step", "constant"]


@dataclass(frozen=True)
class Schedule:
    """Factor on the base learning rate, from the epoch.

    Args:
        name: "cosine" falls to 0 at the last epoch, "step" multiplies by `gamma` at each milestone.
        warmup_epochs: rises linearly from nearly 0 for so long; may be a fraction.
        milestones: epochs at which "step" steps; may be fractions.
        gamma: factor of a step.

    Raises:
        UserError: for values that can't be meant.

    Example:
        >>> Schedule("step", milestones=(2.0, 3.0), gamma=0.1).factor(2.5, total_epochs=4)
        0.1
    """

    name: ScheduleName = "cosine"
    warmup_epochs: float = 0.0
    milestones: tuple[float, ...] = ()
    gamma: float = 0.1

    def __post_init__(self) -> None:
        if self.name not in ("cosine", "step", "constant"):
            raise UserError(f"schedule: got {self.name!r}, expected 'cosine', 'step' or 'constant'")
        if self.warmup_epochs < 0:
            raise UserError(f"warmup_epochs: got {self.warmup_epochs}, expected 0 or more")
        if list(self.milestones) != sorted(self.milestones):
            raise UserError(f"milestones: got {list(self.milestones)}, expected rising epochs")
        if self.name == "step" and not self.milestones:
            raise UserError("schedule 'step' has no milestones: give the epochs to step at, such as [40, 67]")
        if self.name != "step" and self.milestones:
            raise UserError(f"milestones are for schedule 'step', got schedule {self.name!r}: leave them out")

    def factor(self, epoch: float, *, total_epochs: float) -> float:
        """The factor at `epoch`, which counts finished epochs and the finished share of the running one."""
        if epoch < self.warmup_epochs:
            # Never exactly 0: the first step of training should move.
            return max(epoch / self.warmup_epochs, 1e-3)
        if self.name == "constant":
            return 1.0
        if self.name == "step":
            return math.prod(self.gamma for milestone in self.milestones if epoch >= milestone)
        # The cosine spans what is left after the warm-up, as in PyTorch's SequentialLR recipes.
        span = max(total_epochs - self.warmup_epochs, 1e-9)
        return 0.5 * (1.0 + math.cos(math.pi * min((epoch - self.warmup_epochs) / span, 1.0)))


def place_in_training(trainer: L.Trainer, batch_idx: int) -> tuple[float, float]:
    """Where the step of a batch lies, for `Schedule`: finished epochs with the finished share of the running one, and
    their total.
    """
    window = trainer.accumulate_grad_batches
    # The place counts optimizer steps; the last window of an epoch makes one too, however many batches it has.
    per_epoch = max(math.ceil(trainer.num_training_batches / window), 1)
    epoch = trainer.current_epoch + batch_idx // window / per_epoch
    ends = [float(trainer.max_epochs)] if trainer.max_epochs not in (None, -1) else []  # type: ignore[arg-type]
    if trainer.max_steps not in (None, -1):
        ends.append(epoch + (trainer.max_steps - trainer.global_step) / per_epoch)
    return epoch, min(ends, default=epoch + 1)
