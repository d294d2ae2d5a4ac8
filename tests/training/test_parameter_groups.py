"""What decays, and how fast each layer learns: against timm's groups."""

from __future__ import annotations

import pytest
import torch
import torchvision
from torch import nn

from octvideo import models
from octvideo.errors import UserError
from octvideo.octave import octavize
from octvideo.training.blocks import blocks_of, layers_of
from octvideo.training.freezing import freeze_parameters
from octvideo.training.parameter_groups import LearningRates, decayed_names, make_optimizer, parameter_groups


def network() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv3d(3, 4, 1),
        nn.BatchNorm3d(4),
        nn.AdaptiveAvgPool3d(1),
        nn.Flatten(),
        nn.Dropout(0.5),
        nn.Linear(4, 5),
    )


def rates(net: nn.Module) -> dict[str, float]:
    return LearningRates(0.1).factors(net)


def test_decay_is_for_weights_and_each_parameter_is_in_one_group() -> None:
    net = network()
    decayed, free = parameter_groups(net, 0.1, decayed_names(net), rates(net))
    assert {id(p) for p in decayed["params"]} == {id(net[0].weight), id(net[5].weight)}
    assert {id(p) for p in free["params"]} == {id(p) for p in (net[0].bias, net[1].weight, net[1].bias, net[5].bias)}
    assert (decayed["weight_decay"], free["weight_decay"]) == (0.1, 0.0)


def test_shards_of_one_dimension_decay_as_their_weights_do() -> None:
    """As FSDP makes them, with the names that it gives."""
    net = network()
    names, factors, wrapped = decayed_names(net), rates(net), nn.Module()
    wrapped.add_module("_fsdp_wrapped_module", net)
    for parameter in net.parameters():
        parameter.data = parameter.data.flatten()
    decayed, free = parameter_groups(wrapped, 0.1, names, factors)
    assert {id(p) for p in decayed["params"]} == {id(net[0].weight), id(net[5].weight)}
    assert len(free["params"]) == 4


@pytest.mark.parametrize("name", ["resnet18", "mobilenetv2_050", "vit_tiny_patch16_224", "regnety_002"])
def test_rates_by_depth_are_those_of_timm(name: str) -> None:
    timm = pytest.importorskip("timm")
    from timm.optim import param_groups_layer_decay

    with torch.device("meta"):
        net = timm.create_model(name, num_classes=5)
    freeze_parameters(net, "norms")
    ours = parameter_groups(net, 0.05, decayed_names(net), LearningRates(0.1, layer_decay=0.75).factors(net))
    theirs = param_groups_layer_decay(net, weight_decay=0.05, layer_decay=0.75)

    def of_each(groups: list[dict]) -> dict[int, tuple[float, float]]:
        return {id(p): (round(g["lr_scale"], 12), g["weight_decay"]) for g in groups for p in g["params"]}

    assert len({scale for scale, _ in of_each(ours).values()}) >= 10
    assert of_each(ours) == of_each(theirs)


def in_meta(build, *args, **kwargs) -> nn.Module:
    with torch.device("meta"):
        return build(*args, **kwargs)


@pytest.mark.parametrize(
    ("build", "blocks", "layers", "some"),
    [
        (lambda: models.i3d_small(5, 0.25), 9, 10, "blocks.1.res_blocks.0"),
        (lambda: models.slowfast_small(5, 0.25), 18, 10, "blocks.1.multipathway_blocks.1.res_blocks.0"),
        (lambda: in_meta(torchvision.models.video.r3d_18), 8, 10, "layer4.1"),
        (lambda: in_meta(torchvision.models.video.mvit_v2_s), 16, 18, "blocks.15"),
        (lambda: in_meta(torchvision.models.mobilenet_v3_small), 11, 13, "features.1"),
        (lambda: in_meta(torchvision.models.shufflenet_v2_x1_0), 16, 18, "stage2.0"),
    ],
    ids=["i3d", "slowfast", "r3d_18", "mvit", "mobilenet_v3", "shufflenet"],
)
def test_blocks_are_those_of_the_networks_own_order(build, blocks: int, layers: int, some: str) -> None:
    net = build()
    found, depths = blocks_of(net), layers_of(net)
    assert len(found) == blocks and some in found and some.rpartition(".")[0] not in found
    assert set(depths) == {name for name, _ in net.named_parameters()}
    assert sorted(set(depths.values())) == list(range(layers))
    (head,) = {name.rpartition(".")[0] for name, depth in depths.items() if depth == layers - 1}
    assert next(iter(depths.values())) == 0 and isinstance(net.get_submodule(head), nn.Linear)


def test_a_converted_network_has_the_ordinary_ones_depths() -> None:
    net = torchvision.models.resnet18(num_classes=5)
    assert layers_of(octavize(net, 0.25)) == layers_of(net)


def test_the_backbone_learns_more_slowly_than_the_head() -> None:
    net = models.i3d_small(5, 0.25)
    factors = LearningRates(0.1, backbone_scale=0.1).factors(net)
    head = {name for name, factor in factors.items() if factor == 1}
    assert head == {"blocks.6.proj.weight", "blocks.6.proj.bias"} and set(factors.values()) == {1.0, 0.1}
    both = LearningRates(0.1, layer_decay=0.5, backbone_scale=0.1)
    assert both.factors(net)["blocks.5.res_blocks.1.branch2.conv_a.weight"] == pytest.approx(0.1 * 0.5)
    (line,) = both.described(both.factors(net), clips=None)
    assert line.startswith("learning rates from the first layer to the classifier: ") and line.endswith("0.005, 0.1")


def test_one_rate_makes_the_two_groups_of_old() -> None:
    groups = parameter_groups(net := models.i3d_small(5), 0.1, decayed_names(net), rates(net))
    assert [group["weight_decay"] for group in groups] == [0.1, 0.0]
    assert LearningRates(0.1).described(rates(net), clips=8) == []


def test_the_rate_is_in_proportion_to_the_batch() -> None:
    linear = LearningRates(0.1, batch_size=64)
    assert linear.for_batch(16) == pytest.approx(0.025) and LearningRates(0.1).for_batch(16) == 0.1
    (line,) = linear.described({"weight": 1.0}, clips=16)
    assert line == "learning rate: 0.1 for 64 clips a step, so 0.025 for 16"


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"lr": -1.0}, "model.lr: got -1.0, expected 0 or more"),
        ({"lr": 0.1, "backbone_scale": float("nan")}, "model.backbone_lr_scale: got nan, expected 0 or more"),
        ({"lr": 0.1, "layer_decay": 1.5}, "model.layer_decay: got 1.5, expected more than 0 and 1 at most"),
        ({"lr": 0.1, "batch_size": 0}, "model.lr_batch_size: got 0, expected 1 or more clips"),
    ],
)
def test_what_can_not_be_meant_is_said(values: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        LearningRates(**values)


def test_a_network_without_blocks_is_named() -> None:
    with pytest.raises(UserError, match=r"the network Sequential has no blocks: expected lists of them, as in ResNets"):
        LearningRates(0.1, layer_decay=0.5).factors(network())


@pytest.mark.parametrize("name", ["sgd", "adamw"])
def test_a_scale_multiplies_the_step(name) -> None:
    """The step of a layer with a tenth of the rate is a tenth of the other's."""
    weights = [nn.Parameter(torch.ones(1)), nn.Parameter(torch.ones(1))]
    groups = [{"params": [w], "weight_decay": 0.0, "lr_scale": s} for w, s in zip(weights, (1, 0.1), strict=True)]
    optimizer = make_optimizer(name, groups, lr=0.1, momentum=0.9, fused=None)
    for group in optimizer.param_groups:
        group["lr"] = 0.1 * group["lr_scale"]
    sum(weights).backward()
    optimizer.step()
    whole, tenth = (1 - w.item() for w in weights)
    assert tenth == pytest.approx(whole / 10, rel=1e-4)
