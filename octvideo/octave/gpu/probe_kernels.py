"""The smallest Triton kernel: whether any can be compiled and launched here."""

from __future__ import annotations

import torch
import triton
import triton.language as tl


@triton.jit
def _fill(out, SIZE: tl.constexpr):
    tl.store(out + tl.arange(0, SIZE), tl.arange(0, SIZE))


def counts(device: torch.device) -> list[int]:
    """0 to 15, made on the device.

    Raises:
        Exception: of many kinds, where Triton finds no compiler, no driver, or a GPU that it does not know.
    """
    out = torch.empty(16, dtype=torch.int32, device=device)
    with torch.cuda.device(device):
        _fill[(1,)](out, 16)
    return out.tolist()
