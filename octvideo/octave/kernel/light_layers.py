"""What light blocks have beside dense convolutions: depthwise ones, means over a clip, products with a gate, shifts.

A squeeze-excitation is a mean, two convolutions of one pixel, and a product (gate.h). depthwise.h and shift.h have the
rest.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from octvideo.octave.kernel.formats import F32, Format, LayerQuanta, Quantum
from octvideo.octave.kernel.fused_conv import Activation, Form, Layer, LayerKind, Shape
from octvideo.octave.kernel.large_pages import WEIGHTS
from octvideo.octave.kernel.library import load_library


class FusedDepthwise:
    """activation(conv(x)) of each channel by itself.

    Args:
        form: a depthwise one.
        high: weight (C_high, 1, ...).
        low: weight (C_low, 1, ...) of the low map, or None.
        bias_high, bias_low: (C,) or None.
        activation: what follows.
        format: of maps; weights and sums are float32.
        quanta: of the maps, for int8.

    Attributes:
        layer: for maps of any size; its weights live as long as this object.
    """

    def __init__(
        self,
        form: Form,
        *,
        high: Tensor,
        low: Tensor | None = None,
        bias_high: Tensor | None = None,
        bias_low: Tensor | None = None,
        activation: Activation = "none",
        format: Format = F32,
        quanta: LayerQuanta | None = None,
    ) -> None:
        self.form, self.format, self.quanta = form, format, quanta
        self.outs = (len(high), 0 if low is None else len(low))
        layer = form.layer(len(high), self.outs)
        layer.set(format, quanta, activation)
        quanta_of_x = [Quantum()] * 2 if quanta is None else [quanta.x[0], quanta.x[-1]]
        self._tensors = {"weight_high": _by_vectors(high * quanta_of_x[0].scale)}
        if low is not None:
            self._tensors["weight_low"] = _by_vectors(low * quanta_of_x[1].scale)
        for name, bias in (("bias_high", bias_high), ("bias_low", bias_low)):
            if bias is not None:
                self._tensors[name] = bias.detach().float().contiguous()
        for name, tensor in self._tensors.items():
            setattr(layer, name, tensor.data_ptr())
        self.layer = layer

    @property
    def weight_bytes(self) -> int:
        """Of what it reads beside maps."""
        return sum(tensor.nbytes for tensor in self._tensors.values())

    def out_shapes(self, shapes: Sequence[Shape]) -> list[Shape]:
        """Of y_high, and of y_low if there is one, from those of the maps of x."""
        return self.form.out_shapes(shapes[0], self.outs)


def _by_vectors(weight: Tensor) -> Tensor:
    """(C, 1, ...) with the taps of each vector of channels together: [C / lanes, taps, lanes], padded by zeros."""
    library = load_library()
    if library is None:
        return torch.empty(0)
    lanes = int(library.num_lanes())
    taps = weight.detach().float().flatten(1)
    taps = F.pad(taps, (0, 0, 0, -len(taps) % lanes))
    ordered = taps.unflatten(0, (-1, lanes)).transpose(1, 2).contiguous()
    packed = WEIGHTS.empty(ordered.numel())
    return packed.copy_(ordered.flatten())


@dataclass(frozen=True)
class FusedMean:
    """The mean of each channel over a clip, (N, C, 1, ..., 1): of the high channels, and then of the low ones.

    Args:
        format: of maps.
        quanta: of the maps, for int8.
    """

    format: Format = F32
    quanta: LayerQuanta | None = None
    form = "mean"
    weight_bytes = 0

    @property
    def layer(self) -> Layer:
        """Without sizes."""
        layer = Layer(kind=LayerKind.MEAN)
        layer.set(self.format, self.quanta)
        return layer

    def out_shapes(self, shapes: Sequence[Shape]) -> list[Shape]:
        """Of the means, from those of the maps of x."""
        count, _, *size = shapes[0]
        return [(count, sum(shape[1] for shape in shapes), *[1] * len(size))]


@dataclass(frozen=True)
class FusedScale:
    """activation(x * gate + residual): the gate's channels are the high ones, and then the low ones.

    Args:
        activation: what follows.
        format: of maps.
        quanta: of the maps, for int8.
    """

    activation: Activation = "none"
    format: Format = F32
    quanta: LayerQuanta | None = None
    form = "scale"
    weight_bytes = 0

    @property
    def layer(self) -> Layer:
        """Without sizes."""
        layer = Layer(kind=LayerKind.SCALE)
        layer.set(self.format, self.quanta, self.activation)
        return layer

    def out_shapes(self, shapes: Sequence[Shape]) -> list[Shape]:
        """As x."""
        return list(shapes)


@dataclass(frozen=True)
class FusedShift:
    """The first channels of a frame's maps come from the next frame, those after them from the one before (TSM).

    Args:
        high, low: of each map, how many come from the next frame and from the one before.
        format: of maps.
        quanta: of the maps, for int8.
    """

    high: tuple[int, int]
    low: tuple[int, int]
    format: Format = F32
    quanta: LayerQuanta | None = None
    weight_bytes = 0

    @property
    def form(self) -> tuple[str, tuple[int, int], tuple[int, int]]:
        """What distinguishes it from other layers."""
        return "shift", self.high, self.low

    @property
    def layer(self) -> Layer:
        """Without sizes."""
        layer = Layer(kind=LayerKind.SHIFT)
        layer.set(self.format, self.quanta)
        for which, (from_next, from_previous) in enumerate((self.high, self.low)):
            layer.from_next[which], layer.from_previous[which] = from_next, from_previous
        return layer

    def out_shapes(self, shapes: Sequence[Shape]) -> list[Shape]:
        """As x."""
        return list(shapes)
