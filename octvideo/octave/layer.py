"""What the octave convolutions, ordinary and transposed, have in common: a tensor's way through four paths.

`OctaveLayer._run` goes it and chooses the form: in training on CPUs one pass over the maps where that is possible
(octvideo/octave/kernel/training.py); on CUDA all its convolutions as one step of autograd
(octvideo/octave/gpu/weight_blocks.py); else path by path. `convolve`, at the end, is the convolution of one path.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from octvideo.octave.factor import AXES, Factor, as_factor, low_size, octave_problem
from octvideo.octave.features import Octave, Parts
from octvideo.octave.gpu.weight_blocks import Block, BlockConvs
from octvideo.octave.kernel.layout import (
    fold_frames,
    fold_space,
    forms_device,
    is_channels_last,
    unfold_frames,
    unfold_space,
)
from octvideo.octave.kernel.training import TrainedConv, training_format
from octvideo.octave.ordinary import ORDINARY, ConvForm
from octvideo.octave.partition import HoldsIndices, Partition, as_partition
from octvideo.octave.paths import ConvPath, Exchange, Paths, Target, Term
from octvideo.octave.resample import add_upsampled, pool_down, upsample


class OctaveLayer(HoldsIndices, nn.modules.conv._ConvNd):
    """Four paths over one ordinary weight; mixed in before a torch class, whose constructor and weights stay.

    A subclass says what each path pools, strides and upsamples, and how one path convolves.

    Attributes:
        partition_in, partition_out: which channels are low.
        takes_pair, gives_pair: whether some are: the input, the result is an Octave.
        pool_first: what x_high is pooled by before any path reads it, in a strided layer; None: not.
        paths: the four paths, less those that `exchange` switches off.
        to_high, to_low: the same, as the terms that add up to y_high and to y_low.
        reads_joined: whether it can read `joined`, what a fused norm gives beside its map: pooled x_high and x_low side
            by side. A layer at stride 1 makes y_low of it; a strided one, which pools first, both results.
        can_give_parts: whether it could leave the addition of y_high's two terms to a fused norm.
        gives_parts: whether it does so: the result is `Parts`. Set it by octvideo/octave/fused/training.py.
    """

    partition_in: Partition
    partition_out: Partition
    factor: Factor
    exchange: Exchange
    form: ConvForm = ORDINARY
    pool_first: Factor | None = None
    gives_parts = False

    # -- construction ----------------------------------------------------------------------------------------

    def _choose_channels(
        self,
        alpha_in: float | Partition,
        alpha_out: float | Partition,
        factor: Sequence[int] | None,
        exchange: Exchange,
    ) -> Paths:
        """Set which channels are low; return the paths, which do not know their resolutions yet."""
        self.factor = as_factor(factor, len(self.kernel_size))
        self.exchange = exchange
        self.partition_in = as_partition(alpha_in, self.in_channels, groups=self.groups, name="alpha_in")
        self.partition_out = as_partition(alpha_out, self.out_channels, groups=self.groups, name="alpha_out")
        self.stride = tuple(int(s) for s in self.stride)  # pytorchvideo passes numpy integers
        # Decided once, not in every forward: torch.compile would trace each look at a partition's channels.
        self.takes_pair, self.gives_pair = not self.partition_in.is_ordinary, not self.partition_out.is_ordinary
        self.is_octave = self.takes_pair or self.gives_pair
        paths = Paths.of(self.partition_in, self.partition_out, self.groups, transposed=self.transposed)
        return paths.with_exchange(exchange)

    def _set_paths(self, paths: Paths) -> None:
        self.paths = paths
        order = self.partition_in.order if self.groups == 1 else None
        self.to_high = Target.of(paths.hh, paths.lh, order, self.partition_out.high)
        self.to_low = Target.of(paths.hl, paths.ll, order, self.partition_out.low)
        self.hold_indices(*self.to_high.indices, *self.to_low.indices)
        self.gives_parts = False
        terms = self.to_high.terms + self.to_low.terms
        in_order = all(isinstance(part, slice) for part in (order, self.to_high.channels, self.to_low.channels))
        self._trained = self._one_pass(paths) if in_order else None
        self._blocks = self._block_convs(terms) if in_order and self.is_octave else None
        halves_space = self.factor in ((2, 2), (1, 2, 2)) and not self.transposed
        reads = [self._takes_joined(term) for term in terms]
        strided = self.pool_first is not None
        self.reads_joined = halves_space and (
            self.pool_first == self.factor and all(reads) if strided else any(reads) and self.is_octave
        )
        self.can_give_parts = (
            (halves_space and len(self.to_high.terms) == 2 and len(self.to_low.terms) == int(self.gives_pair))
            and self.to_high.terms[0].path.up is None
            and self.to_high.terms[1].path.up == self.factor
            and all(term.path.covers_target for term in terms)
        )

    def _takes_joined(self, term: Term) -> bool:
        """Whether a term reads both maps at the size of the low one, x_high pooled for it."""
        from_high, from_low = term.sources
        both = from_high is not None and (from_low is not None) == self.takes_pair
        ungrouped = self.groups == 1 or not self.is_octave
        return both and ungrouped and (from_high.pool == self.factor or self.pool_first is not None)  # type: ignore

    def _block_convs(self, terms: Sequence[Term]) -> BlockConvs | None:
        """All terms as convolutions with blocks of the weight, if they have no bias and zeros around the maps."""
        usual = self.padding_mode == "zeros" and not isinstance(self.padding, str) and self.bias is None
        if not usual or self.groups > 1 or self.transposed or len(self.kernel_size) == 1:
            return None
        blocks = []
        for path in (term.path for term in terms):
            if not (isinstance(path.rows, slice) and isinstance(path.columns, slice)):
                return None
            blocks.append(Block(path.rows, path.columns, path.stride))
        return BlockConvs(tuple(blocks), tuple(self.padding), tuple(self.dilation))  # type: ignore[arg-type]

    def _one_pass(self, paths: Paths) -> TrainedConv | None:
        """What trains the layer in one pass, if the kernel has its form."""
        high_in, low_in = len(self.partition_in.high), len(self.partition_in.low)
        high_out, low_out = self.to_high.num_channels, self.to_low.num_channels
        halves_space = self.factor in ((2, 2), (1, 2, 2)) and set(self.stride) == {1}
        usual = self.padding_mode == "zeros" and not isinstance(self.padding, str) and self.bias is None
        if not (self.is_octave and halves_space and usual) or self.groups > 1 or self.transposed:
            return None
        if (paths.lh is None) != (low_in * high_out == 0) or (paths.hl is None) != (high_in * low_out == 0):
            return None  # an exchange is switched off
        if paths.hl is not None and paths.hl.pool != self.factor:
            return None  # it strides
        sizes = self.kernel_size, self.padding, self.dilation
        return TrainedConv.of(*sizes, (high_in, low_in), (high_out, low_out))  # type: ignore[arg-type]

    def _check(self) -> None:
        problem = octave_problem(self, self.factor, is_same=self.form.is_same)
        if problem:
            raise ValueError(
                f"{type(self).__name__}: {problem}; keep this convolution ordinary (alpha_in = alpha_out = 0) and "
                "merge before it"
            )

    # -- the way of a tensor ---------------------------------------------------------------------------------

    def _unpack(self, x: Tensor | Octave) -> tuple[Tensor, Tensor | None]:
        """x_high and x_low, checked against the partition and against each other."""
        if isinstance(x, Octave) != self.takes_pair:
            want = f"an Octave ({len(self.partition_in.low)} low channels)" if self.takes_pair else "a Tensor"
            raise TypeError(
                f"{type(self).__name__} with {self.partition_in} in: expected {want}, got {type(x).__name__}; "
                "use split() or merge()"
            )
        high, low = x if isinstance(x, Octave) else (x, None)
        if self.is_octave and high.dim() != 2 + len(self.factor):
            axes = ", ".join(("N", "C", *AXES[len(self.factor)]))
            raise ValueError(f"{type(self).__name__}: expected ({axes}), got shape {tuple(high.shape)}")
        if low is not None:
            expected = low_size(high.shape[2:], self.factor)
            if tuple(low.shape[2:]) != expected:
                raise ValueError(
                    f"Octave sizes do not fit: high {tuple(high.shape)} needs low of spatial size {expected} "
                    f"(factor {self.factor}), got {tuple(low.shape)}"
                )
        return high, low

    def _run(
        self, high: Tensor, low: Tensor | None, size: Sequence[int], joined: Tensor | None = None
    ) -> Tensor | Octave | Parts:
        """The layer's result.

        Args:
            high, low: as `_unpack` gives them, x_high pooled by `pool_first`.
            size: of y_high; on axes that are not halved it does not matter.
            joined: see `reads_joined`.
        """
        weight = self.form.weight(self)  # once: spectral norm goes a step further at each reading
        if self.gives_parts:
            y_high, half, *y_low = self._results(high, low, joined, weight)
            return Parts(y_high, half, y_low[0] if y_low else None)
        if self._trained is not None and self._trained.fits(high, low, weight):
            maps = self._trained(high, low, weight, functools.partial(self._run_paths, size=size))
        else:
            maps = self._run_paths(high, low, weight, size, joined)
        return Octave(*maps) if self.gives_pair else maps[0]

    def _run_paths(
        self, high: Tensor, low: Tensor | None, weight: Tensor, size: Sequence[int], joined: Tensor | None = None
    ) -> tuple[Tensor, ...]:
        """y_high, and y_low if there is one."""
        results = self._results(high, low, joined, weight)
        num_high = len(self.to_high.terms)
        y_high = self._sum_of_terms(self.to_high, results[:num_high], size)
        if not self.gives_pair:
            assert y_high is not None
            return (y_high,)
        y_low = self._sum_of_terms(self.to_low, results[num_high:], size)
        assert y_low is not None
        if y_high is None:  # alpha_out = 1: no high channel, but the full size is kept
            y_high = y_low.new_empty(y_low.shape[0], 0, *self._sized(y_low, size))
        return y_high, y_low

    def _results(self, high: Tensor, low: Tensor | None, joined: Tensor | None, weight: Tensor) -> list[Tensor]:
        """Each term's convolution, those of y_high first, at its own resolution; the first of each brings the bias."""
        if self._blocks is not None and forms_device(high) == "cuda":
            terms = self.to_high.terms + self.to_low.terms
            return list(self._blocks(weight, [self._gather(term, high, low, joined) for term in terms]))
        return [
            self._convolve_term(term, target, self._gather(term, high, low, joined), weight, has_bias=n == 0)
            for target in (self.to_high, self.to_low)
            for n, term in enumerate(target.terms)
        ]

    def _gather(self, term: Term, high: Tensor, low: Tensor | None, joined: Tensor | None) -> Tensor:
        """What a term's convolution reads."""
        if joined is None or not self._takes_joined(term):
            return term.gather(high, low, len(self.factor), self)
        source = term.sources[0]
        once_more = self.pool_first is not None and source is not None and source.pool is not None
        return pool_down(joined, self.factor) if once_more else joined

    def _sum_of_terms(self, target: Target, results: Sequence[Tensor], size: Sequence[int]) -> Tensor | None:
        """What reaches one frequency, at its resolution. None: nothing does."""
        total: Tensor | None = None
        for term, y in zip(target.terms, results, strict=True):
            up = term.path.up
            if total is None:
                total = y if up is None else upsample(y, self._sized(y, size), up)
            else:
                total = total + y if up is None else add_upsampled(total, y, up)
        return total

    def _convolve_term(self, term: Term, target: Target, x: Tensor, weight: Tensor, *, has_bias: bool) -> Tensor:
        """One term over all channels of its target, at the convolution's own resolution."""
        path, bias = term.path, target.bias(self.bias, self) if has_bias else None
        if path.covers_target:
            return self._convolve(x, path, path.weight(weight, self), bias)
        return target.spread(self._convolve(x, path, path.weight(weight, self), None), path, bias, self)

    def _convolve(self, x: Tensor, path: ConvPath, weight: Tensor, bias: Tensor | None) -> Tensor:
        raise NotImplementedError

    def _sized(self, y: Tensor, size: Sequence[int]) -> tuple[int, ...]:
        """`size` on the halved axes, y's own on the others, where all resolutions agree."""
        own = y.shape[2:]
        return tuple([size[n] if f == 2 else own[n] for n, f in enumerate(self.factor)])

    def extra_repr(self) -> str:
        alpha_in, alpha_out = self.partition_in.alpha, self.partition_out.alpha
        text = f"{super().extra_repr()}, alpha_in={alpha_in:.3g}, alpha_out={alpha_out:.3g}"
        if self.factor != as_factor(None, len(self.factor)):
            text += f", factor={self.factor}"
        return text if self.exchange == "both" else f"{text}, exchange={self.exchange}"


def convolve(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: Sequence[int],
    padding: Any,
    dilation: Sequence[int],
    groups: int,
) -> Tensor:
    """F.conv1d, conv2d or conv3d of `x` (with zeros outside), in the fastest form for its layout.

    Args:
        x: (N, C_in, [T,] [H,] W).
        weight: (C_out, C_in / groups, ...).
        bias: (C_out,) or None.
        stride, dilation: one int for each axis of the kernel.
        padding: likewise, or torch's words "same" and "valid".
        groups: as in torch.
    """
    axes = weight.dim() - 2
    if axes >= 2 and x.dim() == axes + 2 and not isinstance(padding, str) and is_channels_last(x):
        pixelwise = weight.shape[-1] == weight.shape[-2] == 1 == max(stride)
        if pixelwise and bias is None and groups == 1 and training_format(x, weight):
            conv = _trained(weight.shape, tuple(padding), tuple(dilation))
            if conv is not None:
                return conv(x, None, weight, functools.partial(_by_torch, padding, dilation))[0]
        if axes == 2:
            return _convolve_images(x, weight, bias, stride, padding, dilation, groups)
        return _convolve_clips(x, weight, bias, stride, padding, dilation, groups)
    return (F.conv1d, F.conv2d, F.conv3d)[axes - 1](x, weight, bias, stride, padding, dilation, groups)


@functools.cache
def _trained(shape: tuple[int, ...], padding: tuple[Any, ...], dilation: tuple[int, ...]) -> TrainedConv | None:
    """What trains a convolution whose kernel is one pixel wide and high."""
    return None if any(padding[-2:]) else TrainedConv.of(shape[2:], padding, dilation, (shape[1], 0), (shape[0], 0))


def _by_torch(padding: Any, dilation: Any, x: Tensor, _: None, weight: Tensor) -> tuple[Tensor]:
    convolution: Any = F.conv2d if weight.dim() == 4 else F.conv3d
    return (convolution(x, weight, None, 1, padding, dilation),)


def _convolve_images(
    x: Tensor, weight: Tensor, bias: Tensor | None, stride: Any, padding: Any, dilation: Any, groups: int
) -> Tensor:
    """(N, C, H, W), channels last."""
    # A kernel of one pixel has nothing to dilate, but torch gives dilated convolutions to oneDNN, and others of few
    # maps on one thread to a slower loop of its own.
    is_pointwise = tuple(weight.shape[2:]) == (1, 1) and groups == 1 and tuple(padding) == (0, 0)
    if is_pointwise and not torch.compiler.is_compiling():
        dilation = (2, 2)
    return F.conv2d(x, weight, bias, stride, padding, dilation, groups)


def _convolve_clips(
    x: Tensor, weight: Tensor, bias: Tensor | None, stride: Any, padding: Any, dilation: Any, groups: int
) -> Tensor:
    """(N, C, T, H, W), channels last. A kernel without an extent in time, or in space, becomes two-dimensional.

    On one thread torch gives conv3d to a loop of its own, which takes three times as long.
    """
    if weight.shape[2] == 1 and padding[0] == 0:
        frames = fold_frames(x if stride[0] == 1 else x[:, :, :: stride[0]])
        y = _convolve_images(frames, weight.squeeze(2), bias, stride[1:], padding[1:], dilation[1:], groups)
        return unfold_frames(y, x.shape[0])
    if tuple(weight.shape[3:]) == tuple(stride[1:]) == (1, 1) and tuple(padding[1:]) == (0, 0):
        kernel, stride, padding, dilation = weight.squeeze(4), (stride[0], 1), (padding[0], 0), (dilation[0], 1)
        y = F.conv2d(fold_space(x), kernel, bias, stride, padding, dilation, groups)  # (N,C_out,T',H·W)
        return unfold_space(y, x.shape[3:])
    return F.conv3d(x, weight, bias, stride, padding, dilation, groups)
