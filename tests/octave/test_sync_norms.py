"""Batch norm over processes, against one process that has the whole batch."""

from __future__ import annotations

import copy
import functools
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn

from octvideo.octave import SynchronisedNorms, octavize

RANKS, CLIPS = 2, 4


def network() -> nn.Module:
    """Octave layers with odd sizes; channels of the grouped one are no runs."""
    torch.manual_seed(0)
    # No biases before norms: their gradient is 0 but for rounding.
    conv = functools.partial(nn.Conv3d, bias=False)
    layers = [conv(3, 8, 3, padding=1), nn.BatchNorm3d(8), nn.ReLU(), conv(8, 8, 3, padding=1, groups=2)]
    layers += [nn.BatchNorm3d(8, momentum=None), nn.ReLU(), conv(8, 6, 1), nn.BatchNorm3d(6, affine=False)]
    head = [conv(6, 6, 1), nn.BatchNorm3d(6), nn.AdaptiveAvgPool3d(1), nn.Flatten(), nn.Linear(6, 5)]
    return octavize(nn.Sequential(*layers, *head), {"3": 0.5, "6": 0.5}).train()


def clips() -> Tensor:
    return torch.randn(CLIPS, 3, 2, 9, 8, generator=torch.Generator().manual_seed(1)) + 1


def trained(net: nn.Module, own: slice) -> dict[str, Tensor]:
    """What a batch leaves: gradients of the sum over all clips, and statistics."""
    net(clips()[own]).square().sum().backward()
    gradients = {f"gradient of {name}": p.grad for name, p in net.named_parameters()}
    assert None not in gradients.values()
    return {**gradients, **{name: buffer.float() for name, buffer in net.named_buffers()}}  # type: ignore[dict-item]


def work(rank: int, rendezvous: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=rendezvous, rank=rank, world_size=RANKS)
    whole = network()
    wanted = {"float32": trained(copy.deepcopy(whole), slice(None))}
    with torch.autocast("cpu", torch.bfloat16):
        wanted["bfloat16"] = trained(copy.deepcopy(whole), slice(None))
    for first in (2, 3, 4):  # clips of the first process; 4 leave none for the other
        own = slice(0, first) if rank == 0 else slice(first, None)
        for dtype, expected in wanted.items():
            with SynchronisedNorms(), torch.autocast("cpu", torch.bfloat16, enabled=dtype == "bfloat16"):
                found = trained(copy.deepcopy(whole), own)
            for name, value in found.items():
                if "gradient" in name:
                    dist.all_reduce(value)
                scale = expected[name].abs().max().item()
                tolerance = 1e-5 if dtype == "float32" else 0.03
                error = (value - expected[name]).abs().max().item()
                assert error <= tolerance * (scale + 0.1), (name, dtype, first, error, scale)
    dist.destroy_process_group()


@pytest.mark.skipif(torch.__version__.startswith("2.6."), reason="its Gloo may never end in destroy_process_group")
@pytest.mark.slow
def test_two_processes_are_one_with_both_batches(tmp_path: Path) -> None:
    """Halves, unequal parts, and a process without a clip; float32 and mixed precision."""
    torch.multiprocessing.spawn(work, (f"file://{tmp_path}/rendezvous",), nprocs=RANKS)


def one_process_is_itself(tmp_path: Path, backend: str, device: str) -> None:
    dist.init_process_group(backend, init_method=f"file://{tmp_path}/rendezvous", rank=0, world_size=1)
    try:
        alone, net = network().to(device), network().to(device)
        x = clips().to(device, memory_format=torch.channels_last_3d)
        expected = alone(x)
        expected.square().sum().backward()
        with SynchronisedNorms():
            found = net(x)
            found.square().sum().backward()
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
        for (name, mine), other in zip(net.named_parameters(), alone.parameters(), strict=True):
            torch.testing.assert_close(mine.grad, other.grad, rtol=1e-3, atol=1e-3, msg=name)
        torch.testing.assert_close(list(net.buffers()), list(alone.buffers()), rtol=1e-4, atol=1e-5)
        statistics = copy.deepcopy(list(net.buffers()))
        with SynchronisedNorms():
            assert net(x[:0]).shape == (0, 5)
        for (name, buffer), before in zip(net.named_buffers(), statistics, strict=True):
            assert "tracked" in name or torch.equal(buffer, before)
        with SynchronisedNorms():
            assert torch.equal(net.eval()(x), net(x))
        torch.testing.assert_close(net(x), alone.eval()(x), rtol=1e-4, atol=1e-4)
    finally:
        dist.destroy_process_group()


@pytest.mark.skipif(torch.__version__.startswith("2.6."), reason="its Gloo may never end in destroy_process_group")
def test_one_process_is_itself(tmp_path: Path) -> None:
    one_process_is_itself(tmp_path, "gloo", "cpu")


@pytest.mark.skipif(torch.__version__.startswith("2.6."), reason="its Gloo may never end in destroy_process_group")
def test_both_maps_of_a_norm_go_in_one_exchange(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/rendezvous", rank=0, world_size=1)
    sent: list[tuple[str, int]] = []
    for name in ("all_gather", "all_reduce"):
        real = getattr(dist, name)

        def counted(*args: Any, name: str = name, real: Any = real) -> None:
            sent.append((name, args[-1].numel()))
            real(*args)

        monkeypatch.setattr(dist, name, counted)
    try:
        net = network()
        with SynchronisedNorms():
            y = net(clips())
        norms = [module for module in net.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
        assert [getattr(norm, "partition", None) is not None for norm in norms] == [False, True, True, False]
        # Mean and variance of each channel, and the positions of each map.
        channels = [8, 8, 6, 6]
        assert sent == [("all_gather", 2 * c + maps) for c, maps in zip(channels, (1, 2, 2, 1), strict=True)]
        sent.clear()
        y.sum().backward()
        assert sent == [("all_reduce", 2 * c) for c in reversed(channels)]
    finally:
        dist.destroy_process_group()


@pytest.mark.gpu
def test_on_a_gpu_by_nccl(tmp_path: Path) -> None:
    one_process_is_itself(tmp_path, "nccl", "cuda")
