"""Tests on fake tensors of a GPU that need not be there, and where torch can't make them."""

from __future__ import annotations

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode


def why_no_fake_cuda() -> str | None:
    """Why torch makes no fake CUDA tensors here, or None: torch 2.6, built for CUDA, asks for a driver to do so."""
    try:
        with FakeTensorMode():
            torch.empty(1, 2, 3, 4, 4).to("cuda").contiguous(memory_format=torch.channels_last_3d)
    except (RuntimeError, AssertionError) as error:
        return f"torch {torch.__version__} makes no fake CUDA tensors here: {str(error).splitlines()[0]}"
    return None


_problem = why_no_fake_cuda()
needs_fake_cuda = pytest.mark.skipif(_problem is not None, reason=_problem or "")
