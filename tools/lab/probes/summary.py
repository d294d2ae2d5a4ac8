"""What results say: accuracy, what is kept of it, and paired differences, with intervals over source videos."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from lab.probes.arms import ARMS, Arm
from lab.probes.training import TRAINED_ARMS, TrainedArm
from lab.probes.work import ORDINARY
from octvideo.errors import UserError
from octvideo.files import markdown

_RESAMPLES = 10_000
_ALL = "both"  # the data sets of a network together

HEADER = (
    "data", "alpha", "low channels", "spread", "fitted", "folds", "multiply-adds", "accuracy, %", "kept, % (95 %)",
    "same prediction, %", "error of features",
)  # fmt: skip
PAIRS_HEADER = ("data", "alpha", "fitted", "chosen by output instead of", "folds", "accuracy, points (95 %)")


TRAINED_HEADER = (
    "data", "learnt from", "network", "alpha", "runs", "accuracy, %", "ordinary alike, %",
    "difference, points (95 %)", "won : lost",
)  # fmt: skip


@dataclass(frozen=True)
class Interval:
    """A value and the ends of its 95 % interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True, eq=False)
class Outcome:
    """One arm, pooled over folds: of the same clips, the ordinary network too.

    Args:
        hits: bool (N,), of the arm.
        ordinary: bool (N,), of the ordinary network.
        same: bool (N,): both predict one class.
        sources: of the clips, (N,).
        folds: so many.
        multiply_adds: over the ordinary network's.
        error: squared error of features over their spread.
    """

    hits: np.ndarray
    ordinary: np.ndarray
    same: np.ndarray
    sources: np.ndarray
    folds: int
    multiply_adds: float
    error: float


@dataclass(frozen=True, eq=False)
class TrainedOutcome:
    """One trained arm, pooled over folds and seeds: bool (N,), beside the ordinary network treated alike.

    Args:
        hits: of the arm.
        ordinary: of the ordinary network.
        sources: of the clips, (N,).
        runs: so many.
    """

    hits: np.ndarray
    ordinary: np.ndarray
    sources: np.ndarray
    runs: int


Outcomes = dict[tuple[str, str, Arm], Outcome]  # network, data, arm
TrainedOutcomes = dict[tuple[str, str, TrainedArm], TrainedOutcome]


def read_outcomes(output: Path) -> Outcomes:
    """All that is measured; "both" is a network's data sets together, of the arms that all of them have in full.

    Raises:
        UserError: there is nothing.
    """
    found: Outcomes = {}
    folds_of: dict[tuple[str, str], int] = {}
    for first, entries in _files(output, "probe"):
        network, data = first["network"], first["data"]
        ordinary = {entry["fold"]: entry for entry in entries if entry["arm"] == ORDINARY}
        folds_of[network, data] = len(ordinary)
        by_arm: dict[Arm, dict[int, dict[str, Any]]] = {}
        for entry in entries:
            if entry["arm"] != ORDINARY:
                arm = Arm(entry["alpha"], entry["choose"], entry["refit"], entry["spread"])
                by_arm.setdefault(arm, {})[entry["fold"]] = entry
        for arm, entries_of in by_arm.items():
            found[network, data, arm] = _pooled(data, ordinary, entries_of)
    if not found:
        raise UserError(f"no results in {output}")
    for network in dict.fromkeys(network for network, _ in folds_of):
        names = [data for own, data in folds_of if own == network]
        for arm in {arm: None for own, _, arm in list(found) if own == network}:
            parts = [found.get((network, data, arm)) for data in names]
            whole = [part for part in parts if part is not None]
            if len(names) > 1 and [part.folds for part in whole] == [folds_of[network, data] for data in names]:
                found[network, _ALL, arm] = _together(whole)
    return found


def _files(output: Path, kind: str) -> Iterable[tuple[dict[str, Any], list[dict[str, Any]]]]:
    """First lines and entries of the files of results of a kind."""
    for file in sorted(output.glob("*.jsonl")):
        first, *entries = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
        if kind in first:
            yield first, entries


def read_trained(output: Path) -> TrainedOutcomes:
    """Trained arms whose ordinary network is there for the same folds and seeds.

    What is taught is compared with its teacher: an ordinary network that learns from itself has a loss of 0, and stays.
    """
    teachers = {
        (first["network"], first["data"], entry["fold"]): entry
        for first, entries in _files(output, "probe")
        for entry in entries
        if entry["arm"] == ORDINARY
    }
    found: TrainedOutcomes = {}
    for first, entries in _files(output, "trained"):
        if first["validates"]:
            continue
        network, data = first["network"], first["data"]
        by_run = {(TrainedArm(e["learning"], e["start"], e["alpha"]), e["fold"], e["seed"]): e for e in entries}
        pairs: dict[TrainedArm, list[tuple[dict[str, Any], dict[str, Any]]]] = {}
        for (arm, fold, seed), entry in sorted(by_run.items(), key=lambda item: item[0][1:]):
            ordinary = by_run.get((TrainedArm("tuned", "ordinary"), fold, seed))
            if arm.learning == "taught":
                ordinary = teachers.get((network, data, fold))
            if ordinary is not None and entry is not ordinary:
                pairs.setdefault(arm, []).append((entry, ordinary))
        for arm, runs in pairs.items():
            labels = np.concatenate([ours["labels"] for ours, _ in runs])
            hits, ordinary_hits = (
                np.concatenate([run[which]["predictions"] for run in runs]) == labels for which in (0, 1)
            )
            sources = np.array([f"{data}/{source}" for ours, _ in runs for source in ours["sources"]])
            found[network, data, arm] = TrainedOutcome(hits, ordinary_hits, sources, len(runs))
    for network in dict.fromkeys(network for network, _, _ in found):
        for arm in {arm: None for own, _, arm in list(found) if own == network}:
            parts = [part for (own, _, of), part in found.items() if (own, of) == (network, arm)]
            if len(parts) > 1:
                hits, ordinary_hits, sources = (
                    np.concatenate([getattr(part, name) for part in parts]) for name in ("hits", "ordinary", "sources")
                )
                found[network, _ALL, arm] = TrainedOutcome(hits, ordinary_hits, sources, sum(p.runs for p in parts))
    return found


def _pooled(data: str, ordinary: Mapping[int, dict[str, Any]], entries: Mapping[int, dict[str, Any]]) -> Outcome:
    folds = sorted(entries)

    def joined(of: Mapping[int, dict[str, Any]], name: str) -> np.ndarray:
        return np.concatenate([of[fold][name] for fold in folds])

    ours, theirs = joined(entries, "predictions"), joined(ordinary, "predictions")
    labels = joined(ordinary, "labels")
    sources = np.array([f"{data}/{source}" for source in joined(ordinary, "sources")])
    adds = [entries[fold]["multiply_adds"] / ordinary[fold]["multiply_adds"] for fold in folds]
    error, spread = (sum(entry[name] for entry in entries.values()) for name in ("error", "feature_spread"))
    return Outcome(
        ours == labels, theirs == labels, ours == theirs, sources, len(folds), float(np.mean(adds)), error / spread
    )


def _together(parts: Sequence[Outcome]) -> Outcome:
    def joined(name: str) -> np.ndarray:
        return np.concatenate([getattr(part, name) for part in parts])

    return Outcome(
        joined("hits"),
        joined("ordinary"),
        joined("same"),
        joined("sources"),
        sum(part.folds for part in parts),
        float(np.mean([part.multiply_adds for part in parts])),
        float(np.mean([part.error for part in parts])),
    )


def kept(outcome: Outcome) -> Interval:
    """The arm's accuracy over the ordinary network's."""
    ours, theirs = _resampled(outcome.sources, outcome.hits, outcome.ordinary)
    return _interval(outcome.hits.sum() / outcome.ordinary.sum(), ours / np.maximum(theirs, 1))


def difference(sources: np.ndarray, one: np.ndarray, other: np.ndarray) -> Interval:
    """Accuracy of one arm less that of another: of their hits (N,) on the same clips of these sources."""
    ours, theirs, clips = _resampled(sources, one, other, np.ones(len(one)))
    return _interval(float(one.mean() - other.mean()), (ours - theirs) / clips)


def _resampled(sources: np.ndarray, *columns: np.ndarray) -> list[np.ndarray]:
    """Sums of columns (N,) over clips, with all clips of a source drawn at once: (R,) each."""
    _, place = np.unique(sources, return_inverse=True)
    count = int(place.max()) + 1
    drawn = np.random.default_rng(0).multinomial(count, np.full(count, 1 / count), size=_RESAMPLES)  # (R,S)
    return [drawn @ np.bincount(place, weights=column, minlength=count) for column in columns]


def _interval(value: float, resampled: np.ndarray) -> Interval:
    low, high = np.quantile(resampled, [0.025, 0.975])
    return Interval(float(value), float(low), float(high))


# ── tables ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def report(outcomes: Outcomes, trained: TrainedOutcomes) -> str:
    """Tables for a README, three for each network."""
    texts = []
    for network in dict.fromkeys(network for network, _, _ in outcomes):
        own = {(data, arm): outcome for (name, data, arm), outcome in outcomes.items() if name == network}
        texts += [f"**{network}**", markdown(HEADER, _rows(own), left=5)]
        if pairs := list(_pairs(own)):
            texts.append(markdown(PAIRS_HEADER, pairs, left=4))
        if rows := list(_trained_rows({key[1:]: value for key, value in trained.items() if key[0] == network})):
            texts.append(markdown(TRAINED_HEADER, rows, left=4))
    return "\n\n".join(texts)


def _arms() -> list[Arm]:
    arms = {arm for own in ARMS.values() for arm in own}
    return sorted(arms, key=lambda arm: (arm.alpha, arm.spread != "even", arm.choose, arm.refit))


def _rows(outcomes: Mapping[tuple[str, Arm], Outcome]) -> Iterable[tuple[str, ...]]:
    for data in _data(outcomes):
        for arm in _arms():
            if (data, arm) in outcomes:
                outcome = outcomes[data, arm]
                yield (
                    data,
                    f"{arm.alpha:g}",
                    arm.choose,
                    arm.spread,
                    arm.refit,
                    str(outcome.folds),
                    f"{100 * outcome.multiply_adds:.0f} %",
                    f"{100 * outcome.hits.mean():.1f} of {100 * outcome.ordinary.mean():.1f}",
                    _shown(kept(outcome)),
                    f"{100 * outcome.same.mean():.1f}",
                    f"{outcome.error:.2f}",
                )


def _pairs(outcomes: Mapping[tuple[str, Arm], Outcome]) -> Iterable[tuple[str, ...]]:
    for data in _data(outcomes):
        for arm in _arms():
            chosen = outcomes.get((data, Arm(arm.alpha, "output", arm.refit, arm.spread)))
            other = outcomes.get((data, arm))
            if arm.choose != "output" and chosen is not None and other is not None and chosen.folds == other.folds:
                shown = _shown(difference(chosen.sources, chosen.hits, other.hits), sign="+")
                yield data, f"{arm.alpha:g}", arm.refit, arm.choose, str(other.folds), shown


def _trained_rows(outcomes: Mapping[tuple[str, TrainedArm], TrainedOutcome]) -> Iterable[tuple[str, ...]]:
    for data in dict.fromkeys(data for data, _ in outcomes):
        for arm in TRAINED_ARMS:
            if (outcome := outcomes.get((data, arm))) is not None:
                ours, theirs = outcome.hits, outcome.ordinary
                yield (
                    data,
                    "the teacher" if arm.learning == "taught" else "labels",
                    arm.start,
                    f"{arm.alpha:g}",
                    str(outcome.runs),
                    f"{100 * ours.mean():.1f}",
                    f"{100 * theirs.mean():.1f}",
                    _shown(difference(outcome.sources, ours, theirs), sign="+"),
                    f"{(ours & ~theirs).sum()} : {(theirs & ~ours).sum()}",
                )


def _data(outcomes: Mapping[tuple[str, Arm], Outcome]) -> list[str]:
    return list(dict.fromkeys(data for data, _ in outcomes))


def _shown(interval: Interval, sign: str = "") -> str:
    value, low, high = (
        f"{100 * each:{sign}.1f}".replace("-", "−") for each in (interval.value, interval.low, interval.high)
    )
    return f"{value} ({low} to {high})" if sign else f"{value} ({low}–{high})"


# ── picture ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def draw(outcomes: Outcomes, file: Path) -> None:
    """What is kept against multiply-adds, a panel for each network and data set."""
    import matplotlib

    matplotlib.use("agg")
    import matplotlib.pyplot as plt

    lines = {
        "chosen, weights and norms fitted": ("output", "weights", "even", "o-"),
        "the same, shares by a budget": ("output", "weights", "budget", "D-"),
        "chosen, norms fitted": ("output", "norms", "even", "s--"),
        "chosen alone": ("output", "none", "even", "^--"),
        "last channels, fitted": ("last", "weights", "even", "v:"),
        "last channels alone": ("last", "none", "even", "x:"),
    }
    panels = [key for key in dict.fromkeys((network, data) for network, data, _ in outcomes) if key[1] != _ALL]
    figure, axes = plt.subplots(1, len(panels), figsize=(5 * len(panels), 4.2), squeeze=False, sharey=True)
    for axis, (network, data) in zip(axes[0], panels, strict=True):
        for label, (choose, refit, spread, style) in lines.items():
            points = []
            for (own_network, own_data, arm), outcome in outcomes.items():
                if (own_network, own_data, arm.choose, arm.refit, arm.spread) == (network, data, choose, refit, spread):
                    interval = kept(outcome)
                    points.append((outcome.multiply_adds, interval.value, interval.low, interval.high))
            if points:
                x, y, low, high = (100 * np.array(column) for column in zip(*sorted(points), strict=True))
                axis.errorbar(x, y, (y - low, high - y), fmt=style, label=label, capsize=3, markersize=5, linewidth=1)
        axis.axhline(100, color="grey", linewidth=0.8)
        axis.set_title(f"{network}, {data}")
        axis.set_xlabel("multiply-adds, % of the ordinary network's")
        axis.grid(alpha=0.3)
    axes[0, 0].set_ylabel("accuracy kept, %")
    axes[0, -1].legend(fontsize=8)
    figure.tight_layout()
    figure.savefig(file, dpi=110)
    plt.close(figure)
