"""Shares and paired differences over runs, against counts by hand, exact bootstraps and simulated truth."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from octvideo.errors import UserError
from octvideo.evaluation.metrics import bootstrap_interval, mean_top_k, paired_difference, wilson_interval
from octvideo.evaluation.scores import VideoScores

K = 7


def run(hits: list[bool] | np.ndarray, *, order: list[int] | None = None) -> VideoScores:
    """A run that has these videos right; a wrong one has its true class in sixth place."""
    n = len(hits)
    labels = np.arange(n) % K
    places = np.where(np.asarray(hits), 0, 5)
    scores = np.zeros((n, K))
    for i in range(n):
        others = [c for c in range(K) if c != labels[i]]
        ranked = [*others[: places[i]], labels[i], *others[places[i] :]]
        scores[i, ranked] = np.linspace(1, 0, K)
    order = order or list(range(n))
    paths = [f"{i}.mp4" for i in order]
    return VideoScores(paths, labels[order], scores[order], [f"class {c}" for c in range(K)])


def exact_bootstrap(values: list[float]) -> tuple[float, float]:
    """2.5 and 97.5 % points of the mean over every one of the N^N equally likely draws."""
    means = sorted(np.mean(draw) for draw in itertools.product(values, repeat=len(values)))
    return tuple(float(np.quantile(means, q, method="inverted_cdf")) for q in (0.025, 0.975))  # type: ignore


# ── intervals ───────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("values", [[0, 0, 1, 1, 1, 0.5], [-1, 0, 0, 0.5, 1], [1 / 3, 2 / 3, 0, 0, 1, 1]])
def test_bootstrap_is_that_of_all_draws(values: list[float]) -> None:
    assert bootstrap_interval(np.array(values)) == pytest.approx(exact_bootstrap(values), abs=1e-9)


def test_bootstrap_of_many_videos_is_the_normal_interval() -> None:
    values = np.random.default_rng(0).choice([-1, -0.5, 0, 0.5, 1], size=5000, p=[0.1, 0.1, 0.5, 0.2, 0.1])
    half = 1.96 * values.std() / np.sqrt(len(values))
    assert bootstrap_interval(values) == pytest.approx((values.mean() - half, values.mean() + half), abs=0.03 * half)


def test_bootstrap_repeats() -> None:
    values = np.random.default_rng(1).standard_normal(50)
    assert bootstrap_interval(values) == bootstrap_interval(values)
    assert bootstrap_interval(np.full(9, 0.25)) == pytest.approx((0.25, 0.25))
    with pytest.raises(ValueError, match=r"got values \(0,\), expected \(N,\) with N >= 1"):
        bootstrap_interval(np.zeros(0))


def test_the_interval_of_several_seeds_covers_the_share_over_all_videos() -> None:
    """Seeds that are alike add little: an interval that counts every decision as a draw of its own is too narrow."""
    rng, videos, seeds = np.random.default_rng(0), 120, 3
    truth, covered, covered_by_pooling = 0.3, 0, 0
    for _ in range(125):
        # Most videos are easy or hard for every seed.
        p = np.where(rng.random(videos) < truth, 0.95, 0.05 * truth / (1 - truth))
        p += rng.choice([-0.01, 0.01], videos)
        hits = rng.random((seeds, videos)) < p
        found = mean_top_k({s: run(hits[s]) for s in range(seeds)}, 1)
        covered += found.low <= 0.3 <= found.high
        low, high = wilson_interval(int(hits.sum()), hits.size)
        covered_by_pooling += low <= 0.3 <= high
    assert 0.91 <= covered / 125 <= 0.99
    assert covered_by_pooling / 125 < 0.85


# ── shares ──────────────────────────────────────────────────────────────────────────────────────────────────


def test_one_run_and_runs_that_agree_have_wilsons_interval() -> None:
    hits = [True] * 4 + [False] * 7
    for runs in ({0: run(hits)}, {0: run(hits), 3: run(hits), 5: run(hits)}):
        found = mean_top_k(runs, 1)
        assert found.value == pytest.approx(4 / 11)
        assert (found.low, found.high) == wilson_interval(4, 11)
    assert mean_top_k({0: run([True] * 5), 1: run([True] * 5)}, 1).low == pytest.approx(wilson_interval(5, 5)[0])


def test_seeds_are_averaged_video_by_video() -> None:
    first, second = [True, True, False, False, False, True], [True, False, False, False, True, True]
    runs = {0: run(first), 1: run(second, order=[3, 1, 5, 0, 2, 4])}  # in any order of the files
    found = mean_top_k(runs, 1)
    assert found.value == pytest.approx(0.5)
    assert (found.low, found.high) == pytest.approx(exact_bootstrap([1, 0.5, 0, 0, 0.5, 1]), abs=1e-9)
    # Sixth of seven is not among the best five.
    assert mean_top_k(runs, 5) == found and mean_top_k(runs, 6).value == 1.0


# ── differences ─────────────────────────────────────────────────────────────────────────────────────────────


def test_paired_difference_by_hand() -> None:
    mine = {0: run([True, True, True, True, False, False]), 1: run([True, False, True, False, False, False])}
    twin = {0: run([True, False, False, False, False, True], order=[5, 4, 3, 2, 1, 0]), 1: run([False] * 6)}
    found = paired_difference(mine, twin)
    assert found is not None
    assert [(seed.seed, seed.won, seed.lost) for seed in found.seeds] == [(0, 3, 1), (1, 2, 0)]
    # Two-sided binomial, by hand: 2 (1 + 4) / 2^4 and 2 / 2^2.
    assert [seed.p for seed in found.seeds] == [0.625, 0.5]
    assert found.mean.value == pytest.approx((2 / 6 + 2 / 6) / 2)
    each = [0.5, 0.5, 1, 0.5, 0, -0.5]  # of the videos, averaged over the two seeds
    assert (found.mean.low, found.mean.high) == pytest.approx(exact_bootstrap(each), abs=1e-9)


def test_paired_difference_turns_round_and_knows_equal_runs() -> None:
    rng = np.random.default_rng(3)
    mine, twin = ({s: run(rng.random(60) < p) for s in (0, 1, 2)} for p in (0.6, 0.4))
    there, back = paired_difference(mine, twin), paired_difference(twin, mine)
    assert there is not None and back is not None
    assert there.mean.value == pytest.approx(-back.mean.value)
    # Only the draws differ.
    assert (there.mean.low, there.mean.high) == pytest.approx((-back.mean.high, -back.mean.low), abs=0.02)
    assert [(s.won, s.lost, s.p) for s in there.seeds] == [(s.lost, s.won, s.p) for s in back.seeds]
    same = paired_difference(mine, mine)
    assert same is not None and (same.mean.value, same.mean.low, same.mean.high) == (0, 0, 0)
    assert [s.p for s in same.seeds] == [1, 1, 1]


def test_pairs_are_of_seeds_that_both_have() -> None:
    one, other = run([True, False, True]), run([False, False, True])
    found = paired_difference({0: one, 2: one}, {2: other, 1: one})
    assert found is not None and [seed.seed for seed in found.seeds] == [2]
    assert paired_difference({0: one}, {1: other}) is None
    assert paired_difference({}, {1: other}) is None


def test_other_videos_other_labels_and_nothing_are_refused() -> None:
    five, six = run([True] * 5), run([True] * 6)
    with pytest.raises(UserError, match=r"tested on other videos or labels \(5 and 6 videos\), expected the same list"):
        paired_difference({0: five}, {0: six})
    labels = VideoScores(five.paths, (five.labels + 1) % K, five.scores, five.class_names)
    with pytest.raises(UserError, match="other videos or labels"):
        mean_top_k({0: five, 1: labels}, 1)
    with pytest.raises(UserError, match="no run to measure"):
        mean_top_k({}, 1)
    unknown = VideoScores(["a.mp4"], np.array([-1]), np.zeros((1, K)), five.class_names)
    with pytest.raises(UserError, match="no video has a known label"):
        mean_top_k({0: unknown}, 1)
    # Videos without a label count for nothing.
    joined = VideoScores.concat([five, unknown])
    assert mean_top_k({0: five, 1: joined}, 1) == mean_top_k({0: five}, 1)
