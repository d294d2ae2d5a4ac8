"""Octave networks under DistributedDataParallel: two processes on one machine, gloo."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from octvideo.octave import octavize
from tests.octave.conversion.networks import NETWORKS

RANKS = 2


def gradients(network: nn.Module, name: str, seed: int) -> dict[str, Tensor]:
    entry = next(n for n in NETWORKS if n.name == name)
    network(entry.random_input(seed)).square().sum().backward()
    return {path: p.grad for path, p in network.named_parameters() if p.grad is not None}


def work(rank: int, rendezvous: str, name: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=rendezvous, rank=rank, world_size=RANKS)
    try:
        torch.manual_seed(0)
        octave = octavize(next(n for n in NETWORKS if n.name == name).build(), 0.5).train()
        for module in octave.modules():
            if "Drop" in type(module).__name__:
                module.eval()
        alone = [gradients(copy.deepcopy(octave), name, seed) for seed in range(RANKS)]
        together = gradients(DistributedDataParallel(octave), name, rank)
        assert together
        for path, gradient in together.items():
            one, other = (grads[path.removeprefix("module.")] for grads in alone)
            scale = max(one.abs().max().item(), other.abs().max().item())
            torch.testing.assert_close(gradient, (one + other) / RANKS, rtol=1e-3, atol=1e-4 * scale)
    finally:
        dist.destroy_process_group()


@pytest.mark.skipif(torch.__version__.startswith("2.6."), reason="its Gloo may never end in destroy_process_group")
@pytest.mark.slow
@pytest.mark.parametrize("name", ["torchvision-mobilenet_v3-few", "pytorchvideo-slowfast-small"])
def test_gradients_are_the_mean_of_both_processes(name: str, tmp_path: Path) -> None:
    """Each process sees other data; batch norm keeps its own statistics, so that the mean is exact."""
    torch.multiprocessing.spawn(work, (f"file://{tmp_path}/rendezvous", name), nprocs=RANKS)
