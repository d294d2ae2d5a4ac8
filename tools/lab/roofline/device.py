"""Kernels, what they move and multiply, and how long that takes on a device."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal, get_args

Kind = Literal["convolution", "matrix product", "normalisation", "pooling", "upsampling, addition", "copy", "other"]
KINDS: tuple[Kind, ...] = get_args(Kind)
Phase = Literal["forward", "backward", "optimizer"]
Precision = Literal["f32", "bf16", "f16"]


@dataclass(frozen=True)
class Product:
    """The matrix product that a convolution or a product is: (rows, depth) by (depth, columns).

    Args:
        rows: of a convolution's result: its pixels. Of a weight's gradient: output channels.
        columns: output channels; of a weight's gradient: input channels times taps.
        depth: what is summed over.
        copies: of this product: groups, batches.
        half: whether in 16 bits, else float32.
    """

    rows: int
    columns: int
    depth: int
    copies: int = 1
    half: bool = True

    @property
    def flops(self) -> int:
        """Two for a multiply-add."""
        return 2 * self.rows * self.columns * self.depth * self.copies


@dataclass(frozen=True)
class Kernel:
    """One launch.

    Args:
        name: of the operation, for lists of the largest.
        kind: what it is counted as.
        bytes: that it reads and writes.
        phase: of the step.
        product: if it multiplies.
        shape: of its largest tensor, for lists of the largest.
    """

    name: str
    kind: Kind
    bytes: int
    phase: Phase
    product: Product | None = None
    shape: tuple[int, ...] = ()


@dataclass(frozen=True)
class Device:
    """What a GPU does in a second, as large operations of torch reach it (not the data sheet's peak).

    Args:
        bandwidth: bytes that a copy reads and writes.
        half_rate, float_rate: FLOPs of matrix products in bf16 or fp16, and of float32 ones (TF32 where torch uses it).
        launch: seconds between two kernels that are too short to hide it.
        tile: channels that a product's tile is wide; thinner sides are filled up with zeros.
        processors: multiprocessors, which inductor asks for.
        capability: CUDA's, which inductor asks for.
        source: of the numbers.
    """

    bandwidth: float
    half_rate: float
    float_rate: float
    launch: float
    tile: int = 32
    processors: int = 132
    capability: tuple[int, int] = (9, 0)
    source: str = ""

    def seconds(self, kernel: Kernel) -> float:
        """How long one kernel takes."""
        moving = kernel.bytes / self.bandwidth
        multiplying = 0.0
        if kernel.product is not None:
            product = kernel.product
            rate = self.half_rate if product.half else self.float_rate
            multiplying = product.flops / self.efficiency(product) / rate
        return max(moving, multiplying) + self.launch

    def efficiency(self, product: Product) -> float:
        """The share of a product's tiles that is no padding: the sum goes in steps of 16, the columns in tiles."""
        useful = product.columns * product.depth
        return useful / (_up(product.columns, self.tile) * _up(product.depth, 16))

    def total(self, kernels: Iterable[Kernel]) -> float:
        """Seconds of all."""
        return sum(map(self.seconds, kernels))


def _up(size: int, multiple: int) -> int:
    return -(-size // multiple) * multiple


# Rates of dense products: about 80 % of the data sheet's peak, copies: about 90 % of its bandwidth, as large ones reach
# them. The launch is that of a stream that the host keeps full: kernels of one stream start one after another.
_LAUNCH = 2e-6
DEVICES: dict[str, Device] = {
    "h200": Device(
        4.3e12, 780e12, 390e12, _LAUNCH, source="NVIDIA H200 SXM data sheet: 4.8 TB/s, 989 T bf16, 494 T TF32",
    ),
    "h100": Device(
        3.0e12, 780e12, 390e12, _LAUNCH, source="NVIDIA H100 SXM data sheet: 3.35 TB/s, 989 T bf16, 494 T TF32",
    ),
    "a100": Device(
        1.8e12, 250e12, 125e12, _LAUNCH, processors=108, capability=(8, 0),
        source="NVIDIA A100 80 GB SXM data sheet: 2.04 TB/s, 312 T bf16, 156 T TF32",
    ),
    "l4": Device(
        0.27e12, 97e12, 48e12, _LAUNCH, processors=58, capability=(8, 9),
        source="NVIDIA L4 data sheet: 300 GB/s, 121 T bf16 and 60 T TF32 without sparsity",
    ),
    "rtx4090": Device(
        0.9e12, 132e12, 66e12, _LAUNCH, processors=128, capability=(8, 9),
        source="NVIDIA Ada GPU architecture paper, appendix A: 1008 GB/s, 165 T bf16 (float32 sums), 82.6 T TF32",
    ),
}  # fmt: skip
