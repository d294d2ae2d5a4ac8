"""The comparisons that octvideo is judged by, as arms and options of tools/benchmark.py."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Preset:
    """A comparison by name.

    Args:
        text: what it compares.
        arms: as on the command line.
        options: of the command line, by name; what is given there has the last word.
        paper: whether the paper's own times are drawn beside ours.
    """

    text: str
    arms: tuple[str, ...]
    options: dict[str, Any] = field(default_factory=dict)
    paper: bool = False


PRESETS = {
    "cpu-eager": Preset(
        "I3D-50 and C2D-50 without a compiler, one clip",
        (
            "i3d_r50:alpha=0/.1/.125/.25/.5", "i3d_r50:alpha=.1/.125,channel_multiple=16",
            "c2d_r50:alpha=0/.1/.125/.25/.5", "c2d_r50:alpha=.1/.125,channel_multiple=16",
        ),
        {"engine": "eager", "rounds": 10},
    ),
    "cpu-training": Preset(
        "forward and backward of I3D-50, two clips, both layouts",
        ("i3d_r50:layout=contiguous/channels_last,alpha=0/.25/.5",),
        {"mode": "training", "batch": 2, "rounds": 7},
    ),
    "cpu-engines": Preset(
        "every engine on I3D-50, against pytorchvideo's own network",
        (
            "pytorchvideo:i3d_r50",
            "i3d_r50:engine=eager/compile/onnx/openvino,alpha=0/.25/.5",
            "i3d_r50:engine=openvino,precision=bf16/int8,alpha=0/.25/.5",  # bf16 is f32 where the CPU has no units
        ),
        {"rounds": 10},
    ),
    "resnet50-table2": Preset(
        "ResNet-50 on one image, against Table 2 of arXiv 1904.05049",
        ("torchvision:resnet50:engine=eager/openvino,alpha=0/.125/.25/.5/.75",),
        {"frames": 1, "classes": 1000, "rounds": 15, "threads": ["1"]},
        paper=True,
    ),
    "gpu-training": Preset(
        "a training step of I3D-50 in bf16, with and without compiling, both layouts",
        ("i3d_r50:engine=eager/compile,layout=contiguous/channels_last,alpha=0/.25/.5",),
        {
            "mode": "training", "precision": "bf16", "batch": 32, "optimizer": "sgd", "device": "cuda", "rounds": 10,
        },
    ),
    "gpu-inference": Preset(
        "30 views of I3D-50 in bf16, with and without compiling, both layouts",
        ("i3d_r50:engine=eager/compile,layout=contiguous/channels_last,alpha=0/.25/.5",),
        {"precision": "bf16", "batch": 30, "crop": 256, "device": "cuda", "rounds": 20},
    ),
}  # fmt: skip

# ResNet-50 on one thread of a Skylake, 224 x 224 (arXiv 1904.05049, Table 2): alpha -> multiply-adds in G (counted
# exactly; the table rounds to 4.1, 3.6, 3.1, 2.4, 1.9) and milliseconds. Alpha 0 was run by MKLDNN (119 ms) and by
# TVM (115 ms), the others by TVM.
PAPER_TABLE_2 = {0.0: (4.089, 115), 0.125: (3.565, 116), 0.25: (3.104, 99), 0.5: (2.367, 74), 0.75: (1.880, 61)}


def paper_points() -> dict[float, tuple[float, float]]:
    """Alpha -> FLOP ratio and time ratio of the paper's Table 2, to TVM's ordinary network."""
    giga, milliseconds = PAPER_TABLE_2[0.0]
    return {alpha: (g / giga, ms / milliseconds) for alpha, (g, ms) in PAPER_TABLE_2.items() if alpha}
