"""The video networks: pytorchvideo's ResNets and SlowFast, a head that takes any clip, and `octavize`.

As in the paper's video networks (arXiv 1904.05049, Table 8), res2 to res4 are octave; the stem and res5 are
ordinary, so the first block of res5 merges. All networks take clips (N, 3, T, H, W) and return logits (N, K). All have
the keys of pytorchvideo's own builders, and its scores (tests compare them to the hub's).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from pytorchvideo.models.head import create_res_basic_head
from pytorchvideo.models.net import MultiPathWayWithFuse, Net
from pytorchvideo.models.resnet import create_bottleneck_block, create_res_stage
from pytorchvideo.models.slowfast import FuseFastToSlow
from pytorchvideo.models.stem import create_res_basic_stem
from torch import Tensor, nn

from octvideo.errors import UserError
from octvideo.models.builders import Alpha, OctaveOptions, builder, make_octave, preset
from octvideo.models.layers import LEAVES, ClipHead, EveryNthFrame, NonLocalStage, PathwayPool, TimePool, initialise
from octvideo.octave import Downsample

Kernel = tuple[int, int, int]


def _stem(width: int, kernel: Kernel) -> nn.Module:
    return create_res_basic_stem(
        in_channels=3,
        out_channels=width,
        conv_kernel_size=kernel,
        conv_stride=(1, 2, 2),
        conv_padding=tuple(k // 2 for k in kernel),
        pool=nn.MaxPool3d,
        pool_kernel_size=(1, 3, 3),
        pool_stride=(1, 2, 2),
        pool_padding=(0, 1, 1),
    )


def _stage(depth: int, dim_in: int, dim_out: int, conv_a: Sequence[Kernel], *, stride: int) -> nn.Module:
    return create_res_stage(
        depth=depth,
        dim_in=dim_in,
        dim_inner=dim_out // 4,
        dim_out=dim_out,
        bottleneck=create_bottleneck_block,
        conv_a_kernel_size=list(conv_a),
        conv_a_stride=(1, 1, 1),
        conv_a_padding=[tuple(k // 2 for k in kernel) for kernel in conv_a],
        conv_b_stride=(1, stride, stride),
    )


@dataclass(frozen=True)
class ResNetPlan:
    """One architecture: what differs between C2D, I3D and Slow, and between full and small networks."""

    depths: tuple[int, int, int, int]
    width: int  # channels of the stem; stages have 4, 8, 16, 32 times as many
    stem_kernel: Kernel
    # Kernel of each block's first convolution, stage by stage, repeated over the stage's blocks.
    conv_a: tuple[tuple[Kernel, ...], ...]
    pool_time_after_res2: bool
    head_pool: Kernel
    # Residual blocks, counted from 0, that a non-local block follows, stage by stage.
    non_local: tuple[tuple[int, ...], ...] = ((), (), (), ())

    @property
    def octave_blocks(self) -> tuple[int, ...]:
        """Indices of res2 to res4 among the blocks: stem, res2, (pool over time,) res3, res4, res5, head."""
        return (1, 3, 4) if self.pool_time_after_res2 else (1, 2, 3)

    def ordinary(self, num_classes: int, dropout: float) -> Net:
        """The ordinary network."""
        blocks: list[nn.Module] = [_stem(self.width, self.stem_kernel)]
        dim_in, dim_out = self.width, self.width * 4
        for stage, (depth, conv_a) in enumerate(zip(self.depths, self.conv_a, strict=True)):
            block = _stage(depth, dim_in, dim_out, conv_a, stride=1 if stage == 0 else 2)
            blocks.append(NonLocalStage(block, dim_out, self.non_local[stage]) if self.non_local[stage] else block)
            dim_in, dim_out = dim_out, dim_out * 2
            if stage == 0 and self.pool_time_after_res2:
                blocks.append(TimePool())
        head = create_res_basic_head(
            in_features=dim_in,
            out_features=num_classes,
            pool=nn.AvgPool3d,
            pool_kernel_size=self.head_pool,
            dropout_rate=dropout,
            activation=None,
        )
        return Net(blocks=nn.ModuleList([*blocks, ClipHead(head)]))

    def small(self, width: int) -> ResNetPlan:
        """The plan for CPUs and small data: fewer channels, and two blocks a stage."""
        non_local = tuple(tuple(n for n in blocks if n < 2) for blocks in self.non_local)
        return replace(self, depths=(2, 2, 2, 2), width=width, non_local=non_local)


_FRAME: tuple[Kernel, ...] = ((1, 1, 1),)
_TIME: tuple[Kernel, ...] = ((3, 1, 1),)
_EVERY_OTHER: tuple[Kernel, ...] = ((3, 1, 1), (1, 1, 1))

# Kernels of conv_a (T, H, W); source: pytorchvideo's hub.
# stage          C2D-50     I3D-50                Slow-50
# stem           1x7x7      5x7x7                 1x7x7      stride 1x2x2, then max-pool 1x3x3 / 1x2x2
# res2 (256)     1x1x1      3x1x1                 1x1x1      then, in C2D and I3D, max-pool 2x1x1 over time
# res3 (512)     1x1x1      3x1x1, 1x1x1, ...     1x1x1
# res4 (1024)    1x1x1      3x1x1, 1x1x1, ...     3x1x1
# res5 (2048)    1x1x1      1x1x1, 3x1x1, ...     3x1x1      always ordinary
_C2D = ResNetPlan((3, 4, 6, 3), 64, (1, 7, 7), (_FRAME, _FRAME, _FRAME, _FRAME), True, (4, 7, 7))
_I3D = ResNetPlan((3, 4, 6, 3), 64, (5, 7, 7), (_TIME, _EVERY_OTHER, _EVERY_OTHER, _EVERY_OTHER[::-1]), True, (4, 7, 7))
_SLOW = ResNetPlan((3, 4, 6, 3), 64, (1, 7, 7), (_FRAME, _FRAME, _TIME, _TIME), False, (8, 7, 7))
# Every other block of res3 and res4, five in all (arXiv 1711.07971, "adding 5 blocks"; PySlowFast's
# configs/Kinetics/I3D_NLN_8x8_R50.yaml counts them the same way).
_FIVE_BLOCKS = ((), (1, 3), (1, 3, 5), ())
_C2D_NL, _I3D_NL = replace(_C2D, non_local=_FIVE_BLOCKS), replace(_I3D, non_local=_FIVE_BLOCKS)


class SlowFast(Net):
    """pytorchvideo's two-pathway network for one clip.

    Args:
        blocks: stem, res2 to res5, pool, head; all but the last two take and give [slow, fast].
        frame_ratio: frames of Fast for one of Slow.
    """

    def __init__(self, blocks: nn.ModuleList, frame_ratio: int) -> None:
        super().__init__(blocks=blocks)
        self.slow_frames = EveryNthFrame(frame_ratio)

    def forward(self, clips: Tensor) -> Tensor:
        """Clips (N, 3, T, H, W), T a multiple of frame_ratio, to logits (N, K)."""
        return super().forward([self.slow_frames(clips), clips])


_CHANNEL_RATIO = 8  # the paper's 1 / beta: Slow has so many times the channels of Fast
_FUSED_RATIO = 2  # channels of a lateral convolution's result, over Fast's
# Frames that each block's first convolution sees; source: pytorchvideo's create_slowfast.
# stage    Slow     Fast
# stem     1x7x7    5x7x7
# res2-3   1x1x1    3x1x1
# res4-5   3x1x1    3x1x1
_STEM_FRAMES = (1, 5)
_CONV_A_FRAMES = ((1, 1, 3, 3), (3, 3, 3, 3))


@dataclass(frozen=True)
class SlowFastPlan:
    """SlowFast (arXiv 1812.03982): a Slow pathway of few frames, a thin Fast one of all of them.

    Octave are res2 to res4 of both pathways, and the lateral convolutions after them.

    Args:
        depths: blocks of each stage.
        width: channels of the Slow stem; stages have 4, 8, 16, 32 times as many.
        frame_ratio: frames of Fast for one of Slow (the paper's alpha).
        fusion_kernel: of the lateral convolutions, in frames of Fast.
    """

    depths: tuple[int, int, int, int]
    width: int
    frame_ratio: int
    fusion_kernel: int

    octave_blocks = (1, 2, 3)  # blocks: 0 stems, 1 to 4 res2 to res5, 5 pool, 6 head

    def ordinary(self, num_classes: int, dropout: float) -> SlowFast:
        """The ordinary network.

        Raises:
            UserError: Fast would have a fraction of a channel.
        """
        if self.width % _CHANNEL_RATIO:
            ratio = _CHANNEL_RATIO
            raise UserError(f"width: got {self.width}, expected a multiple of {ratio}: Fast has 1/{ratio} of Slow's")
        slow, fast = self.width, self.width // _CHANNEL_RATIO
        stems = [_stem(width, (frames, 7, 7)) for width, frames in zip((slow, fast), _STEM_FRAMES, strict=True)]
        blocks = [self._block(stems, fast)]
        dims_in, dims_out = (slow, fast), (slow * 4, fast * 4)
        for stage, depth in enumerate(self.depths):
            fused_in = (dims_in[0] + dims_in[1] * _FUSED_RATIO, dims_in[1])
            pathways = [
                _stage(depth, dim_in, dim_out, [(frames[stage], 1, 1)], stride=1 if stage == 0 else 2)
                for dim_in, dim_out, frames in zip(fused_in, dims_out, _CONV_A_FRAMES, strict=True)
            ]
            blocks.append(self._block(pathways, dims_out[1] if stage < 3 else None))
            dims_in, dims_out = dims_out, (dims_out[0] * 2, dims_out[1] * 2)
        head = create_res_basic_head(
            in_features=sum(dims_in), out_features=num_classes, pool=None, dropout_rate=dropout, activation=None
        )
        return SlowFast(nn.ModuleList([*blocks, PathwayPool(), ClipHead(head)]), self.frame_ratio)

    def _block(self, pathways: list[nn.Module], fast_channels: int | None) -> nn.Module:
        """Both pathways and, where `fast_channels` are given, the lateral connection: a convolution over time from
        Fast to Slow's frame rate, concatenated to Slow's channels.
        """
        fusion = None
        if fast_channels is not None:
            channels, kernel = fast_channels * _FUSED_RATIO, (self.fusion_kernel, 1, 1)
            stride, padding = (self.frame_ratio, 1, 1), (self.fusion_kernel // 2, 0, 0)
            conv = nn.Conv3d(fast_channels, channels, kernel, stride=stride, padding=padding, bias=False)
            fusion = FuseFastToSlow(conv_fast_to_slow=conv, norm=nn.BatchNorm3d(channels), activation=nn.ReLU())
        return MultiPathWayWithFuse(multipathway_blocks=nn.ModuleList(pathways), multipathway_fusion=fusion)


# Frames x stride of Slow; each has 32 frames at every 2nd in Fast. Source of both numbers: PySlowFast's
# configs/Kinetics/SLOWFAST_4x16_R50.yaml and SLOWFAST_8x8_R50.yaml (ALPHA and FUSION_KERNEL_SZ).
_R50_4X16 = SlowFastPlan((3, 4, 6, 3), 64, frame_ratio=8, fusion_kernel=5)
_R50_8X8 = SlowFastPlan((3, 4, 6, 3), 64, frame_ratio=4, fusion_kernel=7)


def _network(
    plan: ResNetPlan | SlowFastPlan,
    num_classes: int = 400,
    alpha: Alpha = 0.0,
    *,
    downsample: Downsample | None = None,
    octave: OctaveOptions | None = None,
    dropout: float = 0.5,
    zero_init_last_norm: bool = True,
) -> nn.Module:
    ordinary = plan.ordinary(num_classes, dropout)
    initialise(ordinary, zero_init_last_norm)
    shares = alpha if isinstance(alpha, dict) else {f"blocks.{n}": alpha for n in plan.octave_blocks}
    return make_octave(ordinary, shares, downsample=downsample, octave=octave, leaf_modules=LEAVES)


def _small(
    plan: ResNetPlan,
    num_classes: int = 400,
    alpha: Alpha = 0.0,
    *,
    width: int = 16,
    downsample: Downsample | None = None,
    octave: OctaveOptions | None = None,
    dropout: float = 0.5,
    zero_init_last_norm: bool = True,
) -> nn.Module:
    return _network(
        plan.small(width),
        num_classes,
        alpha,
        downsample=downsample,
        octave=octave,
        dropout=dropout,
        zero_init_last_norm=zero_init_last_norm,
    )


c2d_r50 = preset(
    _network, _C2D, "c2d_r50", "C2D ResNet-50: each frame alone, pooled over time (arXiv 1711.07971). T >= 2."
)
i3d_r50 = preset(
    _network, _I3D, "i3d_r50", "I3D ResNet-50: 3x1x1 convolutions in every other block (arXiv 1711.07971). T >= 2."
)
slow_r50 = preset(_network, _SLOW, "slow_r50", "The Slow pathway of SlowFast alone, ResNet-50 (arXiv 1812.03982).")
c2d_nl_r50 = preset(
    _network, _C2D_NL, "c2d_nl_r50", "C2D ResNet-50 with five non-local blocks (arXiv 1711.07971). T >= 2."
)
i3d_nl_r50 = preset(
    _network, _I3D_NL, "i3d_nl_r50", "I3D ResNet-50 with five non-local blocks (arXiv 1711.07971). T >= 2."
)
_QUARTER = "with a quarter of the channels and two blocks a stage, for CPUs and small data."
c2d_small = preset(_small, _C2D, "c2d_small", f"C2D {_QUARTER} T >= 2.")
i3d_small = preset(_small, _I3D, "i3d_small", f"I3D {_QUARTER} T >= 2.")
slow_small = preset(_small, _SLOW, "slow_small", f"Slow {_QUARTER}")
i3d_nl_small = preset(
    _small, _I3D_NL, "i3d_nl_small", f"I3D {_QUARTER} A non-local block follows res3 and res4. T >= 2."
)

_ALPHA = """share of low-frequency channels in res2 to res4 of both pathways and in the lateral convolutions after
        them; 0 is the ordinary network. Or shares of module path prefixes, 0 elsewhere. What the SlowFast paper calls
        alpha is the ratio of frame rates here."""
slowfast_4x16_r50 = preset(
    _network,
    _R50_4X16,
    "slowfast_4x16_r50",
    "SlowFast 4x16, ResNet-50: of 32 frames Slow sees every 8th. T is a multiple of 8.",
    alpha=_ALPHA,
)
slowfast_8x8_r50 = preset(
    _network,
    _R50_8X8,
    "slowfast_8x8_r50",
    "SlowFast 8x8, ResNet-50: of 32 frames Slow sees every 4th; pytorchvideo's slowfast_r50. T is a multiple of 4.",
    alpha=_ALPHA,
)
slowfast_r50 = preset(
    _network, _R50_8X8, "slowfast_r50", "slowfast_8x8_r50 by pytorchvideo's name. T is a multiple of 4.", alpha=_ALPHA
)


@builder(
    alpha=_ALPHA,
    width="channels of the Slow stem, a quarter of res2's, and a multiple of 8; the full networks have 64.",
    frame_ratio="frames of Fast for one of Slow; T is a multiple of it.",
)
def slowfast_small(
    num_classes: int = 400,
    alpha: Alpha = 0.0,
    *,
    width: int = 32,
    frame_ratio: int = 4,
    downsample: Downsample | None = None,
    octave: OctaveOptions | None = None,
    dropout: float = 0.5,
    zero_init_last_norm: bool = True,
) -> nn.Module:
    """SlowFast with half the channels and two blocks a stage, for CPUs and small data."""
    plan = SlowFastPlan((2, 2, 2, 2), width, frame_ratio, fusion_kernel=5)
    return _network(
        plan,
        num_classes,
        alpha,
        downsample=downsample,
        octave=octave,
        dropout=dropout,
        zero_init_last_norm=zero_init_last_norm,
    )
