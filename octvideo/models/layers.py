"""Parts of the networks that depend on the size of the clip, and so stay whole when a network is traced.

Hand all of them to `octavize` as `leaf_modules=LEAVES`: what they ask about shapes can't be asked in a trace.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from pytorchvideo.layers.nonlocal_net import create_nonlocal
from pytorchvideo.models.head import ResNetBasicHead
from pytorchvideo.models.resnet import ResStage
from torch import Tensor, nn

from octvideo.errors import UserError
from octvideo.octave.kernel.layout import is_channels_last, may_be_exporting


class ClipHead(nn.Module):
    """pytorchvideo's classification head for any clip length and crop size; same keys, same published scores.

    The published heads pool with one fixed kernel. Here it shrinks to the feature map where that is smaller;
    where it is larger, the kernel slides and the predictions of all its places are averaged, as pytorchvideo
    does. A head without a pool follows `PathwayPool`.
    """

    def __init__(self, head: ResNetBasicHead) -> None:
        super().__init__()
        self.pool_kernel = None if head.pool is None else tuple(int(k) for k in head.pool.kernel_size)
        self.dropout = head.dropout if head.dropout is not None else nn.Identity()
        self.proj = head.proj

    def forward(self, x: Tensor) -> Tensor:
        """Features (N, C, T, H, W) to logits (N, K)."""
        if self.pool_kernel is not None:
            x = _average(x, self.pool_kernel)  # (N,C,T',H',W')
        x = self.proj(self.dropout(x).permute(0, 2, 3, 4, 1))  # (N,T',H',W',K)
        return x.mean((1, 2, 3))  # (N,K)

    def extra_repr(self) -> str:
        return f"pool_kernel={self.pool_kernel}"


class FittingAvgPool(nn.AvgPool3d):
    """Average pooling with stride 1 whose kernel shrinks to the map where that is smaller."""

    def forward(self, input: Tensor) -> Tensor:
        """(N, C, T, H, W) to (N, C, T', H', W')."""
        return _average(input, self.kernel_size)  # type: ignore[arg-type]


def _average(x: Tensor, kernel: Sequence[int]) -> Tensor:
    """Average of windows of (N, C, T, H, W), with stride 1; they shrink to the map where that is smaller.

    A window as large as the map is a mean, which is much faster than a pool on channels-last maps.
    """
    kernel = [min(int(k), size) for k, size in zip(kernel, x.shape[2:], strict=True)]
    if not may_be_exporting() and tuple(kernel) == tuple(x.shape[2:]):  # exported graphs are for any length
        return x.mean((2, 3, 4), keepdim=True)
    return F.avg_pool3d(x, kernel, stride=1)


class PathwayPool(nn.Module):
    """Average of each pathway over its whole time, in windows of 7 x 7 over its map, then all pathways' channels.

    pytorchvideo's PoolConcatPathway has fixed kernels, which only one clip length fits; for that one the two
    are equal. The windows shrink to the map where that is smaller, and slide where it is larger.
    """

    def forward(self, pathways: list[Tensor]) -> Tensor:
        """Features (N, C_i, T_i, H, W) to (N, sum of C_i, 1, H', W')."""
        return torch.cat([_average(x, (x.shape[2], 7, 7)) for x in pathways], 1)


class TimePool(nn.MaxPool3d):
    """Max-pooling of pairs of frames, with words for clips that have none."""

    def __init__(self) -> None:
        super().__init__((2, 1, 1), stride=(2, 1, 1))

    def forward(self, input: Tensor) -> Tensor:
        """(N, C, T, H, W) to (N, C, T // 2, H, W).

        Raises:
            UserError: T < 2.
        """
        if input.shape[2] < 2 and not self.ceil_mode:  # a time octave's low map may have one frame
            raise UserError(
                "the clip has 1 frame, expected 2 or more: this network pools pairs of frames after res2; raise "
                "data.clip_frames, or use a network without that pool (slow_r50, slow_small)"
            )
        frames = input.shape[2]
        if is_channels_last(input) and not input.requires_grad and not (self.ceil_mode and frames % 2):
            # Three times as fast as the pool.
            return torch.maximum(input[:, :, 0 : frames - frames % 2 : 2], input[:, :, 1::2])
        return super().forward(input)


class EveryNthFrame(nn.Module):
    """The Slow pathway's frames: every `ratio`-th, from the first.

    PySlowFast and pytorchvideo take frames at truncated equal parts of the clip, first and last included: the
    same number, a little further apart (of 32 frames 0, 4, 8, 13, 17, 22, 26, 31, here 0, 4, ..., 28, as the
    paper has it: arXiv 1812.03982).
    """

    def __init__(self, ratio: int) -> None:
        super().__init__()
        self.ratio = ratio

    def forward(self, clip: Tensor) -> Tensor:
        """(N, C, T, H, W) to (N, C, T / ratio, H, W).

        Raises:
            UserError: T is not a multiple of the ratio.
        """
        frames = clip.shape[2]
        if frames < 1 or frames % self.ratio:
            more = (frames // self.ratio + 1) * self.ratio
            raise UserError(
                f"the clip has {frames} frames, expected a multiple of {self.ratio}, the ratio of the frame rates of "
                f"SlowFast's pathways (frame_ratio): set data.clip_frames to {more}"
            )
        return clip[:, :, :: self.ratio]

    def extra_repr(self) -> str:
        return f"ratio={self.ratio}"


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
    """A residual stage with non-local blocks after some of its residual blocks.

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


LEAVES: tuple[type[nn.Module], ...] = (ClipHead, PathwayPool, TimePool, EveryNthFrame, Attention)


def initialise(network: nn.Module, zero_init_last_norm: bool) -> None:
    """He initialisation as in the Non-local-net recipe; each residual branch's last norm may start at 0.

    Args:
        network: of pytorchvideo's blocks; changed in place.
        zero_init_last_norm: also of non-local blocks.
    """
    for name, module in network.named_modules():
        if isinstance(module, nn.Conv3d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        elif isinstance(module, nn.BatchNorm3d):
            # "norm" by itself ends a non-local block; stems have theirs under blocks.0.
            last = name.endswith("norm_c") or (".nonlocal_blocks." in name and name.endswith(".norm"))
            nn.init.constant_(module.weight, 0.0 if zero_init_last_norm and last else 1.0)
            nn.init.zeros_(module.bias)
        elif isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, std=0.01)
            nn.init.zeros_(module.bias)
