"""Networks on no clips, as a process runs them whose batch has no readable video."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from octvideo.models import c2d_small, frame_network, i3d_nl_small, i3d_small, slowfast_small, video_network
from octvideo.training import VideoClassifier

NETWORKS = {
    "i3d": lambda: i3d_small(num_classes=3, width=8, alpha=0.25),
    "c2d": lambda: c2d_small(num_classes=3, width=8),
    "i3d_nl": lambda: i3d_nl_small(num_classes=3, width=8, alpha=0.25),
    "slowfast": lambda: slowfast_small(num_classes=3, width=16, alpha=0.25),
    "r3d_18": lambda: video_network("torchvision:r3d_18", num_classes=3, alpha=0.25),
    "mobilenet_v2": lambda: frame_network("torchvision:mobilenet_v2", num_classes=3, alpha=0.25),
}


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[] if name in ("i3d", "slowfast") else pytest.mark.slow) for name in NETWORKS]
)
def test_a_network_runs_on_no_clips(name: str, channels_last: bool) -> None:
    """Forward and back, each parameter with a gradient of zeros; statistics stay."""
    module: Any = VideoClassifier(NETWORKS[name](), channels_last=channels_last)
    before = {key: value.clone() for key, value in module.network.named_buffers() if "tracked" not in key}
    with torch.autocast("cpu", torch.bfloat16, enabled=channels_last):
        loss = module(torch.empty(0, 3, 8, 32, 32, dtype=torch.uint8)).sum()
    loss.backward()
    assert loss == 0
    assert {p.grad is not None and not p.grad.any() for p in module.network.parameters()} == {True}
    assert all(torch.equal(module.network.get_buffer(key), value) for key, value in before.items())
