"""Convolutions of a network that only computes scores: residual, activation and max pool in passing.

`prepare_inference` puts them in the places of a network's own. There are three ways to compute one:

kernel   on the CPU, in compiled graphs too: one pass over the maps, in a sequence (sequence.py); in float32, and in
         bfloat16 and int8 where the processor has their products
oneDNN   layers, and bfloat16, that the kernel does not have or is not there for (onednn.py)
torch    CUDA, other layouts, and other graphs that are compiled or exported: convolution, addition, activation

`FusedSequence.forward` chooses the first one where it can, and `PreparedLayer.forward` between the others.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from octvideo.octave.factor import Factor, low_size
from octvideo.octave.features import Octave
from octvideo.octave.fused.activations import activated
from octvideo.octave.fused.onednn import OneDnnConv, onednn_reads
from octvideo.octave.fused.sequence import FusedSequence
from octvideo.octave.kernel.formats import F32, Format, LayerQuanta
from octvideo.octave.kernel.fused_conv import Activation, Form, FusedConv, FusedLayer, MaxPool
from octvideo.octave.kernel.layout import LAYOUTS, fold_frames, unfold_frames
from octvideo.octave.kernel.library import load_library
from octvideo.octave.kernel.light_layers import FusedDepthwise
from octvideo.octave.layer import OctaveLayer, convolve
from octvideo.octave.partition import HoldsIndices
from octvideo.octave.paths import Target
from octvideo.octave.resample import add_upsampled, pool_down, upsample

Maps = tuple[Tensor, Tensor | None]  # of a value: the high one, and the low one if there is one
Residuals = tuple[Tensor | None, Tensor | None]
Run = Callable[["PreparedConv", Tensor, Tensor | None], Tensor]  # activation(conv(x) + residual)


class PreparedLayer(nn.Module):
    """activation(conv(x) + residual), of which activation and residual are optional, by oneDNN or torch.

    Attributes:
        activation: what follows; set it before the first call.
        gives_pair: whether its result is an Octave.
        takes_num_frames: never.
        pool_first: what x_high is pooled by before the convolution; None: not.
        main: the convolution that reads x_high and whose result has y_high's size.
        onednn_has: whether oneDNN has the layer.
        fused: the layer as the kernel has it, after `fuse`.
    """

    activation: Activation
    gives_pair = takes_num_frames = False
    pool_first: Factor | None = None
    main: PreparedConv
    onednn_has: bool

    def __init__(self) -> None:
        super().__init__()
        self.fused: FusedLayer | None = None

    def forward(self, x: Tensor | Octave, residual: Tensor | Octave | None = None) -> Any:
        """Convolve.

        Args:
            x: (N, C_in, [T,] H, W), or an Octave of it.
            residual: what is added; where it has the result's shape it is overwritten with the result.

        Returns:
            (N, C_out, [T',] H', W'), or an Octave of it.
        """
        dtype = self.main.weight.dtype  # weights in bfloat16 set the precision
        high, low = x if isinstance(x, Octave) else (x, None)
        maps = high.to(dtype), None if low is None else low.to(dtype)
        residuals = residual if isinstance(residual, Octave) else (residual, None)
        if self.onednn_has and onednn_reads(maps[0]) and self.fits(maps, residuals):
            # Clips are folded to frames once, not for each of a layer's many small calls.
            clips, is_clip = high.shape[0], high.dim() == 5
            frames: Any = [fold_frames(x) if is_clip and x is not None else x for x in (*maps, *residuals)]
            results = self.run_terms(frames[:2], frames[2:], lambda conv, x, other: conv.run_onednn(x, other, clips))
            results = [unfold_frames(y, clips) for y in results] if is_clip else results
        else:
            results = self.run_torch(maps, residuals)
        return Octave(*results) if self.gives_pair else results[0]  # type: ignore[arg-type]

    @property
    def kernel_has(self) -> bool:
        """Whether the kernel has the layer here, and oneDNN is not faster."""
        is_here = self.main.weight.device.type == "cpu" and load_library() is not None
        return is_here and self.form is not None and self.form.is_supported

    @property
    def form(self) -> Form | None:
        """Of three axes; None where the kernel has no such layer."""
        raise NotImplementedError

    def fuse(self, format: Format = F32, quanta: LayerQuanta | None = None) -> bool:
        """Prepares, once for each format, for the kernel; whether that has the layer."""
        if self.fused is not None and (self.fused.format, self.fused.quanta) != (format, quanta):
            self.fused = None
        if self.fused is None and self.main.weight.dtype == torch.float32 and self.kernel_has:
            self.fused = self.as_fused(self.form, format, quanta)  # type: ignore[arg-type]
        return self.fused is not None

    def as_fused(self, form: Form, format: Format, quanta: LayerQuanta | None) -> FusedLayer:
        """The layer as the kernel has it."""
        raise NotImplementedError

    def fits(self, maps: Maps, residuals: Residuals) -> bool:
        """Whether the residual can be overwritten: it has the result's shape and precision; or there is none."""
        if (residual := residuals[0]) is None:
            return True
        clips, _, *size = maps[0].shape
        if self.pool_first is not None:
            size = list(low_size(size, self.pool_first))
        return residual.shape == self.main.out_shape(clips, size) and residual.dtype == self.main.weight.dtype

    def run_terms(self, maps: Maps, residuals: Residuals, run: Run, *, sums_last: bool = False) -> Sequence[Tensor]:
        """y_high, and y_low if there is one.

        Args:
            maps, residuals: clips or images, or frames for which `onednn_has` holds.
            run: how one of the layer's convolutions is computed.
            sums_last: what is added to y_high's main term is added after it is made, not by `run`.
        """
        raise NotImplementedError

    def run_torch(self, maps: Maps, residuals: Residuals) -> Sequence[Tensor]:
        """y_high, and y_low if there is one, of any maps; residuals may broadcast."""
        raise NotImplementedError

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "fused": None}

    def _apply(self, *args: Any, **kwargs: Any) -> PreparedLayer:
        self.fused = None  # of weights that were
        return super()._apply(*args, **kwargs)


class PreparedConv(PreparedLayer):
    """An ordinary one: max_pool(activation(conv(x) + residual)), of which all but the convolution is optional.

    Args:
        weight: (C_out, C_in / groups, ...).
        bias: (C_out,) or None.
        stride, padding, dilation: one int for each axis of the kernel.
        groups: as in nn.Conv3d.

    Attributes:
        max_pool: the pool, if it has one; set it before the first call.
    """

    weight: Tensor
    bias: Tensor | None

    def __init__(
        self,
        weight: Tensor,
        bias: Tensor | None,
        *,
        stride: Sequence[int],
        padding: Sequence[int],
        dilation: Sequence[int],
        groups: int = 1,
        activation: Activation = "none",
    ) -> None:
        super().__init__()
        layout = LAYOUTS.get(weight.dim(), torch.contiguous_format)
        own = weight.detach().clone(memory_format=torch.contiguous_format)
        self.register_buffer("weight", own.contiguous(memory_format=layout))
        self.register_buffer("bias", None if bias is None else bias.detach().clone())
        self.stride, self.padding, self.dilation = tuple(stride), tuple(padding), tuple(dilation)
        self.groups, self.activation = groups, activation
        self.max_pool: MaxPool | None = None
        self.place = 0  # among those of a PreparedOctConv
        self.onednn = OneDnnConv(tuple(weight.shape[2:]), self.stride, self.padding, self.dilation, groups)
        self.onednn_has = self.onednn.has_form

    @classmethod
    def of(cls, conv: nn.modules.conv._ConvNd) -> PreparedConv | None:
        """What computes `conv`; None where it pads in a way that torch's functions do not."""
        if conv.padding_mode != "zeros" or isinstance(conv.padding, str) or conv.transposed:
            return None
        sizes: dict[str, Any] = {name: getattr(conv, name) for name in ("stride", "padding", "dilation")}
        return cls(conv.weight, conv.bias, groups=conv.groups, **sizes)

    @property
    def main(self) -> PreparedConv:  # type: ignore[override]
        return self

    @property
    def kernel_has(self) -> bool:
        return super().kernel_has and self.form.is_fast  # type: ignore[union-attr]

    @property
    def form(self) -> Form | None:
        form = self.grouped_form
        return replace(form, is_depthwise=True, groups=1) if form is not None and self.is_depthwise else form

    @property
    def is_depthwise(self) -> bool:
        """Whether each channel is convolved by itself."""
        return self.weight.shape[1] == 1 and self.groups == len(self.weight) > 1

    @property
    def grouped_form(self) -> Form | None:
        """The form, in which a depthwise convolution has as many groups as channels."""
        if self.weight.dim() < 4:
            return None
        sizes = (tuple(self.weight.shape[2:]), self.stride, self.padding, self.dilation)
        if self.weight.dim() == 4:
            sizes = tuple((first, *size) for first, size in zip((1, 1, 0, 1), sizes, strict=True))  # type: ignore
        return Form(*sizes, max_pool=self.max_pool, groups=self.groups)

    def as_fused(self, form: Form, format: Format, quanta: LayerQuanta | None) -> FusedLayer:
        given: dict[str, Any] = {"activation": self.activation, "format": format, "quanta": quanta}
        if form.is_depthwise:
            return FusedDepthwise(form, high=self.weight, bias_high=self.bias, **given)
        return FusedConv(form, high=self.weight, num_high=self.weight.shape[1], bias_high=self.bias, **given)

    def run_terms(self, maps: Maps, residuals: Residuals, run: Run, *, sums_last: bool = False) -> Sequence[Tensor]:
        return (run(self, maps[0], residuals[0]),)

    def run_onednn(self, x: Tensor, residual: Tensor | None, clips: int) -> Tensor:
        """The result for channels-last images or frames (N·T, C_in, H, W), where N is `clips`."""
        rectifies = self.activation == "relu"
        y = self.onednn.run(x, self.weight, self.bias, residual, relu=rectifies, clips=clips)
        return self._pooled(y if rectifies else activated(y, self.activation))

    def run_torch(self, maps: Maps, residuals: Residuals) -> Sequence[Tensor]:
        y = self.convolve(maps[0])
        y = y if residuals[0] is None else y + residuals[0]
        if self.activation == "relu":  # after a pool it is the same, of fewer elements
            return (activated(self._pooled(y), "relu"),)
        return (self._pooled(activated(y, self.activation)),)

    def convolve(self, x: Tensor) -> Tensor:
        """The convolution alone."""
        return convolve(x, self.weight, self.bias, self.stride, self.padding, self.dilation, self.groups)

    def out_shape(self, clips: int, size: Sequence[int]) -> tuple[int, ...]:
        """The convolution's, for maps (N, C_in, *size)."""
        sizes = zip(size, self.weight.shape[2:], self.stride, self.padding, self.dilation, strict=True)
        out = [(n + 2 * p - d * (k - 1) - 1) // s + 1 for n, k, s, p, d in sizes]
        return (clips, self.weight.shape[0], *out)

    def _pooled(self, y: Tensor) -> Tensor:
        if (pool := self.max_pool) is None:
            return y
        if y.dim() == 4:
            return F.max_pool2d(y, pool.window, pool.stride, pool.padding)
        return F.max_pool3d(y, (1, *pool.window), (1, *pool.stride), (0, *pool.padding))

    def _apply(self, *args: Any, **kwargs: Any) -> PreparedLayer:
        self.onednn.forget()
        return super()._apply(*args, **kwargs)

    def extra_repr(self) -> str:
        pool = f", {self.max_pool}" if self.max_pool else ""
        return f"{tuple(self.weight.shape)}, stride={self.stride}, padding={self.padding}, {self.activation}{pool}"


class PreparedOctConv(HoldsIndices, PreparedLayer):  # type: ignore[misc]
    """An octave one, as `PreparedConv`s, one for each term of the layer.

    y_low is one convolution of the pooled high and the low channels side by side, or, in a grouped layer, one of each;
    y_high is one of the high channels, added to what the low ones give, upsampled, and to the residual: passes over
    the results that the kernel does not need.
    """

    def __init__(self, conv: OctaveLayer) -> None:
        super().__init__()
        self.pool_first, self.gives_pair = conv.pool_first, conv.gives_pair
        self.to_high, self.to_low = conv.to_high, conv.to_low
        self.hold_indices(*conv.to_high.inputs, *conv.to_low.inputs)
        axes = len(conv.kernel_size)
        self.high, self.low = (nn.ModuleList(_prepared(conv, target)) for target in (conv.to_high, conv.to_low))
        self.num_high = len(conv.partition_in.high) // conv.to_high.terms[0].path.groups
        terms = (*conv.to_high.terms, *conv.to_low.terms)
        paths = [path for term in terms for path in term.sources if path is not None]
        steps = [self.pool_first, *(path.pool for path in paths), *(term.path.up for term in terms)]
        whole = [slice(0, len(part)) for part in (conv.partition_in.high, conv.partition_in.low)]
        read = [pair for term in terms for pair in zip(term.sources, whole, strict=True)]
        self.reads_whole_maps = all(path is None or path.inputs == channels for path, channels in read)
        self.halves_space = axes > 1 and all(s is None or s == (1, 2, 2)[-axes:] for s in steps)
        convs: list[Any] = [*self.high, *self.low]
        self.onednn_has = self.halves_space and all(conv.onednn.has_form for conv in convs)
        # Where the kernel has no such layer (a time octave): its convolutions alone, without and with a residual.
        alone = [FusedSequence([conv], [range(n)], n, [n]) for conv in convs for n in (1, 2) if self.form is None]
        self.alone = nn.ModuleList(alone)
        for place, part in enumerate(convs):  # torch.export gives other objects for modules, which no list would find
            part.place = 2 * place

    @classmethod
    def of(cls, conv: OctaveLayer) -> PreparedOctConv | None:
        """What computes `conv`; None for layers of another form, as those that are padded unusually."""
        terms = (*conv.to_high.terms, *conv.to_low.terms)
        usual = conv.padding_mode == "zeros" and not isinstance(conv.padding, str) and not conv.transposed
        whole = all(term.path.covers_target for term in terms)
        alike = len({term.path.groups for term in terms}) == 1
        few = len(conv.to_low.terms) == int(conv.gives_pair) or (alike and conv.groups > 1)
        return cls(conv) if usual and whole and few and conv.to_high.terms and terms[0].path.up is None else None

    @property
    def main(self) -> PreparedConv:  # type: ignore[override]
        return self.high[0]  # type: ignore[return-value]

    @property
    def activation(self) -> Activation:  # type: ignore[override]
        return self.main.activation

    @activation.setter
    def activation(self, value: Activation) -> None:
        # Before the upsampled low part is added, there is nothing to apply it to.
        for conv in (self.main, *self.low[:1]):
            conv.activation = value  # type: ignore[assignment]

    def as_fused(self, form: Form, format: Format, quanta: LayerQuanta | None) -> FusedLayer:
        high, from_low, low = self.weights
        given: dict[str, Any] = {
            "high": high,
            "low": low,
            "bias_high": self.main.bias,
            "bias_low": self.low[0].bias if self.gives_pair else None,
            "activation": self.activation,
            "format": format,
            "quanta": quanta,
        }
        if form.is_depthwise:
            return FusedDepthwise(form, **given)
        return FusedConv(form, from_low=from_low, num_high=self.num_high, **given)

    @property
    def weights(self) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """Of the three convolutions that the kernel has: to y_high, of what is upsampled, and to y_low."""
        high, low = ([conv.weight for conv in convs] for convs in (self.high, self.low))  # type: ignore[misc]
        from_low = high.pop() if len(high) > 1 and self.pool_first is None else None
        return torch.cat(high, 1), from_low, torch.cat(low, 1) if low else None  # type: ignore

    @property
    def form(self) -> Form | None:
        """None where its convolutions are not alike, or do not meet in the way that the kernel expects."""
        main, *others = self.to_high.terms
        from_high, from_low = main.sources
        expected = self.halves_space and self.reads_whole_maps and from_high is not None and from_high.pool is None
        for term in others:
            source = term.sources[1]
            expected &= term.sources[0] is None and source is not None and source.pool is None
            if term.path.up is None:
                from_low = source  # of a grouped layer
            else:
                expected &= self.pool_first is None
        if from_low is not None:
            expected &= from_low.pool is None and self.pool_first is not None
        low_from_high, low_from_low = (
            next((term.sources[n] for term in self.to_low.terms if term.sources[n] is not None), None) for n in (0, 1)
        )
        expected &= low_from_high is None or low_from_high.pool is not None
        expected &= low_from_low is None or low_from_low.pool == self.pool_first
        convs: list[Any] = [*self.high, *self.low]
        exchanges = bool(others) or from_low is not None or low_from_high is not None
        is_depthwise = not exchanges and all(conv.is_depthwise for conv in convs)
        form, *other_forms = [conv.form if is_depthwise else conv.grouped_form for conv in convs]
        if form is None or any(other != form for other in other_forms) or not expected:
            return None
        return replace(
            form,
            pool_first=self.pool_first is not None,
            high_reads_low=from_low is not None,
            low_reads_high=low_from_high is not None,
            low_reads_low=low_from_low is not None,
        )

    def run_torch(self, maps: Maps, residuals: Residuals) -> Sequence[Tensor]:
        # An engine fuses additions and a ReLU that follow a convolution.
        sums_last = torch.compiler.is_compiling() or not self.fits(maps, residuals)
        return self.run_terms(maps, residuals, self._run_alone, sums_last=sums_last)

    def _run_alone(self, conv: PreparedConv, x: Tensor, residual: Tensor | None) -> Tensor:
        given = [x] if residual is None else [x, residual]
        return self.alone[conv.place + len(given) - 1](*given) if self.alone else conv(*given)

    def run_terms(self, maps: Maps, residuals: Residuals, run: Run, *, sums_last: bool = False) -> Sequence[Tensor]:
        (high, low), (residual, residual_low) = maps, residuals
        axes = high.dim() - 2
        if self.pool_first is not None:
            high = pool_down(high, self.pool_first[-axes:])
        main, *from_low = [term.gather(high, low, axes, self) for term in self.to_high.terms]
        if not from_low:
            y_high = run(self.main, main, residual)
        else:
            part = run(self.high[1], from_low[0], None)  # type: ignore[arg-type]  # at low resolution
            up = self.to_high.terms[1].path.up
            if up is None:  # a strided layer: what it reads low has the size of its results
                y_high = run(self.main, main, part if residual is None else residual + part)
            elif sums_last:
                y = add_upsampled(self.main.convolve(main), part, up[-axes:])
                y = y if residual is None else y + residual
                y_high = activated(y, self.activation)
            elif residual is None:
                size = [h if f == 2 else p for h, p, f in zip(high.shape[2:], part.shape[2:], up[-axes:], strict=True)]
                y_high = run(self.main, main, upsample(part, size, up[-axes:]))
            else:
                y_high = run(self.main, main, add_upsampled(residual, part, up[-axes:]))
        if not self.gives_pair:
            return (y_high,)
        first, *others = [term.gather(high, low, axes, self) for term in self.to_low.terms]
        if others:
            part = run(self.low[1], others[0], None)  # type: ignore[arg-type]
            residual_low = part if residual_low is None else residual_low + part
        return y_high, run(self.low[0], first, residual_low)  # type: ignore[arg-type]


def _prepared(conv: OctaveLayer, target: Target) -> list[PreparedConv]:
    """One for each term of y_high or y_low; the first brings the bias."""
    sizes: dict[str, Any] = {"padding": conv.padding, "dilation": conv.dilation}
    convs: list[PreparedConv] = []
    for term in target.terms:
        weight, bias = term.path.weight(conv.weight), None if convs else target.bias(conv.bias)
        convs.append(PreparedConv(weight, bias, stride=term.path.stride, groups=term.path.groups, **sizes))
    return convs
