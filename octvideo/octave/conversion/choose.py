"""Which channels of a trained network are stored low: those that lose least, and how many of each layer."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from octvideo.octave.conversion.spectrum import ChannelLoss

# Low are the channels whose loss does least to the output, or that lose least themselves. The others are there to
# compare with: the last ones (as in networks that are to be trained), the first, at random, those that lose most.
Rule = Literal["output", "detail", "last", "first", "random", "worst"]
# Each class of values with the share that is asked for; or with shares by loss, for as many multiply-adds in all.
Spread = Literal["even", "budget"]

_VECTOR = 8  # channels that change sides at once: half a vector of float32, a whole one in 16 bits on a GPU
_MOST = 0.75  # of a class's channels


def channel_order(loss: ChannelLoss, rule: Rule, generator: torch.Generator) -> tuple[int, ...]:
    """The channels by the ordinary network's indices, those to be low first at the end."""
    count = len(loss.output)
    if rule in ("last", "first"):
        return tuple(range(count))[:: 1 if rule == "last" else -1]
    if rule == "random":
        return tuple(torch.randperm(count, generator=generator).tolist())
    by = loss.detail if rule == "detail" else loss.output
    return tuple(torch.argsort(by, descending=rule != "worst", stable=True).tolist())


@dataclass(frozen=True)
class ConvCost:
    """A convolution's multiply-adds, and whose channels it reads and writes.

    Args:
        multiply_adds: of the ordinary convolution.
        source, target: names of classes of values; None for values that stay ordinary.
        is_depthwise: it writes the channels it reads.
        low: elements of a low map over those of a high one: 1/4 where two axes are halved.
    """

    multiply_adds: int
    source: str | None
    target: str | None
    is_depthwise: bool = False
    low: float = 0.25

    def at(self, shares: Mapping[str, float]) -> float:
        """Multiply-adds at these low shares (Table 1 of arXiv 1904.05049, shares in and out apart)."""
        read, written = (0.0 if name is None else shares.get(name, 0.0) for name in (self.source, self.target))
        at_low = read if self.is_depthwise else 1 - (1 - read) * (1 - written)
        return self.multiply_adds * (1 - (1 - self.low) * at_low)


def spread_shares(
    costs: Iterable[ConvCost],
    losses: Mapping[str, Tensor],
    budget: float,
    *,
    fixed: Mapping[str, float],
    multiple: int = 1,
) -> dict[str, float]:
    """Low shares of each class: vectors of channels go low where they lose least for each multiply-add that they save,
    until the budget is kept.

    Args:
        costs: of all convolutions.
        losses: of each class, its channels' (C,).
        budget: multiply-adds of these convolutions.
        fixed: shares of other classes, which stay.
        multiple: of the channels of both parts.

    Returns:
        Shares of the classes of `losses`; all at their most where the budget is out of reach.
    """
    costs = list(costs)
    touched = {name: [cost for cost in costs if name in (cost.source, cost.target)] for name in losses}
    lost = {name: torch.cat([loss.new_zeros(1), loss.sort().values.cumsum(0)]) for name, loss in losses.items()}
    shares: dict[str, float] = {**fixed, **dict.fromkeys(losses, 0.0)}
    counts = dict.fromkeys(losses, 0)
    total = sum(cost.at(shares) for cost in costs)

    def gain(name: str, more: int) -> tuple[float, float]:
        """What `more` low channels save, and what each multiply-add saved loses."""
        count, size = counts[name], len(losses[name])
        before = sum(cost.at(shares) for cost in touched[name])
        after = sum(cost.at({**shares, name: (count + more) / size}) for cost in touched[name])
        price = float(lost[name][count + more] - lost[name][count])
        return before - after, price / max(before - after, 1e-9)

    while total > budget:
        moves = []
        for name, loss in losses.items():
            step = max(multiple, _VECTOR if len(loss) >= 4 * _VECTOR else max(1, len(loss) // 8))
            # A few vectors at once, too: the first ones save little where the other side of a layer is low already.
            for more in (step, 2 * step, 4 * step):
                if counts[name] + more <= _MOST * len(loss):
                    saved, price = gain(name, more)
                    moves.append((price, name, more, saved))
        if not moves:
            break
        _, name, more, saved = min(moves)
        counts[name] += more
        shares[name] = counts[name] / len(losses[name])
        total -= saved
    return {name: counts[name] / len(loss) for name, loss in losses.items()}
