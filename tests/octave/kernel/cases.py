"""Layers for tests of the kernel, in each number format, and what they should give by torch in float64.

The reference reads maps and weights as the format has rounded them. Of each element of a result it knows the real value
and by how much the kernel's sums in float32 may differ from it. Since rounding to a format keeps the order of values,
the kernel's element lies between the rounded ends of that interval: no error of rounding needs a tolerance of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from octvideo.octave.kernel.formats import F32, FORMATS, Format, LayerQuanta, Quantum, quantised_weight
from octvideo.octave.kernel.fused_conv import Activation, Form, FusedConv
from octvideo.octave.kernel.layout import channels_last
from octvideo.octave.kernel.library import load_library
from octvideo.octave.kernel.sequence import SequencePlan, Wiring

_UNIT = 2.0**-24  # half a step of float32 at 1
_SMALLEST = 2.0**-126  # vdpbf16ps takes smaller elements, and sums, for 0
POINT, TIME, SPACE = Form((1, 1, 1)), Form((3, 1, 1), padding=(1, 0, 0)), Form((1, 3, 3), padding=(0, 1, 1))
BOTH = {"low_reads_high": True, "low_reads_low": True}


def has_format(format: Format) -> bool:
    """Whether the kernel has it on this processor."""
    library = load_library()
    return library is not None and bool(library.has_format(format.index))


needs_library = pytest.mark.skipif(load_library() is None, reason="no g++ here")


def formats(*names: str) -> pytest.MarkDecorator:
    """Runs a test in each of these formats, as the argument `format`."""
    given = [(FORMATS[name], f"no {name} on this processor") for name in names]  # type: ignore[index]
    lacks = pytest.mark.skipif
    params = [pytest.param(f, id=f.name, marks=lacks(not has_format(f), reason=reason)) for f, reason in given]
    return pytest.mark.parametrize("format", params)


every_format = formats(*FORMATS)


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed + sum(shape)))


def run(layer: FusedConv, *maps: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """A layer alone: y_high and y_low of x_high, x_low and the residuals, which are overwritten."""
    given = [[x for x in value if x is not None] for value in (maps[:2], maps[2:]) if any(x is not None for x in value)]
    wiring = Wiring((tuple(range(len(given))),), len(given), (len(given),))
    plan = SequencePlan.of(wiring, [layer], [[tuple(x.shape) for x in value] for value in given])
    assert plan is not None
    (results,) = plan.run(given, [])
    return results[0], results[1] if len(results) > 1 else None


def to_elements(real: Tensor, format: Format, quantum: Quantum) -> Tensor:
    """The nearest elements of a format, ties to even."""
    if format.name == "int8":
        return (real.double() / quantum.scale + quantum.zero).round().clamp(0, 255).to(format.dtype)
    return real.to(format.dtype)


def to_real(elements: Tensor, quantum: Quantum) -> Tensor:
    """In float64."""
    if elements.dtype == torch.uint8:
        return (elements.double() - quantum.zero) * quantum.scale
    return elements.double()


def halve(x: Tensor, *, sums: bool = False) -> Tensor:
    """Elements of a map of half the size: means, or sums, of blocks of two by two, of those pixels that there are.

    They are rounded to float32 and to the format as the kernel does it.
    """
    edge = (x.shape[-1] % 2, x.shape[-2] % 2)
    wide = F.pad(x.float().flatten(0, -4), (0, edge[0], 0, edge[1]), mode="replicate").unflatten(0, x.shape[:-3])
    a, b, c, d = (wide[..., i::2, j::2] for i in (0, 1) for j in (0, 1))
    made = ((a + b) + (c + d)) * (1 if sums else 0.25)
    return made.round().to(x.dtype) if x.dtype == torch.uint8 else made.to(x.dtype)


def upsample(x: Tensor, like: Tensor) -> Tensor:
    x = x.repeat_interleave(2, -1).repeat_interleave(2, -2)
    return x[..., : like.shape[-2], : like.shape[-1]]


class Sums(NamedTuple):
    """Sums before they are rounded to the format.

    Args:
        value: exact.
        size: what rounding errors of float32 are relative to: the sum of the terms' magnitudes.
        terms: how many roundings of that size there are.
    """

    value: Tensor
    size: Tensor
    terms: int

    def plus(self, value: Tensor, size: Tensor, terms: int = 1) -> Sums:
        return Sums(self.value + value, self.size + size, self.terms + terms)

    def error(self) -> Tensor:
        return self.terms * (_UNIT * self.size + _SMALLEST)


class Expected(NamedTuple):
    """Elements of a result: the nearest to the real value, and the least and the greatest that rounding permits."""

    nearest: Tensor
    least: Tensor
    greatest: Tensor


ACTIVATED: dict[Activation, Callable[[Tensor], Tensor]] = {
    "none": lambda x: x,
    "relu": torch.relu,
    "relu6": F.relu6,
    "silu": F.silu,
    "hardswish": F.hardswish,
    "sigmoid": torch.sigmoid,
    "hardsigmoid": F.hardsigmoid,
}


def elements_of(y: Sums, activation: Activation, format: Format, quantum: Quantum) -> Expected:
    """Of a result, from the sums before its activation."""
    function, error, size = ACTIVATED[activation], y.error(), y.value.abs()
    ends = [function(y.value + sign * error) for sign in (0, -1, 1)]
    least, greatest = torch.minimum(ends[1], ends[2]), torch.maximum(ends[1], ends[2])
    if activation in ("silu", "hardswish"):  # which fall, and then rise, by less than 1.5 times what they are given
        least, greatest = ends[0] - 1.5 * error, ends[0] + 1.5 * error
    rounding = {"silu": 8 + size / 2, "sigmoid": 8 + size / 2, "hardswish": 8 + 0 * size, "hardsigmoid": 8 + 0 * size}
    if activation in rounding:
        own = _UNIT * rounding[activation] * ends[0].abs() + 1e-35  # see kMostExponent
        if activation.startswith("hard"):
            own = own + 8 * _UNIT * (size.clamp(max=4) if activation == "hardswish" else 1)
        least, greatest = least - own, greatest + own
    made = []
    for sign, real in ((0, ends[0]), (-1, least), (1, greatest)):
        if format.name == "int8":  # by float32 too: times the inverse of the scale, plus zero
            real = real + sign * 4 * _UNIT * (real.abs() + quantum.scale * quantum.zero)
        made.append(to_elements(real, format, quantum).double())
    return Expected(*made)


class Case:
    """Weights and maps of one layer, and what it should give.

    Args:
        channels: in high, in low, out high, out low.
        size: of x_high: ([T,] H, W).
        upsampled: a part of x_low is added to y_high.
        relu: what follows, if no activation is given.
        pools_sums: see `Layer`.
        zeros: the int8 elements that stand for 0: of x_high, x_low, the results and the residuals.
        spread: of int8 results' scale: where it is small, many elements saturate.
    """

    def __init__(
        self,
        form: Form,
        channels: tuple[int, int, int, int],
        size: tuple[int, ...] = (3, 7, 9),
        *,
        clips: int = 2,
        upsampled: bool = True,
        residual: bool = False,
        bias: bool = True,
        relu: bool = True,
        activation: Activation | None = None,
        format: Format = F32,
        pools_sums: bool = False,
        zeros: tuple[int, int, int, int] = (128, 0, 0, 128),
        spread: float = 0.9,
        seed: int = 0,
    ) -> None:
        in_high, in_low, out_high, out_low = channels
        kernel = form.kernel[-len(size) :]
        self.form, self.format, self.pools_sums = form, format, pools_sums
        self.activation: Activation = activation or ("relu" if relu else "none")
        high_ins, low_ins = in_high // form.groups, in_low // form.groups  # of a group
        reads = high_ins * form.low_reads_high + low_ins * form.low_reads_low
        self.high_weight = random(out_high, high_ins + low_ins * form.high_reads_low, *kernel, seed=seed)
        self.from_low = random(out_high, low_ins, *kernel, seed=seed + 1) if upsampled and in_low else None
        self.low_weight = random(out_low, reads, *kernel, seed=seed + 2) if out_low else None
        self.biases = (random(out_high, seed=seed), random(out_low, seed=seed) if out_low else None)
        self.biases = self.biases if bias else (None, None)
        read = [(n + 1) // 2 for n in size[-2:]] if form.pool_first else list(size[-2:])
        low_size = read if form.pool_first else [(n + 1) // 2 for n in read]
        is_int8 = format.name == "int8"
        self.x_quanta = [Quantum(0.02, zeros[0]), Quantum(0.03, zeros[1])] if is_int8 else [Quantum()] * 2
        real = [
            random(clips, in_high, *size, seed=seed + 3),
            random(clips, in_low, *size[:-2], *low_size, seed=seed + 4),
        ]
        high, low = (to_elements(x, format, quantum) for x, quantum in zip(real, self.x_quanta, strict=True))
        self.high, self.low = high, low if in_low else None
        self.residuals: tuple[Tensor | None, Tensor | None] = (None, None)
        self.y_quanta = self.residual_quanta = [Quantum()] * 2
        if residual:
            self.residual_quanta = [Quantum(0.04, zeros[3]), Quantum(0.05, zeros[3])] if is_int8 else self.y_quanta
            shapes = form.out_shapes(high.shape, (out_high, out_low))
            made = [random(*shape, seed=seed + 5) for shape in shapes]
            given = [to_elements(y, format, q) for y, q in zip(made, self.residual_quanta, strict=False)]
            self.residuals = (given[0], given[1] if out_low else None)
        if is_int8:
            weights = (self.high_weight, self.low_weight)
            products = [1 if weight is None else max(1, weight[0].numel()) for weight in weights]
            steps = 255 - zeros[2]
            self.y_quanta = [Quantum(_float32(4 * spread * n**0.5 / steps), zeros[2]) for n in products]

    @property
    def quanta(self) -> LayerQuanta | None:
        if self.format.name != "int8":
            return None
        residual = self.residual_quanta if self.residuals[0] is not None else ()
        return LayerQuanta(x=self.x_quanta, y=self.y_quanta, residual=residual)

    def layer(self) -> FusedConv:
        layer = FusedConv(
            self.form,
            high=self.high_weight,
            from_low=self.from_low,
            low=self.low_weight,
            num_high=self.high.shape[1] // self.form.groups,
            bias_high=self.biases[0],
            bias_low=self.biases[1],
            activation=self.activation,
            format=self.format,
            quanta=self.quanta,
        )
        layer.layer.pools_sums = self.pools_sums
        return layer

    def convolve(self, sources: Sequence[tuple[Tensor, Quantum]], weight: Tensor) -> Sums:
        """Of the channels of several maps, side by side."""
        axes, groups = weight.dim() - 2, self.form.groups
        sizes = [size[-axes:] for size in (self.form.stride, self.form.padding, self.form.dilation)]

        def conv(x: Tensor, weight: Tensor) -> Tensor:
            return (F.conv2d if axes == 2 else F.conv3d)(x, weight, None, *sizes, groups)

        # Each group reads its channels of the one map, and then of the other.
        joined = torch.cat([x.unflatten(1, (groups, -1)) for x, _ in sources], 2).flatten(1, 2)
        ends = (1, -1, *[1] * axes)
        if self.format.name != "int8":
            x, weight = joined.double(), weight.to(self.format.dtype).double()
            size = 1.01 * conv(x.float().abs(), weight.float().abs()).double()  # by float32, since that takes less time
            return Sums(conv(x, weight), size, 2 + weight[0].numel())
        quanta = [quantum for x, quantum in sources for _ in range(x.shape[1] // groups)]
        integers, scales, _ = quantised_weight(weight, quanta)
        zeros = torch.tensor([float(q.zero) for q in quanta], dtype=torch.float64).view(ends)
        per_output = scales.double().view(ends)
        exact = conv(joined.double() - zeros.repeat(1, groups, *[1] * axes), integers.double())
        # The kernel sums products with elements, exactly, and corrects them by this in float32.
        correction = (integers.double() * zeros).flatten(1).sum(1).view(ends)
        return Sums(exact * per_output, ((exact + correction).abs() + correction.abs()) * per_output, 3)

    def sums(self) -> list[Sums | None]:
        """Of y_high and y_low, before the ReLU and the max pool."""
        form = self.form
        of_high, of_low = self.x_quanta
        high = halve(self.high) if form.pool_first else self.high
        low = self.low
        given = [(high, of_high)]
        if form.high_reads_low:
            assert low is not None
            given.append((low, of_low))
        y_high, y_low = self.convolve(given, self.high_weight), None
        shares_low = form.shares_low(
            0 if self.low_weight is None else len(self.low_weight),
            adds_from_low=self.from_low is not None,
            format=self.format,
        )
        if self.from_low is not None:
            assert low is not None
            part = self.convolve([(low, of_low)], self.from_low)
            size = y_high.value
            y_high = y_high.plus(upsample(part.value, size), upsample(part.size, size), part.terms)
        if self.low_weight is not None:
            sources = [(halve(high, sums=self.pools_sums), of_high)] if form.low_reads_high else []
            if form.low_reads_low and low is not None:
                sources.append((halve(low) if form.pool_first else low, of_low))
            if shares_low:  # int8 weights have a scale for each output of each convolution
                split = self.low_weight.split([source.shape[1] // form.groups for source, _ in sources], 1)
                first, second = (self.convolve([source], part) for source, part in zip(sources, split, strict=True))
                y_low = first.plus(*second)
            else:
                y_low = self.convolve(sources, self.low_weight)
        made: list[Sums | None] = []
        for y, bias, residual, quantum in zip(
            (y_high, y_low), self.biases, self.residuals, self.residual_quanta, strict=True
        ):
            if y is not None and bias is not None:
                wide = bias.double().view(-1, *[1] * (y.value.dim() - 2))
                y = y.plus(wide, wide.abs(), 2)
            if y is not None and residual is not None:
                real = to_real(residual, quantum)
                y = y.plus(real, real.abs(), 3)
            made.append(y)
        return made

    def expected(self) -> list[Expected | None]:
        """Elements of y_high and y_low."""
        return [
            None if y is None else self._elements(y, quantum)
            for y, quantum in zip(self.sums(), self.y_quanta, strict=True)
        ]

    def _elements(self, y: Sums, quantum: Quantum) -> Expected:
        made = elements_of(y, self.activation, self.format, quantum)
        if pool := self.form.max_pool:
            sizes = (1, *pool.window), (1, *pool.stride), (0, *pool.padding)
            made = Expected(*[F.max_pool3d(elements, *sizes) for elements in made])
        return made

    def maps(self) -> list[Tensor | None]:
        """Copies of x_high, x_low and the residuals, channels last."""
        return [None if x is None else channels_last(x.clone()) for x in (self.high, self.low, *self.residuals)]

    def check(self) -> None:
        with torch.no_grad():
            self.check_results(run(self.layer(), *self.maps()))

    def check_results(self, results: Sequence[Tensor | None]) -> float:
        """Fails where a result is not as expected. The greatest error, as a part of the greatest that may be."""
        worst = 0.0
        for name, y, want in zip(("high", "low"), results, self.expected(), strict=True):
            assert (y is None) == (want is None)
            if y is not None and want is not None:
                worst = max(worst, check_map(name, y, want, self.format))
        return worst


def check_map(name: str, y: Tensor, want: Expected, format: Format) -> float:
    """Fails where a map is not as expected. The greatest error, as a part of the greatest that may be."""
    assert y.dtype == format.dtype and y.shape == want.nearest.shape
    assert y.is_contiguous(memory_format=torch.channels_last if y.dim() == 4 else torch.channels_last_3d)
    got = y.double()
    is_nan = want.nearest.isnan()
    wrong = torch.where(is_nan, ~got.isnan(), ~((want.least <= got) & (got <= want.greatest)))
    if format.name == "bf16":  # its conversions take elements that are this small for 0
        wrong &= ~((got == 0) & (want.least <= _SMALLEST) & (want.greatest >= -_SMALLEST))
    if wrong.any():
        at = tuple(wrong.nonzero()[0].tolist())
        bounds = [part[at].item() for part in (want.least, want.nearest, want.greatest)]
        pytest.fail(
            f"{int(wrong.sum())} of {wrong.numel()} elements of y_{name} are wrong, first at {at}: "
            f"{got[at].item()}, expected {bounds[1]} between {bounds[0]} and {bounds[2]}"
        )
    most = torch.maximum(want.greatest - want.nearest, want.nearest - want.least)
    ratio = (got - want.nearest).abs() / most
    return ratio[most > 0].max().item() if bool((most > 0).any() and not is_nan.any()) else 0.0


def _float32(value: float) -> float:
    """What is left of it in a float32 field of `Layer`."""
    return torch.tensor(value, dtype=torch.float32).item()
