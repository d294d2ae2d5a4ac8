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


# The reference: maps are float64 tensors of whole numbers 0 to 255, with a Quantum each; a value is a list of maps.


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
    of_groups = [(x - quantum.zero).unflatten(1, (conv.groups, -1)) for x, quantum in sources]  # the padding is 0
    x = torch.cat(of_groups, 2).flatten(1, 2)
    scales = torch.cat([x.new_full((x.shape[1] // conv.groups,), quantum.scale) for x, quantum in sources])
    folded = weight.double() * scales.view(1, -1, *[1] * (weight.dim() - 2))
    of_output = folded.flatten(1).abs().amax(1).view(-1, *[1] * (weight.dim() - 1)) / 127
    integers = (folded / of_output.masked_fill(of_output == 0, 1)).round()
    convolve = F.conv3d if weight.dim() == 5 else F.conv2d
    sums = convolve(x, integers, None, conv.stride, conv.padding, conv.dilation, conv.groups)
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
        high_weight, from_low, low_weight = conv.weights
        sources = [(high, of_high), *([(low, of_low)] if form.high_reads_low else [])]
        results.append(convolved(conv.main, high_weight, sources))
        if from_low is not None:
            part = convolved(conv.main, from_low, [(low, of_low)])
            results[0] = results[0] + doubled(part, results[0].shape[-2:])
        if low_weight is not None:
            own: Any = conv.low[0]
            biases.append(own.bias)
            sources = [(half(high), of_high)] if form.low_reads_high else []
            sources += [(half(low) if form.pool_first else low, of_low)] if form.low_reads_low else []
            by_source = form.shares_low(len(low_weight), adds_from_low=from_low is not None, format=INT8)
            alone = [[source] for source in sources] if by_source else [sources]
            parts = low_weight.split([sum(x.shape[1] // own.groups for x, _ in each) for each in alone], 1)
            results.append(sum(convolved(own, *each) for each in zip(parts, alone, strict=True)))
    given = [real(*pair) for pair in zip(*residual, strict=True)] if residual else [0.0] * len(results)
    made = []
    for sums, bias, added, quantum in zip(results, biases, given, y, strict=True):
        value = sums + added
        value = value if bias is None else value + bias.double().view(-1, *[1] * (sums.dim() - 2))
        value = value.relu() if conv.activation == "relu" else value
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


class Network(nn.Module):
    """A stem with a max pool, a projection, residuals, a strided layer; odd sizes come from the test."""

    def __init__(self, axes: int, groups: int = 1) -> None:
        super().__init__()
        conv: Any = nn.Conv2d if axes == 2 else nn.Conv3d
        pool: Any = nn.MaxPool2d if axes == 2 else nn.MaxPool3d
        only, none = ((), ()) if axes == 2 else ((1,), (0,))
        three, pad = ((), ()) if axes == 2 else ((3,), (1,))
        self.stem = conv(3, 24, (*three, 5, 5), (*only, 2, 2), (*pad, 2, 2))
        self.pool = pool((*only, 3, 3), (*only, 2, 2), (*none, 1, 1))
        self.time_pool = pool((*only, 2, 2), (*only, 2, 2)) if axes == 2 else pool((2, 1, 1), (2, 1, 1))
        self.project = conv(24, 48, 1)
        self.a, self.c = conv(24, 32, (*three, 1, 1), 1, (*pad, 0, 0)), conv(32, 48, 1)
        self.b = conv(32, 32, (*only, 3, 3), 1, (*none, 1, 1), groups=groups)
        self.d, self.e = conv(48, 32, 1), conv(32, 48, 1)
        self.f = conv(48, 40, (*only, 3, 3), (*only, 2, 2), (*none, 1, 1), groups=groups)
        self.means = tuple(range(2, 2 + axes))

    def forward(self, x: Tensor) -> Tensor:
        x = self.pool(torch.relu(self.stem(x)))
        x = torch.relu(self.project(x) + self.c(torch.relu(self.b(torch.relu(self.a(x))))))
        x = self.time_pool(x)
        x = torch.relu(x + self.e(torch.relu(self.d(x))))
        return self.f(x).mean(self.means)


def clips_of(axes: int, count: int, *, seed: int = 0) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    shape = (2, 3, *([4] if axes == 3 else []), 37, 42)
    return [last(torch.randn(shape, generator=generator)) for _ in range(count)]


def last(x: Tensor) -> Tensor:
    return x.contiguous(memory_format=torch.channels_last if x.dim() == 4 else torch.channels_last_3d)


def ready(axes: int, alpha: float, downsample: Any = "stride", groups: int = 1) -> nn.Module:
    torch.manual_seed(0)
    return prepare_inference(octavize(Network(axes, groups), alpha, downsample=downsample).eval())


def sequences_of(prepared: nn.Module) -> dict[str, FusedSequence]:
    return {name: m for name, m in prepared.named_modules() if isinstance(m, FusedSequence)}


FORMS = pytest.mark.parametrize(
    ("axes", "alpha", "downsample", "groups"),
    [
        *[(2, 0, "stride", 1), (2, 0.25, "pool", 1), (3, 0, "pool", 1), (3, 0.25, "stride", 1), (3, 0.5, "stride", 1)],
        *[(3, 0.75, "pool", 1), (2, 0, "stride", 4), (2, 0.25, "stride", 4), (3, 0.5, "stride", 4)],
    ],
)


@FORMS
def test_the_reference_is_near_float32(axes: int, alpha: float, downsample: str, groups: int) -> None:
    prepared = ready(axes, alpha, downsample, groups)
    clips = clips_of(axes, 4)
    calibrations = calibrate(prepared, clips)
    assert calibrations.keys() == sequences_of(prepared).keys()
    expected = [prepared(clip) for clip in clips]
    use_reference(prepared, calibrations)
    for clip, want in zip(clips, expected, strict=True):
        assert ((prepared(clip) - want).std() / want.std()).item() < 0.04


@needs_int8
@FORMS
def test_the_kernel_computes_what_the_reference_says(axes: int, alpha: float, downsample: str, groups: int) -> None:
    """Layer by layer: elements are equal, but for a few that lie between two: float32 may round these the other way."""
    prepared = ready(axes, alpha, downsample, groups)
    calibrations = calibrate(prepared, clips_of(axes, 2))
    (clip,) = clips_of(axes, 1, seed=1)
    inputs: dict[str, Any] = {}
    for name, sequence in sequences_of(prepared).items():
        sequence.register_forward_pre_hook(lambda _, given, name=name: inputs.update({name: given}))
    prepared(clip)
    layers = 0
    for name, sequence in sequences_of(prepared).items():
        quanta, wiring = calibrations[name].quanta, sequence.wiring
        values = reference_int8(sequence, quanta, *inputs[name])
        for n, (conv, reads) in enumerate(zip(sequence.convs, wiring.reads, strict=True), wiring.num_inputs):
            alone = FusedSequence([conv], [range(len(reads))], len(reads), [len(reads)])
            alone.set_format(INT8, [quanta[v] for v in (*reads, n)], gives_format=True)
            given = [[last(part.to(torch.uint8)) for part in values[v]] for v in reads]
            made = parts_of(alone(*[Octave(*parts) if len(parts) == 2 else parts[0] for parts in given]))
            for found, want in zip(made, values[n], strict=True):
                difference = (found.double() - want).abs()
                assert difference.max() <= 1 and (difference > 0).double().mean() < 2e-3
                assert want.unique().numel() > 30  # it uses its range
            layers += 1
    assert layers == 8


def test_the_network_is_not_changed_by_calibration() -> None:
    prepared = ready(3, 0.25)
    (clip,) = clips_of(3, 1)
    before, keys = prepared(clip), [set(vars(m)) for m in prepared.modules()]
    calibrate(prepared, clips_of(3, 2))
    assert torch.equal(prepared(clip), before)
    assert keys == [set(vars(m)) for m in prepared.modules()]


def test_maps_that_are_never_negative_have_zero_0() -> None:
    prepared = ready(3, 0.25)
    for name, calibration in calibrate(prepared, clips_of(3, 2)).items():
        sequence = prepared.get_submodule(name)
        for conv, quanta in zip(sequence.convs, calibration.quanta[sequence.wiring.num_inputs :], strict=True):
            assert all((quantum.zero == 0) == (conv.activation == "relu") for quantum in quanta)
            assert len(quanta) == 1 + conv.gives_pair


@pytest.mark.parametrize("alpha", [0, 0.25])
def test_a_max_pool_between_sequences_keeps_quanta(alpha: float) -> None:
    prepared = ready(3, alpha)
    first, second = calibrate(prepared, clips_of(3, 2)).values()
    assert first.quanta[-1] == second.quanta[0] and len(second.quanta[0]) == 1 + (alpha > 0)
    assert first.quanta[-1] != first.quanta[-2]


def test_a_network_with_two_inputs_to_a_sequence_is_calibrated() -> None:
    torch.manual_seed(0)
    prepared = prepare_inference(slowfast_small(4, alpha=0.25).eval())
    clip = last(torch.randn(1, 3, 16, 64, 64))
    calibrations = calibrate(prepared, [clip])
    assert max(prepared.get_submodule(name).wiring.num_inputs for name in calibrations) > 1
    expected = prepared(clip)
    use_reference(prepared, calibrations)
    assert ((prepared(clip) - expected).norm() / (expected - expected.mean()).norm()).item() < 0.1


@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("alpha", [0, 0.25])
def test_corrected_biases_keep_means(alpha: float, groups: int) -> None:
    """The mean error of a pointwise layer's outputs, which weights that are rounded coarsely bring."""
    torch.manual_seed(0)
    second = nn.Conv2d(64, 64, 1, groups=groups, bias=False)
    network = nn.Sequential(nn.Conv2d(64, 64, 1), nn.ReLU(), second, nn.Conv2d(64, 64, 1))
    for conv in network:
        if isinstance(conv, nn.Conv2d):
            conv.weight[:, 0] *= 60  # the others are then rounded to few integers
    prepared = prepare_inference(octavize(network, alpha).eval())
    (sequence,) = sequences_of(prepared).values()
    clips = clips_of_channels(64)
    (calibration,) = calibrate(prepared, clips).values()
    x = torch.cat(clips)
    (expected,) = parts_of(sequence(x.clone()))
    errors = []
    for corrects in (False, True):
        own = copy.deepcopy(sequence)
        if corrects:
            correct_biases(own, calibration)
        found = ReferenceInt8(own, calibration.quanta)(x)
        errors.append((found - expected).mean((0, 2, 3)).norm().item())
    assert errors[1] < 0.4 * errors[0]


def clips_of_channels(channels: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [last(torch.rand(1, channels, 12, 12, generator=generator) + 1) for _ in range(3)]


@needs_int8
@pytest.mark.parametrize("alpha", [0, 0.25])
def test_a_quantized_network_computes_in_int8(alpha: float) -> None:
    torch.manual_seed(0)
    network = i3d_small(8, alpha=alpha).eval()
    prepared = prepare_inference(network)
    clips = [last(torch.randn(1, 3, 8, 64, 64)) for _ in range(2)]
    quantize(prepared, clips)
    found, expected = prepared(clips[0]), network(clips[0])
    assert not torch.equal(found, expected)
    assert ((found - expected).std() / expected.std()).item() < 0.1
    assert all(sequence.format == INT8 for sequence in sequences_of(prepared).values())


def test_what_cannot_be_calibrated() -> None:
    prepared = ready(3, 0.25)
    with pytest.raises(ValueError, match="no clips"):
        calibrate(prepared, [])
    (clip,) = clips_of(3, 1)
    clip[0, 0, 0, 0, 0] = float("nan")
    with pytest.raises(ValueError, match="NaN or infinite"):
        calibrate(prepared, [clip])
    (clip,) = clips_of(3, 1)
    assert prepared(clip).isfinite().all()  # runs as before
