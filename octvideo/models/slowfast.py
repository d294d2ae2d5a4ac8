"""SlowFast (Feichtenhofer et al., arXiv 1812.03982): a Slow pathway of few frames, a thin Fast one of all of them.

pytorchvideo's blocks and keys, and `octavize`: res2 to res4 of both pathways are octave and so are the lateral
convolutions behind them; stems and res5 are ordinary. The networks take one clip (N, 3, T, H, W); the Slow
pathway's frames are taken from it inside.
"""

from __future__ import annotations

from dataclasses import dataclass

from pytorchvideo.models.head import create_res_basic_head
from pytorchvideo.models.net import MultiPathWayWithFuse, Net
from pytorchvideo.models.resnet import create_bottleneck_block, create_res_stage
from pytorchvideo.models.slowfast import FuseFastToSlow
from pytorchvideo.models.stem import create_res_basic_stem
from torch import Tensor, nn

from octvideo.errors import UserError
from octvideo.models.builders import OctaveOptions, builder, make_octave
from octvideo.models.layers import LEAVES, ClipHead, EveryNthFrame, PathwayPool, initialise
from octvideo.octave import Downsample

_CHANNEL_RATIO = 8  # the paper's 1 / beta: Slow has so many times the channels of Fast
_FUSED_RATIO = 2  # channels of a lateral convolution's result, over Fast's


@dataclass(frozen=True)
class SlowFastPlan:
    """What differs between the published settings, and between full and small networks.

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


# Frames x stride of Slow; each has 32 frames at every 2nd in Fast. Source of both numbers: PySlowFast's
# configs/Kinetics/SLOWFAST_4x16_R50.yaml and SLOWFAST_8x8_R50.yaml (ALPHA and FUSION_KERNEL_SZ).
_R50_4X16 = SlowFastPlan((3, 4, 6, 3), 64, frame_ratio=8, fusion_kernel=5)
_R50_8X8 = SlowFastPlan((3, 4, 6, 3), 64, frame_ratio=4, fusion_kernel=7)
# Frames that each block's first convolution sees; source: pytorchvideo's create_slowfast.
# stage    Slow     Fast
# stem     1x7x7    5x7x7
# res2-3   1x1x1    3x1x1
# res4-5   3x1x1    3x1x1
_STEM_FRAMES = (1, 5)
_CONV_A_FRAMES = ((1, 1, 3, 3), (3, 3, 3, 3))


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


def _stem(width: int, frames: int) -> nn.Module:
    kernel = (frames, 7, 7)
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


def _stage(depth: int, dim_in: int, dim_out: int, *, frames: int, stride: int) -> nn.Module:
    return create_res_stage(
        depth=depth,
        dim_in=dim_in,
        dim_inner=dim_out // 4,
        dim_out=dim_out,
        bottleneck=create_bottleneck_block,
        conv_a_kernel_size=(frames, 1, 1),
        conv_a_stride=(1, 1, 1),
        conv_a_padding=(frames // 2, 0, 0),
        conv_b_stride=(1, stride, stride),
    )


def _fusion(plan: SlowFastPlan, fast_channels: int) -> nn.Module:
    """The lateral connection: a convolution over time from Fast to Slow's frame rate, joined to Slow's channels."""
    channels = fast_channels * _FUSED_RATIO
    conv = nn.Conv3d(
        fast_channels,
        channels,
        (plan.fusion_kernel, 1, 1),
        stride=(plan.frame_ratio, 1, 1),
        padding=(plan.fusion_kernel // 2, 0, 0),
        bias=False,
    )
    return FuseFastToSlow(conv_fast_to_slow=conv, norm=nn.BatchNorm3d(channels), activation=nn.ReLU())


def _ordinary(plan: SlowFastPlan, num_classes: int, dropout: float) -> SlowFast:
    """The ordinary network, with the keys of pytorchvideo's own builder (a test compares it to the hub's)."""
    slow, fast = plan.width, plan.width // _CHANNEL_RATIO
    stems = nn.ModuleList([_stem(slow, _STEM_FRAMES[0]), _stem(fast, _STEM_FRAMES[1])])
    blocks: list[nn.Module] = [MultiPathWayWithFuse(multipathway_blocks=stems, multipathway_fusion=_fusion(plan, fast))]
    dims_in, dims_out = (slow, fast), (slow * 4, fast * 4)
    for stage, depth in enumerate(plan.depths):
        fused_in = (dims_in[0] + dims_in[1] * _FUSED_RATIO, dims_in[1])
        pathways = [
            _stage(depth, fused_in[p], dims_out[p], frames=_CONV_A_FRAMES[p][stage], stride=1 if stage == 0 else 2)
            for p in (0, 1)
        ]
        fusion = _fusion(plan, dims_out[1]) if stage < 3 else None
        blocks.append(MultiPathWayWithFuse(multipathway_blocks=nn.ModuleList(pathways), multipathway_fusion=fusion))
        dims_in, dims_out = dims_out, (dims_out[0] * 2, dims_out[1] * 2)
    head = create_res_basic_head(
        in_features=sum(dims_in), out_features=num_classes, pool=None, dropout_rate=dropout, activation=None
    )
    return SlowFast(nn.ModuleList([*blocks, PathwayPool(), ClipHead(head)]), plan.frame_ratio)


def _build(
    plan: SlowFastPlan,
    num_classes: int,
    alpha: float,
    downsample: Downsample | None,
    octave: OctaveOptions | None,
    dropout: float,
    zero_init_last_norm: bool,
) -> nn.Module:
    if plan.width % _CHANNEL_RATIO:
        raise UserError(
            f"width: got {plan.width}, expected a multiple of {_CHANNEL_RATIO}: Fast has 1/{_CHANNEL_RATIO} of Slow's"
        )
    ordinary = _ordinary(plan, num_classes, dropout)
    initialise(ordinary, zero_init_last_norm)
    # blocks: 0 stems, 1 to 4 res2 to res5, 5 pool, 6 head.
    shares = {f"blocks.{n}": alpha for n in (1, 2, 3)}
    return make_octave(ordinary, shares, downsample=downsample, octave=octave, leaf_modules=LEAVES)


_ALPHA = """share of low-frequency channels in res2 to res4 of both pathways and in the lateral convolutions behind
        them; 0 is the ordinary network. What the SlowFast paper calls alpha is the ratio of frame rates here."""


@builder(alpha=_ALPHA)
def slowfast_4x16_r50(
    num_classes: int = 400,
    alpha: float = 0.0,
    *,
    downsample: Downsample | None = None,
    octave: OctaveOptions | None = None,
    dropout: float = 0.5,
    zero_init_last_norm: bool = True,
) -> nn.Module:
    """SlowFast 4x16, ResNet-50: of 32 frames Slow sees every 8th. T is a multiple of 8."""
    return _build(_R50_4X16, num_classes, alpha, downsample, octave, dropout, zero_init_last_norm)


@builder(alpha=_ALPHA)
def slowfast_8x8_r50(
    num_classes: int = 400,
    alpha: float = 0.0,
    *,
    downsample: Downsample | None = None,
    octave: OctaveOptions | None = None,
    dropout: float = 0.5,
    zero_init_last_norm: bool = True,
) -> nn.Module:
    """SlowFast 8x8, ResNet-50: of 32 frames Slow sees every 4th; pytorchvideo's slowfast_r50. T is a multiple of 4."""
    return _build(_R50_8X8, num_classes, alpha, downsample, octave, dropout, zero_init_last_norm)


@builder(
    alpha=_ALPHA,
    width="channels of the Slow stem, a quarter of res2's, and a multiple of 8; the full networks have 64.",
    frame_ratio="frames of Fast for one of Slow; T is a multiple of it.",
)
def slowfast_small(
    num_classes: int = 400,
    alpha: float = 0.0,
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
    return _build(plan, num_classes, alpha, downsample, octave, dropout, zero_init_last_norm)
