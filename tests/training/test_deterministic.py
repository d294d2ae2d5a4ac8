"""`--trainer.deterministic true`: a training step without operations whose gradient is not deterministic on CUDA."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from octvideo.models import i3d_nl_small
from octvideo.models.layers import ClipHead
from octvideo.octave import fuse_training
from octvideo.octave.kernel.layout import forms_of
from octvideo.training import VideoClassifier
from octvideo.training.steps import deterministic_pools

# Of those that torch.use_deterministic_algorithms lists, what networks of clips may run. That of max_pool3d is an error
# with torch 2.6.
_FORBIDDEN = ("avg_pool3d_backward", "max_pool3d_with_indices_backward", "_adaptive_avg_pool3d_backward")


class Seen(TorchDispatchMode):
    """Names of the operations that run."""

    def __init__(self) -> None:
        super().__init__()
        self.names: set[str] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.names.add(func.overloadpacket.__name__)
        return func(*args, **(kwargs or {}))


@pytest.fixture
def deterministic() -> Iterator[None]:
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


def step(device: str = "cpu", *, fuse: bool = False) -> tuple[list[Tensor], set[str]]:
    """Gradients, and the operations that ran. The head's window is smaller than the map, as with large crops."""
    torch.manual_seed(0)
    network = i3d_nl_small(num_classes=3, width=8, alpha=0.25, dropout=0.0)
    (head,) = (module for module in network.modules() if isinstance(module, ClipHead))
    head.pool_kernel = (2, 1, 2)
    if fuse:
        fuse_training(network)
    module = VideoClassifier(network).to(device)
    clips = torch.randint(0, 256, (1, 3, 8, 64, 64), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    with Seen() as seen:
        module(clips.to(device)).square().sum().backward()
    return [p.grad for p in module.network.parameters() if p.grad is not None], seen.names


def test_no_operation_without_a_deterministic_gradient(deterministic: None) -> None:
    _, names_then = step()
    torch.use_deterministic_algorithms(False)
    _, names = step()
    assert not names_then & set(_FORBIDDEN)
    torch.use_deterministic_algorithms(True)
    with forms_of("cuda"):
        _, names_of_fused = step(fuse=True)
    torch.use_deterministic_algorithms(False)
    assert not names_of_fused & set(_FORBIDDEN)
    assert {"avg_pool3d_backward", "max_pool3d_with_indices_backward"} <= names


@pytest.mark.gpu
def test_it_trains_alike_on_a_gpu(deterministic: None) -> None:
    first, second = (step("cuda")[0] for _ in range(2))
    assert all(map(torch.equal, first, second))


@pytest.mark.parametrize(
    "pool",
    [
        lambda x: F.avg_pool3d(x, (2, 3, 3), stride=1),
        lambda x: F.avg_pool3d(x, 2),
        lambda x: F.avg_pool3d(x, 3, 2, 1),  # padded: torch's own
        lambda x: F.max_pool3d(x, (1, 3, 3), stride=(1, 2, 2), padding=(0, 1, 1)),
        lambda x: F.max_pool3d(x, (2, 1, 1), stride=(2, 1, 1)),
        lambda x: F.max_pool3d(x, 2),
        lambda x: F.max_pool3d(x, 2, ceil_mode=True),
        lambda x: F.max_pool3d(x, (1, 2, 2), ceil_mode=True),
        nn.MaxPool3d((1, 2, 2)),
    ],
)
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last_3d])
def test_pools_and_gradients_are_torchs(
    pool: Callable[[Tensor], Tensor], layout: torch.memory_format, deterministic: None
) -> None:
    x = torch.randn(2, 3, 5, 8, 7).contiguous(memory_format=layout)
    results = []
    for own in (False, True):
        leaf = x.clone().requires_grad_()
        torch.use_deterministic_algorithms(own)
        with deterministic_pools():
            y = pool(leaf)
        y.square().sum().backward()
        results.append((y, leaf.grad))
    torch.testing.assert_close(results[0], results[1])
