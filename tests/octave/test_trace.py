"""Tracing: what cannot be traced is named, and what depends on the mode goes on depending on it."""

from __future__ import annotations

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


def test_untraceable_code_is_named_with_the_way_out() -> None:
    with pytest.raises(ValueError, match=r"cannot trace inner \(Loop\).*leaf_modules=\[Loop\]"):
        octavize(Untraceable(), 0.0)
    for name in (Loop, "Loop", "any.path.Loop"):
        assert octavize(Untraceable(), 0.0, leaf_modules=[name])(torch.ones(2)).sum() == 2


def test_no_way_out_is_named_where_there_is_none() -> None:
    """The whole network as a leaf would leave nothing to convert."""
    with pytest.raises(ValueError, match=r"cannot trace the network itself \(Loop\): symbolically .* control flow$"):
        octavize(Loop(), 0.0)


class FunctionalDropout(nn.Module):
    """Dropout as functions: on a pair, and behind the head."""

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
