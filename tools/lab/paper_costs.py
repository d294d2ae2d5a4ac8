"""The cost tables of "Drop an Octave" (Chen et al. 2019, arXiv 1904.05049), counted again on our networks.

Every network is its library's own, converted by `octavize`. As in the paper's ResNets, what works at 56 x 56
down to 14 x 14 is octave; the stem and the last stage are ordinary, and strided convolutions pool first.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
import torchvision
from torch import nn

import octvideo.models as models
from octvideo.errors import UserError
from octvideo.octave import Cost, OctConv2d, count_cost, layer_flop_ratio, layer_memory_ratio, octavize

IMAGE = (1, 3, 224, 224)
CLIP = (1, 3, 8, 224, 224)
TOLERANCE = 0.01  # of the paper's figure, which is printed with two or three digits

Shares = Callable[[float], Mapping[str, float]]


@dataclass(frozen=True)
class PaperRow:
    """One row of a table of the paper, beside our count.

    Args:
        table: where the paper has it, one of TABLES.
        network: its name there.
        alpha: the low share.
        paper_giga: multiply-adds in G as printed there; None where the paper has a plot only.
        paper_params: parameters in M, where the table gives them.
        cost: ours.
        note: what is known of a difference.
    """

    table: str
    network: str
    alpha: float
    paper_giga: str | None
    paper_params: float | None
    cost: Cost
    note: str = ""

    @property
    def giga(self) -> float:
        """Our multiply-adds in G as the paper counts: without the matrix products of attention."""
        return self.cost.convolutions / 1e9

    @property
    def deviation(self) -> float | None:
        """Our multiply-adds over the paper's, minus 1."""
        return None if self.paper_giga is None else self.giga / float(self.paper_giga) - 1

    @property
    def agrees(self) -> bool | None:
        """Whether our count is within TOLERANCE of the paper's, or is printed like it."""
        if self.paper_giga is None or self.deviation is None:
            return None
        digits = len(self.paper_giga.partition(".")[2])
        return abs(self.deviation) <= TOLERANCE or f"{self.giga:.{digits}f}" == self.paper_giga

    def cells(self) -> tuple[str, ...]:
        """The row as text, in the order of HEADER."""
        deviation, agrees = self.deviation, self.agrees
        return (
            "Fig. 4" if self.table == "4" else self.table,
            self.network,
            f"{self.alpha:g}",
            self.paper_giga or "",
            f"{self.giga:.3f}",
            "" if deviation is None else f"{100 * deviation:+.1f} %",
            "" if agrees is None else ("yes" if agrees else "no"),
            "" if self.paper_params is None else f"{self.paper_params:g}",
            f"{self.cost.parameters / 1e6:.2f}",
            self.note,
        )


HEADER = (
    "table", "network", "alpha", "paper (G)", "ours (G)", "difference", "agrees", "paper (M)", "ours (M)", "note",
)  # fmt: skip


def _stages(*prefixes: str) -> Shares:
    return lambda alpha: dict.fromkeys(prefixes, alpha)


_RESNET = _stages("layer1", "layer2", "layer3")
# Block numbers at 56 x 56 to 14 x 14.
_MOBILENET_V1 = _stages("stages.2", "stages.3", "stages.4")
_MOBILENET_V2 = _stages(*(f"features.{n}" for n in range(2, 14)))
_DENSENET = _stages("features.denseblock1", "features.transition1", "features.denseblock2", "features.transition2",
                    "features.denseblock3")  # fmt: skip


def _timm(name: str, **options: Any) -> nn.Module:
    try:
        import timm
    except ImportError as error:
        raise UserError("the paper's image tables need timm: pip install 'octvideo[image]'") from error
    return timm.create_model(name, pretrained=False, **options)


def _mobilenet_v1(width: float) -> nn.Module:
    """MobileNetV1 (arXiv 1704.04861, Table 1) at any width: timm has none at .75."""

    def layer(c_in: int, c_out: int, kernel: int, stride: int = 1, groups: int = 1) -> nn.Sequential:
        conv = nn.Conv2d(c_in, c_out, kernel, stride, kernel // 2, groups=groups, bias=False)
        return nn.Sequential(conv, nn.BatchNorm2d(c_out), nn.ReLU(inplace=True))

    channels = int(32 * width)
    stages = [nn.Sequential(layer(3, channels, 3, 2))]
    # stage by stage: output channels, number of separable convolutions, stride of the first
    for wide, depth, stride in ((64, 1, 1), (128, 2, 2), (256, 2, 2), (512, 6, 2), (1024, 2, 2)):
        c_out, blocks = int(wide * width), nn.Sequential()
        for n in range(depth):
            blocks.append(layer(channels, channels, 3, stride if n == 0 else 1, groups=channels))
            blocks.append(layer(channels, c_out, 1))
            channels = c_out
        stages.append(blocks)
    head = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, 1000))
    return nn.Sequential(OrderedDict(stages=nn.Sequential(*stages), head=head))


# name in the tables -> the network, and which parts of it are octave
_IMAGE_NETWORKS: dict[str, tuple[Callable[[], nn.Module], Shares]] = {
    "ResNet-26": (lambda: _timm("resnet26"), _RESNET),
    "ResNet-50": (lambda: torchvision.models.resnet50(), _RESNET),
    "ResNet-101": (lambda: torchvision.models.resnet101(), _RESNET),
    "ResNet-152": (lambda: torchvision.models.resnet152(), _RESNET),
    "ResNet-200": (lambda: _timm("resnet200"), _RESNET),
    "ResNeXt-50 32x4d": (lambda: torchvision.models.resnext50_32x4d(), _RESNET),
    "ResNeXt-101 32x4d": (lambda: _timm("resnext101_32x4d"), _RESNET),
    "SE-ResNet-50": (lambda: _timm("seresnet50"), _RESNET),
    "SE-ResNet-152": (lambda: _timm("seresnet152"), _RESNET),
    "DenseNet-121": (lambda: torchvision.models.densenet121(), _DENSENET),
    "0.75 MobileNetV1": (lambda: _mobilenet_v1(0.75), _MOBILENET_V1),
    "1.0 MobileNetV1": (lambda: _mobilenet_v1(1.0), _MOBILENET_V1),
    "1.0 MobileNetV2": (lambda: torchvision.models.mobilenet_v2(), _MOBILENET_V2),
    "1.125 MobileNetV2": (lambda: torchvision.models.mobilenet_v2(width_mult=1.125), _MOBILENET_V2),
}

_DEEP = "10.9 G are 0.95 of the ordinary network; at alpha .125 the stages of Table 2 leave 0.84, the first two 0.96"
_V1 = "the paper does not say which layers are octave; these are those at 56 x 56 to 14 x 14"
_V2 = _V1 + "; without the first of them it would be 0.256 G"
_V2_WIDE = _V1 + "; with every block octave 0.301 G are left"

# table, network, alpha, multiply-adds in G, parameters in M, note
_IMAGE_ROWS: tuple[tuple[str, str, float, str | None, float | None, str], ...] = (
    ("2", "ResNet-50", 0.0, "4.1", None, ""),
    ("2", "ResNet-50", 0.125, "3.6", None, ""),
    ("2", "ResNet-50", 0.25, "3.1", None, ""),
    ("2", "ResNet-50", 0.5, "2.4", None, ""),
    ("2", "ResNet-50", 0.75, "1.9", None, ""),
    ("4", "ResNet-26", 0.25, None, None, ""),
    ("4", "ResNet-101", 0.25, None, None, ""),
    ("4", "ResNet-200", 0.25, None, None, ""),
    ("4", "SE-ResNet-50", 0.25, None, None, ""),
    ("4", "DenseNet-121", 0.25, None, None, ""),
    ("5", "0.75 MobileNetV1", 0.0, "0.325", 2.6, ""),
    ("5", "0.75 MobileNetV1", 0.375, "0.213", 2.6, _V1),
    ("5", "1.0 MobileNetV1", 0.5, "0.321", 4.2, _V1),
    ("5", "1.0 MobileNetV2", 0.0, "0.300", 3.5, ""),
    ("5", "1.0 MobileNetV2", 0.375, "0.256", 3.5, _V2),
    ("5", "1.125 MobileNetV2", 0.5, "0.295", 4.2, _V2_WIDE),
    ("6", "ResNeXt-50 32x4d", 0.25, "3.2", 25.0, ""),
    ("6", "ResNeXt-50 32x4d", 0.5, "2.4", 25.0, ""),
    ("6", "ResNeXt-101 32x4d", 0.25, "5.7", 44.2, ""),
    ("6", "ResNeXt-101 32x4d", 0.5, "4.0", 44.2, ""),
    ("7", "ResNet-152", 0.125, "10.9", 60.2, _DEEP),
    ("7", "SE-ResNet-152", 0.125, "10.9", 66.8, _DEEP),
)
_ATTENTION = "convolutions only, as 33.3 G must be: the products of the attention are 3.0 G more"
_ATTENTION_OCT = (
    _ATTENTION + "; 28.9 G would take 36 % from the blocks' 1x1x1 convolutions, where alpha .1 can take 14 %"
)
_PIXELS = "56 x 56 maps after the stem, where the paper has 55 x 55"
TABLES = ("2", "4", "5", "6", "7", "8")  # 4 is the paper's Figure 4
# network, builder, alpha, multiply-adds in G, note
_VIDEO_ROWS: tuple[tuple[str, str, float, str, str], ...] = (
    ("C2D", "c2d_r50", 0.0, "19.3", _PIXELS),
    ("C2D", "c2d_r50", 0.1, "17.4", ""),
    ("I3D", "i3d_r50", 0.0, "28.1", _PIXELS),
    ("I3D", "i3d_r50", 0.1, "25.6", ""),
    ("I3D + non-local", "i3d_nl_r50", 0.0, "33.3", _ATTENTION),
    ("I3D + non-local", "i3d_nl_r50", 0.1, "28.9", _ATTENTION_OCT),
)


def paper_rows(tables: Sequence[str] = TABLES) -> list[PaperRow]:
    """Counts the rows of the paper's cost tables: half a minute for all.

    Args:
        tables: some of TABLES.

    Raises:
        UserError: no such table, or timm is not installed.
    """
    for table in tables:
        if table not in TABLES:
            raise UserError(f"table: got {table!r}, expected {', '.join(TABLES)}")
    rows = [_image_row(*row) for row in _IMAGE_ROWS if row[0] in tables]
    for network, builder, alpha, giga, note in _VIDEO_ROWS if "8" in tables else ():
        with torch.device("meta"):
            cost = count_cost(getattr(models, builder)(alpha=alpha), CLIP)
        rows.append(PaperRow("8", network, alpha, giga, None, cost, note))
    _image_network.cache_clear()
    return rows


def _image_row(table: str, network: str, alpha: float, giga: str | None, params: float | None, note: str) -> PaperRow:
    ordinary, shares = _image_network(network), _IMAGE_NETWORKS[network][1]
    converted = ordinary if alpha == 0 else octavize(ordinary, shares(alpha), downsample="pool")
    return PaperRow(table, network, alpha, giga, params, count_cost(converted, IMAGE), note)


@cache
def _image_network(name: str) -> nn.Module:
    with torch.device("meta"):
        return _IMAGE_NETWORKS[name][0]()


# Table 1: alpha -> (multiply-adds, memory) of an octave convolution, in % of the ordinary one's.
TABLE_1: Mapping[float, tuple[int, int]] = {
    0.125: (82, 91), 0.25: (67, 81), 0.5: (44, 63), 0.75: (30, 44), 0.875: (26, 35), 1.0: (25, 25),
}  # fmt: skip
LAYER_HEADER = ("alpha", "paper", "formula", "counted", "memory: paper", "formula", "counted")


def layer_rows() -> list[tuple[str, ...]]:
    """Table 1: the paper's percentages, the closed form, and a count on a layer of 64 channels at 56 x 56."""
    ordinary = count_cost(nn.Conv2d(64, 64, 3, padding=1), (1, 64, 56, 56))
    rows = []
    for alpha, (flops, memory) in TABLE_1.items():
        layer = nn.Sequential(
            OctConv2d(64, 64, 3, padding=1, alpha_in=0, alpha_out=alpha),
            OctConv2d(64, 64, 3, padding=1, alpha_in=alpha, alpha_out=alpha),
        )
        both, first = (count_cost(part, (1, 64, 56, 56)) for part in (layer, layer[:1]))
        counted = (both.multiply_adds - first.multiply_adds) / ordinary.multiply_adds
        stored = (both.activations - first.activations) / ordinary.activations
        formulas = 100 * layer_flop_ratio(alpha), 100 * layer_memory_ratio(alpha)
        cells = (flops, formulas[0], 100 * counted, memory, formulas[1], 100 * stored)
        rows.append((f"{alpha:g}", *(f"{cell:.4g} %" for cell in cells)))
    return rows
