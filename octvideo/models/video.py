"""The video networks: pytorchvideo's ResNets, a head that takes any clip, and `octavize`.

As in the paper's video networks (arXiv 1904.05049, Table 8), res2 to res4 are octave; the stem and res5 are
ordinary, so the first block of res5 merges. All networks take clips (N, 3, T, H, W) and return logits (N, K).
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from pytorchvideo.models.head import create_res_basic_head
from pytorchvideo.models.net import Net
from pytorchvideo.models.resnet import ResStage, create_bottleneck_block, create_res_stage
from pytorchvideo.models.stem import create_res_basic_stem
from torch import nn

from octvideo.models.builders import OctaveOptions, builder, make_octave
from octvideo.models.layers import LEAVES, ClipHead, TimePool, initialise
from octvideo.models.non_local import Attention, NonLocalStage
from octvideo.octave import Downsample

Kernel = tuple[int, int, int]


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


def _small(plan: ResNetPlan, width: int) -> ResNetPlan:
    """For CPUs and small data: fewer channels, and two blocks a stage."""
    depths = (2, 2, 2, 2)
    after = tuple(tuple(n for n in blocks if n < depth) for blocks, depth in zip(plan.non_local, depths, strict=True))
    return replace(plan, depths=depths, width=width, non_local=after)


def _ordinary(plan: ResNetPlan, num_classes: int, dropout: float) -> Net:
    """The ordinary network, with the keys of pytorchvideo's own builder (a test compares it to the hub's)."""
    blocks: list[nn.Module] = [
        create_res_basic_stem(
            in_channels=3,
            out_channels=plan.width,
            conv_kernel_size=plan.stem_kernel,
            conv_stride=(1, 2, 2),
            conv_padding=tuple(k // 2 for k in plan.stem_kernel),
            pool=nn.MaxPool3d,
            pool_kernel_size=(1, 3, 3),
            pool_stride=(1, 2, 2),
            pool_padding=(0, 1, 1),
        )
    ]
    dim_in, dim_out = plan.width, plan.width * 4
    for stage, (depth, kernels) in enumerate(zip(plan.depths, plan.conv_a, strict=True)):
        stride = 1 if stage == 0 else 2
        conv_a = [kernels[block % len(kernels)] for block in range(depth)]
        block = create_res_stage(
            depth=depth,
            dim_in=dim_in,
            dim_inner=dim_out // 4,
            dim_out=dim_out,
            bottleneck=create_bottleneck_block,
            conv_a_kernel_size=conv_a,
            conv_a_stride=(1, 1, 1),
            conv_a_padding=[tuple(k // 2 for k in kernel) for kernel in conv_a],
            conv_b_stride=(1, stride, stride),
        )
        blocks.append(NonLocalStage(block, dim_out, plan.non_local[stage]) if plan.non_local[stage] else block)
        dim_in, dim_out = dim_out, dim_out * 2
        if stage == 0 and plan.pool_time_after_res2:
            blocks.append(TimePool())
    head = create_res_basic_head(
        in_features=dim_in,
        out_features=num_classes,
        pool=nn.AvgPool3d,
        pool_kernel_size=plan.head_pool,
        dropout_rate=dropout,
        activation=None,
    )
    blocks.append(ClipHead(head))
    return Net(blocks=nn.ModuleList(blocks))


def _build(
    plan: ResNetPlan,
    num_classes: int,
    alpha: float,
    downsample: Downsample | None,
    octave: OctaveOptions | None,
    dropout: float,
    zero_init_last_norm: bool,
) -> nn.Module:
    ordinary = _ordinary(plan, num_classes, dropout)
    initialise(ordinary, zero_init_last_norm)
    # blocks: 0 stem, 1 res2, (2 pool over time,) then res3, res4, res5, head.
    stages = [n for n, block in enumerate(ordinary.blocks) if isinstance(block, ResStage)]
    shares = {f"blocks.{n}": alpha for n in stages[:-1]}  # res5 stays ordinary
    return make_octave(ordinary, shares, downsample=downsample, octave=octave, leaf_modules=[*LEAVES, Attention])


@builder()
def c2d_r50(
    num_classes: int = 400,
    alpha: float = 0.0,
    *,
    downsample: Downsample | None = None,
    octave: OctaveOptions | None = None,
    dropout: float = 0.5,
    zero_init_last_norm: bool = True,
) -> nn.Module:
    """C2D ResNet-50: frames by themselves, joined by pooling over time (arXiv 1711.07971). T >= 2."""
    return _build(_C2D, num_classes, alpha, downsample, octave, dropout, zero_init_last_norm)


@builder()
def i3d_r50(
    num_classes: int = 400,
    alpha: float = 0.0,
    *,
    downsample: Downsample | None = None,
    octave: OctaveOptions | None = None,
    dropout: float = 0.5,
    zero_init_last_norm: bool = True,
) -> nn.Module:
    """I3D ResNet-50: 3x1x1 convolutions in every other block (Wang et al., arXiv 1711.07971). T >= 2."""
    return _build(_I3D, num_classes, alpha, downsample, octave, dropout, zero_init_last_norm)


@builder()
def slow_r50(
    num_classes: int = 400,
    alpha: float = 0.0,
    *,
    downsample: Downsample | None = None,
    octave: OctaveOptions | None = None,
    dropout: float = 0.5,
    zero_init_last_norm: bool = True,
) -> nn.Module:
    """The Slow pathway of SlowFast by itself, ResNet-50 (Feichtenhofer et al., arXiv 1812.03982)."""
    return _build(_SLOW, num_classes, alpha, downsample, octave, dropout, zero_init_last_norm)


@builder()
def c2d_small(
    num_classes: int = 400,
    alpha: float = 0.0,
    *,
    width: int = 16,
    downsample: Downsample | None = None,
    octave: OctaveOptions | None = None,
    dropout: float = 0.5,
    zero_init_last_norm: bool = True,
) -> nn.Module:
    """C2D with a quarter of the channels and two blocks a stage, for CPUs and small data. T >= 2."""
    plan = _small(_C2D, width)
    return _build(plan, num_classes, alpha, downsample, octave, dropout, zero_init_last_norm)


@builder()
def i3d_small(
    num_classes: int = 400,
    alpha: float = 0.0,
    *,
    width: int = 16,
    downsample: Downsample | None = None,
    octave: OctaveOptions | None = None,
    dropout: float = 0.5,
    zero_init_last_norm: bool = True,
) -> nn.Module:
    """I3D with a quarter of the channels and two blocks a stage, for CPUs and small data. T >= 2."""
    plan = _small(_I3D, width)
    return _build(plan, num_classes, alpha, downsample, octave, dropout, zero_init_last_norm)


@builder()
def slow_small(
    num_classes: int = 400,
    alpha: float = 0.0,
    *,
    width: int = 16,
    downsample: Downsample | None = None,
    octave: OctaveOptions | None = None,
    dropout: float = 0.5,
    zero_init_last_norm: bool = True,
) -> nn.Module:
    """Slow with a quarter of the channels and two blocks a stage, for CPUs and small data."""
    plan = _small(_SLOW, width)
    return _build(plan, num_classes, alpha, downsample, octave, dropout, zero_init_last_norm)


@builder()
def c2d_nl_r50(
    num_classes: int = 400,
    alpha: float = 0.0,
    *,
    downsample: Downsample | None = None,
    octave: OctaveOptions | None = None,
    dropout: float = 0.5,
    zero_init_last_norm: bool = True,
) -> nn.Module:
    """C2D ResNet-50 with five non-local blocks (arXiv 1711.07971). T >= 2."""
    plan = replace(_C2D, non_local=_FIVE_BLOCKS)
    return _build(plan, num_classes, alpha, downsample, octave, dropout, zero_init_last_norm)


@builder()
def i3d_nl_r50(
    num_classes: int = 400,
    alpha: float = 0.0,
    *,
    downsample: Downsample | None = None,
    octave: OctaveOptions | None = None,
    dropout: float = 0.5,
    zero_init_last_norm: bool = True,
) -> nn.Module:
    """I3D ResNet-50 with five non-local blocks (arXiv 1711.07971). T >= 2."""
    plan = replace(_I3D, non_local=_FIVE_BLOCKS)
    return _build(plan, num_classes, alpha, downsample, octave, dropout, zero_init_last_norm)


@builder()
def i3d_nl_small(
    num_classes: int = 400,
    alpha: float = 0.0,
    *,
    width: int = 16,
    downsample: Downsample | None = None,
    octave: OctaveOptions | None = None,
    dropout: float = 0.5,
    zero_init_last_norm: bool = True,
) -> nn.Module:
    """I3D with a quarter of the channels, two blocks a stage and a non-local block after res3 and res4. T >= 2."""
    plan = _small(replace(_I3D, non_local=_FIVE_BLOCKS), width)
    return _build(plan, num_classes, alpha, downsample, octave, dropout, zero_init_last_norm)
