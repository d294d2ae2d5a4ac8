"""Non-local blocks (Wang et al., arXiv 1711.07971) in residual stages, so that they can be made octave.

pytorchvideo's block with its keys, computed without asking for shapes: those convolutions that read a pair of
frequencies do so, and what attends takes ordinary tensors and stays whole.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from pytorchvideo.layers.nonlocal_net import create_nonlocal
from pytorchvideo.models.resnet import ResStage
from torch import Tensor, nn


class Attention(nn.Module):
    """The middle of a non-local block in its embedded Gaussian form: softmax of theta and phi, applied to g."""

    def forward(self, theta: Tensor, phi: Tensor, g: Tensor) -> Tensor:
        """Queries (N, C, T, H, W), keys and values (N, C, T, H', W') to (N, C, T, H, W)."""
        scale = theta.shape[1] ** -0.5
        affinity = torch.einsum("nct,ncp->ntp", theta.flatten(2), phi.flatten(2))  # (N,THW,TH'W')
        attended = torch.einsum("ntp,ncp->nct", (affinity * scale).softmax(2), g.flatten(2))  # (N,C,THW)
        return attended.reshape(theta.shape)


class NonLocalBlock(nn.Module):
    """pytorchvideo's non-local block, for tracing; equal in keys and results.

    phi and g read a map that is max-pooled by 1x2x2, as in the paper.

    Args:
        channels: C; inside there are half as many.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        # Its parts, not its class: that one's constructor sets the class of whatever is derived from it to itself.
        block = create_nonlocal(dim_in=channels, dim_inner=channels // 2, pool_size=(1, 2, 2), instantiation="softmax")
        self.conv_theta, self.conv_phi, self.conv_g = block.conv_theta, block.conv_phi, block.conv_g
        self.conv_out, self.pool, self.norm = block.conv_out, block.pool, block.norm
        self.attention = Attention()

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, T, H, W) to the same."""
        pooled = self.pool(x)  # (N,C,T,H//2,W//2)
        attended = self.attention(self.conv_theta(x), self.conv_phi(pooled), self.conv_g(pooled))
        return x + self.norm(self.conv_out(attended))


class NonLocalStage(ResStage):
    """A residual stage with non-local blocks behind some of its residual blocks.

    Args:
        stage: an ordinary one, whose keys stay.
        channels: that it writes.
        after: residual blocks, counted from 0, that a non-local block follows; its keys start with
            nonlocal_blocks.N, N being the residual block's number.
    """

    def __init__(self, stage: ResStage, channels: int, after: Sequence[int]) -> None:
        super().__init__(stage.res_blocks)
        self.nonlocal_blocks = nn.ModuleDict({str(n): NonLocalBlock(channels) for n in after})

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, T, H, W) to (N, channels, T, H', W')."""
        for n, block in enumerate(self.res_blocks):
            x = block(x)
            if str(n) in self.nonlocal_blocks:
                x = self.nonlocal_blocks[str(n)](x)
        return x
