"""The probe that skips tests on fake CUDA tensors."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tests.fake_cuda import why_no_fake_cuda

NO_DRIVER = "Found no NVIDIA driver on your system.\nPlease check"


@pytest.mark.parametrize("name", ["to", "contiguous"])
def test_a_torch_that_asks_for_a_driver_is_found_out(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    original = getattr(torch.Tensor, name)

    def asking(x: torch.Tensor, *args: Any, **options: Any) -> torch.Tensor:
        if x.is_cuda or "cuda" in map(str, args):
            raise RuntimeError(NO_DRIVER)
        return original(x, *args, **options)

    monkeypatch.setattr(torch.Tensor, name, asking)
    words = f"torch {torch.__version__} makes no fake CUDA tensors here: Found no NVIDIA driver on your system."
    assert why_no_fake_cuda() == words


@pytest.mark.skipif(torch.__version__.startswith("2.6."), reason="it may ask for a driver")
def test_no_other_torch_does() -> None:
    """Else the tests on fake CUDA tensors would be skipped everywhere, and nobody would see it."""
    assert why_no_fake_cuda() is None
