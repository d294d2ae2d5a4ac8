"""Layers of light blocks for tests of the kernel: depthwise convolutions, means, products with gates, temporal shifts.

cases.py has the other layers; their sums, and how far the kernel's may be from these, are its own.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from octvideo.octave.kernel.formats import F32, Format, LayerQuanta, Quantum
from octvideo.octave.kernel.fused_conv import Activation, Form, FusedLayer
from octvideo.octave.kernel.layout import channels_last
from octvideo.octave.kernel.light_layers import FusedDepthwise, FusedMean, FusedScale, FusedShift
from octvideo.octave.kernel.sequence import NO_VALUE, SequencePlan, Wiring
from tests.octave.kernel.cases import Sums, check_map, elements_of, halve, random, to_elements, to_real

LightKind = Literal["depthwise", "mean", "scale", "shift"]
_PIXELS_AT_ONCE = 256  # whose sum is added to the other ones, in a mean


class LightCase:
    """One layer, its maps, and what it should give.

    Args:
        kind: of layer.
        channels: high, low (0: no low map).
        size: of x_high: ([T,] H, W).
        form: of a depthwise convolution.
        num_frames: of a clip of images, for a shift.
        runs: of a shift's maps: channels from the next frame, and from the one before.
        zeros: the int8 elements that stand for 0: of x, the result, the residual and the gate.

    Attributes:
        values: what the layer reads, each of one or two maps: x, and of a product the residual, if any, and the gate.
    """

    def __init__(
        self,
        kind: LightKind,
        channels: tuple[int, int],
        size: tuple[int, ...] = (3, 7, 9),
        *,
        form: Form = Form((1, 1, 1), is_depthwise=True),  # noqa: B008 (nobody changes it)
        num_frames: int = 1,
        runs: Sequence[tuple[int, int]] = ((0, 0), (0, 0)),
        clips: int = 2,
        bias: bool = True,
        residual: bool = False,
        activation: Activation = "none",
        format: Format = F32,
        zeros: tuple[int, int, int, int] = (128, 128, 100, 0),
        seed: int = 0,
    ) -> None:
        self.kind, self.form, self.format, self.activation, self.has_residual = kind, form, format, activation, residual
        self.num_frames, self.runs = num_frames, runs
        clips *= num_frames
        low_size = (*size[:-2], *[(n + 1) // 2 for n in size[-2:]])
        shapes = [(clips, channels[0], *size), *([(clips, channels[1], *low_size)] if channels[1] else [])]
        is_int8 = format.name == "int8"
        quanta = [Quantum(2.0**-5, zero) if is_int8 else Quantum() for zero in zeros]
        self.x_quanta, self.residual_quanta, self.gate_quantum = [quanta[0]] * 2, [quanta[2]] * 2, quanta[3]
        self.values = [[to_elements(random(*s, seed=seed), format, quanta[0]) for s in shapes]]
        if residual:
            self.values.append([to_elements(random(*s, seed=seed + 1), format, quanta[2]) for s in shapes])
        if kind == "scale":
            gate = random(clips, sum(channels), *[1] * len(size), seed=seed + 2)
            self.values.append([to_elements(gate.abs() if zeros[3] == 0 else gate, format, quanta[3])])
        taps = form.kernel[-len(size) :]
        self.weights = [random(s[1], 1, *taps, seed=seed + 3) for s in shapes]
        self.biases = [random(s[1], seed=seed + 4) if bias else None for s in shapes]
        self.y_quanta = [Quantum()] * 2
        if is_int8:
            scale = 3 * math.sqrt(math.prod(taps) if kind == "depthwise" else 1) / 127
            self.y_quanta = [Quantum(torch.tensor(scale).item(), zeros[1])] * 2

    @property
    def quanta(self) -> LayerQuanta | None:
        if self.format.name != "int8":
            return None
        residual = self.residual_quanta if self.has_residual else ()
        return LayerQuanta(self.x_quanta, self.y_quanta, residual, [self.gate_quantum] if self.kind == "scale" else ())

    @property
    def reads(self) -> tuple[int, ...]:
        """Of `Wiring`."""
        if self.kind != "scale":
            return (0,)
        return (0, 1, 2) if self.has_residual else (0, NO_VALUE, 1)

    def layer(self) -> FusedLayer:
        if self.kind == "mean":
            return FusedMean(self.format, self.quanta)
        if self.kind == "scale":
            return FusedScale(self.activation, self.format, self.quanta)
        if self.kind == "shift":
            return FusedShift(*self.runs, self.format, self.quanta)
        high, low = (*self.weights, None)[:2]
        bias_high, bias_low = (*self.biases, None)[:2]
        given = {"bias_high": bias_high, "bias_low": bias_low, "activation": self.activation}
        return FusedDepthwise(self.form, high=high, low=low, format=self.format, quanta=self.quanta, **given)  # type: ignore

    def plan(self, layer: FusedLayer | None = None) -> SequencePlan:
        wiring = Wiring((self.reads,), len(self.values), (len(self.values),))
        shapes = [[tuple(x.shape) for x in maps] for maps in self.values]
        plan = SequencePlan.of(wiring, [layer or self.layer()], shapes, num_frames=self.num_frames)
        assert plan is not None
        return plan

    def sums(self) -> list[Sums]:
        """Of each map of the result, before the activation."""
        if self.kind == "mean":
            return [self._means()]
        compute = {"depthwise": self._convolved, "scale": self._scaled, "shift": self._shifted}[self.kind]
        return [compute(x, which) for which, x in enumerate(self.values[0])]

    def check(self) -> None:
        given = [[channels_last(x.clone()) for x in maps] for maps in self.values]
        (results,) = self.plan().run(given, [])
        self.check_results(results)

    def check_results(self, results: Sequence[Tensor]) -> float:
        """Fails where a result is not as expected. The greatest error, as a part of the greatest that may be."""
        worst, activation = 0.0, "none" if self.kind in ("mean", "shift") else self.activation
        for name, y, sums, quantum in zip(("high", "low"), results, self.sums(), self.y_quanta, strict=False):
            worst = max(worst, check_map(name, y, elements_of(sums, activation, self.format, quantum), self.format))  # type: ignore
        assert len(results) == len(self.sums())
        return worst

    def _convolved(self, x: Tensor, which: int) -> Sums:
        axes = x.dim() - 2
        sizes = [size[-axes:] for size in (self.form.stride, self.form.padding, self.form.dilation)]
        x = to_real(halve(x) if self.form.pool_first else x, self.x_quanta[which])
        weight, bias = self.weights[which].double(), self.biases[which]
        convolve = F.conv2d if axes == 2 else F.conv3d
        value = convolve(x, weight, None, *sizes, x.shape[1])
        size = convolve(x.abs(), weight.abs(), None, *sizes, x.shape[1])
        if bias is not None:
            wide = bias.double().view(-1, *[1] * axes)
            value, size = value + wide, size + wide.abs()
        return Sums(value, size, 4 + weight[0].numel())

    def _scaled(self, x: Tensor, which: int) -> Sums:
        first = self.values[0][0].shape[1]
        gate = to_real(self.values[-1][0], self.gate_quantum)
        gate = gate[:, first:] if which else gate[:, :first]
        value = to_real(x, self.x_quanta[which]) * gate
        size = value.abs()
        if self.has_residual:
            residual = to_real(self.values[1][which], self.residual_quanta[which])
            value, size = value + residual, size + residual.abs()
        return Sums(value, size, 4)

    def _shifted(self, x: Tensor, which: int) -> Sums:
        from_next, from_previous = self.runs[which]
        x = to_real(x, self.x_quanta[which])
        value = torch.zeros_like(x)
        for image in range(len(x)):
            for channel in range(x.shape[1]):
                step = 1 if channel < from_next else -1 if channel < from_next + from_previous else 0
                if 0 <= image % self.num_frames + step < self.num_frames:
                    value[image, channel] = x[image + step, channel]
        return Sums(value, value.abs(), 2)

    def _means(self) -> Sums:
        parts, sizes = [], []
        for x, quantum in zip(self.values[0], self.x_quanta, strict=False):
            raw, axes = x.double(), tuple(range(2, x.dim()))
            parts.append((raw.mean(axes, keepdim=True) - quantum.zero) * quantum.scale)
            sizes.append((raw.abs().mean(axes, keepdim=True) + quantum.zero) * quantum.scale)
        pixels = self.values[0][0][0, 0].numel()
        terms = 4 + min(pixels, _PIXELS_AT_ONCE) + pixels // _PIXELS_AT_ONCE
        return Sums(torch.cat(parts, 1), torch.cat(sizes, 1), terms)
