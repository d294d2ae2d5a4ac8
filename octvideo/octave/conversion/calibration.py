"""What `octavize` is asked to do with clips, and what it says of it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence, Sized
from dataclasses import dataclass, field, replace
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

# Low are the channels whose loss does least to the output, or that lose least themselves. The others are there to
# compare with: the last ones (as in networks that are to be trained), the first, at random, those that lose most.
Rule = Literal["output", "detail", "last", "first", "random", "worst"]
# Each class of values with the share that is asked for; or with shares by loss, for as many multiply-adds in all.
Spread = Literal["even", "budget"]
# What is fitted to the ordinary network; "weights" fits norms, too.
Refit = Literal["none", "norms", "weights"]
Watch = Callable[[str, Sequence[Any]], Iterable[Any]]


def _unwatched(step: str, parts: Sequence[Any]) -> Iterable[Any]:
    return parts


def _forgotten(state: dict[str, Any]) -> None:
    pass


@dataclass(frozen=True)
class Calibration:
    """Clips of the kind that the network will see, and what `octavize` does with them.

    Args:
        clips: what the network takes, each one call: (1, C, T, H, W), (1, C, H, W), or lists of pathways; or one Tensor
            (N, ...). Some 200 do; labels are not needed. They may lie on another device than the network, and have
            another floating-point type.
        choose: which channels are low: those whose loss does least to the output ("output"), or that lose least
            themselves ("detail"); "last", as without clips. "first", "random" and "worst" are there to compare with.
        spread: "even" gives every layer the share asked for; "budget" gives layers that lose less a larger one, for as
            many multiply-adds in all.
        refit: what is fitted to the ordinary network: "weights" and norms, "norms" alone, or "none".
        memory_bytes: of maps held at once while fitting; where all clips would take more, it is done on fewer.
        seed: of all that is drawn.
        watch: is given each step's name and parts, and passes the parts on: for progress.
        keep: is given all that is done so far, in types for torch.save, after each part.
        begun: what `keep` was given last in an interrupted call with the same arguments, to go on from.
    """

    clips: Sequence[Any] | Tensor
    choose: Rule = "output"
    spread: Spread = "even"
    refit: Refit = "weights"
    memory_bytes: int = 4 * 10**9
    seed: int = 0
    watch: Watch = _unwatched
    keep: Callable[[dict[str, Any]], None] = _forgotten
    begun: Mapping[str, Any] | None = None

    def __post_init__(self) -> None:
        for name, kind in (("choose", Rule), ("spread", Spread), ("refit", Refit)):
            value = getattr(self, name)
            if value not in (known := get_args(kind)):
                raise ValueError(f"calibration: {name} is {value!r}, expected {', '.join(map(repr, known))}")
        if not isinstance(self.clips, Sized):
            kind = type(self.clips).__name__
            raise ValueError(f"calibration: got clips of type {kind}, expected a list of inputs or one Tensor")
        if not len(self.clips):
            raise ValueError("calibration: got no clip, expected some 200 of the kind that the network will see")

    def on(self, model: nn.Module) -> Calibration:
        """The same with clips as this network takes them.

        Raises:
            ValueError: the network's weights or statistics hold NaN or infinity.
        """
        for name, value in model.state_dict().items():
            if not value.isfinite().all():
                raise ValueError(f"calibration: {name} of the network holds NaN or infinity, expected trained weights")
        like = next((parameter for parameter in model.parameters()), torch.zeros(()))
        return replace(self, clips=Calls(self.clips, like))

    def done(self, state: dict[str, Any], name: str, value: Any) -> None:
        """Keeps what is done of a step."""
        state[name] = value
        self.keep(state)


class Calls(Sequence[Any]):
    """Clips as a network takes them, made when they are asked for: with its device and type, and its own to change.

    Args:
        clips: of `Calibration`.
        like: a parameter of the network.
        indices: which of them; None is all.
    """

    def __init__(self, clips: Sequence[Any] | Tensor, like: Tensor, indices: Sequence[int] | None = None) -> None:
        self._clips, self._like = clips, like
        self._indices = range(len(clips)) if indices is None else indices

    def __len__(self) -> int:
        return len(self._indices)

    def __getitem__(self, place: Any) -> Any:
        """One clip.

        Raises:
            ValueError: it is no Tensor, nor a list of some, or holds integers, NaN or infinity.
        """
        index = self._indices[place]
        clip = self._clips[index : index + 1] if isinstance(self._clips, Tensor) else self._clips[index]
        return self._own(clip, index)

    def take(self, count: int) -> Calls:
        """So many, at even distances."""
        return Calls(self._clips, self._like, [self._indices[n * len(self) // count] for n in range(count)])

    def _own(self, clip: Any, index: int) -> Any:
        if isinstance(clip, list | tuple):
            return [self._own(part, index) for part in clip]
        if not isinstance(clip, Tensor) or not clip.is_floating_point():
            got = clip.dtype if isinstance(clip, Tensor) else type(clip).__name__
            raise ValueError(
                f"calibration: a clip holds {got}, expected what the network takes, floating point, no labels"
            )
        if not clip.isfinite().all():
            raise ValueError(f"calibration: clip {index} holds NaN or infinity")
        # Some networks change what they are given in place.
        return clip.detach().to(self._like.device, self._like.dtype, copy=True)


@dataclass
class ChannelLoss:
    """Of one class of values, summed over its values and over clips: vectors (C,), float64, by the ordinary network's
    channels.

    Args:
        detail: |x - up(pool x)|², the mean over positions.
        energy: |x - mean x|², likewise: what `detail` is a part of.
        output: what the loss does to the output, in squares of the output's spread.
    """

    detail: Tensor
    energy: Tensor
    output: Tensor


@dataclass
class CalibrationReport:
    """What `octavize` did with clips.

    Args:
        losses: of each class of values that has low channels, by the first convolution that writes it: what was
            measured, by the ordinary network's channels.
        shares: its low share.
        orders: for each place, the ordinary network's index of the channel that is there now; of the classes whose
            channels changed places.
        fitted: paths of the layers that were fitted, in order.
        num_fitted_on: clips.
    """

    losses: Mapping[str, ChannelLoss] = field(default_factory=dict)
    shares: Mapping[str, float] = field(default_factory=dict)
    orders: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    fitted: tuple[str, ...] = ()
    num_fitted_on: int = 0
