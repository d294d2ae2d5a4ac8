"""Networks whose norms are fused with what surrounds them, against the same networks as they were."""

from __future__ import annotations

import contextlib
import copy
import functools
import operator
import pickle
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import torchvision
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from octvideo.models import c2d_small, i3d_r50, i3d_small, slowfast_small
from octvideo.octave import fuse_training, octavize, prepare_inference, unfuse
from octvideo.octave.fused import training
from octvideo.octave.gpu import norm, weight_blocks
from octvideo.octave.kernel.layout import forms_of


def resnet(alpha: float, **options: Any) -> nn.Module:
    ordinary = torchvision.models.ResNet(torchvision.models.resnet.BasicBlock, [2, 1, 1, 1], num_classes=4)
    return octavize(ordinary, alpha, downsample="pool", **options)


CASES: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    **{f"i3d {a}": (functools.partial(i3d_small, 4, alpha=a, width=8), (2, 3, 4, 35, 41)) for a in (0.0, 0.1, 0.5)},
    "i3d .25 even": (functools.partial(i3d_small, 4, alpha=0.25, width=8), (2, 3, 4, 32, 32)),
    "i3d 1": (functools.partial(i3d_small, 4, alpha=1.0, width=8), (2, 3, 4, 35, 41)),
    "i3d strides": (functools.partial(i3d_small, 4, alpha=0.5, width=8, octave={"octave_downsample": "stride"}),
                    (2, 3, 4, 35, 41)),
    "i3d keeps strides": (functools.partial(i3d_small, 4, alpha=0.5, width=8, octave={"octave_downsample": "keep"}),
                          (2, 3, 4, 35, 41)),
    "c2d .25": (functools.partial(c2d_small, 4, alpha=0.25, width=8), (2, 3, 2, 33, 32)),
    "slowfast .25": (functools.partial(slowfast_small, 4, alpha=0.25), (2, 3, 8, 33, 35)),
    "resnet .25": (functools.partial(resnet, 0.25), (2, 3, 67, 51)),
    "resnet to high": (functools.partial(resnet, 0.5, exchange="low_to_high"), (2, 3, 33, 33)),
    "resnet to low": (functools.partial(resnet, 0.5, exchange="high_to_low"), (2, 3, 33, 33)),
}  # fmt: skip


def made(case: str) -> tuple[nn.Module, Tensor]:
    """A network in float64, whose norms do something, and maps for it."""
    torch.manual_seed(0)
    build, shape = CASES[case]
    network = build().double().train()
    for module in network.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.uniform_(module.bias, -0.3, 0.3)
    return network, last(torch.randn(shape, dtype=torch.float64))


def last(x: Tensor) -> Tensor:
    return x.to(memory_format=torch.channels_last_3d if x.dim() == 5 else torch.channels_last)


def step(network: nn.Module, x: Tensor) -> Tensor:
    torch.manual_seed(1)  # dropout
    network.zero_grad()
    y = network(x)
    (y * torch.linspace(-1, 1, y.numel(), dtype=y.dtype, device=y.device).reshape(y.shape)).sum().backward()
    return y.detach()


def assert_same_step(network: nn.Module, other: nn.Module, x: Tensor) -> None:
    """Results, gradients and statistics of a step of both, and what they give in evaluation, afterwards."""
    close = functools.partial(torch.testing.assert_close, rtol=1e-9, atol=1e-9)
    y = step(network, x)
    with forms_of("cuda"):
        close(step(other, x), y)
    for (key, p), (other_key, q) in zip(network.named_parameters(), other.named_parameters(), strict=True):
        assert key == other_key
        close(q.grad, p.grad, msg=lambda words, key=key: f"gradient of {key}: {words}")
    close(dict(other.named_buffers()), dict(network.named_buffers()))
    network.eval(), other.eval()
    with torch.no_grad(), forms_of("cuda"):
        close(other(x), network(x))
    network.train(), other.train()


SLOW = [pytest.param(case, marks=pytest.mark.slow) for case in ("slowfast .25", "resnet to high", "resnet to low")]


@pytest.mark.parametrize("case", [*[case for case in CASES if case not in {c.values[0] for c in SLOW}], *SLOW])
def test_a_fused_network_takes_the_same_step(case: str) -> None:
    network, x = made(case)
    other = copy.deepcopy(network)
    report = fuse_training(other)
    assert len(report.fused) > len(report.kept)
    assert_same_step(network, other, x)


@pytest.mark.parametrize("case", ["i3d 0.5", "i3d strides", "resnet .25"])
def test_cudas_forms_of_a_network_that_is_not_fused_take_the_same_step(case: str) -> None:
    network, x = made(case)
    assert_same_step(network, copy.deepcopy(network), x)


def test_every_place_of_an_octave_resnet_is_fused() -> None:
    network, _ = made("i3d .25 even")
    report = fuse_training(network)
    assert list(report.kept) == ["blocks.5.res_blocks.0.branch1_norm"]
    fused = report.fused
    assert fused["blocks.1.res_blocks.1.branch2.norm_a"] == "upsampled part, ReLU, pool"
    assert fused["blocks.1.res_blocks.1.branch2.norm_c"] == "upsampled part, residual, ReLU"  # max-pooled over time
    assert fused["blocks.3.res_blocks.0.branch2.norm_c"] == "upsampled part, residual, ReLU, pool"
    assert fused["blocks.3.res_blocks.0.branch2.norm_b"] == "ReLU, pool"  # strided: nothing is upsampled
    assert fused["blocks.5.res_blocks.0.branch2.norm_a"] == "upsampled part, ReLU, pool"  # of an ordinary layer
    joins = [name for name, module in network.named_modules() if isinstance(module, training.OctJoin)]
    assert joins == ["octave_ops.join_blocks_0_pool", "octave_ops.join_blocks_2"]
    assert str(report) == (
        "28 of 29 batch norms are fused with their neighbours\n"
        "  blocks.5.res_blocks.0.branch1_norm: nothing that it could take on surrounds it\n"
        "  12 octave convolutions have a part whose channels are no multiple of 8, which tensor cores need: a new "
        "network should have channel_multiple=8 (in a config: octave: {channel_multiple: 8})"
    )
    assert fuse_training(i3d_small(4, alpha=0.25, octave={"channel_multiple": 8})).thin == 0
    assert network.meta["fused"] == report
    assert "fused, relu, pools" in str(network.get_submodule("blocks.1.res_blocks.1.branch2.norm_a"))


def test_state_parameters_and_modes_stay() -> None:
    network, x = made("i3d .25 even")
    before = {key: id(p) for key, p in [*network.named_parameters(), *network.named_buffers()]}
    keys = list(network.state_dict())
    fuse_training(network)
    assert {key: id(p) for key, p in [*network.named_parameters(), *network.named_buffers()]} == before
    assert list(network.state_dict()) == keys
    again = fuse_training(network)  # harmless
    assert set(again.fused) | set(again.kept) == {key.removesuffix(".running_mean") for key in keys if "_mean" in key}
    for copied in (copy.deepcopy, lambda network: pickle.loads(pickle.dumps(network))):
        clone = copied(network)
        assert list(clone.state_dict()) == keys
        assert not {id(p) for p in clone.parameters()} & set(before.values())
        y = step(clone, x)
        assert all(p.grad is None for p in network.parameters())
        torch.testing.assert_close(step(network, x), y)
        torch.testing.assert_close(clone.state_dict(), network.state_dict())
        network.zero_grad()
    network.eval()
    assert all(not module.training for module in network.modules())
    frozen = network.state_dict()["blocks.0.norm.num_batches_tracked"].clone()
    network(x)
    assert network.state_dict()["blocks.0.norm.num_batches_tracked"] == frozen


@pytest.mark.parametrize("case", ["i3d 0.5", "resnet .25", SLOW[0]])
def test_unfuse_gives_the_network_back(case: str) -> None:
    network, x = made(case)
    other = copy.deepcopy(network)
    fuse_training(other)
    unfuse(other)
    assert "fused" not in other.meta
    assert not any("Fused" in type(module).__name__ for module in other.modules())
    taken = [node for node in other.graph.nodes if node.target is operator.getitem]
    assert len(taken) == len([node for node in network.graph.nodes if node.target is operator.getitem])
    torch.testing.assert_close(step(other, x), step(network, x), rtol=0, atol=0)
    assert fuse_training(other).fused  # once more
    assert_same_step(network, other, x) if case == "resnet .25" else None


def test_a_network_is_prepared_for_inference() -> None:
    network, x = made("i3d 0.5")
    step(network, x)
    network.eval()
    fused = copy.deepcopy(network)
    fuse_training(fused)
    with torch.inference_mode():
        expected = network(x)
        torch.testing.assert_close(prepare_inference(fused, device="cpu")(x), expected, rtol=1e-9, atol=1e-9)
        for own in (network, fused):
            prepared = prepare_inference(own, device="cuda")
            with forms_of("cuda"):
                torch.testing.assert_close(prepared(x), expected, rtol=1e-9, atol=1e-9)
            assert len(prepared.meta["fused"].fused) == 28
    assert "fused" in fused.meta and "fused" not in network.meta
    for name in ("gpu", "cuda:x"):
        with pytest.raises(ValueError, match=f"device: got '{name}', expected one of torch's, as cpu, cuda, cuda:1"):
            prepare_inference(network, device=name)
    swish = octavize(nn.Sequential(nn.Conv3d(3, 8, 1), nn.BatchNorm3d(8), nn.SiLU(), nn.Conv3d(8, 4, 1)), 0.0)
    kept = prepare_inference(swish, device="cuda")  # folded: nothing would be joined
    assert not any(isinstance(module, nn.BatchNorm3d) for module in kept.modules())


def test_autocast_computes_in_its_precision() -> None:
    network, _ = made("i3d .25 even")
    network = network.float()
    x = last(torch.randn(2, 3, 8, 32, 32))  # oneDNN's gradients in bf16 go wrong where maps have fewer frames
    other, exact = copy.deepcopy(network), copy.deepcopy(network)
    fuse_training(other)
    step(exact, x)
    with forms_of("cuda"), torch.autocast("cpu", torch.bfloat16):
        assert step(network, x).dtype == step(other, x).dtype == torch.bfloat16
    assert all(q.grad.dtype == torch.float32 for q in other.parameters())

    def error(own: nn.Module) -> float:
        pairs = zip(own.parameters(), exact.parameters(), strict=True)
        return sum(float((p.grad - q.grad).norm() / q.grad.norm()) for p, q in pairs)

    assert error(other) < 1.3 * error(network)


@pytest.mark.gpu
@pytest.mark.parametrize("case", ["i3d 0.1", "i3d 0.5", "resnet .25"])  # of enough pixels for float32
def test_on_cuda_it_takes_the_step_of_a_cpu(case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    network, x = made(case)
    network, x = network.float(), x.float()
    for module in network.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0  # devices draw differently
    other = copy.deepcopy(network).cuda()
    fuse_training(other)
    y, z = step(network, x), step(other, x.cuda())
    torch.testing.assert_close(z.cpu(), y, rtol=1e-3, atol=1e-3)
    for p, q in zip(network.parameters(), other.parameters(), strict=True):
        assert (q.grad.cpu() - p.grad).norm() < 0.05 * p.grad.norm() + 1e-3
    buffers = {key: value.cpu() for key, value in other.named_buffers()}
    torch.testing.assert_close(buffers, dict(network.named_buffers()), rtol=1e-3, atol=1e-3)


class Block(nn.Module):
    """conv, norm, something, conv."""

    def __init__(self, act: nn.Module, norm: type[nn.Module] = nn.BatchNorm2d) -> None:
        super().__init__()
        self.conv1, self.norm1, self.act = nn.Conv2d(8, 8, 3, padding=1), norm(8), act
        self.conv2, self.norm2 = nn.Conv2d(8, 8, 3, padding=1), norm(8)
        self.conv3 = nn.Conv2d(8, 8, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.act(self.norm1(self.conv1(x)))
        return self.conv3(self.act(self.norm2(self.conv2(x)) + x))


def test_a_fused_network_compiles_as_one_graph() -> None:
    torch.manual_seed(0)
    network = octavize(nn.Sequential(nn.Conv2d(3, 8, 1), Block(nn.ReLU())), 0.5).double()
    other = copy.deepcopy(network)
    fuse_training(other)
    torch._dynamo.reset()
    try:
        with forms_of("cuda"):
            other.compile(fullgraph=True, backend="aot_eager")
            assert_same_step(network, other, last(torch.randn(2, 3, 9, 8, dtype=torch.float64)))
    finally:
        torch._dynamo.reset()


@pytest.mark.parametrize("alpha", [0.0, 0.5])
def test_other_activations_follow_by_themselves(alpha: float) -> None:
    torch.manual_seed(0)
    network = octavize(nn.Sequential(nn.Conv2d(3, 8, 1), Block(nn.GELU())), alpha).double()
    other = copy.deepcopy(network)
    report = fuse_training(other)
    assert report.fused == (
        {"1.norm1": "both maps", "1.norm2": "upsampled part, residual"} if alpha else {"1.norm2": "residual"}
    )
    assert_same_step(network, other, last(torch.randn(2, 3, 9, 8, dtype=torch.float64)))


def hooked(network: nn.Module, path: str) -> None:
    module = network.get_submodule(path)
    module.register_forward_hook(lambda *_: None)


@pytest.mark.parametrize(
    ("change", "reasons"),
    [
        (lambda network: hooked(network, "1.norm1"), {"1.norm1": "has hooks"}),
        (lambda network: hooked(network, "1.conv1"), {}),
        (lambda network: setattr(network.get_submodule("1.norm1"), "momentum", None),
         {"1.norm1": "averages its statistics over all batches"}),
    ],
)  # fmt: skip
def test_what_does_not_fit_stays(change: Any, reasons: dict[str, str]) -> None:
    network = octavize(nn.Sequential(nn.Conv2d(3, 8, 1), Block(nn.ReLU())), 0.5).double()
    change(network)
    other = copy.deepcopy(network)
    report = fuse_training(other)
    assert report.kept == reasons
    assert len(report.fused) + len(report.kept) == 2
    assert_same_step(network, other, last(torch.randn(2, 3, 9, 8, dtype=torch.float64)))


def test_a_hook_sees_an_octave_as_before() -> None:
    network = octavize(nn.Sequential(nn.Conv2d(3, 8, 1), Block(nn.ReLU())), 0.5)
    seen: list[Any] = []
    for module in network.modules():
        if isinstance(module, nn.ReLU):
            module.register_forward_hook(lambda _, args, y: seen.append((*args, y)))
    assert "ReLU" not in str(fuse_training(network).fused)
    network(torch.randn(2, 3, 8, 8))
    assert len(seen) == 4 and all(isinstance(x, Tensor) for call in seen for x in call)


def test_networks_and_norms_of_other_kinds_are_named() -> None:
    plain = nn.Sequential(nn.Conv2d(3, 8, 1), nn.BatchNorm2d(8), nn.ReLU())
    report = fuse_training(plain)
    assert str(report).endswith("the network: octavize did not make it")
    synchronised = nn.SyncBatchNorm.convert_sync_batchnorm(octavize(plain, 0.0))
    assert fuse_training(synchronised).kept == {"1": "is a SyncBatchNorm"}
    timed = i3d_small(4, alpha=0.5, width=8, octave={"factor": [2, 2, 2]})
    reason = "belongs to a network that halves other axes than height and width"
    assert reason in fuse_training(timed).kept.values()
    holder = nn.Sequential(octavize(plain, 0.0))
    assert fuse_training(holder).fused == {"0.1": "ReLU"}
    unfuse(holder)
    assert type(holder[0].get_submodule("1")) is nn.BatchNorm2d


def test_no_other_norm_takes_the_place_of_a_fused_one() -> None:
    """SyncBatchNorm would leave out the ReLU that a fused norm applies."""
    network, x = made("resnet .25")
    expected = step(copy.deepcopy(network), x)
    fuse_training(network)
    with pytest.raises(
        TypeError, match=r"call SyncBatchNorm\.convert_sync_batchnorm before fuse_training, or .*unfuse"
    ):
        nn.SyncBatchNorm.convert_sync_batchnorm(network)
    torch.testing.assert_close(step(network, x), expected)  # nothing has changed
    plain = octavize(nn.Sequential(nn.Conv2d(3, 8, 1), nn.BatchNorm2d(8), nn.ReLU()), 0.0)
    fuse_training(plain)
    unfuse(plain)
    assert type(nn.SyncBatchNorm.convert_sync_batchnorm(plain).get_submodule("1")) is nn.SyncBatchNorm


def test_a_residual_that_broadcasts_is_added() -> None:
    class Gated(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.norm, self.gate = nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.Conv2d(3, 4, 1)

        def forward(self, x: Tensor) -> Tensor:
            return torch.relu(self.norm(self.conv(x)) + self.gate(x[:, :, :1, :1]))

    network = octavize(Gated(), 0.0).double()
    other = copy.deepcopy(network)
    assert fuse_training(other).fused == {"norm": "residual, ReLU"}
    assert_same_step(network, other, torch.randn(2, 3, 6, 5, dtype=torch.float64))


# -- kernels -----------------------------------------------------------------------------------------------

KERNELS_OF = {"octave_moments": 2, "octave_normalize": 1, "octave_normalize_backward": 3}
NO_KERNEL = ("empty", "new_empty", "detach", "alias", "_unsafe_view", "device")


class KernelCount(TorchDispatchMode):
    """Counts operations that launch a kernel; views and memory do not."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func._schema.name.split("::")[1]
        is_view = any(r.alias_info is not None and not r.alias_info.is_write for r in func._schema.returns)
        if not is_view and not name.startswith(NO_KERNEL):
            self.counts[name] += sum(args[-1][:2]) if name == "convolution_backward" else KERNELS_OF.get(name, 1)
        return func(*args, **(kwargs or {}))


@contextlib.contextmanager
def cudas_operations(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """On fake tensors: of a CPU, since autograd runs on no fake tensor of a device that is not there."""
    for module in (norm, weight_blocks):
        monkeypatch.setattr(module, "runs_on", lambda device: True)
    with forms_of("cuda"):
        yield


def kernels_of_a_step(network: nn.Module, monkeypatch: pytest.MonkeyPatch) -> int:
    mode = FakeTensorMode()
    for module in network.modules():
        for own in (module._parameters, module._buffers):
            for key, value in own.items():
                if value is not None:
                    fake = mode.from_tensor(last(value.detach()) if value.dim() == 5 else value.detach())
                    own[key] = nn.Parameter(fake) if own is module._parameters else fake
    with mode, cudas_operations(monkeypatch), KernelCount() as count:
        clips = torch.empty(32, 3, 8, 224, 224).to(memory_format=torch.channels_last_3d)
        count.counts.clear()
        with torch.autocast("cpu", torch.bfloat16):
            logits = network(clips)
        logits.float().sum().backward()
    return sum(count.counts.values())


@pytest.mark.slow
def test_kernels_of_a_training_step(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("triton")
    octave, ordinary, fused_ordinary = i3d_r50(alpha=0.25), i3d_r50(alpha=0.0), i3d_r50(alpha=0.0)
    fuse_training(octave)
    fuse_training(fused_ordinary)
    kernels, of_ordinary, of_fused = (kernels_of_a_step(n, monkeypatch) for n in (octave, ordinary, fused_ordinary))
    assert of_ordinary == pytest.approx(590, abs=10)
    assert kernels < 1.6 * of_ordinary
    assert kernels < 1.5 * of_fused


def test_statistics_averaged_over_all_batches_after_fusing() -> None:
    """torch's `update_bn` and Lightning's StochasticWeightAveraging take the momentum away while they average."""
    network, x = made("resnet .25")
    other = copy.deepcopy(network)
    fuse_training(other)
    batches = [x, 2 * x + 1]
    torch.optim.swa_utils.update_bn(batches, network)
    with forms_of("cuda"):
        torch.optim.swa_utils.update_bn(batches, other)
    torch.testing.assert_close(dict(other.named_buffers()), dict(network.named_buffers()), rtol=1e-9, atol=1e-9)
