"""Video networks of pytorchvideo and torchvision by name ("pytorchvideo:x3d_s", "torchvision:r3d_18")."""

from __future__ import annotations

import pytorchvideo.models.hub as hub
import torchvision
from pytorchvideo.models.head import ResNetBasicHead
from pytorchvideo.models.resnet import ResStage
from torch import nn

from octvideo.models.builders import Alpha, OctaveOptions, builder, make_octave
from octvideo.models.image_networks import check_known, classifier_path, set_dropout, split_name
from octvideo.models.layers import FittingAvgPool
from octvideo.octave import Downsample

# Convolutional ones with a linear classifier; the others of these libraries are transformers, or (s3d) end in a
# convolution.
_NETWORKS = {
    "pytorchvideo": (
        *("c2d_r50", "i3d_r50", "slow_r50", "r2plus1d_r50", "csn_r101"),
        *("x3d_xs", "x3d_s", "x3d_m", "x3d_l"),
    ),
    "torchvision": ("r3d_18", "mc3_18", "r2plus1d_18"),
}
LIBRARY_NETWORKS = tuple(f"{library}:{name}" for library, names in _NETWORKS.items() for name in names)
_FORM = "pytorchvideo:NAME or torchvision:NAME, such as pytorchvideo:x3d_s"
_STAGES = ("layer1", "layer2", "layer3", "layer4")


@builder(
    network="""of clips: "pytorchvideo:NAME" (c2d_r50, i3d_r50, slow_r50, r2plus1d_r50, csn_r101, x3d_xs to x3d_l)
        or "torchvision:NAME" (r3d_18, mc3_18, r2plus1d_18); nothing is downloaded.""",
    alpha="""share of low-frequency channels in the first three of the four stages; 0 is the ordinary network. Or
        shares of module path prefixes ({"layer1": 0.5}), 0 elsewhere.""",
)
def video_network(
    network: str = "pytorchvideo:x3d_s",
    num_classes: int = 400,
    alpha: Alpha = 0.0,
    *,
    downsample: Downsample | None = None,
    octave: OctaveOptions | None = None,
    dropout: float = 0.5,
) -> nn.Module:
    """A video network of pytorchvideo or torchvision, with the library's keys and initialisation."""
    ordinary = _ordinary(network, num_classes, dropout)
    shares = alpha if isinstance(alpha, dict) else {stage: alpha for stage in _stages(ordinary)[:-1]}
    return make_octave(ordinary, shares, downsample=downsample, octave=octave, leaf_modules=[ResNetBasicHead])


def _ordinary(name: str, num_classes: int, dropout: float) -> nn.Module:
    library, own_name = split_name(name, tuple(_NETWORKS), _FORM)
    check_known(own_name, library, _NETWORKS[library])
    if library == "torchvision":
        network = torchvision.models.get_model(own_name, weights=None, num_classes=num_classes)
        set_dropout(network, classifier_path(network, name, num_classes), dropout)
        return network
    # Some of pytorchvideo's heads end in a softmax, which belongs to the evaluation.
    network = getattr(hub, own_name)(pretrained=False, model_num_class=num_classes, head_activation=None)
    head = network.blocks[-1]
    head.dropout = nn.Dropout(dropout)
    for path, module in list(head.named_modules()):
        if isinstance(module, nn.AvgPool3d):  # of one fixed size, which only the training crop has
            head.set_submodule(path, FittingAvgPool(module.kernel_size, stride=1))
    return network


def _stages(network: nn.Module) -> list[str]:
    """Paths of res2 to res5."""
    if hasattr(network, "layer4"):
        return list(_STAGES)
    return [path for path, module in network.named_modules() if isinstance(module, ResStage)]
