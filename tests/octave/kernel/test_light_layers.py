"""Layers of light blocks against float64, and groups of them against the layers alone; fuzz.py draws many more."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from octvideo.octave.kernel.formats import Format
from octvideo.octave.kernel.fused_conv import ACTIVATIONS, Activation, Form, FusedConv, FusedLayer
from octvideo.octave.kernel.layout import channels_last
from octvideo.octave.kernel.light_layers import FusedDepthwise, FusedMean, FusedScale
from octvideo.octave.kernel.sequence import NO_VALUE, SequencePlan, Wiring
from tests.octave.kernel.cases import ACTIVATED, POINT, Case, every_format, formats, needs_library, random
from tests.octave.kernel.fuzz import set_group_bytes
from tests.octave.kernel.light_cases import LightCase

pytestmark = needs_library


def depthwise(kernel: tuple[int, ...], stride: tuple[int, ...] = (1, 1, 1), **sizes: Any) -> Form:
    """With padding that keeps the size, unless another one is given."""
    padding = tuple(k // 2 for k in kernel)
    return Form(kernel, stride, **{"padding": padding, "low_reads_low": True, "is_depthwise": True, **sizes})


DEPTHWISE = {
    "1x1x1": depthwise((1, 1, 1)),
    "1x3x3": depthwise((1, 3, 3)),
    "1x3x3 strided": depthwise((1, 3, 3), (1, 2, 2)),
    "1x5x5": depthwise((1, 5, 5)),
    "1x5x5 strided": depthwise((1, 5, 5), (1, 2, 2)),
    "1x7x7": depthwise((1, 7, 7)),
    "5x1x1": depthwise((5, 1, 1)),
    "3x3x3": depthwise((3, 3, 3)),
    "3x3x3 strided": depthwise((3, 3, 3), (2, 2, 2)),
    "3x1x1 dilated": depthwise((3, 1, 1), padding=(2, 0, 0), dilation=(2, 1, 1)),
    "3x3x3 pooled first": depthwise((3, 3, 3), pool_first=True),
    "1x1x16 strided": depthwise((1, 1, 16), (1, 1, 2), padding=(0, 0, 8)),
    "1x4x2 of other sizes": depthwise((1, 4, 2), (1, 3, 2), padding=(0, 3, 0), low_reads_low=False),
    "1x3x3 without padding": depthwise((1, 3, 3), padding=(0, 0, 0), low_reads_low=False),
    "3x3x3 in much padding": depthwise((3, 3, 3), padding=(4, 5, 6), low_reads_low=False),
}


@every_format
@pytest.mark.parametrize("name", DEPTHWISE)
def test_depthwise_convolutions(name: str, format: Format) -> None:
    form = DEPTHWISE[name]
    channels = ((1, 0), (16, 5), (35, 32), (130, 0))
    for n, (high, low) in enumerate(channels[:3] if name == "3x3x3 in much padding" else channels):
        size = ((4, 9, 11), (2, 10, 17), (1, 1, 21), (5, 8, 6))[n] if form.low_reads_low else (4, 9, 17)
        low = low if form.low_reads_low else 0
        LightCase(
            "depthwise", (high, low), size, form=form, format=format, bias=n > 0, activation=ACTIVATIONS[n]
        ).check()
    image = Form((1, *form.kernel[1:]), (1, *form.stride[1:]), (0, *form.padding[1:]), is_depthwise=True)
    LightCase("depthwise", (19, 0), (9, 17), form=image, format=format, activation="silu").check()


@every_format
def test_temporal_shifts(format: Format) -> None:
    for channels, runs, frames in (
        ((8, 0), ((1, 1), (0, 0)), 3),
        ((35, 6), ((17, 17), (0, 3)), 4),
        ((3, 20), ((0, 3), (20, 0)), 1),
        ((19, 0), ((0, 0), (0, 0)), 2),
    ):
        LightCase("shift", channels, (5, 7), num_frames=frames, runs=runs, format=format).check()


@every_format
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_activations_follow_layers(activation: Activation, format: Format) -> None:
    """After a residual is added; before a pool."""
    LightCase("depthwise", (35, 20), form=depthwise((3, 3, 3)), activation=activation, format=format).check()
    LightCase("scale", (35, 20), residual=True, activation=activation, format=format).check()
    octave = Form((1, 1, 1), low_reads_high=True, low_reads_low=True)
    Case(octave, (20, 7, 35, 18), residual=True, activation=activation, format=format).check()


def scaled(x: Tensor, activation: Activation) -> Tensor:
    """The activation of x, by the kernel."""
    x, gate = x.view(1, -1, 1, 1), torch.ones(1, x.numel(), 1, 1)
    wiring = Wiring(((0, NO_VALUE, 1),), 2, (2,))
    plan = SequencePlan.of(wiring, [FusedScale(activation)], [[tuple(x.shape)], [tuple(gate.shape)]])
    assert plan is not None
    return plan.run([[x], [gate]], [])[0][0].flatten()


def all_magnitudes() -> Tensor:
    """Of both signs, from the least to the greatest of float32."""
    bits = torch.arange(0, 0x7F800000, 0x7FFF, dtype=torch.int32)
    x = bits.view(torch.float32)
    return torch.cat([x, -x, torch.linspace(-100, 100, 40_001)])


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_activations_of_all_elements(activation: Activation) -> None:
    x = all_magnitudes()
    got, expected = scaled(x, activation).double(), ACTIVATED[activation](x.double())
    assert got.isfinite().all()
    relative = 3e-7 + 2e-8 * x.double().abs().clamp(max=100)  # what e^-x loses by x's own rounding
    absolute = 1e-6 if activation.startswith("hard") else 1e-35
    assert ((got - expected).abs() <= relative * expected.abs() + absolute).all()


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_activations_of_nan_and_infinity(activation: Activation) -> None:
    y = scaled(torch.tensor([torch.nan, torch.inf, -torch.inf] * 7), activation)[-3:]
    upper = {"relu6": 6.0, "sigmoid": 1.0, "hardsigmoid": 1.0}.get(activation, torch.inf)
    assert y[0].isnan() and y[1] == upper
    if activation == "none":
        assert y[2] == -torch.inf
    elif activation != "hardswish":  # torch's is NaN there
        assert abs(y[2].item()) < 1e-30


@every_format
@pytest.mark.parametrize("channels", [(1, 0), (7, 9), (48, 16), (300, 33)])
def test_means_and_products_with_gates(channels: tuple[int, int], format: Format) -> None:
    for size in ((5, 7), (3, 7, 9), (2, 17, 19), (1, 1, 1)):
        LightCase("mean", channels, size, format=format).check()
        LightCase("scale", channels, size, format=format).check()
    LightCase(
        "scale", channels, (3, 7, 9), residual=True, activation="relu", format=format, zeros=(0, 0, 0, 128)
    ).check()


def test_means_of_large_maps() -> None:
    """Ones among many are not lost."""
    case = LightCase("mean", (3, 0), (8, 160, 161), clips=1)
    case.values[0][0].add_(100)
    case.check()


def test_means_of_nothing_are_nan() -> None:
    plan = SequencePlan.of(Wiring(((0,),), 1, (1,)), [FusedMean()], [[(2, 5, 0, 7)]])
    assert plan is not None
    assert plan.run([[torch.empty(2, 5, 0, 7)]], [])[0][0].isnan().all()


@formats("f32", "bf16")
@pytest.mark.parametrize("kind", ["depthwise", "mean", "scale"])
def test_nan_stays_nan(kind: Any, format: Format) -> None:
    for activation in ACTIVATIONS:
        case = LightCase(kind, (20, 0), form=depthwise((1, 3, 3)), activation=activation, format=format)
        case.values[0][0][0, 3, 1, 2, 2] = torch.nan
        (results,) = case.plan().run([[channels_last(x) for x in maps] for maps in case.values], [])
        assert results[0].isnan().sum() == {"depthwise": 9, "mean": 1, "scale": 1}[kind]
        assert results[0][0, 3].isnan().any()


@pytest.fixture
def small_parts() -> Iterator[None]:
    set_group_bytes(3000)
    yield
    set_group_bytes(0)


def tensors(*shapes: tuple[int, ...]) -> list[Tensor]:
    return [channels_last(random(*shape)) for shape in shapes]


def run_each(layers: Sequence[FusedLayer], wiring: Wiring, inputs: list[list[Tensor]]) -> list[list[Tensor]]:
    """All values, of layers that run alone."""
    values: list[Any] = [*inputs]
    for layer, reads in zip(layers, wiring.reads, strict=True):
        given = [[channels_last(x.clone()) for x in values[n]] for n in reads if n != NO_VALUE]
        left = iter(range(len(given)))
        own = Wiring((tuple(n if n == NO_VALUE else next(left) for n in reads),), len(given), (len(given),))
        plan = SequencePlan.of(own, [layer], [[tuple(x.shape) for x in maps] for maps in given])
        assert plan is not None
        values += plan.run(given, [])
    return values


def check_group(layers: Sequence[FusedLayer], wiring: Wiring, x: list[Tensor], group: int = 3) -> None:
    """Bit for bit, by one thread and two."""
    assert [len(steps) for steps in wiring.groups(layers)] == [group]
    expected, threads = run_each(layers, wiring, [x])[-1], torch.get_num_threads()
    plan = SequencePlan.of(wiring, layers, [[tuple(part.shape) for part in x]])
    assert plan is not None
    try:
        for number in (1, 2):
            torch.set_num_threads(number)
            (found,) = plan.run([[part.clone() for part in x]], [])
            assert all(map(torch.equal, found, expected))
    finally:
        torch.set_num_threads(threads)


def pointwise(ins: tuple[int, int], outs: tuple[int, int], activation: Activation = "none") -> FusedConv:
    form = Form((1, 1, 1), low_reads_high=bool(outs[1]), low_reads_low=bool(outs[1] and ins[1]))
    return FusedConv(
        form,
        num_high=ins[0],
        high=random(outs[0], ins[0], 1, 1, 1) / 4,
        from_low=random(outs[0], ins[1], 1, 1, 1) / 4 if ins[1] else None,
        low=random(outs[1], sum(ins), 1, 1, 1) / 4 if outs[1] else None,
        activation=activation,
    )


@pytest.mark.usefixtures("small_parts")
@pytest.mark.parametrize("stride", [(1, 1, 1), (1, 2, 2), (2, 2, 2), "pooled"], ids=str)
@pytest.mark.parametrize("kernel", [(1, 3, 3), (5, 1, 1), (3, 3, 3)])
@pytest.mark.parametrize("lows", [(0, 0, 0), (5, 9, 4), (5, 0, 0), (0, 9, 0), (5, 0, 4)], ids=str)
def test_blocks_in_parts(lows: tuple[int, int, int], kernel: tuple[int, ...], stride: Any) -> None:
    """Of values where some have a low map, and so an even number of rows in a part."""
    values = [(8, lows[0]), (20, lows[1]), (8, lows[2])]
    pools = stride == "pooled"
    form = depthwise(kernel, (1, 1, 1) if pools else stride, low_reads_low=bool(lows[1]), pool_first=pools)
    middle = FusedDepthwise(
        form,
        high=random(20, 1, *kernel),
        low=random(lows[1], 1, *kernel) if lows[1] else None,
        activation="silu",
    )
    layers = [pointwise(values[0], values[1], "relu6"), middle, pointwise(values[1], values[2])]
    x = tensors((2, 8, 5, 23, 7), *([(2, lows[0], 5, 12, 4)] if lows[0] else []))
    if pools and not lows[0]:  # it reads the input, too
        check_group(
            [middle, layers[2]],
            Wiring(((0,), (1,)), 1, (2,)),
            tensors((2, 20, 5, 23, 7), *([(2, lows[1], 5, 12, 4)] if lows[1] else [])),
            2,
        )
    adds_input = stride == (1, 1, 1) and values[0] == values[2]
    check_group(layers, Wiring(((0,), (1,), (2, 0) if adds_input else (2,)), 1, (3,)), x)


@pytest.mark.usefixtures("small_parts")
@pytest.mark.parametrize("group_bytes", [3_000, 60_000, 200_000])
@pytest.mark.parametrize(
    ("kernel", "sizes"),
    [
        ((3, 1, 1), {"padding": (1, 0, 0)}),
        ((3, 1, 1), {"padding": (2, 0, 0), "dilation": (2, 1, 1)}),
        ((3, 1, 1), {"padding": (0, 0, 0), "stride": (2, 1, 1)}),
        ((1, 3, 3), {"padding": (0, 2, 2), "dilation": (1, 2, 2)}),
        ((3, 3, 3), {"padding": (0, 0, 1), "stride": (1, 2, 1)}),
    ],
    ids=str,
)
def test_blocks_in_whole_frames_and_in_parts(kernel: tuple[int, ...], sizes: dict[str, Any], group_bytes: int) -> None:
    """Of one frame, of several, which a ring holds, and of rows; of kernels with holes, and without padding."""
    set_group_bytes(group_bytes)
    form = depthwise(kernel, **sizes, low_reads_low=False)
    middle = FusedDepthwise(form, high=random(20, 1, *kernel))
    layers = [pointwise((8, 0), (20, 0)), middle, pointwise((20, 0), (8, 0))]
    check_group(layers, Wiring(((0,), (1,), (2,)), 1, (3,)), tensors((2, 8, 13, 11, 7)))


@pytest.mark.usefixtures("small_parts")
def test_a_residual_within_a_group() -> None:
    """Its pixels lie side by side; those of other results between layers do not."""
    form = depthwise((1, 3, 3), low_reads_low=False)
    layers = [
        pointwise((20, 0), (20, 0)),
        FusedDepthwise(form, high=random(20, 1, 1, 3, 3)),
        pointwise((20, 0), (8, 0)),
    ]
    layers.insert(0, pointwise((20, 0), (20, 0)))
    wiring = Wiring(((0,), (0, 1), (2,), (3,)), 1, (4,))
    assert [len(steps) for steps in wiring.groups(layers)] == [1, 3]
    x = tensors((1, 20, 2, 17, 9))
    plan = SequencePlan.of(wiring, layers, [[tuple(x[0].shape)]])
    assert plan is not None
    assert torch.equal(plan.run([x], [])[0][0], run_each(layers, wiring, [x])[-1][0])


@pytest.mark.usefixtures("small_parts")
def test_a_gate_within_a_group() -> None:
    gate, x = tensors((2, 29, 1, 1, 1), (2, 20, 3, 17, 9))
    low = tensors((2, 9, 3, 9, 5))
    layers = [FusedScale("hardswish"), pointwise((20, 9), (8, 4))]
    wiring = Wiring(((0, NO_VALUE, 1), (2,)), 2, (3,))
    assert [len(steps) for steps in wiring.groups(layers)] == [2]
    inputs = [[x, *low], [gate]]
    plan = SequencePlan.of(wiring, layers, [[tuple(part.shape) for part in maps] for maps in inputs])
    assert plan is not None
    (found,) = plan.run(inputs, [])
    assert all(map(torch.equal, found, run_each(layers, wiring, inputs)[-1]))


@pytest.mark.parametrize("padding", [(0, 3, 3), (2, 1, 1)])
def test_groups_of_unusual_padding(padding: tuple[int, ...]) -> None:
    """More than the kernel reaches: rows, or frames, that read nothing. Such layers are no groups."""
    middle = FusedDepthwise(depthwise((1, 3, 3), padding=padding, low_reads_low=False), high=random(20, 1, 1, 3, 3))
    layers, x = [pointwise((8, 0), (20, 0)), middle, pointwise((20, 0), (8, 0))], tensors((2, 8, 2, 9, 7))
    wiring = Wiring(((0,), (1,), (2,)), 1, (3,))
    plan = SequencePlan.of(wiring, layers, [[tuple(x[0].shape)]])
    assert plan is not None
    (found,) = plan.run([x], [])
    assert torch.equal(found[0], run_each(layers, wiring, [x])[-1][0])


def test_groups_whose_result_has_no_rows() -> None:
    middle = FusedDepthwise(depthwise((1, 3, 3), padding=(0, 0, 0), low_reads_low=False), high=random(20, 1, 1, 3, 3))
    layers, x = [pointwise((8, 0), (20, 0)), middle, pointwise((20, 0), (8, 0))], tensors((2, 8, 2, 2, 7))
    plan = SequencePlan.of(Wiring(((0,), (1,), (2,)), 1, (3,)), layers, [[tuple(x[0].shape)]])
    assert plan is not None
    assert plan.run([x], [])[0][0].shape == (2, 8, 2, 0, 5)


def test_what_the_kernel_does_not_have_is_not_planned() -> None:
    """Low maps of other sizes (a time octave); a residual of what adds none; a gate of other sizes."""
    convolution = FusedDepthwise(depthwise((1, 3, 3)), high=random(8, 1, 1, 3, 3), low=random(4, 1, 1, 3, 3))
    high, low, gate = (2, 8, 4, 6, 6), (2, 4, 4, 3, 3), (2, 12, 1, 1, 1)
    one, with_gate = Wiring(((0,),), 1, (1,)), Wiring(((0, NO_VALUE, 1),), 2, (2,))
    for layer in (convolution, FusedMean()):
        assert SequencePlan.of(one, [layer], [[high, low]]) is not None
        assert SequencePlan.of(one, [layer], [[high, (2, 4, 2, 3, 3)]]) is None
        assert SequencePlan.of(Wiring(((0, 1),), 2, (2,)), [layer], [[high, low], [high, low]]) is None
    assert SequencePlan.of(with_gate, [FusedScale()], [[high, low], [gate]]) is not None
    for other in ((2, 1, 1, 1, 1), (1, 12, 1, 1, 1), (2, 12, 4, 1, 1)):
        assert SequencePlan.of(with_gate, [FusedScale()], [[high, low], [other]]) is None


def test_what_is_scaled_is_overwritten_only_if_nothing_reads_it() -> None:
    x, gate = tensors((1, 20, 5, 5), (1, 20, 1, 1))
    conv = FusedConv(POINT, num_high=20, high=random(20, 20, 1, 1))
    layers: list[FusedLayer] = [conv, FusedScale(), conv]
    wiring = Wiring(((0,), (2, NO_VALUE, 1), (2, 3)), 2, (4,))
    plan = SequencePlan.of(wiring, layers, [[tuple(x.shape)], [tuple(gate.shape)]])
    assert plan is not None
    (found,) = plan.run([[x], [gate]], [])
    assert torch.equal(found[0], run_each(layers, wiring, [[x], [gate]])[-1][0])


@pytest.mark.slow
@pytest.mark.usefixtures("narrower_vectors")
def test_on_processors_with_narrower_vectors() -> None:
    for name, form in DEPTHWISE.items():
        low = 9 * form.low_reads_low
        LightCase("depthwise", (35, low), (4, 9, 17), form=form, activation="silu").check()
        assert name
    for activation in ACTIVATIONS:
        LightCase("scale", (35, 20), residual=True, activation=activation).check()
        test_activations_of_all_elements(activation)
        test_activations_of_nan_and_infinity(activation)
    LightCase("mean", (35, 20), (3, 17, 19)).check()
    set_group_bytes(3000)
    for lows in ((0, 0, 0), (5, 9, 4), (5, 0, 0)):
        for kernel in ((1, 3, 3), (3, 3, 3)):
            test_blocks_in_parts(lows, kernel, (1, 2, 2))
