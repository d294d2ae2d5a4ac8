"""What learns."""

from __future__ import annotations

import pytest
from torch import nn

from octvideo.errors import UserError
from octvideo.training.freezing import find_head, freeze_parameters


def network() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv3d(3, 4, 1),
        nn.BatchNorm3d(4),
        nn.AdaptiveAvgPool3d(1),
        nn.Flatten(),
        nn.Dropout(0.5),
        nn.Linear(4, 5),
    )


def learning(net: nn.Module) -> set[str]:
    return {name for name, p in net.named_parameters() if p.requires_grad}


def test_a_frozen_backbone_leaves_the_head_and_its_dropout() -> None:
    net = network()
    held = freeze_parameters(net, "backbone")
    assert learning(net) == {"5.weight", "5.bias"}
    assert net[1] in held and net[4] not in held and net[5] not in held


def test_frozen_norms() -> None:
    net = network()
    assert freeze_parameters(net, "norms") == [net[1]]
    assert learning(net) == {"0.weight", "0.bias", "5.weight", "5.bias"}


def test_a_network_without_a_classifier_is_named() -> None:
    with pytest.raises(UserError, match=r"the network Conv3d has no nn\.Linear: expected a classifier"):
        find_head(nn.Conv3d(3, 4, 1))
