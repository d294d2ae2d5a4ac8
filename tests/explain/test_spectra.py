"""What channels lose at half resolution, against pooling and repeating by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from octvideo.errors import UserError
from octvideo.explain import channel_spectra
from octvideo.models import i3d_small
from octvideo.octave import Octave


def lost(maps: list[Tensor]) -> np.ndarray:
    """|x - up(pool x)|² over |x - mean x|² of each channel, sums over clips of maps (1, C, T, H, W)."""
    detail = energy = 0
    for x in maps:
        height, width = x.shape[-2:]
        pooled = F.avg_pool3d(x, (1, 2, 2), ceil_mode=True, count_include_pad=False)
        up = pooled.repeat_interleave(2, 3).repeat_interleave(2, 4)[..., :height, :width]
        detail = detail + (x - up).square().mean((0, 2, 3, 4))
        energy = energy + (x - x.mean((2, 3, 4), keepdim=True)).square().mean((0, 2, 3, 4))
    return (detail / energy).numpy()  # type: ignore[attr-defined]


def test_spectra_are_what_pooling_and_repeating_lose() -> None:
    network = i3d_small(num_classes=4, alpha=0.25, width=8).train()
    clips = [torch.randn(1, 3, 4, 52, 60, generator=torch.Generator().manual_seed(n)) for n in range(2)]  # odd maps
    found = channel_spectra(network, clips)
    assert network.training
    names = ("blocks.0.conv", "blocks.1.res_blocks.0.branch2.conv_b", "blocks.5.res_blocks.0.branch1_conv")
    kept: dict[str, list] = {name: [] for name in names}
    for name in names:
        network.get_submodule(name).register_forward_hook(lambda m, args, result, name=name: kept[name].append(result))
    with torch.no_grad():
        for clip in clips:
            network.eval()(clip)
    for name in names:
        if isinstance(kept[name][0], Octave):
            expected = np.concatenate([lost([x.high for x in kept[name]]), lost([x.low for x in kept[name]])])
            assert found[name].low.sum() == len(expected) // 4 and found[name].low[-1]
        else:
            expected = lost(kept[name])
            assert not found[name].low.any()
        np.testing.assert_allclose(found[name].lost, expected, rtol=1e-4, atol=1e-5, err_msg=name)
    assert next(iter(found)) == "blocks.0.conv" and found["blocks.0.conv"].size == (26, 30)


def test_a_channel_of_blocks_loses_nothing_and_one_of_stripes_all() -> None:
    network = nn.Sequential(nn.Conv3d(2, 2, 1, bias=False))
    with torch.no_grad():
        network[0].weight.copy_(torch.eye(2)[..., None, None, None])
    blocks = torch.randn(1, 1, 1, 4, 4).repeat_interleave(2, 3).repeat_interleave(2, 4)
    stripes = (torch.arange(8) % 2 * 2.0 - 1).expand(1, 1, 1, 8, 8)
    clip = torch.cat([blocks, stripes], 1)
    np.testing.assert_allclose(channel_spectra(network, [clip])["0"].lost, [0, 1], atol=1e-6)
    with pytest.raises(UserError, match="spectrum: got no clip to measure on"):
        channel_spectra(network, [])
    with pytest.raises(UserError, match="no convolution of Sequential gives maps of 2 pixels"):
        channel_spectra(network, [clip[..., :1, :1]])
