"""A trained network's way to an octave one: measure, choose, reorder; and, once it is converted, fit.

`octavize` goes it where it is given clips. Nothing here needs labels.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, get_args

import torch
from torch import Tensor, fx, nn

from octvideo.octave.conversion.choose import ConvCost, Rule, Spread, channel_order, spread_shares
from octvideo.octave.conversion.refit import Refit, refit
from octvideo.octave.conversion.reorder import ChannelOrders, can_reorder
from octvideo.octave.conversion.report import CalibrationReport
from octvideo.octave.conversion.roles import Network
from octvideo.octave.conversion.solve import PartitionSolver, Solution
from octvideo.octave.conversion.spectrum import Spectrum, measure_spectrum
from octvideo.octave.conversion.value_classes import Shares, ValueClass
from octvideo.octave.conversion.walk import Walk, tensors_of
from octvideo.octave.factor import as_factor
from octvideo.octave.partition import Partition

Watch = Callable[[str, Sequence[Any]], Iterable[Any]]
# Of outputs, before and after channels change places: sums in another order differ by rounding alone.
_ROUNDING = 1e-3


def _unwatched(step: str, parts: Sequence[Any]) -> Iterable[Any]:
    return parts


def _forgotten(state: dict[str, Any]) -> None:
    pass


@dataclass(frozen=True)
class Calibration:
    """Clips of the kind that the network will see, and what `octavize` does with them.

    Args:
        clips: what the network takes, each one call: (1, C, T, H, W), (1, C, H, W), or lists of pathways; or one Tensor
            (N, ...). Some 200 do; labels are not needed.
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
        if not len(self.clips):
            raise ValueError("calibration: got no clip, expected some 200 of the kind that the network will see")


class Calibrator:
    """Goes through the steps for one network.

    Args:
        calibration: what to do.
        model: a private copy of the ordinary network, whose weights may change places.
        traced: its graph.
        wanted: the low share that each convolution should have.
        channel_multiple: of channels that both parts should be.
    """

    def __init__(
        self, calibration: Calibration, model: nn.Module, traced: Network, wanted: Shares, channel_multiple: int
    ) -> None:
        self.calibration, self.model, self.traced = calibration, model, traced
        clips = calibration.clips
        self.clips: Sequence[Any] = clips.split(1) if isinstance(clips, Tensor) else clips
        self._state: dict[str, Any] = dict(calibration.begun or {})
        self._multiple = channel_multiple
        solver = PartitionSolver(traced, wanted, channel_multiple)
        solution = solver.solve()
        self._classes, self._wanted = solver.classes, wanted
        # Classes with low channels that may change places, and those that may not, by name.
        self._groups, self._fixed = self._sort(solution)
        self._teacher: fx.GraphModule | None = None
        self.report = CalibrationReport()

    def choose(self) -> dict[str, float]:
        """Measures, chooses and reorders `model`'s channels; returns the low share of each convolution."""
        calibration = self.calibration
        if not self._groups:
            return self._asked_for()
        spectrum = self._measure()
        generator = torch.Generator().manual_seed(calibration.seed)
        orders = {name: channel_order(spectrum.losses[name], calibration.choose, generator) for name in self._groups}
        even = {name: partition.alpha for name, (_, partition) in self._groups.items()}
        shares = even if calibration.spread == "even" else self._spread(spectrum, even)
        if calibration.choose != "last":
            orders = self._reorder(orders)
        self.report.losses, self.report.shares, self.report.orders = spectrum.losses, shares, orders
        return {**self._asked_for(), **self._by_conv(shares)}

    def keep_ordinary(self) -> None:
        """Keeps the ordinary network, its channels in their new places, from before it is converted."""
        if self.calibration.refit != "none":
            self._teacher = fx.GraphModule(copy.deepcopy(self.model), copy.deepcopy(self.traced.graph)).eval()

    def fit(self, network: fx.GraphModule) -> None:
        """Fits the octave network that was made of `model`."""
        calibration = self.calibration
        if calibration.refit == "none":
            return
        assert self._teacher is not None
        modes = [(module, module.training) for module in network.modules()]
        network.eval()
        clips = self._clips_that_fit(network)
        self.report.num_fitted_on = len(clips)
        try:
            fitted = refit(
                network,
                self._teacher,
                clips,
                calibration.refit,
                factor=self.traced.factor,
                seed=calibration.seed,
                begun=self._state.get("fitted"),
                watch=lambda layers: calibration.watch("fitting layers", layers),
                keep=lambda done: self._keep("fitted", done),
            )
        finally:
            for module, training in modes:
                module.training = training
        self.report.fitted = tuple(fitted)

    # -- steps -----------------------------------------------------------------------------------------------

    def _measure(self) -> Spectrum:
        begun = self._state.get("spectrum")
        return measure_spectrum(
            self.model,
            self.traced,
            {name: group for name, (group, _) in self._groups.items()},
            self.clips,
            begun=None if begun is None else Spectrum.of_state(begun),
            seed=self.calibration.seed,
            watch=lambda indices: self.calibration.watch("measuring channels", indices),
            keep=lambda spectrum: self._keep("spectrum", spectrum.state()),
        )

    def _spread(self, spectrum: Spectrum, even: Mapping[str, float]) -> dict[str, float]:
        names = {id(group): name for name, (group, _) in [*self._groups.items(), *self._fixed.items()]}
        fixed = {name: partition.alpha for name, (_, partition) in self._fixed.items()}
        costs = []
        for path, multiply_adds in spectrum.multiply_adds.items():
            node = next(node for node in self._classes.nodes if node.target == path)
            is_conv = self._classes.roles[node] == "conv"
            low = 1.0
            for f in as_factor(self.traced.factor, len(self._classes.network.modules[path].kernel_size)):  # type: ignore
                low /= f
            costs.append(
                ConvCost(
                    multiply_adds,
                    names.get(id(self._classes[node.all_input_nodes[0]])),
                    names.get(id(self._classes[node])),
                    is_conv and self._classes.is_depthwise(node),
                    low,
                )
            )
        budget = sum(cost.at({**fixed, **even}) for cost in costs)
        losses = {name: spectrum.losses[name].output for name in self._groups}
        return spread_shares(costs, losses, budget, fixed=fixed, multiple=self._multiple)

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
            name = str((group.convs or group.derived)[0].target)
            name = name if group.convs else group.derived[0].name
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
            output = fx.Interpreter(self.model, graph=self.traced.graph).run(self.clips[0])
        return torch.cat([x.flatten() for x in tensors_of(output)])

    def _clips_that_fit(self, network: fx.GraphModule) -> Sequence[Any]:
        """As many clips, evenly taken, as memory allows."""
        assert self._teacher is not None
        most = 1
        for graph in (network, self._teacher):
            walk, peak = Walk(graph, self.clips[:1]), 1
            for node in walk.nodes:
                walk.go_to(node)
                peak = max(peak, walk.live_bytes())
            most += peak
        count = max(1, min(len(self.clips), self.calibration.memory_bytes // most))
        return [self.clips[n * len(self.clips) // count] for n in range(count)]

    def _keep(self, name: str, done: Any) -> None:
        self._state[name] = done
        self.calibration.keep(self._state)
