"""Which channels of a trained network are stored low: measured, chosen, and moved to the end of their layers."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn

from octvideo.octave.conversion.calibration import Calibration, CalibrationReport, ChannelLoss, Rule
from octvideo.octave.conversion.reorder import ChannelOrders, can_reorder
from octvideo.octave.conversion.roles import Network
from octvideo.octave.conversion.solve import PartitionSolver, Solution
from octvideo.octave.conversion.spectrum import Spectrum, measure_spectrum
from octvideo.octave.conversion.value_classes import Shares, ValueClass
from octvideo.octave.conversion.walk import in_eval, tensors_of
from octvideo.octave.factor import as_factor
from octvideo.octave.partition import Partition

_ROUNDING = 1e-3  # of outputs, before and after channels change places: sums run in another order
_VECTOR = 8  # channels that change sides at once: half a vector of float32, a whole one in 16 bits on a GPU
_MOST = 0.75  # of a class's channels, where less is asked for


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
    even: Mapping[str, float],
    multiple: int = 1,
) -> dict[str, float]:
    """Low shares of each class: vectors of channels go low where they lose least for each multiply-add that they save,
    until the budget is kept.

    Args:
        costs: of all convolutions.
        losses: of each class, its channels' (C,).
        budget: multiply-adds of these convolutions, no less than at `even`.
        fixed: shares of other classes, which stay.
        even: shares of each class that keep the budget.
        multiple: of the channels of both parts.

    Returns:
        Shares of the classes of `losses`.
    """
    costs = list(costs)
    touched = {name: [cost for cost in costs if name in (cost.source, cost.target)] for name in losses}
    lost = {name: torch.cat([loss.new_zeros(1), loss.sort().values.cumsum(0)]) for name, loss in losses.items()}
    shares: dict[str, float] = {**fixed, **dict.fromkeys(losses, 0.0)}
    counts = dict.fromkeys(losses, 0)
    # With as many as of the even shares, so that the budget is in reach.
    most = {name: max(int(_MOST * len(loss)), round(even[name] * len(loss))) for name, loss in losses.items()}
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
            step = _VECTOR if len(loss) >= 4 * _VECTOR else max(1, len(loss) // 8)
            step = -(-step // multiple) * multiple
            # A few vectors at once, too: the first ones save little where the other side of a layer is low already.
            for more in (step, 2 * step, 4 * step):
                if counts[name] + more <= most[name]:
                    saved, price = gain(name, more)
                    moves.append((price, name, more, saved))
            left = most[name] - counts[name]
            if 0 < left < step and most[name] > _MOST * len(loss):
                saved, price = gain(name, left)
                moves.append((price, name, left, saved))
        if not moves:
            break
        _, name, more, saved = min(moves)
        counts[name] += more
        shares[name] = counts[name] / len(losses[name])
        total -= saved
    return {name: counts[name] / len(loss) for name, loss in losses.items()}


class ChannelChooser:
    """Goes through the steps for one network.

    Args:
        calibration: what to do.
        model: a private copy of the ordinary network, whose weights may change places.
        traced: its graph.
        wanted: the low share that each convolution should have.
        channel_multiple: of channels that both parts should be.
        state: what is done, filled.

    Attributes:
        report: what was done.
    """

    def __init__(
        self,
        calibration: Calibration,
        model: nn.Module,
        traced: Network,
        wanted: Shares,
        channel_multiple: int,
        state: dict[str, Any],
    ) -> None:
        self.calibration, self.model, self.traced = calibration, model, traced
        self._state = state
        self._multiple = channel_multiple
        solver = PartitionSolver(traced, wanted, channel_multiple)
        solution = solver.solve()
        self._classes, self._wanted = solver.classes, wanted
        # Classes with low channels that may change places, and those that may not, by name.
        self._groups, self._fixed = self._sort(solution)
        self.report = CalibrationReport()

    def choose(self) -> dict[str, float]:
        """Measures, chooses and reorders `model`'s channels; returns the low share of each convolution."""
        if not self._groups:
            return self._asked_for()
        with in_eval(self.model):  # in training, norms would take their statistics from one clip
            return self._choose()

    def shares_of(self, solution: Solution) -> dict[str, float]:
        """What became of the shares that `choose` gave, rounded."""
        partitions = {name: solution.partition(group.nodes[0]) for name, (group, _) in self._groups.items()}
        return {name: 0.0 if partition is None else partition.alpha for name, partition in partitions.items()}

    # -- steps -----------------------------------------------------------------------------------------------

    def _choose(self) -> dict[str, float]:
        calibration = self.calibration
        spectrum = self._measure()
        generator = torch.Generator().manual_seed(calibration.seed)
        orders = {name: channel_order(spectrum.losses[name], calibration.choose, generator) for name in self._groups}
        even = {name: partition.alpha for name, (_, partition) in self._groups.items()}
        shares = even if calibration.spread == "even" else self._spread(spectrum, even)
        self.report.orders = {} if calibration.choose == "last" else self._reorder(orders)
        self.report.losses = {name: spectrum.losses[name] for name in self._groups}
        wanted = {**self._asked_for(), **self._by_conv(shares)}
        chosen = {"shares": wanted, "orders": self.report.orders}
        if self._state.get("chosen") != chosen:  # what was fitted fits other channels
            self._state.pop("fitted", None)
        self._state["chosen"] = chosen
        return wanted

    def _measure(self) -> Spectrum:
        begun = self._state.get("spectrum")
        return measure_spectrum(
            self.model,
            self.traced,
            {name: group.nodes for name, (group, _) in self._groups.items()},
            self.calibration.clips,  # type: ignore[arg-type]  # of `on`
            begun=None if begun is None else Spectrum.of_state(begun),
            seed=self.calibration.seed,
            watch=lambda indices: self.calibration.watch("measuring channels", indices),
            keep=lambda spectrum: self.calibration.done(self._state, "spectrum", spectrum.state()),
        )

    def _spread(self, spectrum: Spectrum, even: Mapping[str, float]) -> dict[str, float]:
        names = {id(group): name for name, (group, _) in [*self._groups.items(), *self._fixed.items()]}
        fixed = {name: partition.alpha for name, (_, partition) in self._fixed.items()}
        costs = []
        for path, multiply_adds in spectrum.multiply_adds.items():
            node = next(node for node in self._classes.nodes if node.target == path)
            is_conv = self._classes.roles[node] == "conv"
            axes = len(self._classes.network.modules[path].kernel_size)  # type: ignore[arg-type]
            costs.append(
                ConvCost(
                    multiply_adds,
                    names.get(id(self._classes[node.all_input_nodes[0]])),
                    names.get(id(self._classes[node])),
                    is_conv and self._classes.is_depthwise(node),
                    1 / math.prod(as_factor(self.traced.factor, axes)),
                )
            )
        budget = sum(cost.at({**fixed, **even}) for cost in costs)
        losses = {name: spectrum.losses[name].output for name in self._groups}
        return spread_shares(costs, losses, budget, fixed=fixed, even=even, multiple=self._multiple)

    def _reorder(self, orders: dict[str, tuple[int, ...]]) -> dict[str, tuple[int, ...]]:
        """Gives channels their new places; returns the orders of classes for which that kept the function."""
        before = copy.deepcopy(self.model.state_dict())
        expected = self._outputs()

        def keeps(names: Iterable[str]) -> bool:
            self.model.load_state_dict(before)
            try:
                nodes = {self._groups[name][0].nodes[0]: orders[name] for name in names}
                ChannelOrders(self._classes, nodes).apply()
            except ValueError:
                return False
            return torch.allclose(self._outputs(), expected, rtol=0, atol=_ROUNDING * float(expected.abs().max()))

        kept = list(orders)
        if not keeps(kept):
            kept = [name for name in orders if keeps([name])]
            if not keeps(kept):
                self.model.load_state_dict(before)
                kept = []
        return {name: orders[name] for name in kept}

    # -- details ---------------------------------------------------------------------------------------------

    def _sort(self, solution: Solution) -> tuple[dict[str, tuple[ValueClass, Partition]], ...]:
        """Classes with low channels whose channels may change places, and the others, by their first convolution."""
        free: dict[str, tuple[ValueClass, Partition]] = {}
        tied: dict[str, tuple[ValueClass, Partition]] = {}
        for group in self._classes.all():
            partition = solution.partition(group.nodes[0])
            if partition is None:
                continue
            name = str(group.convs[0].target) if group.convs else group.derived[0].name
            (free if group.convs and can_reorder(group, self._classes) else tied)[name] = group, partition
        return free, tied

    def _asked_for(self) -> dict[str, float]:
        """The shares that were asked for, by convolution."""
        nodes = [node for node in self._classes.nodes if self._classes.roles[node] == "conv"]
        shares = {str(node.target): self._wanted(node) for node in nodes if not self._classes.is_depthwise(node)}
        return {path: share for path, share in shares.items() if share > 0}

    def _by_conv(self, shares: Mapping[str, float]) -> dict[str, float]:
        return {str(conv.target): share for name, share in shares.items() for conv in self._groups[name][0].convs}

    def _outputs(self) -> Tensor:
        with torch.no_grad():
            output = fx.Interpreter(self.model, graph=self.traced.graph).run(self.calibration.clips[0])
        return torch.cat([x.flatten() for x in tensors_of(output)])
