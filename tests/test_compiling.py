"""More networks are compiled in one process than torch compiles variants of one function (8)."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, fx, nn

from octvideo.compiling import compile_module
from octvideo.errors import UserError
from octvideo.inference.engines import build_engine
from octvideo.octave import octavize
from octvideo.training.module import VideoClassifier

MANY = 10
Graphs = list[tuple[torch.Size, ...]]  # sizes of each compiled graph's tensors


class Pooled(nn.Module):
    """Of one class, all with one `forward`: clips to two logits."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.head = nn.Conv3d(3, 4, 1), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.conv(x).relu().mean((2, 3, 4)))


@pytest.fixture
def graphs(monkeypatch: pytest.MonkeyPatch) -> Iterator[Graphs]:
    """Makes torch.compile trace and not generate code, and notes each graph."""
    seen: Graphs = []

    def backend(graph: fx.GraphModule, inputs: list[Any]) -> Callable[..., Any]:
        seen.append(tuple(each.shape for each in inputs if isinstance(each, Tensor)))
        return graph.forward

    compile_ = torch.compile

    def compile_by(function: Any, *, options: Any = None, mode: Any = None, **others: Any) -> Any:
        return compile_(function, backend=backend, **others)

    torch.compiler.reset()
    monkeypatch.setattr(torch, "compile", compile_by)
    yield seen
    torch.compiler.reset()


def test_every_engine_of_a_process_is_compiled_for_its_own_sizes(graphs: Graphs) -> None:
    for number in range(1, MANY + 1):  # as many sizes as engines
        network, clips = Pooled().eval(), torch.randn(number, 3, 2, 4, 4)
        engine = build_engine("compile", network, example_shape=tuple(clips.shape))
        with torch.no_grad():
            torch.testing.assert_close(engine(clips), network(clips))
        assert len(graphs) == number
        assert all(isinstance(size, int) for shape in graphs[-1] for size in shape)  # a SymInt is any size


def test_every_compiled_module_of_a_process_trains_what_was_compiled(graphs: Graphs) -> None:
    clips = torch.randint(0, 256, (2, 3, 2, 4, 4), dtype=torch.uint8)
    for number in range(1, MANY + 1):
        module = VideoClassifier(Pooled(), compile=True)
        for _ in range(2):
            module(clips).sum().backward()
        assert len(graphs) == number
        assert module.network.conv.weight.grad is not None  # type: ignore[union-attr]


def test_a_copy_of_a_compiled_network_computes_with_its_own_weights(graphs: Graphs) -> None:
    network = octavize(nn.Sequential(nn.Conv2d(3, 8, 1), nn.Conv2d(8, 8, 1), nn.Conv2d(8, 2, 1)), 0.5)
    compile_module(network)
    x = torch.randn(1, 3, 4, 4)
    expected = network(x)
    assert len(graphs) == 1
    for other in (copy.deepcopy(network), pickle.loads(pickle.dumps(network))):
        torch.testing.assert_close(other(x), expected)
        for parameter in other.parameters():
            nn.init.zeros_(parameter)
        assert not other(x).any()
    torch.testing.assert_close(network(x), expected)
    assert len(graphs) == 1


def test_what_cannot_be_traced_is_not_said_to_want_a_compiler(graphs: Graphs) -> None:
    class Untraceable(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            y = x.mean((2, 3, 4))
            return y if y.sum() > 0 else -y  # what follows depends on data

    with pytest.raises(UserError, match=r"compile this network here \((Unsupported|UserError): .*eager") as error:
        build_engine("compile", Untraceable(), example_shape=(1, 3, 2, 4, 4))
    assert "C++" not in str(error.value)
