"""Weights fitted to wanted results."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import octvideo.octave.conversion.least_squares as least_squares
from octvideo.octave import Octave, OctConv2d, OctConv3d, Partition, upsample
from octvideo.octave.conversion.least_squares import fit_weights
from octvideo.octave.conversion.refit import can_fit, problems_of

SCATTERED = Partition((True, False, False, True, False, True))


def wanted_of(layer: nn.Module, x: Tensor | Octave) -> Tensor:
    """An ordinary map (N, C, ...) whose high channels are the layer's, and whose low ones, pooled, are."""
    y = layer(x)
    if not isinstance(y, Octave):
        return y
    full = y.high.new_empty(len(y.high), layer.out_channels, *y.high.shape[2:])  # type: ignore[operator]
    full[:, list(layer.partition_out.high)] = y.high  # type: ignore[union-attr, arg-type]
    full[:, list(layer.partition_out.low)] = upsample(y.low, y.high.shape[2:], layer.factor)  # type: ignore
    return full


IMAGES, PAIRS, HALF = (4, 9, 8), ((10, 8), (2, 2)), {"alpha_in": 0.5, "alpha_out": 0.5}
# A layer, and the shape of what it takes: (C, ...), or size and factor of a pair of 3 and 3 channels.
CASES: dict[str, tuple[Callable[[], nn.Module], Any]] = {
    "ordinary": (lambda: nn.Conv2d(4, 6, 3, padding=1), IMAGES),
    "strided": (lambda: nn.Conv3d(4, 6, (3, 1, 1), stride=(1, 2, 2), padding=(1, 0, 0), bias=False), (4, 3, 9, 8)),
    "dilated": (lambda: nn.Conv2d(4, 6, 3, padding=2, dilation=2), IMAGES),
    "depthwise": (lambda: nn.Conv2d(4, 4, 3, padding=1, groups=4), IMAGES),
    "first": (lambda: OctConv2d(4, 6, 3, padding=1, alpha_in=0, alpha_out=0.5), (4, 10, 8)),
    "octave": (lambda: OctConv2d(6, 6, 3, padding=1, alpha_in=0.5, alpha_out=1 / 3), PAIRS),
    "odd": (lambda: OctConv2d(6, 6, 3, padding=1, **HALF), ((9, 7), (2, 2))),
    "last": (lambda: OctConv3d(6, 5, 1, alpha_in=0.5, alpha_out=0), ((3, 8, 8), (1, 2, 2))),
    "pools": (lambda: OctConv2d(6, 6, 3, stride=2, padding=1, octave_downsample="pool", **HALF), ((16, 12), (2, 2))),
    "strides": (
        lambda: OctConv2d(6, 6, 3, stride=2, padding=1, octave_downsample="stride", **HALF),
        ((16, 12), (2, 2)),
    ),
    "keeps": (lambda: OctConv2d(6, 6, 3, stride=2, padding=1, octave_downsample="keep", **HALF), ((16, 12), (2, 2))),
    "time": (lambda: OctConv3d(6, 6, (3, 1, 1), padding=(1, 0, 0), factor=(2, 2, 2), **HALF), ((4, 6, 6), (2, 2, 2))),
    "octave depthwise": (lambda: OctConv2d(6, 6, 3, padding=1, groups=6, **HALF), PAIRS),
    "scattered": (lambda: OctConv2d(6, 6, 3, padding=1, alpha_in=SCATTERED, alpha_out=SCATTERED), PAIRS),
}


def drawn(shape: Any) -> Tensor | Octave:
    """Two samples."""
    if isinstance(shape[0], int):
        return torch.randn(2, *shape)
    size, factor = shape
    return Octave(torch.randn(2, 3, *size), torch.randn(2, 3, *[-(-s // f) for s, f in zip(size, factor, strict=True)]))


@pytest.mark.parametrize("name", CASES)
def test_weights_that_gave_the_results_are_found(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(least_squares, "_PENALTY", 0.0)
    torch.manual_seed(0)
    make, shape = CASES[name]
    true, layer = make(), make()
    inputs = [drawn(shape) for _ in range(6)]
    with torch.no_grad():
        wanted = [wanted_of(true, x) for x in inputs]
    fitted = fit_weights(layer, functools.partial(problems_of, layer), inputs, wanted)  # type: ignore[arg-type]
    assert can_fit(layer) and fitted.keys() == dict(layer.named_parameters()).keys()
    for key, value in fitted.items():
        torch.testing.assert_close(value, true.get_parameter(key), rtol=1e-3, atol=1e-3)


def test_a_penalty_keeps_weights_where_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    true, layer = nn.Conv2d(4, 6, 3), nn.Conv2d(4, 6, 3)
    inputs = [torch.randn(2, 4, 9, 8) for _ in range(4)]
    wanted = [true(x).detach() for x in inputs]
    distances, problems = [], functools.partial(problems_of, layer)
    for penalty in (0.1, 10.0, 1e6):
        monkeypatch.setattr(least_squares, "_PENALTY", penalty)
        weight = fit_weights(layer, problems, inputs, wanted)["weight"]
        distances.append(float((weight - layer.weight.detach()).norm()))
    assert distances[0] > distances[1] > distances[2] < 1e-3


def test_positions_are_looked_at_once_each() -> None:
    layer, inputs = nn.Conv2d(4, 6, 3), [torch.randn(2, 4, 9, 8) for _ in range(3)]
    wanted = [torch.randn(2, 6, 7, 6) for _ in inputs]
    problems = functools.partial(problems_of, layer)
    one, other = (fit_weights(layer, problems, inputs, wanted, seed=seed)["weight"] for seed in (0, 1))
    torch.testing.assert_close(one, other)  # there are fewer than are asked for: any draw takes all


def test_channels_that_are_constant_are_no_obstacle() -> None:
    layer = nn.Conv2d(4, 4, 3, groups=4)
    x = torch.randn(2, 4, 8, 8)
    x[:, 0], x[:, 1] = 0, 1e4
    fitted = fit_weights(layer, functools.partial(problems_of, layer), [x], [layer(x).detach() * 2])
    assert all(value.isfinite().all() for value in fitted.values())


def test_few_elements_fit_no_weights() -> None:
    """What fits them would fit nothing else: 2 maps of 3 x 3 for 36 weights a channel, then 16 of them."""
    torch.manual_seed(0)
    true, layer = nn.Conv2d(4, 6, 3, padding=1), nn.Conv2d(4, 6, 3, padding=1)
    problems = functools.partial(problems_of, layer)
    for count, same in ((1, True), (8, False)):
        inputs = [torch.randn(2, 4, 3, 3) for _ in range(count)]
        fitted = fit_weights(layer, problems, inputs, [true(x).detach() for x in inputs])
        assert torch.equal(fitted["weight"], layer.weight) == same


def test_sums_of_half_precision_are_float32() -> None:
    """In 16 bits the products of channels that are much alike have no positive root."""
    torch.manual_seed(0)
    layer = nn.Conv2d(64, 8, 1, bias=False).bfloat16()
    x = (1 + torch.randn(4, 1, 16, 16) + 1e-2 * torch.randn(4, 64, 16, 16)).bfloat16()
    fitted = fit_weights(layer, functools.partial(problems_of, layer), [x], [2 * layer(x).detach()])
    gone = (nn.functional.conv2d(x, fitted["weight"]) - 2 * layer(x)).float().square().mean()
    assert gone < 0.1 * layer(x).float().square().mean()


@pytest.mark.parametrize(
    "layer",
    [
        nn.Conv2d(8, 8, 3, groups=2),
        nn.Conv2d(8, 8, 3, padding_mode="reflect"),
        nn.Conv2d(8, 8, 3, padding="same"),
        nn.ConvTranspose2d(8, 8, 3),
        nn.Conv2d(512, 8, 3),
        nn.Linear(8, 8),
        nn.utils.parametrizations.weight_norm(nn.Conv2d(8, 8, 3)),
    ],
)
def test_others_are_left(layer: nn.Module) -> None:
    assert not can_fit(layer)
