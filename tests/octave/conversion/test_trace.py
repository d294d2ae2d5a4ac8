"""Tracing: what cannot be traced is named, and what depends on the mode goes on depending on it."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from octvideo.octave import octavize


class Untraceable(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = Loop()

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x)


class Loop(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x if x.sum() > 0 else -x


class ConvLoop(Loop):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 1)


def test_untraceable_code_is_named_with_the_way_out() -> None:
    with pytest.raises(ValueError, match=r"cannot trace inner \(Loop\).*leaf_modules=\[Loop\]"):
        octavize(Untraceable(), 0.0)
    for name in (Loop, "Loop", "any.path.Loop"):
        assert octavize(Untraceable(), 0.0, leaf_modules=[name])(torch.ones(2)).sum() == 2


def test_no_way_out_is_named_where_there_is_none() -> None:
    """The whole network as a leaf would leave nothing to convert; so would the part that has all convolutions."""
    for network, where in ((Loop(), "the network itself"), (nn.Sequential(nn.Identity(), ConvLoop()), "1")):
        name = type(network if where != "1" else network[1]).__name__
        message = rf"cannot trace {where} \({name}\): symbolically .* control flow. Change that code, or convert a part"
        with pytest.raises(ValueError, match=message):
            octavize(network, 0.0)


class FunctionalDropout(nn.Module):
    """Dropout as functions: on a pair, and after the head."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.a, self.b = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 8, 1), nn.Conv2d(8, 8, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = F.dropout(self.a(self.stem(x)), 0.5, self.training)
        return F.dropout(self.b(x).mean((2, 3)), training=self.training)


@pytest.mark.parametrize("training", [True, False])
def test_dropout_functions_follow_the_mode_whatever_it_was_when_traced(training: bool) -> None:
    ordinary = FunctionalDropout().train(training)
    octave = octavize(ordinary, 0.5)
    x = torch.randn(2, 3, 8, 8)
    assert ordinary.training == training and octave.training == training
    octave.train()
    assert not torch.equal(octave(x), octave(x))
    octave.eval()
    assert torch.equal(octave(x), octave(x))
    assert octave.state_dict().keys() == ordinary.state_dict().keys()
    same = octavize(ordinary, 0.0)
    for mode in (True, False):
        outputs = []
        for network in (ordinary, same):
            torch.manual_seed(1)
            outputs.append(network.train(mode)(x))
        assert torch.equal(*outputs)


class Auxiliary(nn.Module):
    """Another result in training, as GoogLeNet's second head."""

    def forward(self, x: Tensor) -> Tensor:
        return x.relu() * 2 if self.training else x.relu()


def test_code_that_depends_on_the_mode_is_named() -> None:
    network = nn.Sequential(nn.Conv2d(3, 4, 1), Auxiliary())
    message = r"cannot convert 1 \(Auxiliary\): in training it computes something else .* from mul on"
    for mode in (True, False):
        with pytest.raises(ValueError, match=message):
            octavize(network.train(mode), 0.0)
    whole = octavize(network, 0.0, leaf_modules=[Auxiliary])
    x = torch.ones(1, 3, 2, 2)
    assert torch.equal(whole.train()(x), 2 * whole.eval()(x))


def test_frozen_parts_stay_in_evaluation() -> None:
    network = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.Dropout(0.5)).train()
    network[1].eval()
    octave = octavize(network, 0.0)
    assert [octave.get_submodule(str(n)).training for n in range(3)] == [True, False, True]
    assert [m.training for m in network] == [True, False, True]


@pytest.mark.parametrize("training", [True, False])
def test_operations_that_octavize_puts_in_have_the_networks_mode(training: bool) -> None:
    convs = [nn.Conv2d(c, 8, 3, padding=1) for c in (3, 8, 8)]
    layers = nn.Sequential(convs[0], convs[1], nn.ReLU(), convs[2], nn.AdaptiveAvgPool2d(1)).train(training)
    assert {module.training for module in octavize(layers, 0.5).modules()} == {training}


class ScoresInEvaluation(nn.Module):
    """The network's own forward differs, as pytorchvideo's EfficientX3d."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        return x if self.training else x.softmax(1)


def test_code_that_does_more_in_evaluation_is_named() -> None:
    within = ScoresInEvaluation()
    within.conv = nn.Identity()  # type: ignore[assignment]
    message = r"cannot convert 1 \(ScoresInEvaluation\): .* from softmax on, .* leaf_modules=\[ScoresInEvaluation\]"
    with pytest.raises(ValueError, match=message):
        octavize(nn.Sequential(nn.Conv2d(3, 4, 1), within, nn.Conv2d(4, 4, 1)), 0.0)


def test_a_network_that_depends_on_the_mode_itself_is_named() -> None:
    with pytest.raises(ValueError) as error:
        octavize(ScoresInEvaluation(), 0.5)
    assert str(error.value) == (
        "octavize cannot convert the network itself (ScoresInEvaluation): in training it computes something else than "
        "in evaluation, or at random, from softmax on, and a trace would keep one of the two. Switch that off, or move "
        "it out of the network"
    )


@pytest.mark.filterwarnings("ignore:.*torch.jit.script.* is deprecated")
def test_torchscript_is_named_and_can_be_kept_whole() -> None:
    scripted = torch.jit.script(nn.Sequential(nn.Conv2d(8, 8, 1), nn.ReLU()))
    network = nn.Sequential(nn.Conv2d(3, 8, 1), scripted, nn.Conv2d(8, 8, 1)).eval()
    with pytest.raises(ValueError) as error:
        octavize(network, 0.5)
    assert str(error.value) == (
        "octavize cannot trace 1 (RecursiveScriptModule): torch.fx cannot read TorchScript; give the network from "
        "before torch.jit. Keep that class whole with leaf_modules=[RecursiveScriptModule]; it then takes and gives "
        "ordinary tensors"
    )
    octave = octavize(network, 0.0, leaf_modules=[torch.jit.RecursiveScriptModule])
    x = torch.randn(2, 3, 8, 8)
    assert torch.equal(octave(x), network(x))
    assert list(octave.state_dict()) == list(network.state_dict())


def _octave() -> nn.Module:
    return octavize(nn.Sequential(nn.Conv2d(3, 8, 1), nn.Conv2d(8, 8, 1), nn.Conv2d(8, 8, 1)), 0.5)


_READS = "which torch.fx cannot read; give the network from before torch.jit, torch.compile or DataParallel"
_TWICE = (
    "a network that octavize made, or that holds one, expected an ordinary one; build that anew to convert it at "
    "another alpha"
)


@pytest.mark.filterwarnings("ignore:.*torch.jit.script.* is deprecated")
@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: "resnet50", "'resnet50', expected a network, a torch.nn.Module; build it first"),
        (lambda: None, "None, expected a network, a torch.nn.Module; build it first"),
        (lambda: Loop, f"{Loop!r}, expected a network, a torch.nn.Module; build it first"),
        (lambda: torch.jit.script(nn.Conv2d(3, 4, 1)), f"a RecursiveScriptModule, {_READS}"),
        (lambda: torch.compile(nn.Conv2d(3, 4, 1)), f"a OptimizedModule, {_READS}"),
        (lambda: nn.DataParallel(nn.Conv2d(3, 4, 1)), f"a DataParallel, {_READS}"),
        (lambda: nn.LazyConv2d(4, 1), "a network with lazy layers, expected their sizes; call it once before"),
        (_octave, _TWICE),
        (lambda: nn.Sequential(_octave(), nn.ReLU()), _TWICE),
    ],
    ids=["name", "none", "class", "script", "compiled", "parallel", "lazy", "twice", "holds"],
)  # fmt: skip
def test_what_is_no_ordinary_network_is_refused(make: Any, message: str) -> None:
    with pytest.raises(ValueError) as error:
        octavize(make(), 0.5)
    assert str(error.value) == f"octavize: got {message}"


def test_a_network_with_no_octave_layer_is_ordinary_still() -> None:
    again = octavize(octavize(nn.Sequential(nn.Conv2d(3, 8, 1), nn.Conv2d(8, 8, 1), nn.Conv2d(8, 4, 1)), 0.0), 0.5)
    assert again.octave_report.layers == {"1": (0.0, 0.5), "2": (0.5, 0.0)}


@pytest.mark.parametrize("alpha", [None, "half", [0.5], {"0": "x"}], ids=str)
def test_an_alpha_that_is_no_number_is_refused(alpha: Any) -> None:
    with pytest.raises(ValueError) as error:
        octavize(nn.Sequential(nn.Conv2d(3, 8, 1)), alpha)
    assert str(error.value) == f"alpha: got {alpha!r}, expected a number from 0 to 1, or one by module path"


class Counting(nn.Module):
    """A buffer that each call changes: by a new tensor, or in place."""

    calls: Tensor

    def __init__(self, in_place: bool) -> None:
        super().__init__()
        self.stem, self.in_place = nn.Conv2d(3, 8, 1), in_place
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        if self.in_place:
            self.calls.add_(1)
        else:
            self.calls = self.calls + 1
        return self.stem(x)


def test_a_buffer_is_changed_in_every_call_or_refused() -> None:
    octave = octavize(Counting(in_place=True), 0.5)
    for _ in range(2):
        octave(torch.ones(1, 3, 2, 2))
    assert octave.state_dict()["calls"] == 2
    with pytest.raises(ValueError) as error:
        octavize(Counting(in_place=False), 0.5)
    assert str(error.value) == (
        "octavize cannot convert this network: its forward pass puts another tensor in the place of calls, which a "
        "trace does once; change it in place, as copy_ does"
    )


class Masked(nn.Module):
    """Arguments that may be left out, of every kind."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.a, self.b = (nn.Conv2d(c, 8, 3, padding=1) for c in (3, 8, 8))

    def forward(self, x: Tensor, mask: Any = None, *more: Tensor, scale: float = 2.0, **options: Any) -> Tensor:
        x = self.a(self.stem(x)) * scale
        for y in (mask, *more, options.get("mask")):
            if y is not None:
                x = x * y
        return self.b(x)


def test_arguments_that_may_be_left_out_are() -> None:
    ordinary = Masked().eval()
    x = torch.randn(2, 3, 8, 8)
    same = octavize(ordinary, 0.0)
    for clone in (same, copy.deepcopy(same), pickle.loads(pickle.dumps(same))):
        assert torch.equal(clone(x), ordinary(x))
    octave = octavize(ordinary, 0.5)
    assert octave.octave_report.layers == {"a": (0.0, 0.5), "b": (0.5, 0.0)}
    assert octave(x).shape == (2, 8, 8, 8)
    with pytest.raises(TypeError, match="2 positional arguments but 3 were given"):
        octave(x, torch.ones(8, 8))
