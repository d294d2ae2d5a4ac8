"""oneDNN's fused convolution: a residual is added, and a ReLU applied, while the result is written.

torch.ops.mkldnn has it, the operations that inductor's CPU code calls. It serves where the kernel does not: in
precisions that the kernel has not here, for octave layers in groups, for 1x3x3 ones on AVX2, and without a compiler.
"""

from __future__ import annotations

import functools
from typing import Any, Literal

import torch
from torch import Tensor

from octvideo.octave.kernel.layout import fold_frames, fold_space, is_channels_last, unfold_frames, unfold_space


class OneDnnConv:
    """relu(conv(x) + residual) of channels-last images and clips, of which ReLU and residual are optional.

    Args:
        kernel, stride, padding, dilation: one int for each axis.
        groups: as in nn.Conv3d.

    Attributes:
        has_form: whether a two-dimensional convolution computes it.
        packed: a size of maps, and the weight in the order for it.
    """

    def __init__(
        self,
        kernel: tuple[int, ...],
        stride: tuple[int, ...],
        padding: tuple[int, ...],
        dilation: tuple[int, ...],
        groups: int,
    ) -> None:
        # oneDNN's is two-dimensional: over images, over a clip's frames, or over its pixels along time.
        self._plane: Literal["images", "frames", "lines"] | None = None
        if len(kernel) == 2:
            self._plane = "images"
        elif len(kernel) == 3 and (kernel[0], stride[0], padding[0]) == (1, 1, 0):
            self._plane = "frames"
        elif len(kernel) == 3 and kernel[1:] == stride[1:] == (1, 1) and padding[1:] == (0, 0):
            self._plane = "lines"
        self.has_form = self._plane is not None
        axes = slice(1, 3) if self._plane == "frames" else slice(0, 2)
        self._sizes = [list(size[axes]) for size in (padding, stride, dilation)]
        self._groups = groups
        self.packed: tuple[torch.Size, Tensor] | None = None

    def run(
        self, x: Tensor, weight: Tensor, bias: Tensor | None, residual: Tensor | None, *, relu: bool, clips: int
    ) -> Tensor:
        """Convolve images, or the frames of clips: (N·T, C_in, H, W) to (N·T', C_out, H', W').

        Args:
            x: channels last.
            weight: (C_out, C_in / groups, [kT,] kH, kW), the same in every call until `forget`.
            bias: (C_out,) or None.
            residual: of the result's shape and precision, or None; it is overwritten with the result.
            relu: apply a ReLU.
            clips: N.
        """
        if self._plane != "lines":
            return self._run(x, weight, bias, residual, relu)
        lines = [None if map is None else fold_space(unfold_frames(map, clips)) for map in (x, residual)]
        y = self._run(lines[0], weight, bias, lines[1], relu)  # type: ignore[arg-type]  # (N, C_out, T', H·W)
        return fold_frames(unfold_space(y, x.shape[2:]))

    def forget(self) -> None:
        """Pack the weight anew in the next call."""
        self.packed = None

    def _run(self, x: Tensor, weight: Tensor, bias: Tensor | None, residual: Tensor | None, relu: bool) -> Tensor:
        """Of images (N, C, H, W)."""
        if self.packed is None or self.packed[0] != x.shape:
            # The order depends on the map's size. A weight in another one is sorted anew in every call.
            plane = weight if self._plane == "images" else weight.squeeze(2 if self._plane == "frames" else 4)
            sizes = (*self._sizes, self._groups, list(x.shape))
            self.packed = x.shape, torch.ops.mkldnn._reorder_convolution_weight(plane, *sizes)
        conv: tuple[Any, ...] = (self.packed[1], bias, *self._sizes, self._groups)
        if residual is None:
            return torch.ops.mkldnn._convolution_pointwise(x, *conv, "relu" if relu else "none", [], "")
        total = residual.contiguous(memory_format=torch.channels_last)
        sums: tuple[Any, ...] = ("add", 1.0, "relu" if relu else None, [], "")
        torch.ops.mkldnn._convolution_pointwise_.binary(total, x, *conv, *sums)
        return total

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "packed": None}  # oneDNN's tensors neither copy nor pickle


def onednn_reads(x: Tensor) -> bool:
    """Whether oneDNN's convolutions can read a map, images or clips, in its layout and precision, now."""
    if torch.compiler.is_compiling() or torch.is_grad_enabled():
        return False
    return is_channels_last(x) and _is_available(x.dtype)


@functools.cache
def _is_available(dtype: torch.dtype) -> bool:
    """Whether this torch and this CPU have the operations in `dtype`, and they give what they should."""
    ops, x = torch.ops.mkldnn, torch.ones(1, 8, 4, 4, dtype=dtype).contiguous(memory_format=torch.channels_last)
    kernel = torch.ones(8, 8, 1, 1, dtype=dtype)
    try:
        weight = ops._reorder_convolution_weight(kernel, [0, 0], [1, 1], [1, 1], 1, [1, 8, 4, 4])
        sizes: tuple[Any, ...] = (None, [0, 0], [1, 1], [1, 1], 1)
        y = ops._convolution_pointwise(x, weight, *sizes, "relu", [], "")
        ops._convolution_pointwise_.binary(y, x, weight, *sizes, "add", 1.0, "relu", [], "")
    except (AttributeError, RuntimeError, TypeError):
        return False
    return bool((y == 16).all())
