"""Networks of other libraries by name, for K classes: "pytorchvideo:x3d_s", "torchvision:r3d_18", "timm:resnet26".

pytorchvideo's X3D, CSN and R(2+1)D are builders of their own, too.

Video networks are taken as they are. Image networks see every frame by itself, and their logits are averaged over time:
this is C2D in the wide sense (arXiv 1711.07971 means by it a ResNet that pools over time inside). Whatever is known of
image networks, the rows of the octave paper's image tables included, holds for each frame.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import pytorchvideo.models.hub as hub
import torch
import torchvision
from pytorchvideo.models.head import ResNetBasicHead
from pytorchvideo.models.resnet import ResStage
from torch import Tensor, nn

from octvideo.errors import UserError
from octvideo.models.builders import Alpha, OctaveOptions, builder, make_octave, preset
from octvideo.models.layers import FittingAvgPool
from octvideo.octave import Downsample, OctaveReport, add_temporal_shifts, takes_num_frames

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


@dataclass(frozen=True)
class ClipForm:
    """Clips that a network was published with.

    Args:
        frames: T.
        stride: of a video's frames every how many-th is one of the clip's.
        train_px: side of the crop in training, for which papers count multiply-adds.
        test_px: of the three crops in tests, and the short side.
    """

    frames: int
    stride: int
    train_px: int
    test_px: int


# Source: PySlowFast's configs/Kinetics/X3D_*.yaml, SLOWFAST_*_R50.yaml and pytorchvideo/{CSN_32x2_R101,
# R2PLUS1D_16x4_R50}.yaml. pytorchvideo's zoo was trained on the same.
CLIP_FORMS = {
    "x3d_xs": ClipForm(4, 12, 160, 182),
    "x3d_s": ClipForm(13, 6, 160, 182),
    "x3d_m": ClipForm(16, 5, 224, 256),
    "x3d_l": ClipForm(16, 5, 312, 356),
    "csn_r101": ClipForm(32, 2, 224, 256),
    "r2plus1d_r50": ClipForm(16, 4, 224, 256),
    "slowfast_r50": ClipForm(32, 2, 224, 256),
    "slowfast_8x8_r50": ClipForm(32, 2, 224, 256),
    "slowfast_4x16_r50": ClipForm(32, 2, 224, 256),
}
_STAGES = ("layer1", "layer2", "layer3", "layer4")  # of ResNets, res2 to res5 of the papers


def _video_network(
    network: str,
    num_classes: int = 400,
    alpha: Alpha = 0.0,
    *,
    downsample: Downsample | None = None,
    octave: OctaveOptions | None = None,
    dropout: float = 0.5,
) -> nn.Module:
    ordinary = _ordinary(network, num_classes, dropout)
    leaves = [ResNetBasicHead]
    return make_octave(ordinary, _shares(ordinary, alpha), downsample=downsample, octave=octave, leaf_modules=leaves)


_ALPHA = """share of low-frequency channels in the first three of the four stages; 0 is the ordinary network. Or
        shares of module path prefixes ({"layer1": 0.5}), 0 elsewhere."""


@builder(
    network="""of clips: "pytorchvideo:NAME" (c2d_r50, i3d_r50, slow_r50, r2plus1d_r50, csn_r101, x3d_xs to x3d_l)
        or "torchvision:NAME" (r3d_18, mc3_18, r2plus1d_18); nothing is downloaded.""",
    alpha=_ALPHA,
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
    return _video_network(network, num_classes, alpha, downsample=downsample, octave=octave, dropout=dropout)


def _of_pytorchvideo(name: str, summary: str) -> Callable[..., nn.Module]:
    alpha = _ALPHA.replace("layer1", "blocks.1")
    form = CLIP_FORMS[name]
    clips = f"Published with {form.frames} frames at every {form.stride}th, {form.train_px} pixels. Any clip."
    return preset(_video_network, f"pytorchvideo:{name}", name, f"{summary}\n\n{clips}", alpha=alpha)


_X3D = "(arXiv 2004.04730): inverted residuals with gates, depthwise convolutions over time and space."
x3d_xs = _of_pytorchvideo("x3d_xs", f"X3D-XS {_X3D}")
x3d_s = _of_pytorchvideo("x3d_s", f"X3D-S {_X3D}")
x3d_m = _of_pytorchvideo("x3d_m", f"X3D-M {_X3D}")
x3d_l = _of_pytorchvideo("x3d_l", f"X3D-L {_X3D}")
csn_r101 = _of_pytorchvideo("csn_r101", "CSN ResNet-101 (arXiv 1904.02811): its 3x3x3 convolutions are depthwise.")
r2plus1d_r50 = _of_pytorchvideo(
    "r2plus1d_r50", "R(2+1)D ResNet-50 (arXiv 1711.11248): each 3x3x3 convolution is one in space and one in time."
)


def _ordinary(name: str, num_classes: int, dropout: float) -> nn.Module:
    library, own_name = _split(name, tuple(_NETWORKS), "pytorchvideo:x3d_s")
    check_known(own_name, library, _NETWORKS[library])
    if library == "torchvision":
        network = torchvision.models.get_model(own_name, weights=None, num_classes=num_classes)
        _set_dropout(network, name, num_classes, dropout)
        return network
    # Some of pytorchvideo's heads end in a softmax, which belongs to the evaluation.
    network = getattr(hub, own_name)(pretrained=False, model_num_class=num_classes, head_activation=None)
    head = network.blocks[-1]
    head.dropout = nn.Dropout(dropout)
    for path, module in list(head.named_modules()):
        if isinstance(module, nn.AvgPool3d):  # of one fixed size, which only the training crop has
            head.set_submodule(path, FittingAvgPool(module.kernel_size, stride=1))
    return network


def _shares(network: nn.Module, alpha: Alpha) -> Alpha:
    """Where a single share applies: res2 to res4 of a ResNet, else everywhere but in the stem."""
    stages = [path for path, module in network.named_modules() if isinstance(module, ResStage)]
    if all(hasattr(network, stage) for stage in _STAGES):
        stages = list(_STAGES)
    return alpha if isinstance(alpha, dict) or not stages else dict.fromkeys(stages[:-1], alpha)


class FrameNetwork(nn.Module):
    """Runs a network of images on each frame of a clip and averages the logits over time.

    Args:
        network: images (N, 3, H, W) to logits (N, K); one with temporal shifts takes the number of frames, too.

    Example:
        >>> FrameNetwork(torchvision.models.resnet18(num_classes=5))(torch.randn(2, 3, 4, 64, 64)).shape
        torch.Size([2, 5])
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.image_network = network
        self.takes_num_frames = takes_num_frames(network)
        self.meta: dict[str, Any] = {}  # as that of an OctaveNetwork

    def forward(self, clips: Tensor) -> Tensor:
        """Clips (N, 3, T, H, W) to logits (N, K)."""
        return self.frame_logits(clips).mean(1)

    def frame_logits(self, clips: Tensor) -> Tensor:
        """Clips (N, 3, T, H, W) to what the network of images gives for each frame, (N, T, K)."""
        num_clips, num_frames = clips.shape[0], clips.shape[2]
        # Of clips in channels_last_3d this is a view, in channels_last.
        frames = clips.transpose(1, 2).flatten(0, 1)  # (N·T,3,H,W)
        # What a network has no second input for it need not be told.
        logits = self.image_network(frames, num_frames) if self.takes_num_frames else self.image_network(frames)
        return logits.unflatten(0, (num_clips, num_frames))

    def to(self, *args: Any, **kwargs: Any) -> FrameNetwork:
        """As nn.Module's; channels_last_3d, the clips' memory format, is channels_last for the frames."""
        if kwargs.get("memory_format") is torch.channels_last_3d:
            kwargs["memory_format"] = torch.channels_last
        return super().to(*args, **kwargs)

    @property
    def octave_report(self) -> OctaveReport:
        """What became octave and what could not, in the image network."""
        return self.image_network.octave_report  # type: ignore[return-value]


@builder(
    network="""of images: "torchvision:NAME" or "timm:NAME", as in the library's list_models(); nothing is
        downloaded.""",
    alpha="""share of low-frequency channels; 0 is the ordinary network. In ResNets the stem and the last of
        the four stages stay ordinary, as in the paper's video networks; elsewhere the stem does. Or shares of
        module path prefixes of the image network ({"layer1": 0.5}), 0 elsewhere.""",
    dropout="before the classifier; it takes the place of the network's own.",
    shift="""share of channels that each residual block's first convolution sees of the next frame, and as many of
        the frame before (temporal shift, arXiv 1811.08383); an eighth there, 0 is none. It has no weights: an image
        network's fit, and costs no multiply-add.""",
    online="shift from the frame before only: for streams, frame by frame (octvideo.models.streams.FrameStream).",
)
def frame_network(
    network: str = "torchvision:resnet50",
    num_classes: int = 400,
    alpha: Alpha = 0.0,
    *,
    downsample: Downsample | None = None,
    octave: OctaveOptions | None = None,
    dropout: float = 0.5,
    shift: float = 0.0,
    online: bool = False,
) -> nn.Module:
    """An image network of torchvision or timm on every frame, its logits averaged over time. Any T.

    With `shift` frames see their neighbours: TSM. T is any then, too, but clips are best as long as in training.
    """
    ordinary = image_network(network, num_classes, dropout=dropout)
    images = make_octave(ordinary, _shares(ordinary, alpha), downsample=downsample, octave=octave)
    if shift:
        try:
            add_temporal_shifts(images, shift, online=online)
        except ValueError as error:
            raise UserError(f"{network}: {error}") from error
    return FrameNetwork(images)


class DropoutLinear(nn.Linear):
    """A classifier with dropout before it, for networks that have none; keys are the ordinary layer's.

    Its class name makes octvideo's tracer keep it whole.
    """

    def __init__(self, linear: nn.Linear, p: float) -> None:
        super().__init__(linear.in_features, linear.out_features, linear.bias is not None, device="meta")
        self.weight, self.bias = linear.weight, linear.bias
        self.dropout = nn.Dropout(p)

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(self.dropout(input))


def _split(name: str, libraries: Sequence[str], example: str) -> tuple[str, str]:
    """A network's library and its name there.

    Raises:
        UserError: no such library, or none given.
    """
    library, colon, own_name = name.partition(":")
    if not colon or library not in libraries:
        forms = " or ".join(f"{known}:NAME" for known in libraries)
        raise UserError(f"network: got {name!r}, expected {forms}, such as {example}")
    return library, own_name


def check_known(name: str, library: str, known: Sequence[str]) -> None:
    """Refuses a name that the library does not list, and says which are close.

    Raises:
        UserError: not listed.
    """
    if name not in known:
        close = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
        meant = f"did you mean {' or '.join(f'{library}:{other}' for other in close)}?" if close else ""
        raise UserError(f"{library} has no network {name!r}" + (f": {meant}" if meant else ""))


def image_network(name: str, num_classes: int, *, dropout: float = 0.0) -> nn.Module:
    """A network of images (N, 3, H, W) to logits (N, K), with the library's initialisation.

    Args:
        name: "torchvision:NAME" or "timm:NAME", as in their list_models(); nothing is downloaded.
        num_classes: K.
        dropout: before the classifier; it takes the place of the network's own.

    Raises:
        UserError: no such network, timm is not installed, or the network ends in no linear classifier.
    """
    library, own_name = _split(name, ("torchvision", "timm"), "torchvision:resnet50")
    if library == "timm":
        try:
            import timm
        except ImportError as error:
            raise UserError(f"{name} needs timm, which is not installed: pip install 'octvideo[image]'") from error
        check_known(own_name, library, timm.list_models())
        network = timm.create_model(own_name, pretrained=False, num_classes=num_classes, drop_rate=dropout)
        _set_dropout(network, name, num_classes, None)
        return network
    check_known(own_name, library, torchvision.models.list_models(module=torchvision.models))
    # Two old networks give tuples in training unless told otherwise.
    options = {"aux_logits": False, "init_weights": False} if own_name in ("googlenet", "inception_v3") else {}
    network = torchvision.models.get_model(own_name, weights=None, num_classes=num_classes, **options)
    _set_dropout(network, name, num_classes, dropout)
    return network


def _set_dropout(network: nn.Module, name: str, num_classes: int, dropout: float | None) -> None:
    """Gives the dropouts beside the classifier, the last nn.Linear, this probability; or the classifier one where there
    are none. None only looks for the classifier.

    Raises:
        UserError: there is no classifier of K outputs.
    """
    linears = [(path, module) for path, module in network.named_modules() if isinstance(module, nn.Linear)]
    path, classifier = linears[-1] if linears else ("", None)
    if classifier is None or classifier.out_features != num_classes:
        raise UserError(f"{name} does not end in a linear classifier, expected a network that does")
    if dropout is None:
        return
    own = [m for m in network.get_submodule(path.rpartition(".")[0]).children() if isinstance(m, nn.Dropout)]
    for module in own:
        module.p = dropout
    if not own:
        network.set_submodule(path, DropoutLinear(classifier, dropout))
