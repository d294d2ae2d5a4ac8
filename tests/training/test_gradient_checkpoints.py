"""Gradients, statistics and dropout with gradient checkpoints are those without, in less memory."""

from __future__ import annotations

import contextlib
import copy
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import torchvision
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from octvideo import models
from octvideo.errors import UserError
from octvideo.octave import octavize
from octvideo.training import VideoClassifier
from octvideo.training.gradient_checkpoints import GradientCheckpoints


class Block(nn.Module):
    """What may differ in a second pass: dropout, and norms that count."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv3d(8, 8, 3, padding=1), nn.BatchNorm3d(8, momentum=None)
        self.dropout = nn.Dropout(0.5)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.dropout(self.norm(self.conv(x)).relu())


class Dropped(nn.Module):
    def __init__(self, blocks: int = 3) -> None:
        super().__init__()
        self.stem, self.blocks = nn.Conv3d(3, 8, 1), nn.Sequential(*(Block() for _ in range(blocks)))
        self.head = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.blocks(self.stem(x)).mean((2, 3, 4)))


def step(network: nn.Module, run: Callable[[Any], Tensor], x: Any) -> dict[str, Tensor]:
    """Gradients and buffers after two batches."""
    torch.manual_seed(3)
    for _ in range(2):
        run(x).square().sum().backward()
    gradients = {f"gradient of {name}": p.grad for name, p in network.named_parameters() if p.grad is not None}
    return gradients | dict(network.named_buffers())


@pytest.mark.parametrize(
    ("build", "shape"),
    [
        (Dropped, (2, 3, 2, 8, 8)),
        (lambda: octavize(Dropped(), 0.5), (2, 3, 2, 8, 8)),
        (lambda: models.i3d_small(5, 0.25, width=8), (2, 3, 4, 32, 32)),
        pytest.param(lambda: models.slowfast_small(5, 0.25), (2, 3, 16, 32, 32), marks=pytest.mark.slow),
        pytest.param(lambda: models.x3d_xs(5, 0.25), (2, 3, 4, 64, 64), marks=pytest.mark.slow),
        pytest.param(lambda: models.i3d_nl_small(5, 0.0), (2, 3, 4, 32, 32), marks=pytest.mark.slow),
        pytest.param(lambda: torchvision.models.video.r3d_18(num_classes=5), (2, 3, 4, 32, 32), marks=pytest.mark.slow),
    ],
    ids=["dropout", "octave dropout", "i3d", "slowfast", "x3d", "non-local", "r3d_18"],
)
def test_gradients_and_statistics_are_equal_bit_for_bit(
    build: Callable[[], nn.Module], shape: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    plain = build().train()
    network, x = copy.deepcopy(plain), torch.randn(shape)
    kept = GradientCheckpoints(network)
    expected, found = step(plain, plain, x), step(network, kept, x)
    assert expected.keys() == found.keys() and any("tracked" in name for name in found)
    assert [name for name, value in expected.items() if not torch.equal(value, found[name])] == []
    # Nothing is left behind, and where there are no gradients nothing is done.
    assert not any("forward" in vars(module) for module in network.modules())
    network.eval(), plain.eval()
    monkeypatch.setattr("octvideo.training.gradient_checkpoints.checkpoint", None)
    with torch.no_grad():
        assert torch.equal(kept(x), plain(x))


class Doubles(TorchFunctionMode):
    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        y = function(*args, **(kwargs or {}))
        return 2 * y if function is torch.conv3d else y


@pytest.mark.parametrize("build", [Dropped, lambda: octavize(Dropped(), 0.5)], ids=["modules", "graph"])
def test_blocks_are_computed_again_in_the_networks_modes(build: Callable[[], nn.Module]) -> None:
    """As synchronised norms are one."""
    plain, x = build().train(), torch.randn(2, 3, 2, 8, 8)
    network = copy.deepcopy(plain)

    def with_mode(x: Tensor) -> Tensor:
        with Doubles():
            return plain(x)

    def kept(x: Tensor) -> Tensor:
        with Doubles():
            return GradientCheckpoints(network)(x, modes=Doubles)

    expected, found = step(plain, with_mode, x), step(network, kept, x)
    assert [name for name, value in expected.items() if not torch.equal(value, found[name])] == []


class Live(TorchDispatchMode):
    """Counts the bytes of all storages that operations make and something holds."""

    def __init__(self) -> None:
        super().__init__()
        self.held = weakref.WeakKeyDictionary[Any, int]()

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = function(*args, **(kwargs or {}))
        for tensor in tree_leaves(made):
            if isinstance(tensor, Tensor):
                storage = tensor.untyped_storage()
                self.held[storage] = storage.nbytes()
        return made

    @property
    def bytes(self) -> int:
        return sum(self.held.values())


@pytest.mark.parametrize("build", [lambda: Dropped(8), lambda: octavize(Dropped(8), 0.5)], ids=["modules", "graph"])
def test_what_the_forward_pass_keeps_is_less(build: Callable[[], nn.Module]) -> None:
    """Of each block its input, and not what its three layers, its ReLU and its dropout keep beside."""
    network, x = build().train(), torch.randn(2, 3, 4, 16, 16)
    kept = []
    for run in (network, GradientCheckpoints(network)):
        with Live() as live:
            y = run(x)
            kept.append(live.bytes)
        y.sum().backward()
        del y
    assert kept[1] < 0.45 * kept[0], kept


def test_the_module_runs_with_them(monkeypatch: pytest.MonkeyPatch) -> None:
    module = VideoClassifier(models.i3d_small(5, 0.25, width=8), checkpoint_gradients=True, channels_last=True).train()
    again: list[bool] = []

    @contextlib.contextmanager
    def modes(self: Any, x: Tensor) -> Iterator[None]:
        again.append(torch.is_grad_enabled())
        yield

    monkeypatch.setattr(VideoClassifier, "_modes", modes)
    module(torch.randint(0, 256, (2, 3, 4, 32, 32), dtype=torch.uint8)).sum().backward()
    assert len(again) == 1 + 9  # the network, and its blocks


def test_what_can_not_be_checkpointed_is_said() -> None:
    with pytest.raises(UserError, match="the network Sequential has no blocks: expected lists of them"):
        GradientCheckpoints(nn.Sequential(nn.Conv3d(3, 4, 1), nn.Flatten(), nn.Linear(4, 5)))
    with pytest.raises(UserError, match=r"checkpoint_gradients works on networks that are not compiled: leave"):
        VideoClassifier(models.i3d_small(5, width=8), checkpoint_gradients=True, compile=True)
