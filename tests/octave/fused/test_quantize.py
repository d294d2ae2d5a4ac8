"""int8: scales from calibration, and the kernel against the same arithmetic written slowly, in float64."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from octvideo.models import i3d_small, slowfast_small
from octvideo.octave import octavize, prepare_inference
from octvideo.octave.features import Octave
from octvideo.octave.fused.conv import PreparedConv, PreparedOctConv
from octvideo.octave.fused.quantize import Calibration, calibrate, correct_biases, quantize
from octvideo.octave.fused.sequence import FusedSequence
from octvideo.octave.kernel.formats import FORMATS, Quanta, Quantum
from octvideo.octave.kernel.fused_conv import has_format

INT8 = FORMATS["int8"]
needs_int8 = pytest.mark.skipif(not has_format(INT8), reason="the kernel has no int8 on this processor")


@pytest.fixture(autouse=True)
def no_gradients() -> Iterator[None]:
    with torch.inference_mode():
        yield


# The reference: maps are float64 tensors of whole numbers 0 to 255, with a Quantum each; a value is a list of one or two.


def elements(x: Tensor, quantum: Quantum) -> Tensor:
    return (x.double() / quantum.scale + quantum.zero).round().clamp(0, 255)


def real(x: Tensor, quantum: Quantum) -> Tensor:
    return (x - quantum.zero) * quantum.scale


def half(x: Tensor) -> Tensor:
    """Means of two by two elements, rounded; at an odd edge an element counts twice."""
    frames = x.transpose(1, 2).flatten(0, 1) if x.dim() == 5 else x
    height, width = frames.shape[-2:]
    frames = F.avg_pool2d(F.pad(frames, (0, width % 2, 0, height % 2), mode="replicate"), 2).round()
    return frames.unflatten(0, (x.shape[0], -1)).transpose(1, 2) if x.dim() == 5 else frames


def doubled(x: Tensor, size: Sequence[int]) -> Tensor:
    return x.repeat_interleave(2, -1).repeat_interleave(2, -2)[..., : size[0], : size[1]]


def convolved(conv: PreparedConv, weight: Tensor, sources: Sequence[tuple[Tensor, Quantum]]) -> Tensor:
    """Sums of whole numbers, made real."""
    x = torch.cat([x - quantum.zero for x, quantum in sources], 1)  # the padding is 0
    scales = torch.cat([torch.full((x.shape[1],), quantum.scale, dtype=torch.float64) for x, quantum in sources])
    folded = weight.double() * scales.view(1, -1, *[1] * (weight.dim() - 2))
    of_output = folded.flatten(1).abs().amax(1).view(-1, *[1] * (weight.dim() - 1)) / 127
    integers = (folded / of_output.masked_fill(of_output == 0, 1)).round()
    convolve = F.conv3d if weight.dim() == 5 else F.conv2d
    sums = convolve(x, integers, None, conv.stride, conv.padding, conv.dilation)
    return sums * of_output.transpose(0, 1)


def layer_int8(
    conv: PreparedConv | PreparedOctConv,
    x: tuple[Sequence[Tensor], Quanta],
    residual: tuple[Sequence[Tensor], Quanta] | None,
    y: Quanta,
) -> list[Tensor]:
    maps = list(zip(*x, strict=True))
    form = conv.form
    assert form is not None
    (high, of_high), (low, of_low) = maps[0], maps[-1]
    results, biases = [], [conv.main.bias]
    if isinstance(conv, PreparedConv):
        results.append(convolved(conv, conv.weight, maps))
    else:
        high = half(high) if form.pool_first else high
        weights = [part.weight for part in conv.high]
        sources = [(high, of_high), *([(low, of_low)] if form.high_reads_low else [])]
        results.append(convolved(conv.main, weights[0], sources))
        if len(weights) > 1:
            part = convolved(conv.main, weights[1], [(low, of_low)])
            results[0] = results[0] + doubled(part, results[0].shape[-2:])
        if conv.gives_pair:
            own = conv.low[0]
            biases.append(own.bias)
            sources = [(half(high), of_high)] if form.low_reads_high else []
            sources += [(half(low) if form.pool_first else low, of_low)] if form.low_reads_low else []
            by_source = form.shares_low(own.weight.shape[0], adds_from_low=len(weights) > 1, format=INT8)
            groups = [[source] for source in sources] if by_source else [sources]
            parts = own.weight.split([sum(x.shape[1] for x, _ in group) for group in groups], 1)
            results.append(sum(convolved(own, *group) for group in zip(parts, groups, strict=True)))
    given = [real(*pair) for pair in zip(*residual, strict=True)] if residual else [0.0] * len(results)
    made = []
    for sums, bias, added, quantum in zip(results, biases, given, y, strict=True):
        value = sums + added
        value = value if bias is None else value + bias.double().view(-1, *[1] * (sums.dim() - 2))
        value = value.relu() if conv.relu else value
        value = value if form.max_pool is None else max_pooled(conv, value)
        made.append(elements(value, quantum))
    return made


def max_pooled(conv: Any, x: Tensor) -> Tensor:
    pool = conv.max_pool
    sizes = (pool.window, pool.stride, pool.padding)
    if x.dim() == 4:
        return F.max_pool2d(x, *sizes)
    return F.max_pool3d(x, *[(first, *size) for first, size in zip((1, 1, 0), sizes, strict=True)])


def parts_of(value: Tensor | Octave) -> list[Tensor]:
    return list(value) if isinstance(value, Octave) else [value]


def reference_int8(sequence: FusedSequence, quanta: Sequence[Quanta], *inputs: Tensor | Octave) -> list[list[Tensor]]:
    """Elements of all values."""
    values = [
        [elements(part, quantum) for part, quantum in zip(parts_of(value), own, strict=True)]
        for value, own in zip(inputs, quanta, strict=False)
    ]
    for conv, (x, *others) in zip(sequence.convs, sequence.wiring.reads, strict=True):
        residual = (values[others[0]], quanta[others[0]]) if others else None
        values.append(layer_int8(conv, (values[x], quanta[x]), residual, quanta[len(values)]))
    return values


class ReferenceInt8(nn.Module):
    """In a sequence's place: its results by `reference_int8`, as real numbers in float32."""

    def __init__(self, sequence: FusedSequence, quanta: Sequence[Quanta]) -> None:
        super().__init__()
        self.sequence, self.quanta = sequence, quanta

    def forward(self, *inputs: Tensor | Octave) -> Any:
        values = reference_int8(self.sequence, self.quanta, *inputs)
        results = []
        for n in self.sequence.wiring.results:
            parts = [real(*pair).float() for pair in zip(values[n], self.quanta[n], strict=True)]
            results.append(Octave(*parts) if len(parts) == 2 else parts[0])
        return results[0] if len(results) == 1 else tuple(results)


def use_reference(prepared: nn.Module, calibrations: dict[str, Calibration]) -> None:
    for name, calibration in calibrations.items():
        prepared.set_submodule(name, ReferenceInt8(prepared.get_submodule(name), calibration.quanta))
