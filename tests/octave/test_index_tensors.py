"""Index tensors: a forward makes none, and nothing that is done to a module loses them."""

from __future__ import annotations

import copy
import io
import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from octvideo.octave import OctBatchNorm2d, OctConv2d, Partition, octavize
from octvideo.octave.conversion.modules import OctMerge, OctTake
from tests.fake_cuda import needs_fake_cuda


class CopiesToGpu(TorchDispatchMode):
    """Counts operations that read a tensor of the CPU and give one of CUDA."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        devices = {x.device.type for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)}
        self.count += "cpu" in devices and any(
            isinstance(x, Tensor) and x.device.type == "cuda" for x in tree_leaves(result)
        )
        return result


def copies_in(network: nn.Module, x: Any) -> int:
    with CopiesToGpu() as copies:
        network(x)
    return copies.count


def resnext_ordinary() -> nn.Module:
    from torchvision.models.resnet import Bottleneck, ResNet

    return ResNet(Bottleneck, [1, 1, 1, 1], groups=32, width_per_group=4)


def resnext() -> nn.Module:
    return octavize(resnext_ordinary(), 0.25)


def densenet() -> nn.Module:
    from torchvision.models import DenseNet

    return octavize(DenseNet(8, (2, 2), 16), 0.25)


def shufflenet() -> nn.Module:
    from torchvision.models import ShuffleNetV2

    return octavize(ShuffleNetV2([1, 1, 1], [24, 48, 96, 192, 256]), 0.25)


def slowfast() -> nn.Module:
    from octvideo.models import slowfast_small

    return slowfast_small(num_classes=5, alpha=0.25, width=16)


def x3d() -> nn.Module:
    from octvideo.models import video_network

    return video_network("pytorchvideo:x3d_xs", num_classes=5, alpha=0.25)


IMAGE, CLIP = (2, 3, 64, 64), (2, 3, 8, 64, 64)
NETWORKS = [
    (shufflenet, IMAGE),  # the quickest; it has halves, groups and strides
    pytest.param(resnext, IMAGE, marks=pytest.mark.slow),
    pytest.param(densenet, IMAGE, marks=pytest.mark.slow),
    pytest.param(slowfast, CLIP, marks=pytest.mark.slow),
    pytest.param(x3d, CLIP, marks=pytest.mark.slow),
]


@needs_fake_cuda
@pytest.mark.parametrize(("build", "shape"), NETWORKS, ids=lambda value: getattr(value, "__name__", ""))
def test_a_forward_on_a_gpu_copies_nothing_from_the_host(
    build: Callable[[], nn.Module], shape: tuple[int, ...]
) -> None:
    network = build()
    with FakeTensorMode(allow_non_fake_inputs=True):  # of a GPU that need not be there
        network.to("cuda")
        x = torch.empty(shape, device="cuda")
        for training in (True, False):
            assert copies_in(network.train(training), x) == 0, f"training: {training}"


PARTITION = Partition.of(16, 0.5, groups=2)
SHUFFLED = [4 * (n % 4) + n // 4 for n in range(16)]


def shuffled() -> nn.Module:
    """Every kind of module that takes channels out of order."""
    take = OctTake(PARTITION, SHUFFLED)
    torch.manual_seed(0)
    return nn.Sequential(
        OctConv2d(8, 16, 3, padding=1, groups=2, alpha_in=0, alpha_out=PARTITION),
        OctBatchNorm2d(16, alpha=PARTITION),
        take,
        OctMerge(take.part),
    )


X = torch.randn(2, 8, 6, 6, generator=torch.Generator().manual_seed(0))


def held(network: nn.Module) -> list[Tensor]:
    """Index tensors of all modules."""
    return [
        value
        for module in network.modules()
        for name, value in vars(module).items()
        if name.startswith("_index_") and isinstance(value, Tensor)
    ]


def test_index_tensors_are_no_state() -> None:
    network, ordinary = shuffled(), nn.Sequential(nn.Conv2d(8, 16, 3, groups=2), nn.BatchNorm2d(16))
    assert len(held(network)) >= 6
    assert list(network.state_dict()) == list(ordinary.state_dict())
    assert [name for name, _ in network.named_buffers()] == [name for name, _ in ordinary.named_buffers()]


def emptied(network: nn.Module) -> nn.Module:
    """From "meta", where a network has no values, and its weights are read into memory that nobody has filled."""
    moved = copy.deepcopy(network).to("meta").to_empty(device="cpu")
    moved.load_state_dict(network.state_dict())
    return moved


def assigned(network: nn.Module) -> nn.Module:
    """From "meta" by a state_dict alone: what is in none stays there."""
    moved = copy.deepcopy(network).to("meta")
    moved.load_state_dict(network.state_dict(), assign=True)
    return moved


def pickled(network: nn.Module) -> nn.Module:
    file = io.BytesIO()
    torch.save(network, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


@pytest.mark.parametrize("change", [copy.deepcopy, emptied, assigned, pickled], ids=lambda change: change.__name__)
def test_index_tensors_survive(change: Callable[[nn.Module], nn.Module]) -> None:
    network = shuffled().eval()
    changed = change(network).eval()
    assert torch.equal(changed(X), network(X))
    assert {index.device.type for index in held(changed)} == {"cpu"}  # held from now on


def test_index_tensors_move_with_the_network() -> None:
    network = shuffled().eval().to("meta")
    assert {index.device.type for index in held(network)} == {"meta"}
    assert network(X.to("meta")).shape == (2, 16, 6, 6)


def test_operations_of_a_converted_network_are_on_its_device() -> None:
    network = octavize(resnext_ordinary().to("meta"), 0.25)
    assert held(network) and {index.device.type for index in held(network)} == {"meta"}


def test_channels_chosen_anew_replace_the_tensors() -> None:
    layer = OctConv2d(8, 16, 1, groups=2, alpha_in=0, alpha_out=PARTITION)
    assert held(layer)
    layer.set_octave(0, 0)
    assert not held(layer)
    assert layer(X).shape == (2, 16, 6, 6)


def test_a_first_call_in_inference_mode_does_not_keep_the_next_from_training() -> None:
    network = assigned(shuffled())
    with torch.inference_mode():
        network(X)
    clip = X.clone().requires_grad_()
    network(clip).sum().backward()
    assert clip.grad is not None and clip.grad.any()


def test_threads_share_a_network() -> None:
    network = assigned(shuffled()).eval()
    expected, results = shuffled().eval()(X), []

    def call() -> None:
        with torch.inference_mode():
            results.append(network(X))

    threads = [threading.Thread(target=call) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(results) == 4 and all(torch.equal(result, expected) for result in results)


def test_a_compiled_network_makes_no_index_tensor_in_its_graph() -> None:
    graphs: list[torch.fx.GraphModule] = []

    def keep(graph: torch.fx.GraphModule, inputs: Any) -> Any:
        graphs.append(graph)
        return graph.forward

    network = shuffled().eval()
    expected = network(X)
    torch._dynamo.reset()
    assert torch.equal(torch.compile(network, backend=keep, fullgraph=True)(X), expected)
    (graph,) = graphs
    assert not [node for node in graph.graph.nodes if node.target in (torch.tensor, torch.as_tensor)]
    torch._dynamo.reset()
    assert torch.equal(torch.compile(network, backend="aot_eager", fullgraph=True)(X), expected)


@pytest.mark.parametrize("strict", [False, True])
def test_an_exported_network_holds_them(strict: bool) -> None:
    if strict and torch.__version__.startswith("2.6"):
        pytest.skip("strict export in torch 2.6 takes no class attributes, so no bare octave layers")
    network = shuffled().eval()
    program = torch.export.export(network, (X,), strict=strict)
    assert torch.equal(program.module()(X), network(X))
    assert set(program.state_dict) <= set(network.state_dict())
    assert not [node for node in program.graph.nodes if "lift_fresh" in str(node.target)]
    assert {type(index) for index in held(network)} == {Tensor}  # none of the trace
    assert torch.equal(network(X), program.module()(X))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_a_network_moved_to_a_gpu_gives_the_same() -> None:
    network = shuffled().eval()
    expected = network(X)
    network.cuda()
    x = X.cuda()
    network(x)  # cuDNN may wait in its first call
    torch.cuda.set_sync_debug_mode("error")
    try:
        assert copies_in(network, x) == 0
    finally:
        torch.cuda.set_sync_debug_mode("default")
    torch.testing.assert_close(network(X.cuda()).cpu(), expected, rtol=1e-2, atol=1e-2)
