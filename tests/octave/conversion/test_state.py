"""What octavize leaves as it was: keys, shapes and order of a network's state; an optimiser's state moves across."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from octvideo.octave import octavize
from tests.octave.conversion.networks import named_state


class Jumbled(nn.Module):
    """Built in another order than it runs, with state in every form, and tensors that forward makes."""

    mean: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.last = nn.Conv2d(8, 4, 1)
        self.unread = nn.ModuleList([nn.BatchNorm2d(3), nn.Conv2d(3, 3, 1)])
        self.second, self.first = nn.Conv2d(8, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)
        self.again = self.first
        self.body = nn.Sequential(nn.BatchNorm2d(8), nn.ReLU())
        self.body.register_buffer("passing", torch.full((8, 1, 1), 0.5), persistent=False)
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.shift = nn.Parameter(torch.ones(4, 1, 1))
        self.unread_weight = nn.Parameter(torch.zeros(2))
        self.register_buffer("mean", torch.tensor([0.1, 0.2, 0.3]))
        self.register_buffer("unread_buffer", torch.zeros(1), persistent=False)
        self.attribute = torch.tensor([0.3, 0.2, 0.1])

    def forward(self, x: Tensor) -> Tensor:
        x = (x - self.mean.reshape(3, 1, 1)) / torch.tensor([1.0, 2.0, 3.0]).reshape(3, 1, 1)
        x = self.stem(x + self.attribute.reshape(3, 1, 1))
        x = self.second(self.body(self.again(self.first(x))) * self.body.passing)
        total = torch.zeros(1, 1, 1, 1)
        total += x.mean()
        return (self.last(x) + self.shift + total).mean((2, 3))


def repvgg() -> nn.Module:
    byobnet = pytest.importorskip("timm.models.byobnet")
    blocks = tuple(byobnet.ByoBlockCfg(type="rep", d=2, c=c, s=2, gs=0) for c in (16, 24))
    return byobnet.ByobNet(byobnet.ByoModelCfg(blocks=blocks, stem_type="rep", stem_chs=16), num_classes=5)


def maxvit() -> nn.Module:
    maxxvit = pytest.importorskip("timm.models.maxxvit")
    attention = maxxvit.MaxxVitTransformerCfg(window_size=(2, 2), dim_head=8, rel_pos_type="mlp")
    config = maxxvit.MaxxVitCfg((16, 24), (1, 1), ("M", "M"), stem_width=8, transformer_cfg=attention)
    return maxxvit.MaxxVit(config, img_size=32, num_classes=5)


def swin() -> nn.Module:
    models = pytest.importorskip("timm.models.swin_transformer")
    options = {"embed_dim": 16, "depths": (2, 2), "num_heads": (2, 2), "window_size": 4, "num_classes": 5}
    return models.SwinTransformer(img_size=32, patch_size=2, **options)


def csatv2() -> nn.Module:
    models = pytest.importorskip("timm.models.csatv2")
    options = {"dims": (8, 16, 24, 32), "depths": (1, 1, 1, 2), "transformer_depths": (0, 0, 0, 1)}
    return models.CSATv2(num_classes=5, **options)


CASES: list[Any] = [
    (Jumbled, 0.0),
    (Jumbled, 0.5),
    (Jumbled, 1.0),
    (repvgg, 0.5),
    (maxvit, 0.5),
    (swin, 0.0),
    (csatv2, 0.0),
]


def images_for(network: Any) -> Tensor:
    size = 64 if network is csatv2 else 32
    return torch.randn(2, 3, size, size)


@pytest.mark.parametrize("network, alpha", CASES)
def test_keys_shapes_and_order_are_the_ordinary_networks(network: Any, alpha: float) -> None:
    ordinary = network().eval()
    octave = octavize(ordinary, alpha)
    copied = copy.deepcopy(octave)
    x = images_for(network)
    with torch.no_grad():
        expected = octave(x)
        assert alpha > 0 or torch.equal(expected, ordinary(x))
        for clone in (octave, copied, pickle.loads(pickle.dumps(copied)), copy.deepcopy(octave).double().float()):
            assert named_state(clone) == named_state(ordinary)
            again = clone(x)
            assert torch.equal(again, expected)
            clone.load_state_dict(network().state_dict(), strict=True)
    network().load_state_dict(octave.state_dict(), strict=True)


@pytest.mark.parametrize("network", [Jumbled, repvgg, maxvit, swin, csatv2])
def test_an_optimisers_state_moves_across(network: Any) -> None:
    ordinary = network()
    octave = octavize(ordinary, 0.5)
    optimisers = [torch.optim.SGD(net.parameters(), 0.1, momentum=0.9) for net in (ordinary, octave)]
    for source, target in ((0, 1), (1, 0)):
        nets = (ordinary, octave)
        nets[source](images_for(network)).square().sum().backward()
        optimisers[source].step()
        optimisers[target].load_state_dict(optimisers[source].state_dict())
        momenta = [
            {name: optimiser.state[p].get("momentum_buffer") for name, p in net.named_parameters()}
            for optimiser, net in zip(optimisers, nets, strict=True)
        ]
        assert sum(value is not None for value in momenta[source].values()) > len(momenta[source]) // 2
        for name, value in momenta[source].items():
            got = momenta[target][name]
            assert (got is None) == (value is None) and (value is None or torch.equal(got, value)), name
        for parameter in ordinary.parameters():
            parameter.grad = None


def test_what_is_computed_from_a_buffer_follows_loaded_weights() -> None:
    ordinary, other = Jumbled().eval(), Jumbled().eval()
    other.mean.fill_(2.0)
    octave = octavize(ordinary, 0.0)
    x = torch.randn(1, 3, 8, 8)
    for clone in (octave, copy.deepcopy(octave), pickle.loads(pickle.dumps(octave))):
        clone.load_state_dict(other.state_dict())
        with torch.no_grad():
            follows = torch.equal(clone(x), other(x))
        assert follows


def test_tensors_made_in_forward_are_on_the_networks_device_and_new_in_every_call() -> None:
    octave = octavize(Jumbled().eval(), 0.5)
    x = torch.randn(1, 3, 8, 8)
    first, second = octave(x), octave(x)
    assert torch.equal(first, second)
    assert octave.double()(x.double()).dtype == torch.float64
    assert octave.to("meta")(x.to("meta").double()).device.type == "meta"


def test_tensors_made_in_forward_compile_and_export() -> None:
    octave, x = octavize(Jumbled().eval(), 0.5), torch.randn(1, 3, 8, 8)
    with torch.no_grad():
        for network in (
            torch.compile(octave, backend="eager", fullgraph=True),
            torch.export.export(octave, (x,)).module(),
        ):
            torch.testing.assert_close(network(x), octave(x))


class MakesAnother(nn.Module):
    """A tensor that forward makes depends on the mode, or on chance."""

    def __init__(self, random: bool) -> None:
        super().__init__()
        self.stem, self.random = nn.Conv2d(3, 8, 1), random

    def forward(self, x: Tensor) -> Tensor:
        return self.stem(x) + (torch.rand(8, 1, 1) if self.random else torch.full((8, 1, 1), float(self.training)))


@pytest.mark.parametrize("random", [False, True])
def test_a_tensor_that_is_another_in_each_call_is_refused(random: bool) -> None:
    message = (
        r"^octavize cannot convert the network itself \(MakesAnother\): in training it computes something else than in "
        r"evaluation, or at random, from _tensor_constant0 on, and a trace would keep one of the two. Switch that off, "
        r"or move it out of the network$"
    )
    with pytest.raises(ValueError, match=message):
        octavize(MakesAnother(random), 0.0)
