"""What channels of a trained network lose at half resolution, measured on clips without labels.

A channel x stored low comes back as up(pool x). Of the difference d two things are summed, over all values that the
solver ties together:

detail   |d|²: what half resolution cannot hold
output   |g|² |d|², with g the gradient of the network's output along random directions. It bounds (Cauchy-Schwarz) the
         square of what d does to the output, to first order. By it EfficientNet-Lite0 kept more than by |d|², by its
         share of |x|², or by the square of the sum of g d, before anything was fitted.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx, nn

from octvideo.octave.conversion.calibration import ChannelLoss
from octvideo.octave.conversion.roles import Network, changes_in_place
from octvideo.octave.conversion.value_classes import name_of
from octvideo.octave.conversion.walk import at_least_float32, tensors_of
from octvideo.octave.factor import Factor, as_factor
from octvideo.octave.resample import pool_down


@dataclass
class Spectrum:
    """What was measured of a network.

    Args:
        losses: of each class of values, by the path of the first convolution that writes it.
        multiply_adds: of each convolution, on one clip.
        num_clips: so many have been measured.
    """

    losses: dict[str, ChannelLoss] = field(default_factory=dict)
    multiply_adds: dict[str, int] = field(default_factory=dict)
    num_clips: int = 0

    def state(self) -> dict[str, Any]:
        """In types that torch.load reads with weights_only."""
        losses = {name: {key: x.clone() for key, x in vars(loss).items()} for name, loss in self.losses.items()}
        return {**vars(self), "losses": losses}

    @classmethod
    def of_state(cls, state: Mapping[str, Any]) -> Spectrum:
        """What `state` was made of."""
        losses = {
            name: ChannelLoss(**{key: x.clone() for key, x in loss.items()}) for name, loss in state["losses"].items()
        }
        return cls(**{**state, "losses": losses})


def measure_spectrum(
    model: nn.Module,
    network: Network,
    groups: Mapping[str, Sequence[fx.Node]],
    clips: Sequence[Any],
    *,
    begun: Spectrum | None = None,
    seed: int = 0,
    watch: Callable[[Sequence[int]], Iterable[int]] = iter,
    keep: Callable[[Spectrum], None] = lambda _: None,
) -> Spectrum:
    """Measures classes of values of an ordinary network.

    Args:
        model: the network, in eval.
        network: its trace.
        groups: the values of each class, by name.
        clips: what the network takes, each with a batch axis; they may be changed.
        begun: an interrupted measurement, to go on with; of other classes, it is not used.
        seed: of the directions.
        watch: sees the indices of clips go by.
        keep: is given the spectrum after each clip.

    Returns:
        The sums over all clips.

    Raises:
        ValueError: a clip's output is not finite.
    """
    spectrum = begun or Spectrum()
    if not groups.keys() <= spectrum.losses.keys():  # at another alpha, other layers have low channels
        spectrum = Spectrum()
    recorder = _Recorder(model, network, groups)
    for index in watch(range(spectrum.num_clips, len(clips))):
        recorder.measure(index, clips, torch.Generator().manual_seed(seed * 1_000_003 + index), spectrum)
        spectrum.num_clips += 1
        keep(spectrum)
    return spectrum


class _Recorder(fx.Interpreter):
    """Runs a network and keeps the values of classes, and their gradients."""

    def __init__(self, model: nn.Module, network: Network, groups: Mapping[str, Sequence[fx.Node]]) -> None:
        super().__init__(model, graph=network.graph)  # a GraphModule would own the graph
        self._network = network
        self._group_of = {node: name for name, nodes in groups.items() for node in nodes}
        self._values: dict[fx.Node, Tensor] = {}
        self._multiply_adds: dict[str, int] = {}

    def measure(self, index: int, clips: Sequence[Any], generator: torch.Generator, spectrum: Spectrum) -> None:
        """Adds one clip to the sums."""
        self._values.clear()
        with torch.enable_grad():
            scores = tensors_of(self.run(_with_gradient(clips[index])))
            output = torch.cat([x.reshape(len(x) if x.dim() else 1, -1) for x in scores], 1)  # (N,K)
            if not output.isfinite().all():
                where = _first_not_finite(self.module, self._network, clips[index])
                raise ValueError(
                    f"calibration: the network's output on clip {index} is not finite; the first value that is not is "
                    f"that of {where}"
                )
            signs = torch.randint(0, 2, output.shape, generator=generator).to(output) * 2 - 1
            values = list(self._values.values())
            gradients = torch.autograd.grad((output * signs).sum(), values, allow_unused=True)
        # A single score has no spread: all clips count alike.
        spread = output.detach().double().var(1, correction=0).mean().clamp_min(1e-30) if output.shape[1] > 1 else None
        spectrum.multiply_adds = self._multiply_adds
        for node, value, gradient in zip(self._values, values, gradients, strict=True):
            x = at_least_float32(value.detach())
            detail, energy = detail_and_energy(x, as_factor(self._network.factor, x.dim() - 2))  # (N,C)
            bound = torch.zeros_like(detail)
            if gradient is not None:
                bound = _squares(at_least_float32(gradient)) * detail * x[0, 0].numel()
                bound = bound if spread is None else bound / spread.to(x)
            sums = [each.sum(0).double().cpu() for each in (detail, energy, bound)]
            name = self._group_of[node]
            if name not in spectrum.losses:
                spectrum.losses[name] = ChannelLoss(*map(torch.zeros_like, sums))
            loss = spectrum.losses[name]
            for total, more in zip((loss.detail, loss.energy, loss.output), sums, strict=True):
                total += more

    def run_node(self, n: fx.Node) -> Any:
        result = super().run_node(n)
        module = self._network.module(n)
        if isinstance(module, nn.modules.conv._ConvNd):
            positions = result[0].numel() // (module.in_channels if module.transposed else module.out_channels)
            self._multiply_adds[str(n.target)] = positions * module.weight.numel()
        if n in self._group_of and isinstance(result, Tensor) and result.dim() > 2:
            self._values[n] = result
        return result

    def fetch_args_kwargs_from_env(self, n: fx.Node) -> tuple[tuple[Any, ...], dict[str, Any]]:
        args, kwargs = super().fetch_args_kwargs_from_env(n)
        if changes_in_place(n, self._network):  # the value before is kept, too
            args = (args[0].clone(), *args[1:])
        return args, kwargs


@torch.no_grad()
def _first_not_finite(model: nn.Module, network: Network, clip: Any) -> str:
    """The first node whose value is not finite, as messages name it."""

    class Found(Exception):  # noqa: N818
        pass

    class Search(fx.Interpreter):
        def run_node(self, n: fx.Node) -> Any:
            result = super().run_node(n)
            if not all(x.isfinite().all() for x in tensors_of(result)):
                raise Found(name_of(n))
            return result

    search = Search(model, graph=network.graph)
    search.extra_traceback = False  # it would change the exception's text
    try:
        search.run(clip)
    except Found as found:
        return str(found)
    return "its output"


def _with_gradient(clip: Any) -> Any:
    if isinstance(clip, Tensor):
        return clip.requires_grad_()
    return [_with_gradient(part) for part in clip]


def detail_and_energy(x: Tensor, factor: Factor) -> tuple[Tensor, Tensor]:
    """|x - up(pool x)|² and |x - mean x|², means over positions, (N, C) each, of x (N, C, [T,] H, W).

    In a cell of n pixels with the mean m, the sum of (x - m)² is that of x² less n m²: nothing is upsampled.
    """
    pixels = x[0, 0].numel()
    pooled = pool_down(x, factor)
    sizes = []  # of the cells along each axis: all have f pixels, the last one perhaps fewer
    for n, f in zip(x.shape[2:], factor, strict=True):
        sizes.append(x.new_full((-(-n // f),), f))
        sizes[-1][-1] -= len(sizes[-1]) * f - n
    cells = functools.reduce(lambda cells, size: cells[..., None] * size, sizes, x.new_ones(1)).flatten()  # n of each
    m = pooled.flatten(2)  # (N,C,cells)
    squares = _squares(x)
    inside = (m.square() * cells).sum(2)
    mean = (m * cells).sum(2) / pixels
    return ((squares - inside) / pixels).clamp_min(0), (squares / pixels - mean.square()).clamp_min(0)


def _squares(x: Tensor) -> Tensor:
    """Sums over positions, (N, C), in one pass."""
    return torch.linalg.vector_norm(x.flatten(2), dim=2).square()
