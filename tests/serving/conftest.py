"""A checkpoint of a tiny network, and videos to upload."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from octvideo.models import i3d_small
from octvideo.training.checkpoint_block import make_block
from octvideo.video import ViewSettings

pytest.importorskip("fastapi", reason="octvideo serve needs the extra 'serve'")
VIEWS = ViewSettings(clip_frames=4, frame_stride=2, num_clips=2, num_crops=3, short_side_px=32, crop_px=32)
NAMES = ["left", "right", "up"]


@pytest.fixture(scope="session")
def served_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(1)
    network = i3d_small(num_classes=3, alpha=0.25, width=8)
    # Logits far apart, so that thresholds have something to part.
    [module for module in network.modules() if isinstance(module, nn.Linear)][-1].weight.data *= 30
    path = tmp_path_factory.mktemp("runs") / "demo" / "checkpoints" / "last.ckpt"
    path.parent.mkdir(parents=True)
    block = make_block(network, NAMES, views=VIEWS, mean=(0.4, 0.4, 0.4), std=(0.2, 0.2, 0.2))
    torch.save({"state_dict": {f"network.{k}": v for k, v in network.state_dict().items()}, "octvideo": block}, path)
    return path


@pytest.fixture(scope="session")
def clips(
    moving: Callable[..., Tensor], encode: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory
) -> list[Path]:
    """Three videos of 1 to 3 seconds, 20 frames a second."""
    folder = tmp_path_factory.mktemp("clips")
    return [encode(folder / f"{n}.mp4", moving(20 * n).flip(n % 3)) for n in (1, 2, 3)]
