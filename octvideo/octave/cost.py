"""What a network costs: multiply-adds, parameters and activation memory, in closed form and counted.

Multiply-adds are those of convolutions and matrix products (what papers call FLOPs), counted by torch's own
FlopCounterMode on meta tensors, so no arithmetic is done and any size is instant.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from octvideo.octave.features import Octave

# Products of two computed values; weights come in as convolutions and addmm.
_ATTENTION = (
    torch.ops.aten.bmm, torch.ops.aten.baddbmm,
    torch.ops.aten._scaled_dot_product_flash_attention, torch.ops.aten._scaled_dot_product_efficient_attention,
)  # fmt: skip


@dataclass(frozen=True)
class Cost:
    """The cost of one forward pass.

    Args:
        multiply_adds: of convolutions and matrix products.
        parameters: learnt values.
        activations: elements that convolutions write (the memory of the paper's Table 1 is theirs).
        convolutions: of the multiply-adds, those of convolutions and classifiers: without attention's products,
            which some papers leave out.
    """

    multiply_adds: int
    parameters: int
    activations: int
    convolutions: int

    def __str__(self) -> str:
        return (
            f"{self.multiply_adds / 1e9:.2f} G multiply-adds, {self.parameters / 1e6:.2f} M parameters, "
            f"{self.activations / 1e6:.1f} M activations"
        )


def layer_flop_ratio(alpha: float) -> float:
    """Multiply-adds of an octave convolution (alpha in = alpha out) over the ordinary one's.

    1 - 3/4 alpha (2 - alpha), Table 1 of arXiv 1904.05049.
    """
    return 1 - 0.75 * alpha * (2 - alpha)


def layer_memory_ratio(alpha: float) -> float:
    """Memory of an octave map over the ordinary one's: 1 - 3/4 alpha (Table 1 of arXiv 1904.05049)."""
    return 1 - 0.75 * alpha


def count_cost(model: nn.Module, input_shape: Sequence[int] | Sequence[Sequence[int]]) -> Cost:
    """Count one evaluation forward pass of `model` on a Tensor of `input_shape`, batch included.

    Args:
        model: any network of one input; not changed.
        input_shape: for instance (1, 3, 8, 224, 224); several shapes for a network that takes a list.
    """
    model = copy.deepcopy(model).to("meta").eval()
    written = 0

    def add_output(module: nn.Module, args: Any, output: Tensor | Octave) -> None:
        nonlocal written
        written += sum(part.numel() for part in (output if isinstance(output, Octave) else (output,)))

    for module in model.modules():
        if isinstance(module, nn.modules.conv._ConvNd):
            module.register_forward_hook(add_output)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model(_zeros(input_shape))
    # torch counts a multiply-add as two operations.
    attention = sum(counter.get_flop_counts()["Global"].get(op, 0) for op in _ATTENTION)
    total, parameters = counter.get_total_flops() // 2, sum(p.numel() for p in model.parameters())
    return Cost(total, parameters, written, total - attention // 2)


def _zeros(shape: Any) -> Tensor | list[Tensor]:
    if isinstance(shape[0], int):
        return torch.zeros(*shape, device="meta")
    return [torch.zeros(*each, device="meta") for each in shape]
