"""Runs a layer and the NumPy reference on one random pair, and compares: shared by the tests of convolutions."""

from __future__ import annotations

import numpy as np
import torch
from torch import nn

from octvideo.octave import Octave
from tests.octave import reference


def pair(layer: nn.Module, sizes: tuple[int, ...]) -> tuple[torch.Tensor, torch.Tensor]:
    """Random maps as `layer` takes them: high of `sizes`, low halved where its factor says so."""
    low_sizes = [-(-s // f) for s, f in zip(sizes, layer.factor, strict=True)]
    high = torch.randn(2, len(layer.partition_in.high), *sizes, dtype=torch.float64)
    return high, torch.randn(2, len(layer.partition_in.low), *low_sizes, dtype=torch.float64)


def check(layer: nn.Module, sizes: tuple[int, ...]) -> None:
    """The layer (float64), its options and all, against the definition; contiguous, and channels last as a view."""
    high, low = pair(layer, sizes)
    options = {
        "is_low_in": layer.partition_in.is_low, "is_low_out": layer.partition_out.is_low, "stride": layer.stride,
        "padding": layer.padding, "dilation": layer.dilation, "groups": layer.groups, "factor": layer.factor,
        "exchange": layer.exchange,
    }  # fmt: skip
    if layer.transposed:
        define = reference.octave_conv_transposed
        options["output_padding"] = layer.output_padding
    else:
        define = reference.octave_conv
        options["padding_mode"] = layer.padding_mode
        options["octave_downsample"] = layer.octave_downsample
    bias = None if layer.bias is None else layer.bias.detach().numpy()
    want_high, want_low = define(high.numpy(), low.numpy(), layer.weight.detach().numpy(), bias, **options)
    last = {3: torch.contiguous_format, 4: torch.channels_last, 5: torch.channels_last_3d}[high.dim()]
    for layout, training in ((torch.contiguous_format, True), (last, True), (last, False)):
        maps = [x.contiguous(memory_format=layout) for x in (high, low)]
        with torch.set_grad_enabled(training):
            y = layer(maps[0] if layer.partition_in.is_ordinary else Octave(*maps))
        assert torch.equal(maps[0], high) and torch.equal(maps[1], low)  # nothing was overwritten
        if layer.partition_out.is_ordinary:
            assert isinstance(y, torch.Tensor)
            y = Octave(y, torch.zeros(want_low.shape, dtype=torch.float64))
        assert y.high.shape == want_high.shape and y.low.shape == want_low.shape
        np.testing.assert_allclose(y.high.detach().numpy(), want_high, atol=1e-10)
        np.testing.assert_allclose(y.low.detach().numpy(), want_low, atol=1e-10)


def gradcheck(
    layer: nn.Module,
    sizes: tuple[int, ...],
    *,
    fast_mode: bool = False,
    layout: torch.memory_format = torch.contiguous_format,
) -> bool:
    """Gradients of weight, bias and inputs against finite differences; fast: along one random direction."""
    high, low = (x.contiguous(memory_format=layout) for x in pair(layer, sizes))
    inputs = (high[:1],) if layer.partition_in.is_ordinary else (high[:1], low[:1])

    def run(weight: torch.Tensor, bias: torch.Tensor, *parts: torch.Tensor) -> tuple[torch.Tensor, ...]:
        x = parts[0] if len(parts) == 1 else Octave(*parts)
        y = torch.func.functional_call(layer, {"weight": weight, "bias": bias}, (x,))
        return tuple(y) if isinstance(y, Octave) else (y,)

    args = tuple(t.detach().clone().requires_grad_() for t in (layer.weight, layer.bias, *inputs))
    return torch.autograd.gradcheck(run, args, fast_mode=fast_mode)
