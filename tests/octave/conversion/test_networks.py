"""octavize on every network of networks.py: the contract that holds for any of them, at two alphas.

Each network is built once, with norm statistics of noise and random scales; pytest runs all tests of one network
before it builds the next.
"""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable, Iterator
from functools import wraps
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from pytorchvideo.layers.swish import Swish
from torch import Tensor, nn

from octvideo.octave import (
    OctaveNetwork,
    OctConv1d,
    OctConv2d,
    OctConv3d,
    arrange,
    count_cost,
    octavize,
    prepare_inference,
)
from tests.octave.conversion.networks import NETWORKS, Network, named_state

ALPHAS = (0.25, pytest.param(0.5, marks=pytest.mark.slow))  # the two take the same ways
CONVS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
OCTAVE_CONVS = (OctConv1d, OctConv2d, OctConv3d)


class Case:
    """One network, and what octavize makes of it; nothing here may be changed by a test."""

    def __init__(self, entry: Network) -> None:
        torch.manual_seed(0)
        self.entry = entry
        self.ordinary = entry.build()
        measure_norms(self.ordinary, entry.random_input(1))
        self.ordinary.eval()
        is_clip = len(entry.inputs[0]) == 5
        self.layout = torch.channels_last_3d if is_clip else torch.channels_last
        self._octave: dict[float, OctaveNetwork] = {}

    def octave(self, alpha: float) -> OctaveNetwork:
        if alpha not in self._octave:
            self._octave[alpha] = octavize(self.ordinary, alpha)
        return self._octave[alpha]

    def run(self, network: Any, seed: int = 0) -> Tensor:
        with torch.no_grad():
            return network(self.entry.random_input(seed))


def measure_norms(network: nn.Module, x: Any) -> None:
    """Random scales and shifts, and the statistics that noise then has: deep networks stay in range."""
    norms = [module for module in network.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
    momentum = [norm.momentum for norm in norms]
    for norm in norms:
        norm.momentum = 1.0
        if norm.affine:
            nn.init.uniform_(norm.weight, 0.5, 1.5)
            nn.init.normal_(norm.bias, std=0.5)
    with torch.no_grad():
        network.train()(x)
    for norm, usual in zip(norms, momentum, strict=True):
        norm.momentum = usual
        assert norm.running_var is not None and norm.running_var.isfinite().all()
        norm.running_var.clamp_(min=0.1 * norm.running_var.mean().item())  # maps of 1 x 1 have next to none


def networks(is_fast: Callable[[Network], bool]) -> list[Any]:
    return [pytest.param(n, id=n.name, marks=() if is_fast(n) else pytest.mark.slow) for n in NETWORKS]


@pytest.fixture(scope="module", params=networks(lambda network: network.small))
def case(request: pytest.FixtureRequest) -> Iterator[Case]:
    yield Case(request.param)
    torch.compiler.reset()


def step(network: nn.Module, x: Any) -> Tensor:
    """One step of training, with the dropout of a fixed seed."""
    torch.manual_seed(1)
    output = network.train()(x)
    (output * torch.linspace(-1, 1, output.shape[1])).sum().backward()
    return output


def force_octave_layers(network: nn.Module) -> int:
    """Let every convolution work as an OctConv whose low parts are empty; returns how many do."""
    convs = [module for module in network.modules() if isinstance(module, CONVS)]
    for conv in convs:
        conv.__class__ = OCTAVE_CONVS[len(conv.kernel_size) - 1]
        conv.set_octave(0.0, 0.0)
    return len(convs)


@pytest.mark.parametrize("alpha", ALPHAS)
def test_weights_are_the_ordinary_networks(case: Case, alpha: float) -> None:
    assert named_state(case.octave(alpha)) == named_state(case.ordinary)
    ordinary, copied = case.ordinary.state_dict(), copy.deepcopy(case.octave(alpha))
    there = {key: torch.full_like(value, n % 97) for n, (key, value) in enumerate(ordinary.items())}
    assert copied.load_state_dict(there, strict=True)
    assert all(torch.equal(value, there[key]) for key, value in copied.state_dict().items())
    assert copy.deepcopy(case.ordinary).load_state_dict(copied.state_dict(), strict=True)


@pytest.mark.parametrize("alpha", ALPHAS)
def test_trains_like_the_ordinary_network(case: Case, alpha: float) -> None:
    octave, ordinary = copy.deepcopy(case.octave(alpha)), copy.deepcopy(case.ordinary)
    assert step(octave, case.entry.random_input()).isfinite().all()
    step(ordinary, case.entry.random_input())
    gradients = {name: p.grad for name, p in octave.named_parameters()}
    for name, parameter in ordinary.named_parameters():
        gradient = gradients[name]
        if parameter.grad is None:
            assert gradient is None
        else:
            assert gradient is not None and gradient.isfinite().all(), name
            assert gradient.any() or not parameter.grad.any(), f"{name} learns nothing"
    for (name, value), usual in zip(octave.named_buffers(), dict(ordinary.named_buffers()).values(), strict=False):
        assert value.isfinite().all() and value.shape == usual.shape, name


def without_padding(pool: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """An average pooling whose edges average only what is there."""

    @wraps(pool)
    def average(
        input: Tensor,
        kernel_size: Any,
        stride: Any = None,
        padding: Any = 0,
        ceil_mode: bool = False,
        count_include_pad: bool = True,
        divisor_override: Any = None,
    ) -> Tensor:
        return pool(input, kernel_size, stride, padding, ceil_mode, False, divisor_override)

    return average


@pytest.mark.parametrize("alpha, downsample", [(0.5, "pool"), pytest.param(0.25, "stride", marks=pytest.mark.slow)])
def test_constant_input_gives_the_ordinary_output(
    case: Case, alpha: float, downsample: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On one colour (edges replicated) resolution means nothing: any wrong wiring of channels shows.

    Average pooling that counts padded zeros would not keep a colour, so none does here.
    """
    for name in ("avg_pool2d", "avg_pool3d"):
        monkeypatch.setattr(F, name, without_padding(getattr(F, name)))
    ordinary = copy.deepcopy(case.ordinary).double()
    for module in ordinary.modules():
        if isinstance(module, CONVS):
            module.padding_mode = "replicate"
    octave = octavize(ordinary, alpha, downsample=downsample)
    with torch.no_grad():
        expected, got = ordinary(case.entry.constant_input()), octave(case.entry.constant_input())
        scale = expected.abs().max().item()
        assert (expected[0] - expected[1]).abs().max() > 1e-3 * scale  # the colour is seen
        torch.testing.assert_close(got, expected, rtol=0, atol=1e-9 * scale)
        noise = case.entry.random_input(dtype=torch.float64)
        assert not torch.allclose(octave(noise), ordinary(case.entry.random_input(dtype=torch.float64)), rtol=1e-3)


@pytest.mark.parametrize("forced", [False, True], ids=["untouched", "forced"])
def test_alpha_zero_is_bit_equal(case: Case, forced: bool) -> None:
    """In evaluation, and in training under one seed: outputs, running statistics, and gradients nearly.

    Gradients of values that are read several times are summed, in an order that differs here and there.
    """
    ordinary = copy.deepcopy(case.ordinary)
    for module in list(ordinary.modules()):
        for name, child in module.named_children():
            if isinstance(child, Swish):  # tests/models/test_library.py compares it with what takes its place
                setattr(module, name, nn.SiLU())
    same = octavize(case.ordinary, 0.0)
    assert not same.octave_report.layers
    if forced:
        assert force_octave_layers(same) > 0
    evaluated = torch.equal(case.run(same), case.run(ordinary))
    assert evaluated
    trained = torch.equal(step(same, case.entry.random_input()), step(ordinary, case.entry.random_input()))
    assert trained
    gradients = {name: p.grad for name, p in same.named_parameters()}
    for name, parameter in ordinary.named_parameters():
        if parameter.grad is not None:
            scale = parameter.grad.abs().max().item()
            torch.testing.assert_close(gradients[name], parameter.grad, rtol=0, atol=1e-3 * scale, msg=name)
    state = same.state_dict()
    assert [key for key, value in ordinary.state_dict().items() if not torch.equal(value, state[key])] == []


@pytest.mark.parametrize("alpha", ALPHAS)
def test_pickles_and_copies(case: Case, alpha: float) -> None:
    octave = case.octave(alpha)
    expected = case.run(octave)
    copied = copy.deepcopy(octave)
    for clone in (copied, pickle.loads(pickle.dumps(copied))):
        same = torch.equal(case.run(clone), expected)
        assert same
        assert named_state(clone) == named_state(case.ordinary)
        assert clone.octave_report == octave.octave_report


def distance(got: Tensor, expected: Tensor) -> float:
    """Relative error of a whole output, in the 2-norm."""
    return ((got.to(expected.dtype) - expected).norm() / expected.norm()).item()


@pytest.mark.parametrize("alpha", ALPHAS)
def test_memory_format_and_bfloat16(case: Case, alpha: float) -> None:
    """Channels last equals contiguous to 1e-4 of the output; bfloat16 (autocast) is off by less than a tenth, or
    than in the ordinary network: with these random norms .15 in ResNet-152 and .46 in S3D, octave .10 and .14."""
    octave = case.octave(alpha)
    last = copy.deepcopy(octave).to(memory_format=case.layout)
    expected = case.run(octave)
    assert distance(run_in_layout(case, last), expected) < 1e-4
    with torch.autocast("cpu", dtype=torch.bfloat16):
        error = distance(run_in_layout(case, last), expected)
    if error >= 0.1:
        expected = case.run(case.ordinary)
        ordinary = copy.deepcopy(case.ordinary).to(memory_format=case.layout)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert error < distance(run_in_layout(case, ordinary), expected)


def run_in_layout(case: Case, network: Any) -> Tensor:
    """Channels last; the input may not change."""
    given = case.entry.random_input()
    parts = [part.to(memory_format=case.layout) for part in (given if isinstance(given, list) else [given])]
    with torch.no_grad():
        y = network(list(parts) if isinstance(given, list) else parts[0])
    assert all(map(torch.equal, parts, given if isinstance(given, list) else [given]))
    return y


class Rounding:
    """Whether scores are within 1e-5 of a network's in float64, or three times as far as torch's in float32."""

    def __init__(self, case: Case, network: nn.Module) -> None:
        given = case.entry.random_input(0)
        parts = [x.double() for x in given] if isinstance(given, list) else given.double()
        with torch.no_grad():
            self.exact = copy.deepcopy(network).double()(parts)
        in_layout = copy.deepcopy(network).to(memory_format=case.layout)
        own = case.run(network), run_in_layout(case, in_layout)
        self.own = max(distance(scores.double(), self.exact) for scores in own)

    def allows(self, scores: Tensor) -> bool:
        return distance(scores.double(), self.exact) < max(1e-5, 3 * self.own)


@pytest.mark.parametrize("alpha", [0.0, *ALPHAS])
def test_prepared_for_inference(case: Case, alpha: float) -> None:
    """The same scores in either layout, again and again: what is overwritten was nobody's, the input least of all."""
    network = case.octave(alpha) if alpha else case.ordinary
    before = {key: value.clone() for key, value in network.state_dict().items()}
    prepared, rounding = prepare_inference(network), Rounding(case, network)
    for _ in range(2):
        assert rounding.allows(case.run(prepared))
        assert rounding.allows(run_in_layout(case, prepared))
    assert rounding.allows(run_in_layout(case, copy.deepcopy(prepared)))
    assert all(torch.equal(value, before[key]) for key, value in network.state_dict().items())


def test_arranged(case: Case) -> None:
    """The same keys, weights and scores, and it learns."""
    network = copy.deepcopy(case.octave(0.25))
    rounding = Rounding(case, network)
    assert arrange(network) is network
    assert rounding.allows(run_in_layout(case, network))
    assert network.state_dict().keys() == case.ordinary.state_dict().keys()
    clone = pickle.loads(pickle.dumps(network))
    assert rounding.allows(run_in_layout(case, clone))
    assert step(clone, case.entry.random_input()).isfinite().all()


@pytest.mark.slow
@pytest.mark.parametrize(
    "case", networks(lambda network: network.name == "torchvision-mobilenet_v3-few"), indirect=True, scope="module"
)
def test_compiles_as_one_graph(case: Case) -> None:
    """What a compiler makes of the graph: test_operations.py, and inductor below."""
    if case.entry.repeats_blocks:
        pytest.skip("a shallower network of the same blocks is compiled")
    octave = case.octave(0.5)
    compiled = torch.compile(octave, backend="eager", fullgraph=True)
    error = distance(case.run(compiled), case.run(octave))
    assert error < 1e-5


@pytest.mark.slow
def test_compiles_with_inductor(case: Case) -> None:
    if not case.entry.small:
        pytest.skip("inductor compiles the small networks only")
    octave = case.octave(0.5)
    torch.compiler.reset()
    error = distance(case.run(torch.compile(octave, fullgraph=True)), case.run(octave))
    assert error < 1e-4


@pytest.mark.parametrize("case", networks(lambda network: network.quickly_traced), indirect=True, scope="module")
def test_exports(case: Case) -> None:
    """Of more operations, test_operations.py makes one graph."""
    if case.entry.repeats_blocks:
        pytest.skip("a shallower network of the same blocks is exported")
    octave, example = case.octave(0.25), (case.entry.random_input(),)
    exported = torch.export.export(octave, example).module()
    for seed in (0, 2):
        error = distance(case.run(exported, seed), case.run(octave, seed))
        assert error < 1e-5


def test_report_accounts_for_every_convolution(case: Case) -> None:
    report = case.octave(0.5).octave_report
    convs = {path for path, module in case.ordinary.named_modules() if isinstance(module, CONVS)}
    assert convs - set(report.layers) - set(report.merged) == set()
    assert all(report.merged.values())


def test_cost_falls(case: Case) -> None:
    """At alpha = .5, sizes as in the papers; a convolution that merges where it need not costs its full price."""
    shapes = case.entry.cost_inputs if len(case.entry.cost_inputs) > 1 else case.entry.cost_inputs[0]
    ordinary = count_cost(case.ordinary, shapes)
    octave = count_cost(case.octave(0.5), shapes)
    assert octave.parameters == ordinary.parameters
    assert octave.multiply_adds <= case.entry.left * ordinary.multiply_adds
