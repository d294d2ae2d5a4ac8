"""Statistics of batch norm over many batches, against those of all positions at once."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from fvcore.nn import update_bn_stats
from torch import Tensor, distributed, nn

from octvideo.octave import Octave, OctBatchNorm3d, Partition, fuse_training, octavize, split
from octvideo.training.precise_bn import BatchNormEstimate

SCATTERED = Partition((True, False, False, True, False, False))


class Norms(nn.Module):
    """An ordinary norm and an octave one of the same clips, (N, 6, T, H, W)."""

    def __init__(self, partition: Partition, momentum: float | None = 0.1) -> None:
        super().__init__()
        self.partition = partition
        self.norm, self.octave = nn.BatchNorm3d(6, momentum=momentum), OctBatchNorm3d(6, alpha=partition)
        self.unused, self.dropout = nn.BatchNorm3d(6), nn.Dropout(0.5)

    def forward(self, x: Tensor) -> tuple[Tensor, Octave]:
        return self.dropout(self.norm(x)), self.octave(split(x, self.partition))


def batches() -> list[Tensor]:
    return [torch.randn(n, 6, 2, 4, 6) * (n + 1) + n for n in (3, 1, 4)]


@pytest.mark.parametrize("partition", [Partition.of(6, 1 / 3), SCATTERED])
@pytest.mark.parametrize("momentum", [0.1, None])
def test_statistics_are_those_of_all_positions(partition: Partition, momentum: float | None) -> None:
    network, given = Norms(partition, momentum).eval(), batches()
    count = network.norm.num_batches_tracked.clone()
    BatchNormEstimate(network).over(given, network)
    whole = torch.cat(given).transpose(0, 1).flatten(1)
    torch.testing.assert_close(network.norm.running_mean, whole.mean(1))
    torch.testing.assert_close(network.norm.running_var, whole.var(1, correction=0))
    pairs = [split(x, partition) for x in given]
    high, low = (torch.cat([pair[n] for pair in pairs]).transpose(0, 1).flatten(1) for n in range(2))
    is_low = torch.tensor(partition.is_low)
    for part, where in ((high, ~is_low), (low, is_low)):
        torch.testing.assert_close(network.octave.running_mean[where], part.mean(1))
        torch.testing.assert_close(network.octave.running_var[where], part.var(1, correction=0))
    # Nothing else has changed.
    assert network.norm.momentum == momentum and not network.norm.training and not network.dropout.training
    assert torch.equal(network.norm.num_batches_tracked, count) and not network.norm._forward_hooks
    assert torch.equal(network.unused.running_var, torch.ones(6))


@pytest.mark.parametrize("momentum", [0.1, None])
def test_statistics_are_those_of_fvcore(momentum: float | None) -> None:
    """Batches of several sizes, whose positions it weighs, through two norms."""
    layers = (nn.Conv3d(6, 4, 1), nn.BatchNorm3d(4, momentum=momentum), nn.ReLU(), nn.Conv3d(4, 5, 1))
    ours, given = nn.Sequential(*layers, nn.BatchNorm3d(5, momentum=momentum)), batches()
    theirs = copy.deepcopy(ours).train()
    update_bn_stats(theirs, given, num_iters=len(given))
    BatchNormEstimate(ours.eval()).over(given, ours)
    for key, value in ours.state_dict().items():
        if "running" in key:
            torch.testing.assert_close(value, theirs.state_dict()[key], rtol=1e-5, atol=1e-5)


def test_frozen_norms_keep_theirs_and_an_error_changes_nothing() -> None:
    network = Norms(SCATTERED).eval()
    before = {key: value.clone() for key, value in network.state_dict().items()}

    def fails(x: Tensor) -> None:
        network(x)
        raise MemoryError

    with pytest.raises(MemoryError):
        BatchNormEstimate(network).over(batches(), fails)
    assert all(torch.equal(value, before[key]) for key, value in network.state_dict().items())
    BatchNormEstimate(network, [network.norm]).over(batches(), network)
    changed = {key for key, value in network.state_dict().items() if not torch.equal(value, before[key])}
    assert changed == {"octave.running_mean", "octave.running_var"}


def test_fused_norms_are_estimated_as_they_are() -> None:
    layers = [nn.Conv3d(3, 8, 3, padding=1), nn.BatchNorm3d(8), nn.ReLU(), nn.Conv3d(8, 8, 3, padding=1)]
    network = octavize(nn.Sequential(*layers, nn.BatchNorm3d(8), nn.ReLU(), nn.Conv3d(8, 8, 1)), {"": 0.5}).eval()
    given = [torch.randn(n, 3, 2, 8, 8) for n in (2, 3)]
    states = []
    for fuse in (False, True):
        if fuse:
            assert fuse_training(network).fused
        BatchNormEstimate(network).over(given, network)
        states.append({key: value.clone() for key, value in network.state_dict().items() if "running" in key})
    torch.testing.assert_close(*states)


def test_processes_agree_on_the_statistics_of_all(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each as if alone first, to know what it sends; one of them has no batch."""
    given, sent = batches(), []
    monkeypatch.setattr(distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(distributed, "get_world_size", lambda: 3)

    def gather(each: list[Tensor], own: Tensor) -> None:
        if len(sent) < 3:
            sent.append(own.clone())
        else:
            for place, value in zip(each, sent, strict=True):
                place.copy_(value)

    monkeypatch.setattr(distributed, "all_gather", gather)
    own = [given[:1], [], given[1:]]
    for part in own:
        network = Norms(SCATTERED).eval()
        BatchNormEstimate(network).over(part, network)
    states: list[dict[str, Any]] = []
    for part in own:
        network = Norms(SCATTERED).eval()
        BatchNormEstimate(network).over(part, network)
        states.append(network.state_dict())
    monkeypatch.undo()
    expected = Norms(SCATTERED).eval()
    BatchNormEstimate(expected).over(given, expected)
    for state in states:
        torch.testing.assert_close(state, expected.state_dict())
        assert all(torch.equal(value, states[0][key]) for key, value in state.items())
