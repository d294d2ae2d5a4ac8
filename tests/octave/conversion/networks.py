"""The networks on which octavize is tested, as their own libraries build them, at small and odd input sizes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn

IMAGES = ((2, 3, 33, 47),)
CLIPS = ((2, 3, 8, 33, 47),)
# More of the same blocks as a shallower sibling: these are not compiled (a minute each), all else is tested.
REPEATED = (
    "resnet101", "resnet152", "resnet200", "resnext101_32x8d", "resnext101_32x4d", "x3d_m", "slowfast_r50_4x16",
    "c2d_r50-non_local",
)  # fmt: skip


@dataclass(frozen=True)
class Network:
    """One network: how to build it, and what goes in."""

    name: str
    build: Callable[[], nn.Module]
    inputs: tuple[tuple[int, ...], ...]  # shapes; more than one: the network takes a list
    cost_inputs: tuple[tuple[int, ...], ...]  # the sizes that its paper counts
    left: float  # share of the multiply-adds that may be left at alpha = .5
    small: bool = False  # runs in the fast tests, and with inductor
    quickly_traced: bool = False  # is compiled in the fast tests

    @property
    def repeats_blocks(self) -> bool:
        return self.name.endswith(REPEATED)

    def random_input(self, seed: int = 0, dtype: torch.dtype = torch.float32) -> Any:
        """Noise; made anew for each call, because pytorchvideo's SlowFast changes the list that it is given."""
        generator = torch.Generator().manual_seed(seed)
        return _as_input([torch.randn(shape, generator=generator, dtype=dtype) for shape in self.inputs])

    def constant_input(self, seed: int = 0) -> Any:
        """One colour for each item of the batch, in float64; both paths of a SlowFast see the same."""
        generator = torch.Generator().manual_seed(seed)
        colour = torch.randn(self.inputs[0][:2], generator=generator, dtype=torch.float64)
        pixel = colour.reshape(*colour.shape, *[1] * (len(self.inputs[0]) - 2))
        return _as_input([pixel.expand(shape).contiguous() for shape in self.inputs])


def named_state(network: nn.Module) -> list[list[tuple[str, torch.Size]]]:
    """Keys and shapes of the state_dict, the parameters and the buffers, each in order."""
    parts = (network.state_dict().items(), network.named_parameters(), network.named_buffers())
    return [[(name, value.shape) for name, value in part] for part in parts]


def _as_input(tensors: list[Tensor]) -> Any:
    return tensors if len(tensors) > 1 else tensors[0]


def _torchvision(name: str, **options: Any) -> nn.Module:
    import torchvision

    return getattr(torchvision.models, name)(**options)


def _resnet_few() -> nn.Module:
    """ResNet-18 with one block a stage: the first has an identity beside it, the others a strided convolution."""
    from torchvision.models.resnet import BasicBlock, ResNet

    return ResNet(BasicBlock, [1, 1, 1, 1], num_classes=40)


def _mobilenet_v3_few() -> nn.Module:
    """MobileNetV3 with every kind of block once: with and without expansion, gate, stride and shortcut."""
    from torchvision.models.mobilenetv3 import InvertedResidualConfig, MobileNetV3

    blocks = [
        InvertedResidualConfig(16, 3, 16, 16, True, "RE", 2, 1, 1),
        InvertedResidualConfig(16, 3, 72, 24, False, "RE", 2, 1, 1),
        InvertedResidualConfig(24, 5, 96, 40, True, "HS", 2, 1, 1),
        InvertedResidualConfig(40, 5, 240, 40, True, "HS", 1, 1, 1),
    ]
    return MobileNetV3(blocks, 128, num_classes=40)


def _torchvision_video(name: str) -> nn.Module:
    import torchvision

    network = getattr(torchvision.models.video, name)(num_classes=40)
    if name == "s3d":  # made for 224 x 224 and more
        network.avgpool = nn.AvgPool3d((2, 2, 2), stride=1)
    return network


def _timm(name: str, **options: Any) -> nn.Module:
    timm = pytest.importorskip("timm")
    return timm.create_model(name, num_classes=40, drop_rate=0.2, **options)


def _timm_seresnext_small() -> nn.Module:
    resnet = pytest.importorskip("timm.models.resnet")
    options = {"cardinality": 8, "base_width": 4, "drop_rate": 0.2, "drop_path_rate": 0.2}
    return resnet.ResNet(
        resnet.Bottleneck, layers=[1, 1, 1, 1], num_classes=40, block_args={"attn_layer": "se"}, **options
    )


def _hub(name: str, **options: Any) -> nn.Module:
    """pytorchvideo's own configuration, with a head that fits clips of 8 x 33 x 47."""
    from pytorchvideo.models import hub

    return getattr(hub, name)(pretrained=False, **options)


def _slow_r50() -> nn.Module:
    """hub.slow_r50, which fixes the head's kernel, written out."""
    from pytorchvideo.models.resnet import create_resnet

    kernels = ((1, 1, 1), (1, 1, 1), (3, 1, 1), (3, 1, 1))
    return create_resnet(
        stem_conv_kernel_size=(1, 7, 7), stage_conv_a_kernel_size=kernels, head_pool_kernel_size=(8, 2, 2)
    )


def _non_local(name: str) -> nn.Module:
    """The hub's C2D or I3D with non-local blocks after res3 blocks 1, 3 and res4 blocks 1, 3, 5 (from 0)."""
    from octvideo.models.layers import NonLocalStage

    network = _hub(name, head_pool_kernel_size=(4, 2, 2))
    blocks: Any = network.blocks
    blocks[3], blocks[4] = NonLocalStage(blocks[3], 512, (1, 3)), NonLocalStage(blocks[4], 1024, (1, 3, 5))
    return network


def _csn_r101() -> nn.Module:
    """hub.csn_r101, which fixes the head's kernel, written out."""
    from pytorchvideo.models.csn import create_csn

    return create_csn(model_depth=101, stem_pool=nn.MaxPool3d, head_pool_kernel_size=(1, 2, 2), dropout_rate=0.5)


def _x3d(**options: Any) -> nn.Module:
    from pytorchvideo.models.x3d import create_x3d

    return create_x3d(input_clip_length=8, input_crop_size=48, head_activation=None, **options)


def _slowfast(depth: int, kernel: int, frames: int, **options: Any) -> nn.Module:
    """hub.slowfast_r50 (8x8: kernel 7, every 4th frame on the slow path) and its 4x16 form (5, every 8th)."""
    from pytorchvideo.models.slowfast import create_slowfast

    return create_slowfast(
        model_depth=depth,
        slowfast_fusion_conv_kernel_size=(kernel, 1, 1),
        slowfast_fusion_conv_stride=(8 // frames, 1, 1),
        head_pool_kernel_sizes=((frames, 2, 2), (8, 2, 2)),
        **options,
    )


def _image(name: str, build: Callable[[], nn.Module], size: int = 224, **options: Any) -> Network:
    options.setdefault("inputs", IMAGES)
    return Network(name, build, cost_inputs=((1, 3, size, size),), **options)


def _clip(name: str, build: Callable[[], nn.Module], frames: int = 8, **options: Any) -> Network:
    options.setdefault("inputs", CLIPS)
    options.setdefault("cost_inputs", ((1, 3, frames, 224, 224),))
    return Network(name, build, **options)


# Name -> how much of the multiply-adds may be left at alpha = .5; where a join merges, it is more.
TORCHVISION = {
    "resnet18": 0.56, "resnet50": 0.5, "resnet101": 0.475, "resnet152": 0.465, "resnext50_32x4d": 0.49,
    "resnext101_32x8d": 0.46, "densenet121": 0.48, "mobilenet_v2": 0.69, "mobilenet_v3_small": 0.7,
    "mobilenet_v3_large": 0.68, "efficientnet_b0": 0.685, "shufflenet_v2_x1_0": 0.57, "regnet_y_400mf": 0.6,
    "vgg11_bn": 0.5,
}  # fmt: skip
TIMM = {
    "resnet18": 0.56, "resnet26": 0.54, "resnet50": 0.5, "resnet101": 0.475, "resnet152": 0.465, "resnet200": 0.46,
    "resnext50_32x4d": 0.49, "resnext101_32x4d": 0.47, "seresnet50": 0.5, "seresnext50_32x4d": 0.49,
    "densenet121": 0.48, "mobilenetv1_100": 0.5, "mobilenetv2_100": 0.69, "mobilenetv3_large_100": 0.68,
    "efficientnet_b0": 0.685,
}  # fmt: skip
NO_AUX = {"aux_logits": False, "init_weights": False}
DROP_PATHS = ("res", "seres", "mobile", "efficient")  # families of timm that take a drop path

SLOWFAST = {
    "inputs": ((2, 3, 2, 33, 47), (2, 3, 8, 33, 47)),
    "cost_inputs": ((1, 3, 2, 224, 224), (1, 3, 8, 224, 224)),
}
SLOWFAST_4X16 = {
    "inputs": ((2, 3, 1, 33, 47), (2, 3, 8, 33, 47)),
    "cost_inputs": ((1, 3, 1, 224, 224), (1, 3, 8, 224, 224)),
}

SMALL = [
    _image("torchvision-resnet-few", _resnet_few, left=0.64, small=True, quickly_traced=True),
    _image("torchvision-mobilenet_v3-few", _mobilenet_v3_few, left=0.75, small=True, quickly_traced=True),
    _image(
        "torchvision-densenet-thin",
        partial(_torchvision, "DenseNet", growth_rate=8, block_config=(2, 3, 2), num_init_features=16, drop_rate=0.1),
        left=0.74,
        small=True,
    ),
    _image("timm-seresnext-small", _timm_seresnext_small, left=0.69, small=True),
    _clip("pytorchvideo-x3d-small", partial(_x3d, depth_factor=0.3, width_factor=1.0), left=0.77, small=True),
    _clip(
        "pytorchvideo-slowfast-small",
        partial(_slowfast, 18, 5, 2, stem_dim_outs=(16, 4), slowfast_channel_reduction_ratio=(4,)),
        left=0.76,
        small=True,
        **SLOWFAST,
    ),
]
IMAGE_NETWORKS = [
    *(_image(f"torchvision-{name}", partial(_torchvision, name), left=left) for name, left in TORCHVISION.items()),
    _image("torchvision-googlenet", partial(_torchvision, "googlenet", **NO_AUX), left=0.5),
    _image(
        "torchvision-inception_v3",
        partial(_torchvision, "inception_v3", **NO_AUX),
        size=299,
        inputs=((2, 3, 79, 95),),
        left=0.62,
    ),
    *(
        _image(
            f"timm-{name}",
            partial(_timm, name, **{"drop_path_rate": 0.2} if name.startswith(DROP_PATHS) else {}),
            left=left,
        )
        for name, left in TIMM.items()
    ),
]
VIDEO_NETWORKS = [
    _clip("pytorchvideo-c2d_r50", partial(_hub, "c2d_r50", head_pool_kernel_size=(4, 2, 2)), left=0.51),
    _clip("pytorchvideo-i3d_r50", partial(_hub, "i3d_r50", head_pool_kernel_size=(4, 2, 2)), left=0.57),
    _clip("pytorchvideo-c2d_r50-non_local", partial(_non_local, "c2d_r50"), left=0.59),
    _clip("pytorchvideo-i3d_r50-non_local", partial(_non_local, "i3d_r50"), left=0.61),
    _clip("pytorchvideo-slow_r50", _slow_r50, left=0.49),
    _clip("pytorchvideo-slowfast_r50", partial(_slowfast, 50, 7, 2), left=0.52, **SLOWFAST),
    _clip("pytorchvideo-slowfast_r50_4x16", partial(_slowfast, 50, 5, 1), left=0.54, **SLOWFAST_4X16),
    _clip(
        "pytorchvideo-r2plus1d_r50",
        partial(_hub, "r2plus1d_r50", head_pool_kernel_size=(2, 2, 2), head_activation=None),
        frames=16,
        left=0.5,
    ),
    _clip("pytorchvideo-csn_r101", _csn_r101, frames=32, left=0.58),
    _clip("pytorchvideo-x3d_s", _x3d, cost_inputs=((1, 3, 13, 160, 160),), left=0.69),
    _clip("pytorchvideo-x3d_m", _x3d, frames=16, left=0.7),
    *(
        _clip(f"torchvision-{name}", partial(_torchvision_video, name), frames=16, left=left)
        for name, left in (("r3d_18", 0.58), ("mc3_18", 0.58), ("r2plus1d_18", 0.47))
    ),
    _clip(
        "torchvision-s3d",
        partial(_torchvision_video, "s3d"),
        frames=16,
        inputs=((2, 3, 16, 65, 79),),
        left=0.54,
    ),
]
NETWORKS = [*SMALL, *IMAGE_NETWORKS, *VIDEO_NETWORKS]
