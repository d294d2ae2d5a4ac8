"""Octave convolutions of a network that only computes scores, made of the ordinary ones in prepared.py."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from octvideo.octave.conv import _OctConvNd
from octvideo.octave.features import Octave
from octvideo.octave.fused.conv import PreparedConv, can_run_fused, rectified
from octvideo.octave.kernel.fused_conv import Form, FusedConv
from octvideo.octave.kernel.layout import fold_frames, unfold_frames
from octvideo.octave.kernel.library import load_library
from octvideo.octave.partition import take_channels
from octvideo.octave.paths import Term
from octvideo.octave.resample import add_upsampled, crop, pool_down, pool_images, upsample


class PreparedOctConv(nn.Module):
    """An octave convolution as `PreparedConv`s, one for each term.

    y_low is one convolution of the pooled high and the low channels side by side; y_high is one of the high channels,
    added to what the low ones give, repeated, and to the residual: two passes over y_high that the ordinary layer
    does not need.
    """

    def __init__(self, conv: _OctConvNd) -> None:
        super().__init__()
        self.pool_first, self.gives_pair = conv._pool_first, conv._gives_pair
        self.axes = len(conv.kernel_size)
        self._terms = (*conv._high_terms, *conv._low_terms)
        paths = [path for term in self._terms for path in term.sources if path is not None]
        steps = [self.pool_first, *(path.pool for path in paths), *(term.path.up for term in self._terms)]
        self._halves_space = self.axes > 1 and all(s is None or s == (1, 2, 2)[-self.axes :] for s in steps)
        self.high = nn.ModuleList(_prepared(conv, term, to_low=False) for term in conv._high_terms)
        self.low = nn.ModuleList(_prepared(conv, term, to_low=True) for term in conv._low_terms)
        self._num_high = len(conv.partition_in.high)
        self._fused: FusedConv | None = None

    @classmethod
    def of(cls, conv: _OctConvNd) -> PreparedOctConv | None:
        """What computes `conv`; None for layers of another form: grouped with an exchange, or padded unusually."""
        terms = (*conv._high_terms, *conv._low_terms)
        usual = conv.padding_mode == "zeros" and not isinstance(conv.padding, str)
        whole = all(term.path.covers_target for term in terms)
        one_each = bool(conv._high_terms) and len(conv._low_terms) == int(conv._gives_pair)
        return cls(conv) if usual and whole and one_each and conv._high_terms[0].path.up is None else None

    @property
    def relu(self) -> bool:
        return self.high[0].relu  # type: ignore[return-value]

    @relu.setter
    def relu(self, value: bool) -> None:
        # Before the repeated low part is added, there is nothing to rectify.
        for conv in (self.high[0], *self.low):
            conv.relu = value  # type: ignore[assignment]

    def forward(self, x: Tensor | Octave, base: Tensor | Octave | None = None) -> Tensor | Octave:
        """Convolve; `base`, of the result's form, is added and overwritten. See `PreparedConv`."""
        high, low = x if isinstance(x, Octave) else (x, None)
        base_high, base_low = base if isinstance(base, Octave) else (base, None)
        if self.fuse() and can_run_fused(high) and self._fused.fits(high, base_high):  # type: ignore[union-attr]
            y_high, y_low = self._fused(high, low, base_high, base_low)  # type: ignore[misc]
            return y_high if y_low is None else Octave(y_high, y_low)
        if self._is_fast(high, base_high):
            y_high, y_low = self._frames(high, low, base_high, base_low)
            return y_high if y_low is None else Octave(y_high, y_low)
        if self.pool_first is not None:
            high = pool_down(high, self.pool_first)
        y_high = self._high(high, low, base_high)
        if not self.gives_pair:
            return y_high
        return Octave(y_high, self.low[0](self._terms[-1].gather(high, low, self.axes), base_low))

    def _is_fast(self, high: Tensor, base: Tensor | None) -> bool:
        first: Any = self.high[0]
        if not self._halves_space or high.dtype != first.weight.dtype or not first._is_fast(high):
            return False
        return base is None or self._fits(base, high)

    def _fits(self, base: Tensor, high: Tensor) -> bool:
        shape: Sequence[int] = high.shape
        if self.pool_first is not None:
            shape = (*shape[:-2], *((n + 1) // 2 for n in shape[-2:]))
        return self.high[0]._fits(base, shape)  # type: ignore[operator, no-any-return]

    def fuse(self) -> bool:
        """Prepares, once, for being one pass; whether it can be. See `PreparedConv.fuse`."""
        if self._fused is not None:
            return True
        first: Any = self.high[0]
        of_cpu = first.weight.dtype == torch.float32 and first.weight.device.type == "cpu"
        if of_cpu and not torch.compiler.is_compiling():
            form = self._form()
            if form is not None and form.is_supported and load_library() is not None:
                repeated: Any = self.high[1].weight if len(self.high) > 1 else None
                low: Any = self.low[0] if self.gives_pair else None
                weight = first.weight
                self._fused = FusedConv(
                    form,
                    high=weight,
                    from_low=repeated,
                    low=None if low is None else low.weight,
                    num_high=self._num_high,
                    bias_high=first.bias,
                    bias_low=None if low is None else low.bias,
                    relu=self.relu,
                )
        return self._fused is not None

    def _form(self) -> Form | None:
        """None where its convolutions are not alike, or do not meet in the way that fused_conv.cpp expects."""
        convs: list[Any] = [*self.high, *self.low]
        alike = all(conv.groups == 1 and conv.weight.dim() > 3 and conv.form == convs[0].form for conv in convs)
        main, *others = self._terms[: len(self.high)]
        from_high, from_low = main.sources
        expected = from_high is not None and from_high.pool is None
        if from_low is not None:
            expected &= from_low.pool is None and self.pool_first is not None
        for term in others:
            source = term.sources[1]
            expected &= term.sources[0] is None and source is not None and source.pool is None
            expected &= self.pool_first is None and term.path.up is not None
        low_sources = self._terms[-1].sources if self.gives_pair else (None, None)
        expected &= low_sources[0] is None or low_sources[0].pool is not None
        expected &= low_sources[1] is None or low_sources[1].pool == self.pool_first
        if not (alike and expected and self._halves_space):
            return None
        return replace(
            convs[0].form,
            pool_first=self.pool_first is not None,
            high_reads_low=from_low is not None,
            low_reads_high=low_sources[0] is not None,
            low_reads_low=low_sources[1] is not None,
        )

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_fused": None}

    def _apply(self, *args: Any, **kwargs: Any) -> PreparedOctConv:
        self._fused = None
        return super()._apply(*args, **kwargs)

    def _frames(
        self, high: Tensor, low: Tensor | None, base_high: Tensor | None, base_low: Tensor | None
    ) -> tuple[Tensor, Tensor | None]:
        """The whole layer on frames (N·T, C, H, W), folded once: Oct-I3D-50's small calls took 22 ms, now 12."""
        clips = high.shape[0]
        maps = [_fold(high), None if low is None else _fold(low)]
        if self.pool_first is not None:
            maps[0] = pool_images(maps[0], (2, 2))  # type: ignore[arg-type]
        bases = [None if base is None else _fold(base) for base in (base_high, base_low)]
        results: list[Tensor] = []
        for target, convs in enumerate((self.high, self.low)):
            base = bases[target]
            for conv, term in reversed(list(zip(convs, self._terms[target * len(self.high) :], strict=False))):
                x = _gather(term, maps)
                if conv is convs[0]:
                    results.append(conv.run_frames(x, base, clips))  # type: ignore[operator]
                    continue
                repeated = conv.run_frames(x, None, clips)  # type: ignore[operator]
                high_frames = maps[0]
                assert high_frames is not None
                base = _repeat(repeated, high_frames.shape[2:]) if base is None else add_upsampled(base, repeated)
        unfolded = [y if high.dim() == 4 else unfold_frames(y, clips) for y in results]
        return unfolded[0], unfolded[1] if self.gives_pair else None

    def _high(self, high: Tensor, low: Tensor | None, base: Tensor | None) -> Tensor:
        first, *others = self._terms[: len(self.high)]
        x = first.gather(high, low, self.axes)
        if not others:
            return self.high[0](x, base)
        up = others[0].path.up
        assert up is not None
        repeated = self.high[1](others[0].gather(high, low, self.axes))  # at low resolution
        fits = base is None or self.high[0]._fits(base, high.shape)  # type: ignore[operator]
        if torch.compiler.is_compiling() or not fits:  # an engine fuses the additions and the ReLU behind it
            y = add_upsampled(self.high[0].convolve(x), repeated, up)  # type: ignore[operator]
            y = y if base is None else y + base
            return rectified(y) if self.relu else y
        if base is not None:
            return self.high[0](x, add_upsampled(base, repeated, up))
        size = [h if u == 2 else r for h, r, u in zip(high.shape[2:], repeated.shape[2:], up, strict=True)]
        return self.high[0](x, upsample(repeated, size, up))


def _fold(x: Tensor) -> Tensor:
    return x if x.dim() == 4 else fold_frames(x)


def _gather(term: Term, maps: Sequence[Tensor | None]) -> Tensor:
    """`Term.gather` of channels-last frames that are halved in height and width."""
    parts = []
    for x, path in zip(maps, term.sources, strict=True):
        if path is not None:
            assert x is not None
            part = take_channels(x, path.inputs)
            parts.append(part if path.pool is None else pool_images(part, (2, 2)))
    return parts[0] if len(parts) == 1 else torch.cat(parts, 1)


def _repeat(x: Tensor, size: Sequence[int]) -> Tensor:
    y = F.interpolate(x, scale_factor=2.0, mode="nearest")
    return crop(y, size).contiguous(memory_format=torch.channels_last)


def _prepared(conv: _OctConvNd, term: Term, *, to_low: bool) -> PreparedConv:
    first = term in (conv._high_terms[0], *conv._low_terms)  # it brings the bias
    bias = take_channels(conv.bias, conv._targets[to_low], 0) if conv.bias is not None and first else None
    sizes: dict[str, Any] = {"stride": term.path.stride, "padding": conv.padding, "dilation": conv.dilation}
    return PreparedConv(term.path.weight(conv.weight), bias, groups=term.path.groups, **sizes)
