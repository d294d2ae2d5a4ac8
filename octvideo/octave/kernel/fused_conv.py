"""Ordinary and octave convolutions on the CPU, each with all that surrounds it in one pass over the maps.

Torch's operations make three convolutions of an octave layer, and passes for pooling, joining, upsampling and adding.
layer_run.h does a whole layer at once: what is pooled, upsampled and added is still in registers or in the cache.
Ordinary convolutions gain by it too, where a residual is added or a map is pooled.
"""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol, get_args

import torch
from torch import Tensor

from octvideo.octave.kernel.formats import F32, Format, LayerQuanta, Quantum, quantised_weight
from octvideo.octave.kernel.large_pages import WEIGHTS
from octvideo.octave.kernel.library import load_library

Shape = tuple[int, ...]
_POINTER, _SIZE, _FLAG = ctypes.c_void_p, ctypes.c_int64, ctypes.c_bool


# What follows a layer, element by element; in the order of `Activation` of activation.h.
Activation = Literal["none", "relu", "relu6", "silu", "hardswish", "sigmoid", "hardsigmoid"]
ACTIVATIONS: tuple[Activation, ...] = get_args(Activation)
_MOST_KERNEL_WIDTH = 16  # kMostKernelWidth of depthwise.h


class LayerKind:
    """`LayerKind` of layer.h."""

    CONVOLUTION, DEPTHWISE, MEAN, SCALE, SHIFT = range(5)


def has_format(format: Format) -> bool:
    """Whether the kernel has the number format on this processor."""
    library = load_library()
    return library is not None and library.has_format(format.index)


class Layer(ctypes.Structure):
    """`struct Layer` of layer.h, which says what the fields mean."""

    _fields_ = (
        *[(name, _POINTER) for name in ("weight_high", "weight_from_low", "weight_low", "bias_high", "bias_low")],
        *[(name, _POINTER) for name in ("scale_high", "scale_from_low", "scale_low")],
        *[(name, ctypes.c_float * 2) for name in ("in_scale", "residual_scale", "out_scale")],
        ("gate_scale", ctypes.c_float),
        *[(name, _SIZE * 2) for name in ("in_zero", "residual_zero", "out_zero")],
        ("gate_zero", _SIZE),
        ("kind", _SIZE),
        ("format", _SIZE),
        ("activation", _SIZE),
        *[(name, _SIZE) for name in ("clips", "frames", "height", "width")],
        *[(name, _SIZE) for name in ("in_high", "in_low", "outs_high", "outs_low")],
        *[(name, _SIZE * 2) for name in ("in_gap", "out_gap", "from_next", "from_previous")],
        ("groups", _SIZE),
        *[(name, _SIZE * 3) for name in ("kernel", "stride", "padding", "dilation")],
        *[(name, _SIZE * 2) for name in ("pool_window", "pool_stride", "pool_padding")],
        *[(name, _FLAG) for name in ("pool_first", "high_reads_low", "adds_from_low")],
        *[(name, _FLAG) for name in ("low_reads_high", "low_reads_low", "shares_low", "pools_sums")],
    )

    def set(self, format: Format, quanta: LayerQuanta | None, activation: Activation = "none") -> None:
        """The fields of the number format, and of what follows."""
        self.format, self.activation = format.index, ACTIVATIONS.index(activation)
        given = quanta or LayerQuanta((), ())
        for name, own in (("in", given.x), ("residual", given.residual), ("out", given.y)):
            for n, quantum in enumerate([*own, *[Quantum()] * (2 - len(own))]):
                getattr(self, name + "_zero")[n], getattr(self, name + "_scale")[n] = quantum.zero, quantum.scale
        gate = given.gate[0] if given.gate else Quantum()
        self.gate_zero, self.gate_scale = gate.zero, gate.scale

    def of_group(self) -> Layer:
        """A copy for one of its groups."""
        layer = Layer.from_buffer_copy(self)
        for name in ("in_high", "in_low", "outs_high", "outs_low", "groups"):
            setattr(layer, name, getattr(self, name) // self.groups)
        return layer

    def for_map(self, shape: Shape, in_low: int) -> Layer:
        """A copy for an x_high of `shape`, and an x_low of `in_low` channels."""
        layer = Layer.from_buffer_copy(self)
        layer.clips, layer.in_high, layer.in_low = *shape[:2], in_low
        if layer.kind == LayerKind.MEAN:
            layer.outs_high = shape[1] + in_low
        layer.frames, layer.height, layer.width = (1, *shape[2:])[-3:]
        return layer


class Maps(ctypes.Structure):
    """`struct Maps` of layer.h: addresses; None where there is no such map."""

    _fields_ = tuple(
        (name, _POINTER)
        for name in ("high", "low", "residual_high", "residual_low", "gate", "out_high", "out_low", "out_pooled")
    )

    @classmethod
    def of(cls, **maps: Tensor | None) -> Maps:
        """By the fields' names."""
        return cls(**{name: None if x is None else x.data_ptr() for name, x in maps.items()})


@dataclass(frozen=True)
class MaxPool:
    """A max pool in height and width.

    Args:
        window, stride, padding: of the two axes.
    """

    window: tuple[int, ...]
    stride: tuple[int, ...]
    padding: tuple[int, ...]


@dataclass(frozen=True)
class Form:
    """What a layer computes.

    Args:
        kernel, stride, padding, dilation: of three axes, the first being time (1, 1, 0, 1 for images).
        pool_first: x_high is pooled before anything reads it, and x_low where y_low reads it: a strided layer.
        high_reads_low: y_high's convolution reads [x_high, x_low], of one size: in a strided layer.
        low_reads_high, low_reads_low: which maps y_low's convolution reads, the high one pooled.
        max_pool: of y_high, where there is neither a low map nor a residual.
        is_depthwise: each channel is convolved by itself; maps exchange nothing then.
        groups: of channels; each has equally many high and low ones, and reads and makes none of another group's.
    """

    kernel: tuple[int, ...]
    stride: tuple[int, ...] = (1, 1, 1)
    padding: tuple[int, ...] = (0, 0, 0)
    dilation: tuple[int, ...] = (1, 1, 1)
    pool_first: bool = False
    high_reads_low: bool = False
    low_reads_high: bool = False
    low_reads_low: bool = False
    max_pool: MaxPool | None = None
    is_depthwise: bool = False
    groups: int = 1

    @property
    def is_fast(self) -> bool:
        """Whether an ordinary convolution is at least as fast by it as by oneDNN.

        With 16 vector registers (AVX2), 1x3x3 ones are slower. With 32 (AVX-512) they take as long, and others, which
        prefetch the memory of their results, less.
        """
        library = load_library()
        in_space = self.kernel[1] * self.kernel[2] > 1 and not self.is_depthwise
        return library is not None and (library.num_registers() >= 32 or not in_space)

    @property
    def is_supported(self) -> bool:
        """Whether the kernel has it: it pads by less than it reaches; a depthwise one has usual rows, and no pool."""
        if self.is_depthwise:
            usual = self.stride[2] <= 2 and self.dilation[2] == 1 and self.kernel[2] <= _MOST_KERNEL_WIDTH
            return usual and self.max_pool is None and not (self.low_reads_high or self.high_reads_low)
        if self.groups > 1 and self.max_pool is not None:
            return False
        return all(p <= d * (k - 1) for p, d, k in zip(self.padding, self.dilation, self.kernel, strict=True))

    def shares_low(self, outs_low: int, *, adds_from_low: bool, format: Format = F32) -> bool:
        """Whether both convolutions that read x_low at its own size run as one.

        They do where y_low has few channels, as in groups, which alone would fill few registers. On AMX tiles y_low's
        convolution reads both maps as one instead, which fills tiles.
        """
        library = load_library()
        by_tiles = library is not None and format != F32 and library.tiles_are_used()
        if (
            library is None
            or by_tiles
            or self.pool_first
            or not (adds_from_low and self.low_reads_high and self.low_reads_low)
        ):
            return False
        return outs_low > 0 and (self.groups > 1 or outs_low < 3 * library.num_lanes())

    def layer(self, in_high: int, outs: tuple[int, int], **flags: bool) -> Layer:
        """For maps of any size, without weights.

        Args:
            outs: high and low channels.
            flags: those of `Layer` that are not in this class.
        """
        own = dict(vars(self))  # fields of the same names
        own["kind"] = LayerKind.DEPTHWISE if own.pop("is_depthwise") else LayerKind.CONVOLUTION
        pool = own.pop("max_pool") or MaxPool((1, 1), (1, 1), (0, 0))
        pools = {"pool_window": pool.window, "pool_stride": pool.stride, "pool_padding": pool.padding}
        return Layer(in_high=in_high, outs_high=outs[0], outs_low=outs[1], **own, **pools, **flags)

    def out_shapes(self, shape: Shape, outs: tuple[int, int]) -> list[Shape]:
        """Of y_high, and of y_low if it has channels, from x_high's.

        Args:
            outs: high and low channels.
        """
        size = (1, *shape[2:])[-3:]
        if self.pool_first:
            size = half_size(size)
        shapes = []
        for channels, read in zip(outs, (size, half_size(size)), strict=True):
            axes = zip(read, self.kernel, self.stride, self.padding, self.dilation, strict=True)
            out = [(n + 2 * p - d * (k - 1) - 1) // s + 1 for n, k, s, p, d in axes]
            if pool := self.max_pool:
                windows = zip(out[1:], pool.window, pool.stride, pool.padding, strict=True)
                out[1:] = [(n + 2 * p - w) // s + 1 for n, w, s, p in windows]
            shapes.append((shape[0], channels, *out[2 - len(shape) :]))
        return shapes if outs[1] else shapes[:1]


def half_size(size: Sequence[int]) -> Shape:
    """Of a low map, from ([T,] H, W) of its high one."""
    return (*size[:-2], (size[-2] + 1) // 2, (size[-1] + 1) // 2)


cached_out_shapes = functools.lru_cache(4096)(Form.out_shapes)


class FusedLayer(Protocol):
    """What a sequence is made of."""

    @property
    def layer(self) -> Layer:
        """For maps of any size; its weights live as long as this object."""
        ...

    @property
    def format(self) -> Format:
        """Of maps."""
        ...

    @property
    def quanta(self) -> LayerQuanta | None:
        """Of the maps, for int8."""
        ...

    @property
    def form(self) -> object:
        """Whatever else sizes of results depend on."""
        ...

    @property
    def weight_bytes(self) -> int:
        """Of what it reads beside maps."""
        ...

    def out_shapes(self, shapes: Sequence[Shape]) -> list[Shape]:
        """Of the result's maps, from those of the maps of x."""
        ...


class FusedConv:
    """One layer: y_high = activation(conv(x_high) + upsample(conv(x_low)) + residual_high); y_low likewise.

    layer_run.h has the formulas.

    Args:
        form: which sources are read, and how.
        high: weight (C_high_out, C_in, ...) of y_high's convolution; input channels are those of a group.
        from_low: weight (C_high_out, C_low_in, ...) of the low part that is upsampled and added to it, or None.
        low: weight (C_low_out, C_in, ...) of y_low's convolution, or None; its C_in are the high channels, then the
            low ones, as far as it reads them.
        num_high: channels of x_high, in a group.
        bias_high, bias_low: (C,) or None.
        activation: what follows.
        format: of maps and weights.
        quanta: of the maps, for int8.

    Attributes:
        layer: for maps of any size; its weights live as long as this object.
    """

    def __init__(
        self,
        form: Form,
        *,
        high: Tensor,
        from_low: Tensor | None = None,
        low: Tensor | None = None,
        num_high: int,
        bias_high: Tensor | None = None,
        bias_low: Tensor | None = None,
        activation: Activation = "none",
        format: Format = F32,
        quanta: LayerQuanta | None = None,
    ) -> None:
        self.form, self.format, self.quanta = form, format, quanta
        self.outs = len(high), 0 if low is None else len(low)
        adds_from_low = from_low is not None
        shares_low = form.shares_low(self.outs[1], adds_from_low=adds_from_low, format=format)
        # Of each weight, how many of the inputs are high ones.
        weights = ((high, num_high), (from_low, 0), (low, num_high if form.low_reads_high else 0))
        in_low = max(weight.shape[1] - own_high for weight, own_high in weights if weight is not None)
        layer = form.layer(num_high * form.groups, self.outs, adds_from_low=adds_from_low, shares_low=shares_low)
        layer.in_low, layer.groups = in_low * form.groups, _num_joined(form.groups, sum(self.outs))
        layer.set(format, quanta, activation)
        dense = [_joined_groups(weight, own_high, form.groups, layer.groups) for weight, own_high in weights]
        biases = [
            [None] * layer.groups if bias is None else bias.detach().float().chunk(layer.groups)
            for bias in (bias_high, bias_low)
        ]
        parts = [_packed(layer.of_group(), group, quanta) for group in zip(*dense, *biases, strict=True)]
        self._tensors = parts[0]
        if layer.groups > 1:
            for name in self._tensors:
                own = [part[name] for part in parts]
                self._tensors[name] = torch.cat(own, out=WEIGHTS.empty(sum(map(len, own))))
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


def _input_quanta(quanta: LayerQuanta, num_high: int, channels: int) -> list[Quantum]:
    """Of each channel that a convolution reads, the high ones first."""
    return [*[quanta.x[0]] * num_high, *[quanta.x[-1]] * (channels - num_high)]


def _packed(layer: Layer, given: Sequence[Tensor | None], quanta: LayerQuanta | None) -> dict[str, Tensor]:
    """What a layer without groups reads beside maps, by the names of its fields.

    Args:
        layer: with its channels.
        given: weights of the three convolutions, and biases of y_high and y_low.
    """
    high, from_low, low, *given_biases = given
    num_high, low_from_high = layer.in_high, layer.in_high if layer.low_reads_high else 0
    if layer.shares_low:
        assert from_low is not None and low is not None
        from_low, low = torch.cat([from_low, low[:, num_high:]]), low[:, :num_high]
    joins = (library := load_library()) is not None and library.joins_maps(ctypes.byref(layer))
    biases = dict(zip(("high", "low"), given_biases, strict=True))
    tensors: dict[str, Tensor] = {}
    parts = {"high": (high, num_high), "from_low": (from_low, 0), "low": (low, low_from_high)}
    for which, (name, (weight, own_high)) in enumerate(parts.items()):
        if weight is None or not weight.shape[1]:
            continue
        if quanta is not None:
            weight, scales, corrections = quantised_weight(weight, _input_quanta(quanta, own_high, weight.shape[1]))
            tensors["scale_" + name] = scales
            outs = [layer.outs_high, len(corrections) - layer.outs_high]
            split = corrections.split(outs) if name == "from_low" else ()
            for target, correction in zip(("high", "low"), split or (corrections,) * 2, strict=True):
                if (split or target == name) and len(correction):
                    bias = biases[target]
                    biases[target] = correction if bias is None else bias + correction
        own_high = 0 if joins and name == "low" else own_high
        tensors["weight_" + name] = _pack(layer, which, weight, own_high)
    return tensors | {f"bias_{name}": bias.contiguous() for name, bias in biases.items() if bias is not None}


def _pack(layer: Layer, which: int, weight: Tensor, num_high: int) -> Tensor:
    """A weight in the order and the format in which the kernel reads it.

    Args:
        layer: that it is for.
        which: 0: to y_high, 1: from x_low to y_high, 2: to y_low.
        weight: (C_out, C_in, [kT,] kH, kW).
        num_high: of its input channels, where all taps of these come first.
    """
    library = load_library()
    if library is None:
        return torch.empty(0)
    weight = weight.detach().float()
    weight = weight.unsqueeze(2) if weight.dim() == 4 else weight
    splits = [n for n in (num_high, weight.shape[1] - num_high) if n]
    parts = [part.permute(2, 3, 4, 1, 0).flatten(0, 3) for part in weight.split(splits, 1)]
    matrix = torch.cat(parts).contiguous()
    packed = WEIGHTS.empty(library.packed_words(ctypes.byref(layer), which))
    library.pack(ctypes.byref(layer), which, matrix.data_ptr(), packed.data_ptr())
    return packed


def _num_joined(groups: int, outs: int) -> int:
    """How many groups there are where as many are joined as fit in the vectors that the results of one fill.

    Zeros in the weights, between channels of other groups, cost no time then.
    """
    library = load_library()
    lanes = 1 if library is None else int(library.num_lanes())
    vectors = -(-outs // groups // lanes)
    return next(n for n in range(1, groups + 1) if groups % n == 0 and -(-outs // n // lanes) == vectors)


def _joined_groups(weight: Tensor | None, num_high: int, groups: int, fewer: int) -> list[Tensor | None]:
    """The weights (C_out / fewer, C_in, ...) of fewer and larger groups; zeros are between channels of other groups.

    Args:
        weight: (C_out, C_in of one of `groups`, ...), or None.
        num_high: of its inputs, which come first in each group.
    """
    if weight is None or groups == 1:
        return [weight] * fewer
    together = groups // fewer
    outs, size = len(weight) // groups, weight.shape[2:]
    sources = []
    for part in weight.detach().split([num_high, weight.shape[1] - num_high], 1):
        joined = part.new_zeros(fewer, together, outs, together, part.shape[1], *size)
        for n in range(together):
            joined[:, n, :, n] = part.unflatten(0, (fewer, together, outs))[:, n]
        sources.append(joined.flatten(3, 4).flatten(1, 2))
    return [*torch.cat(sources, 2)]
