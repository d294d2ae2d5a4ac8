"""Timelines: each window's scores are those of a file that holds just its frames, for every kind of network."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision
from torch import Tensor, nn

from octvideo.inference import Predictor, Timeline
from octvideo.models import c2d_small, i3d_small, slowfast_small
from octvideo.models.library import FrameNetwork
from octvideo.video import ViewSettings

VIEWS = ViewSettings(clip_frames=4, frame_stride=2, num_clips=2, num_crops=3, short_side_px=32, crop_px=32)
NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "c2d": lambda: c2d_small(3, 0.25, width=8, zero_init_last_norm=False),
    "i3d": lambda: i3d_small(3, 0.25, width=8, zero_init_last_norm=False),
    "slowfast": lambda: slowfast_small(3, width=8, frame_ratio=2, zero_init_last_norm=False),
    "frames": lambda: FrameNetwork(torchvision.models.shufflenet_v2_x0_5(num_classes=3)),
}
Encode = Callable[..., Path]
Moving = Callable[..., Tensor]


def network_of(name: str) -> nn.Module:
    """A network whose scores of different frames differ well."""
    torch.manual_seed(1)
    network = NETWORKS[name]().eval()
    (classifier,) = (module for module in network.modules() if isinstance(module, nn.Linear))
    clips = torch.rand(4, 3, 4, 32, 32) * 4 - 2
    with torch.no_grad():
        classifier.weight.normal_()
        classifier.weight.mul_(2 / network(clips).std(0).max())
        classifier.bias.sub_(network(clips).mean(0))
    return network


def predictor_of(name: str, **how: Any) -> Predictor:
    views = how.pop("views", VIEWS)
    return Predictor(network_of(name), ["a", "b", "c"], views=views, device="cpu", **how)


@pytest.fixture(scope="module")
def frames() -> Tensor:
    """Noise, of which every frame is another."""
    coarse = torch.rand(27, 3, 6, 8, generator=torch.Generator().manual_seed(0))
    return (nn.functional.interpolate(coarse, (40, 56)) * 255).byte().permute(0, 2, 3, 1).contiguous()


@pytest.fixture(scope="module")
def video(frames: Tensor, encode: Encode, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return lossless(tmp_path_factory.mktemp("timeline") / "whole.mkv", frames, encode)


def lossless(path: Path, frames: Tensor, encode: Encode) -> Path:
    return encode(path, frames, "ffv1", pix_fmt="bgr0", rate=10)


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("share", [None, False], ids=["shared", "apart"])
def test_a_window_scores_as_a_file_of_its_frames(
    name: str, share: bool | None, frames: Tensor, video: Path, encode: Encode, tmp_path: Path
) -> None:
    predictor = predictor_of(name)
    timeline = Timeline(predictor, window_sec=1.0, stride_sec=0.4, share_frames=share)
    assert (timeline.units is not None) == (name in ("c2d", "frames") and share is None)
    windows = list(timeline.of_video(video))
    assert [(w.first_frame, w.last_frame) for w in windows] == [(0, 9), (4, 13), (8, 17), (12, 21), (16, 25), (17, 26)]
    found = torch.stack([window.scores for window in windows])
    expected = []
    for w in windows:
        cut = lossless(tmp_path / f"{w.index}.mkv", frames[w.first_frame : w.last_frame + 1], encode)
        expected.append(predictor.scores(cut))
    torch.testing.assert_close(found, torch.stack(expected), atol=1e-5, rtol=0)
    assert found.std(0).max() > 1e-3  # windows differ
