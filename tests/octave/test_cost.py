"""Counted cost against closed form."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from octvideo.octave import OctConv3d, count_cost, layer_flop_ratio, layer_memory_ratio, octavize


@pytest.mark.parametrize(
    ("alpha", "flops", "memory"),
    [(0.125, 82, 91), (0.25, 67, 81), (0.5, 44, 63), (0.75, 30, 44), (0.875, 26, 35), (1, 25, 25)],
)
def test_closed_form_is_table_1(alpha: float, flops: int, memory: int) -> None:
    """Per cent of an ordinary layer: Table 1 of arXiv 1904.05049."""
    assert abs(100 * layer_flop_ratio(alpha) - flops) <= 1
    assert abs(100 * layer_memory_ratio(alpha) - memory) <= 1


@pytest.mark.parametrize("alpha", [0.25, 0.5, 0.75])
def test_counted_layer_is_the_closed_form(alpha: float) -> None:
    ordinary = nn.Sequential(*[nn.Conv3d(64, 64, 3, padding=1, bias=False) for _ in range(3)])
    whole = count_cost(ordinary, (1, 64, 4, 16, 16))
    assert whole.multiply_adds == 3 * 64 * 64 * 27 * 4 * 16 * 16
    assert whole.parameters == 3 * 64 * 64 * 27 and whole.activations == 3 * 64 * 4 * 16 * 16
    # The middle of three layers is octave on both sides: its cost is the rest's difference.
    octave = octavize(ordinary, alpha)
    inner = count_cost(octave, (1, 64, 4, 16, 16)).multiply_adds
    edge_in = (1 - alpha) + alpha / 4  # reads a tensor: hh at full, hl at a quarter
    edge_out = 1 - alpha + alpha / 4
    # first conv reads the network's input and stays ordinary, the second enters, the third merges
    assert inner == pytest.approx(whole.multiply_adds / 3 * (1 + edge_in + edge_out), rel=1e-6)


def test_counting_changes_nothing() -> None:
    layer = OctConv3d(4, 4, 1, alpha_in=0, alpha_out=0)
    count_cost(layer, (1, 4, 2, 4, 4))
    assert layer.weight.device.type == "cpu" and layer.training


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv1d(4, 4, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x)  # (N,4,L)
        return x @ (x.transpose(1, 2) @ x)


def test_attention_is_counted_apart() -> None:
    cost = count_cost(Attention(), (2, 4, 8))
    assert cost.convolutions == 2 * 4 * 4 * 8
    assert cost.multiply_adds - cost.convolutions == 2 * (8 * 4 * 8 + 4 * 8 * 8)


def test_a_list_of_inputs() -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Conv1d(2, 3, 1), nn.Conv1d(4, 3, 1)

        def forward(self, x: list[Tensor]) -> Tensor:
            return self.a(x[0]) + self.b(x[1])

    assert count_cost(Two(), [(1, 2, 5), (1, 4, 5)]).multiply_adds == (2 + 4) * 3 * 5


@pytest.mark.parametrize(
    "options", [{}, {"exchange": "none"}, {"octave_downsample": "stride"}, {"factor": (1, 2)}], ids=str
)
@pytest.mark.parametrize("groups", [1, 4])
@pytest.mark.parametrize("stride", [1, 2])
def test_the_reports_share_of_a_layer_is_what_is_counted(options: dict, groups: int, stride: int) -> None:
    """On even sizes: the low and high parts of convolutions before and after are taken off."""
    layers = [
        nn.Conv2d(c, 16, 3, s, 1, groups=g) for c, s, g in ((4, 1, 1), (16, 1, 1), (16, stride, groups), (16, 1, 1))
    ]
    ordinary = nn.Sequential(*layers)
    octave = octavize(ordinary, {"1": 0.5, "2": 0.25}, **options)
    counted = []
    for network in (ordinary, octave):
        seen = []
        layer = network.get_submodule("2")
        layer.register_forward_pre_hook(lambda module, args, seen=seen: seen.append(args[0]))
        network(torch.zeros(1, 4, 16, 16))
        with FlopCounterMode(display=False) as counter:
            layer(seen[0])
        counted.append(counter.get_total_flops())
    assert octave.octave_report.costs["2"] == pytest.approx(counted[1] / counted[0])
