"""A small octave network that learns in seconds to tell stripes from stripes, wherever they are in a clip."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from octvideo.octave import octavize

PX, SQUARE = 24, 8


def small_network(alpha: float, seed: int = 0) -> nn.Module:
    """Clips (N, 3, T, H, W) to two logits; the last pair is what layer 6 gives."""
    torch.manual_seed(seed)
    sizes = {"kernel_size": (1, 3, 3), "padding": (0, 1, 1)}
    network = nn.Sequential(
        nn.Conv3d(3, 8, **sizes),
        nn.ReLU(inplace=True),
        nn.Conv3d(8, 16, **sizes, stride=(1, 2, 2)),
        nn.BatchNorm3d(16),
        nn.ReLU(inplace=True),
        nn.Conv3d(16, 16, **sizes),
        nn.ReLU(inplace=True),
        nn.Conv3d(16, 16, 1),
        nn.ReLU(),
        nn.AdaptiveAvgPool3d(1),
        nn.Flatten(),
        nn.Linear(16, 2),
    )
    return octavize(network, {"0": alpha, "2": alpha, "5": alpha}) if alpha else network


def striped_clips(count: int, seed: int) -> tuple[Tensor, Tensor, np.ndarray]:
    """Noise with a striped square somewhere: clips (N, 3, 2, 24, 24), labels (N,), boxes of both frames (N, 4)."""
    generator = torch.Generator().manual_seed(seed)
    clips = 0.3 * torch.randn(count, 3, 2, PX, PX, generator=generator)
    labels = torch.arange(count) % 2
    places = torch.randint(0, PX - SQUARE + 1, (count, 2), generator=generator)
    stripes = (torch.arange(SQUARE) % 4 < 2).float() * 2 - 1
    for clip, label, (x, y) in zip(clips, labels, places.tolist(), strict=True):
        square = stripes[:, None].expand(SQUARE, SQUARE)
        clip[..., y : y + SQUARE, x : x + SQUARE] += square if label else square.T
    boxes = torch.cat([places, places + SQUARE], 1).numpy()
    return clips, labels, boxes


def train(network: nn.Module, steps: int = 40) -> nn.Module:
    """The network, in eval, when it knows the two classes."""
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-2)
    network.train()
    for step in range(steps):
        clips, labels, _ = striped_clips(16, 1000 + step)
        optimizer.zero_grad()
        F.cross_entropy(network(clips), labels).backward()
        optimizer.step()
    return network.eval()
