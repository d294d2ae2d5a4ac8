"""The average of weights: against timm's, against the formula, and in and out of a network."""

from __future__ import annotations

import copy
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from lightning.pytorch.strategies import FSDPStrategy
from torch import nn

from octvideo.errors import UserError
from octvideo.training import VideoClassifier
from octvideo.training.averaging import WeightAverage, check_goes_on


def network(dtype: torch.dtype = torch.float32) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv3d(3, 4, 1), nn.BatchNorm3d(4), nn.Flatten(), nn.Linear(32, 2)).to(dtype)


def train(net: nn.Module, step: int) -> None:
    """One step, which moves weights and statistics."""
    x = torch.randn(4, 3, 2, 2, 2, generator=torch.Generator().manual_seed(step))
    net.train()(x.to(next(net.parameters()).dtype)).square().sum().backward()
    with torch.no_grad():
        for parameter in net.parameters():
            parameter -= 0.01 * parameter.grad  # type: ignore[operator]
            parameter.grad = None


def averages_of(average: WeightAverage, net: nn.Module) -> dict[str, torch.Tensor]:
    average.enter(net)
    found = {key: value.clone() for key, value in net.state_dict().items()}
    average.leave(net)
    return found


@pytest.mark.parametrize("warmup", [True, False])
def test_averages_are_those_of_timm(warmup: bool) -> None:
    """Weights and statistics; decay .7 ends the warm-up in the 7th update."""
    timm_utils = pytest.importorskip("timm.utils")
    net, average = network(), WeightAverage(0.7, warmup=warmup)
    average.begin(net)
    theirs = timm_utils.ModelEmaV3(net, decay=0.7, use_warmup=warmup)
    for step in range(1, 11):
        train(net, step)
        average.update(net)
        theirs.update(net, step=step)
        own = {key: value.clone() for key, value in net.state_dict().items()}
        found = averages_of(average, net)
        torch.testing.assert_close(found, dict(theirs.module.state_dict()))
        assert all(torch.equal(value, own[key]) for key, value in net.state_dict().items())
        assert int(found["1.num_batches_tracked"]) == step
    assert not torch.allclose(found["0.weight"], own["0.weight"], rtol=1e-3)


def test_decay_warms_up_by_the_formula() -> None:
    warm, flat = WeightAverage(0.999), WeightAverage(0.999, warmup=False)
    assert [warm.decay_of(n) for n in (1, 2, 8)] == pytest.approx([0, 1 - 2 ** (-2 / 3), 0.75])
    assert warm.decay_of(31_000) < 0.999 == warm.decay_of(32_000)
    assert [flat.decay_of(n) for n in (1, 2)] == [0, 0.999]


def test_averages_of_bfloat16_weights_move_in_float32() -> None:
    """In bfloat16 1 + .001 is 1."""
    net = nn.Linear(1, 1, dtype=torch.bfloat16)
    average = WeightAverage(0.999, warmup=False)
    nn.init.ones_(net.weight)
    average.begin(net)
    average.update(net)
    nn.init.constant_(net.weight, 2.0)
    for _ in range(700):
        average.update(net)
    assert averages_of(average, net)["weight"].item() == pytest.approx(2 - 0.999**700, abs=0.005)
    checkpoint: dict[str, Any] = {"state_dict": {"network.weight": net.weight}, "octvideo": {}}
    average.save(checkpoint)
    assert checkpoint["state_dict"]["network.weight"].dtype == torch.float32


def test_statistics_that_are_estimated_meanwhile_are_the_averages() -> None:
    net, average = network(), WeightAverage(0.9)
    average.begin(net)
    train(net, 1)
    average.update(net)
    own = net[1].running_mean.clone()
    average.enter(net)
    net[1].running_mean.fill_(7.0)
    net[0].weight.data.fill_(7.0)  # nobody's
    average.leave(net)
    assert torch.equal(net[1].running_mean, own)
    found = averages_of(average, net)
    assert torch.equal(found["1.running_mean"], torch.full((4,), 7.0)) and not (found["0.weight"] == 7).any()


@pytest.mark.parametrize("entered", [False, True])
def test_a_checkpoint_has_the_averages_and_goes_on_with_the_weights(entered: bool) -> None:
    net, average = network(), WeightAverage(0.9, warmup=False)
    average.begin(net)
    for step in range(3):
        train(net, step)
        average.update(net)
    own, expected = copy.deepcopy(net.state_dict()), averages_of(average, net)
    if entered:  # as where a validation ends with an error that a callback saves at
        average.enter(net)
    state = {f"network.{key}": value for key, value in net.state_dict().items()} | {"beside": torch.ones(1)}
    checkpoint: dict[str, Any] = {"state_dict": state, "octvideo": {"format": 1}}
    average.save(checkpoint)
    checkpoint = copy.deepcopy(checkpoint)
    assert checkpoint["octvideo"] == {"format": 1, "averaged": {"decay": 0.9, "warmup": False, "updates": 3}}
    assert all(torch.equal(value, checkpoint["state_dict"][f"network.{key}"]) for key, value in expected.items())
    with pytest.raises(UserError, match=r"averages its weights \(model.ema_decay 0.9\), this one does not: give its"):
        check_goes_on(checkpoint, None)

    other, resumed = network(), WeightAverage(0.9, warmup=False)
    check_goes_on(checkpoint, resumed)
    resumed.load(checkpoint)
    other.load_state_dict({key[8:]: v for key, v in checkpoint["state_dict"].items() if key != "beside"})
    resumed.begin(other)
    assert all(torch.equal(value, own[key]) for key, value in other.state_dict().items())
    if entered:
        average.leave(net)
    for one, by in ((net, average), (other, resumed)):
        train(one, 9)
        by.update(one)
    left, right = averages_of(average, net), averages_of(resumed, other)
    assert all(torch.equal(value, right[key]) for key, value in left.items()) and resumed.updates == 4


def test_a_checkpoint_without_averages_begins_them() -> None:
    net, average = network(), WeightAverage(0.9)
    check_goes_on(checkpoint := {"state_dict": {}}, average)
    average.load(checkpoint)
    average.begin(net)
    assert average.updates == 0 and torch.equal(averages_of(average, net)["0.weight"], net[0].weight)


@pytest.mark.parametrize("decay", [1.0, -0.1, float("nan")])
def test_a_decay_that_can_not_be_meant_is_said(decay: float) -> None:
    with pytest.raises(UserError, match=r"model.ema_decay: got .*, expected between 0 and 1, such as .9999, or 0"):
        WeightAverage(decay)


def test_shards_of_weights_are_refused() -> None:
    module: Any = VideoClassifier(nn.Sequential(nn.Flatten(), nn.Linear(24, 2)), ema_decay=0.9)
    module._trainer = SimpleNamespace(strategy=FSDPStrategy(), world_size=2)
    with pytest.raises(UserError, match=r"model.ema_decay averages whole weights, and FSDPStrategy has shards of them"):
        module.setup("fit")
