"""The ordinary convolutions that octave ones are made of: their classes, their weight, their padding."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor, fx, nn

CONVS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)


def is_conv(module: nn.Module | None) -> bool:
    """Whether a module computes what nn.Conv1d, 2d or 3d does; torchvision's video networks subclass them."""
    return isinstance(module, CONVS) and type(module).forward in {conv.forward for conv in CONVS}


@dataclass(frozen=True)
class ConvForm:
    """How a convolution differs from torch's.

    Args:
        make_weight: from the tensors named `reads`, in that order; None where the parameter is the weight.
        reads: names of parameters and buffers.
        is_same: it pads by TensorFlow's rule, see `pad_same`.
    """

    make_weight: fx.GraphModule | None = None
    reads: tuple[str, ...] = ()
    is_same: bool = False

    def weight(self, conv: nn.Module) -> Tensor:
        """The weight that `conv` convolves with."""
        if self.make_weight is None:
            return conv.weight  # type: ignore[return-value]
        return self.make_weight(*[operator.attrgetter(name)(conv) for name in self.reads])


ORDINARY = ConvForm()


def pad_same(x: Tensor, kernel: Sequence[int], stride: Sequence[int], dilation: Sequence[int]) -> Tensor:
    """`x` with zeros around it by TensorFlow's rule "SAME", for which the result has ceil(size / stride) pixels.

    On maps of even size a kernel of three with stride 2 gets one zero after each axis, and none before it.
    """
    pads: list[int] = []
    for n, k, s, d in zip(x.shape[2:], kernel, stride, dilation, strict=True):
        total = max(((n + s - 1) // s - 1) * s + (k - 1) * d + 1 - n, 0)
        pads = [total // 2, total - total // 2, *pads]
    return F.pad(x, pads)
