"""mixup and CutMix: clips of a batch are mixed in pairs, and their labels with them.

mixup (arXiv 1710.09412) adds pixels, CutMix (arXiv 1905.04899) puts a box of one clip into the other, in all frames.
The formulas are those of timm's Mixup for a whole batch, with the share corrected for boxes that the border cuts; but
partners are drawn, where timm takes the batch from behind. Draws come from torch's global generator.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from octvideo.errors import UserError

STEP = "step"  # seed_of(seed, epoch, batch, STEP, rank) is that of a training step: of mixing and dropout


@dataclass(frozen=True)
class Mix:
    """How one batch is mixed.

    Args:
        share: that a clip's own pixels and label keep.
        other: the partner of each clip, (N,).
        box: top, bottom, left and right of what comes from the partner; None adds all pixels.
    """

    share: float
    other: Tensor
    box: tuple[int, int, int, int] | None = None

    def clips(self, video: Tensor) -> Tensor:
        """uint8 (N, C, T, H, W) to mixed clips, float32, or uint8 where there is a box."""
        if self.box is None:
            return self.share * video.float() + (1 - self.share) * video[self.other].float()
        top, bottom, left, right = self.box
        clips = video.clone()
        clips[..., top:bottom, left:right] = video[self.other, ..., top:bottom, left:right]
        return clips

    def targets(self, targets: Tensor) -> Tensor:
        """One-hot targets (N, K) to soft ones."""
        return self.share * targets + (1 - self.share) * targets[self.other]


@dataclass(frozen=True)
class Mixing:
    """What batches are mixed by.

    Args:
        mixup_alpha: of the Beta distribution of shares; 0 is off.
        cutmix_alpha: likewise, of CutMix.
        prob: that a batch is mixed at all.
        switch_prob: that it is CutMix, where both are on.

    Raises:
        UserError: a value that can't be meant.
    """

    mixup_alpha: float = 0.0
    cutmix_alpha: float = 0.0
    prob: float = 1.0
    switch_prob: float = 0.5

    def __post_init__(self) -> None:
        for name in ("mixup_alpha", "cutmix_alpha"):
            if not 0 <= getattr(self, name) < math.inf:
                raise UserError(f"model.{name}: got {getattr(self, name)}, expected 0 or more")
        for name in ("prob", "switch_prob"):
            if not 0 <= getattr(self, name) <= 1:
                raise UserError(f"model.mix_{name}: got {getattr(self, name)}, expected 0 to 1")

    def draw(self, video: Tensor) -> Mix | None:
        """For a batch of clips (N, C, T, H, W); None is not mixed."""
        if not (self.mixup_alpha or self.cutmix_alpha) or (self.prob < 1 and float(torch.rand(())) >= self.prob):
            return None
        both = self.mixup_alpha > 0 and self.cutmix_alpha > 0
        cuts = float(torch.rand(())) < self.switch_prob if both else self.cutmix_alpha > 0
        alpha = torch.tensor(self.cutmix_alpha if cuts else self.mixup_alpha, dtype=torch.float32)
        share = float(torch.distributions.Beta(alpha, alpha).sample())
        other = torch.randperm(len(video), device=video.device)
        if not cuts:
            return Mix(share, other)
        height, width = video.shape[-2:]
        y, x = int(torch.randint(height, ())), int(torch.randint(width, ()))
        return cut_mix(share, other, height=height, width=width, y=y, x=x)


def cut_mix(share: float, other: Tensor, *, height: int, width: int, y: int, x: int) -> Mix:
    """CutMix with a box about a point, which the border may cut.

    Args:
        share: the box has 1 - share of the frame, before the border cuts it.
        other: the partner of each clip, (N,).
        height: of the frames.
        width: of the frames.
        y, x: middle of the box.

    Example:
        >>> mix = cut_mix(0.75, torch.tensor([1, 0]), height=8, width=8, y=0, x=4)
        >>> mix.box, mix.share
        ((0, 2, 2, 6), 0.875)
    """
    side = math.sqrt(1 - share)
    tall, wide = int(height * side), int(width * side)
    top, bottom = max(y - tall // 2, 0), min(y + (tall + 1) // 2, height)
    left, right = max(x - wide // 2, 0), min(x + (wide + 1) // 2, width)
    return Mix(1 - (bottom - top) * (right - left) / (height * width), other, (top, bottom, left, right))
