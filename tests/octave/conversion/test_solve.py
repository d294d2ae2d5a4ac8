"""Partitions over a whole graph: late joins, channels that do not fit, changes in place, reasons."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from octvideo.octave import OctaveNetwork, octavize


class Body(nn.Module):
    """Five convolutions of eight channels (one from sixteen) between a stem and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.last = self.conv(3, 8), self.conv(8, 4)
        self.a, self.b, self.c = self.conv(8, 8), self.conv(8, 8), self.conv(8, 16)
        self.wide = self.conv(16, 8)
        self.narrow, self.even, self.pool = self.conv(8, 1), nn.Conv2d(8, 8, 2), nn.MaxPool2d(5, 1, 2)
        self.relu = nn.ReLU(inplace=True)

    @staticmethod
    def conv(c_in: int, c_out: int) -> nn.Conv2d:
        return nn.Conv2d(c_in, c_out, 3, padding=1, padding_mode="replicate")

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.body(self.stem(x))).mean((2, 3))


def converted(network: nn.Module, alpha: object = 0.5) -> OctaveNetwork:
    """The octave network, held against the ordinary one on a constant image (it has no resolution)."""
    network = network.eval().double()
    octave = octavize(network, alpha)
    x = torch.randn(2, 3, 1, 1, dtype=torch.float64).expand(2, 3, 11, 14)
    torch.testing.assert_close(octave(x), network(x))
    return octave


class LateCat(Body):
    """A value is added to a concatenation whose second part is computed after it."""

    def body(self, x: Tensor) -> Tensor:
        first, other = self.a(x), self.c(x)
        return self.wide(other + torch.cat([first, self.b(x)], 1))


def test_a_concatenation_is_solved_wherever_its_parts_are() -> None:
    layers = converted(LateCat()).octave_report.layers
    assert layers["c"] == (0.0, 0.5) and layers["wide"] == (0.5, 0.5)


def test_what_is_added_to_a_concatenation_follows_it_or_stays_ordinary_and_is_named() -> None:
    report = converted(LateCat(), {"": 0.5, "stem": 0, "c": 0.25}).octave_report
    assert report.layers["c"] == (0.0, 0.5)
    assert report.merged["c"] == "added to a concatenation: alpha 0.5 instead of 0.25"
    report = converted(LateCat(), {"": 0.5, "stem": 0, "c": 0}).octave_report
    assert (
        "c" not in report.layers
        and report.merged["a"] == "gives an ordinary tensor: only torch.cat() in forward reads it"
    )


class Twice(Body):
    def body(self, x: Tensor) -> Tensor:
        x = self.a(x)
        return self.wide(torch.cat([x, x], dim=1))


def test_one_value_twice_in_a_concatenation() -> None:
    assert converted(Twice()).octave_report.layers["wide"] == (0.5, 0.5)


class AfterPool(Body):
    def body(self, x: Tensor) -> Tensor:
        x = self.pool(x)
        return self.wide(torch.cat([x, self.a(x)], 1))


def test_an_ordinary_part_of_a_concatenation_is_high() -> None:
    """As in DenseNet, whose blocks begin with what a pool gave."""
    assert converted(AfterPool()).octave_report.layers["wide"] == (0.25, 0.5)


class Attention(Body):
    def body(self, x: Tensor) -> Tensor:
        x = self.a(x)
        return x + self.narrow(x)


def test_broadcast_over_channels_merges_and_is_named() -> None:
    merged = converted(Attention()).octave_report.merged
    assert merged["a"] == "gives an ordinary tensor: values of 1 and 8 channels are added or multiplied"


class ReadAfterChange(Body):
    """The mean is taken before and after an activation in place."""

    def body(self, x: Tensor) -> Tensor:
        x = self.a(x)
        before = x.mean((2, 3), keepdim=True)
        y = self.b(self.relu(x))
        return y * (before + x.mean((2, 3), keepdim=True))


def test_a_merge_sees_changes_in_place_that_come_before_it() -> None:
    layers = converted(ReadAfterChange()).octave_report.layers
    assert layers["a"] == (0.0, 0.5)


class ChangedByTensorCode(Body):
    def body(self, x: Tensor) -> Tensor:
        x = self.a(x)
        x.clamp_(max=1)
        return self.b(x)


def test_what_tensor_code_changes_in_place_is_ordinary() -> None:
    octave = converted(ChangedByTensorCode())
    assert octave.octave_report.merged["a"] == "gives an ordinary tensor: x.clamp_() in forward changes it in place"


class Gains(Body):
    """NFNets' products: with numbers on either side, with a parameter of one number, in place."""

    def __init__(self) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.tensor(0.5))

    def body(self, x: Tensor) -> Tensor:
        x = self.a(x)
        x.mul_(2)
        return self.b(x.mul_(self.gain) * 3 + 2 * x.mul(self.gain))


def test_products_with_numbers_and_parameters_of_one_number_keep_pairs() -> None:
    octave = converted(Gains())
    assert octave.octave_report.layers["b"] == (0.5, 0.5)
    octave(torch.randn(1, 3, 8, 8, dtype=torch.float64)).sum().backward()
    assert octave.gain.grad.abs() > 0


class Reasons(Body):
    """A pair that pool, an even kernel and a convolution read, and a sum with what the pool gives."""

    def body(self, x: Tensor) -> Tensor:
        x = self.a(x)
        return (self.b(x) + self.pool(x)) * self.even(x).mean((2, 3), keepdim=True)


def test_every_merge_has_its_reason() -> None:
    assert converted(Reasons()).octave_report.merged == {
        "stem": "reads the network's input",
        "b": "gives an ordinary tensor: its channels are tied to the ordinary tensor of pool (MaxPool2d)",
        "pool": "takes ordinary tensors",
        "even": "kernel 2, dilation 1 and padding (0, 0) in H do not keep the size, expected an odd kernel",
        "last": "gives an ordinary tensor: only x.mean() in forward reads it",
        **dict.fromkeys(("c", "wide", "narrow"), "is not called in the forward pass"),
    }


class Signals(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        convs = [nn.Conv1d(c, 8, 3, padding=1, padding_mode="replicate") for c in (3, 8, 8, 8)]
        self.layers = nn.Sequential(convs[0], convs[1], nn.BatchNorm1d(8), nn.ReLU(), *convs[2:])

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x).mean(2)


@pytest.mark.parametrize("alpha", [0.5, 1.0])
def test_signals(alpha: float) -> None:
    network = Signals().eval().double()
    x = torch.randn(2, 3, 1, dtype=torch.float64).expand(2, 3, 11)
    torch.testing.assert_close(octavize(network, alpha)(x), network(x))
