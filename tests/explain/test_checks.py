"""The pointing game and the check by shuffled weights, on a small network that was trained in the test."""

from __future__ import annotations

from types import ModuleType

import numpy as np
import pytest
import torch
from torch import nn

from octvideo.explain import (
    Saliency,
    explain_clip,
    pointing_chance,
    pointing_trial,
    rank_correlation,
    shuffled_networks,
)


def test_saliency_points_at_what_was_planted(small: ModuleType, explained: list[Saliency]) -> None:
    boxes = small.striped_clips(24, 1)[2]
    for path in ("high", "low", "both"):
        trials = [
            pointing_trial(each, path, np.stack([box, box]))  # type: ignore[arg-type]
            for each, box in zip(explained, boxes, strict=True)
        ]
        hits = sum(trial is not None and trial.hit for trial in trials)
        assert hits >= 16, path  # by chance 24 / 9 are expected, and 9 or more are less likely than .002
        assert all(trial is None or trial.chance == pytest.approx(1 / 9) for trial in trials)


def test_saliency_depends_on_what_was_learnt(
    small: ModuleType, trained_network: nn.Module, explained: list[Saliency]
) -> None:
    clips = small.striped_clips(24, 1)[0][:8]
    before = {name: value.clone() for name, value in trained_network.state_dict().items()}
    means = []
    for name, network in shuffled_networks(trained_network):
        each = [
            rank_correlation(
                old.maps["both"], explain_clip(network, clip, old.class_index, layer=old.layer).maps["both"]
            )
            for old, clip in zip(explained, clips, strict=False)
        ]
        means.append((name, float(np.mean(each))))
    assert [name for name, _ in means] == ["11", "7", "5", "3", "2", "0"]  # from the last layer on
    assert all(mean < 0.7 for _, mean in means) and means[-1][1] < 0.6, means
    for name, value in trained_network.state_dict().items():
        torch.testing.assert_close(value, before[name], rtol=0, atol=0)


def test_shuffled_weights_are_the_same_values_elsewhere(trained_network: nn.Module) -> None:
    *_, (_, shuffled) = shuffled_networks(trained_network)
    moved = shuffled.state_dict()
    for name, value in trained_network.state_dict().items():
        torch.testing.assert_close(value.flatten().sort().values, moved[name].flatten().sort().values, rtol=0, atol=0)
    norm = {key: moved[f"3.{key}"] for key in ("weight", "running_mean", "running_var")}
    old = {key: trained_network.state_dict()[f"3.{key}"] for key in norm}
    places = [int((old["running_var"] == value).nonzero()[0, 0]) for value in norm["running_var"]]
    assert places != sorted(places)
    torch.testing.assert_close(norm["running_mean"], old["running_mean"][places])  # they go together


def _saliency(maps: np.ndarray, height: int = 40, width: int = 80) -> Saliency:
    return Saliency({"both": maps.astype(np.float32)}, "layer", 0, 0.0, "gradcam", (4, height, width))


def test_the_point_is_the_middle_of_the_strongest_cell() -> None:
    maps = np.zeros((2, 4, 8))
    maps[1, 2, 6] = 1.0  # at x 65, y 25, in frames 2 and 3
    boxes = np.array([[0, 0, 10, 10], [0, 0, 10, 10], [60, 20, 65, 26], [66, 20, 70, 24]])
    trial = pointing_trial(_saliency(maps), "both", boxes)
    assert trial == (True, pytest.approx(10 * 6 / 3200), False)  # in the box around those of frames 2 and 3
    boxes[3] = 0  # not in the frame
    trial = pointing_trial(_saliency(maps), "both", boxes)
    assert trial is not None and not trial.hit and trial.chance == pytest.approx(30 / 3200)
    boxes[:2] = [[30, 10, 200, 100]] * 2  # beyond the clip
    assert pointing_chance(_saliency(maps), boxes) == pytest.approx((50 * 30 / 3200 + 30 / 3200) / 2)
    maps[:] = 0
    maps[0, 0, 0] = 1
    trial = pointing_trial(_saliency(maps), "both", boxes)
    assert trial is not None and not trial.hit and trial.centre_hit
    assert pointing_trial(_saliency(0 * maps), "both", boxes) is None


def test_chance_is_the_mean_over_time_steps() -> None:
    """Of three steps the boxes have a quarter, all, and none of the clip."""
    maps = np.zeros((3, 2, 2), np.float32)
    saliency = Saliency({"both": maps}, "layer", 0, 0.0, "gradcam", (6, 8, 8))
    boxes = np.array([[0, 0, 4, 4]] * 2 + [[0, 0, 8, 8]] * 2 + [[0, 0, 0, 0]] * 2)
    assert pointing_chance(saliency, boxes) == pytest.approx((1 / 4 + 1 + 0) / 3)


def test_rank_correlation_is_spearman_s() -> None:
    rng = np.random.default_rng(0)
    one, other = rng.integers(0, 6, 50), rng.integers(0, 6, 50)  # many are equal

    def ranks(values: np.ndarray) -> np.ndarray:
        return np.array([np.mean(np.flatnonzero(np.sort(values) == value)) for value in values])

    expected = float(np.corrcoef(ranks(one), ranks(other))[0, 1])
    assert rank_correlation(one, other) == pytest.approx(expected)
    assert rank_correlation(one, -one) == -1 and rank_correlation(one, np.exp(one)) == 1
    assert rank_correlation(one, np.ones(50)) == 0
