"""The learning rate against torch's own schedulers, and the messages for values that can't be meant."""

from __future__ import annotations

import pytest
import torch

from octvideo.errors import UserError
from octvideo.training.schedule import Schedule


def torch_factors(make, epochs: int) -> list[float]:
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    scheduler = make(optimizer)
    factors = []
    for _ in range(epochs):
        factors.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return factors


def test_cosine_is_torchs() -> None:
    expected = torch_factors(lambda o: torch.optim.lr_scheduler.CosineAnnealingLR(o, T_max=12), 12)
    schedule = Schedule("cosine")
    assert [schedule.factor(e, total_epochs=12) for e in range(12)] == pytest.approx(expected)


def test_step_is_torchs() -> None:
    expected = torch_factors(lambda o: torch.optim.lr_scheduler.MultiStepLR(o, [3, 7], gamma=0.1), 10)
    schedule = Schedule("step", milestones=(3, 7))
    assert [schedule.factor(e, total_epochs=10) for e in range(10)] == pytest.approx(expected)


def test_warmup_rises_to_the_top_and_cosine_ends_at_zero() -> None:
    schedule = Schedule("cosine", warmup_epochs=2)
    rising = [schedule.factor(e / 10, total_epochs=10) for e in range(20)]
    assert rising == sorted(rising) and 0 < rising[0] < 0.01
    assert schedule.factor(2, total_epochs=10) == 1.0
    assert schedule.factor(6, total_epochs=10) == pytest.approx(0.5)
    assert schedule.factor(10, total_epochs=10) == pytest.approx(0.0)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"name": "step"}, "schedule 'step' has no milestones: give the epochs to step at, such as [40, 67]"),
        ({"name": "cosine", "milestones": (3,)}, "milestones are for schedule 'step', got schedule 'cosine'"),
        ({"name": "step", "milestones": (5, 3)}, "milestones: got [5, 3], expected rising epochs"),
        ({"warmup_epochs": -1}, "warmup_epochs: got -1, expected 0 or more"),
        ({"name": "linear"}, "schedule: got 'linear', expected 'cosine', 'step' or 'constant'"),
    ],
)
def test_what_cannot_be_meant_is_named(arguments: dict, message: str) -> None:
    with pytest.raises(UserError) as caught:
        Schedule(**arguments)
    assert message in str(caught.value)
