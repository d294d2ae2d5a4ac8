"""octavize on torchvision's networks: the joins that people really use (dense, inverted residual, shuffle, gates)."""

from __future__ import annotations

import pytest
import torch
import torchvision
from torch import nn

from octvideo.octave import count_cost, octavize

# Network -> how many multiply-adds of the ordinary one may be left at alpha = .5 (what merges costs the full price).
NETWORKS = {
    "resnet18": 0.6,
    "resnext50_32x4d": 0.5,
    "densenet121": 0.6,
    "googlenet": 0.65,
    "inception_v3": 0.7,
    "mobilenet_v2": 0.6,
    "mobilenet_v3_small": 0.75,
    "shufflenet_v2_x1_0": 0.75,
    "regnet_y_400mf": 0.65,
    "vgg11_bn": 0.7,
}


@pytest.mark.slow
@pytest.mark.parametrize("name", NETWORKS)
def test_torchvision(name: str) -> None:
    options = {"aux_logits": False, "init_weights": False} if name in ("googlenet", "inception_v3") else {}
    ordinary = getattr(torchvision.models, name)(**options).eval()
    x = torch.randn(1, 3, 224, 224)
    with torch.no_grad():
        assert torch.equal(octavize(ordinary, 0.0)(x), ordinary(x))
    for module in ordinary.modules():
        if isinstance(module, nn.Conv2d):
            module.padding_mode = "replicate"
    octave = octavize(ordinary, 0.5)
    constant = torch.randn(1, 3, 1, 1).expand(1, 3, 235, 224)  # has no resolution
    with torch.no_grad():
        torch.testing.assert_close(octave(constant), ordinary(constant), rtol=1e-4, atol=1e-5)
    assert octave.state_dict().keys() == ordinary.state_dict().keys()
    shape = (1, 3, 224, 224)
    left = count_cost(octave, shape).multiply_adds / count_cost(ordinary, shape).multiply_adds
    assert left < NETWORKS[name]
