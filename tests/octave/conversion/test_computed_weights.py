"""octavize on convolutions whose weight is computed in every call: weight norm, spectral norm, pruning."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations, prune, spectral_norm, weight_norm

from octvideo.octave import octavize, prepare_inference
from tests.octave.conversion.networks import named_state

WAYS: dict[str, Callable[[nn.Module], object]] = {
    "weight_norm": parametrizations.weight_norm,
    "spectral_norm": parametrizations.spectral_norm,
    "weight_norm by hook": weight_norm,
    "spectral_norm by hook": spectral_norm,
    "pruned by hook": lambda conv: prune.l1_unstructured(conv, "weight", 0.3),
}
pytestmark = pytest.mark.filterwarnings("ignore:.*weight_norm.* is deprecated")


def conv(c_in: int, c_out: int, stride: int = 1) -> nn.Module:
    return nn.Conv2d(c_in, c_out, 3, stride, 1, padding_mode="replicate")


@pytest.fixture(params=WAYS)
def ordinary(request: pytest.FixtureRequest) -> nn.Module:
    """In float64 and evaluation, after a step of training, which leaves weights that copy.deepcopy refuses."""
    network = nn.Sequential(
        conv(3, 8), nn.BatchNorm2d(8), nn.ReLU(), conv(8, 16, 2), nn.BatchNorm2d(16), nn.ReLU(), conv(16, 4)
    ).double()
    for n in (0, 3, 6):
        WAYS[request.param](network[n])
    network(noise()).sum().backward()
    return network.eval()


def noise() -> Tensor:
    return torch.randn(2, 3, 12, 16, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


@pytest.mark.parametrize("alpha", [0.0, 0.5])
def test_computed_weights_go_on_being_computed(ordinary: nn.Module, alpha: float) -> None:
    octave = octavize(ordinary, alpha)
    assert octave.octave_report.layers == ({"3": (0.0, 0.5), "6": (0.5, 0.0)} if alpha else {})
    constant = torch.tensor([[0.3, -1.0, 2.0], [1.0, 0.0, -0.5]], dtype=torch.float64)[:, :, None, None].expand(
        2, 3, 9, 13
    )
    for network in (octave, copy.deepcopy(octave)):
        assert named_state(network) == named_state(ordinary)
        torch.testing.assert_close(network(constant), ordinary(constant), rtol=0, atol=1e-12)
    octave.train()(noise()).square().sum().backward()
    ordinary.train()(noise())
    assert all(p.grad is not None and p.grad.isfinite().all() for p in octave.parameters())
    # Spectral norm keeps vectors that each step of training improves, once.
    buffers = dict(octave.named_buffers())
    for name, value in ordinary.named_buffers():
        if "running" not in name:
            torch.testing.assert_close(buffers[name], value, rtol=0, atol=1e-12)
    with torch.no_grad():
        before = copy.deepcopy(octave.eval())(constant)
        for name, parameter in octave.named_parameters():
            if name.startswith("3.") and parameter.dim() == 4:
                parameter[0] += 1  # the result follows
        assert not torch.allclose(octave(constant), before)


@pytest.mark.parametrize("alpha", [0.0, 0.5])
def test_computed_weights_prepared_for_inference(ordinary: nn.Module, alpha: float) -> None:
    """Fixed in the copy; the given network goes on computing its own."""
    network = octavize(ordinary, alpha) if alpha else ordinary
    prepared = prepare_inference(network)
    for _ in range(2):
        with torch.no_grad():
            torch.testing.assert_close(prepared(noise()), network(noise()), rtol=0, atol=1e-12)
    assert all(value.grad_fn is None for value in prepared.state_dict(keep_vars=True).values())


class Standardised(nn.Conv2d):
    """A convolution that makes another weight of its own, as timm's StdConv2d."""

    def forward(self, input: Tensor) -> Tensor:
        weight = self.weight - self.weight.mean((1, 2, 3), keepdim=True)
        return nn.functional.conv2d(input, weight, self.bias, self.stride, self.padding, self.dilation, self.groups)


def test_what_makes_a_weight_of_a_computed_weight_stays_ordinary() -> None:
    network = nn.Sequential(*(Standardised(c, 8, 3, padding=1) for c in (3, 8, 8)))
    parametrizations.weight_norm(network[1])
    octave = octavize(network, 0.5)
    x = torch.randn(2, 3, 8, 8)
    assert torch.equal(octave(x), network(x)) and named_state(octave) == named_state(network)
    assert "ParametrizedStandardised, which does more than to convolve" in octave.octave_report.merged["1"]
