"""Ways to convert a network, and what to measure first."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from lab.probes.networks import ImageNetwork
from octvideo.octave import OctaveNetwork, octavize
from octvideo.octave.conversion.calibration import Calibration, Refit, Rule, Spread


@dataclass(frozen=True)
class Arm:
    """One way to convert a network.

    Args:
        alpha: low share of the stages.
        choose, refit, spread: of Calibration.
    """

    alpha: float
    choose: Rule = "output"
    refit: Refit = "weights"
    spread: Spread = "even"

    @property
    def key(self) -> str:
        """Its name in files."""
        return " ".join(map(str, asdict(self).values()))


Part = Literal["alphas", "choices", "steps", "spread"]
PARTS: tuple[Part, ...] = get_args(Part)
_CHOICES: tuple[Rule, ...] = ("output", "last", "first", "random", "worst", "detail")
ARMS: Mapping[Part, tuple[Arm, ...]] = {
    "alphas": tuple(Arm(alpha) for alpha in (0.25, 0.5, 0.125)),
    "choices": (
        *(Arm(0.25, choose, "none") for choose in _CHOICES),
        *(Arm(0.25, choose) for choose in _CHOICES),
    ),
    "steps": tuple(Arm(alpha, refit=refit) for alpha in (0.5, 0.25) for refit in ("none", "norms", "weights")),
    "spread": tuple(Arm(alpha, spread="budget") for alpha in (0.5, 0.25)),
}


def convert(
    network: nn.Module,
    like: ImageNetwork,
    arm: Arm,
    clips: list[Tensor],
    *,
    seed: int,
    spectrum: Any = None,
    keep: Callable[[dict[str, Any]], None] = lambda _: None,
) -> OctaveNetwork:
    """An octave network that has seen no label.

    Args:
        network: the ordinary one.
        like: which of its stages.
        arm: how.
        clips: to calibrate on, as the network takes them.
        seed: of all draws.
        spectrum: measured before, on the same clips.
        keep: of Calibration.
    """
    begun = None if spectrum is None else {"spectrum": spectrum}
    calibration = Calibration(
        clips, choose=arm.choose, spread=arm.spread, refit=arm.refit, seed=seed, keep=keep, begun=begun
    )
    return octavize(
        network,
        like.alpha(arm.alpha),
        octave_downsample="keep",
        inverted_residuals="all",
        calibration=calibration,
    )


def draw_clips(frames: Tensor, among: Tensor, count: int, like: ImageNetwork, *, seed: int) -> list[Tensor]:
    """Clips to calibrate on. Of networks of frames it is the middle frame: two of half as many clips tell less.

    Args:
        frames: uint8 (N, T, 3, H, W).
        among: indices of clips that may be taken.
        count: of clips to take.
        like: what takes them.
        seed: of the draw.

    Returns:
        Inputs of the network.
    """
    taken = among[torch.randperm(len(among), generator=torch.Generator().manual_seed(seed))[:count]]
    middle = frames.shape[1] // 2
    return [like.clip(clip if like.inflate else clip[[middle]]) for clip in frames[taken]]
