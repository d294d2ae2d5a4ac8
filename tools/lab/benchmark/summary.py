"""What the numbers of a run say: medians with quartiles, and ratios of the same round to other arms."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from lab.benchmark.arms import Arm
from lab.benchmark.results import ArmResult, Pass, Run


@dataclass(frozen=True)
class Spread:
    """A median between its quartiles."""

    median: float
    low: float
    high: float


def spread(values: Sequence[float]) -> Spread:
    """Median and quartiles of one number or more, linear between neighbours."""
    low, median, high = np.percentile(values, [25, 50, 75])
    return Spread(float(median), float(low), float(high))


def ratios(times: Sequence[float], others: Sequence[float]) -> list[float]:
    """Round by round, one arm's time over another's: what slowed the machine in a round slowed both."""
    return [a / b for a, b in zip(times, others, strict=True)]


@dataclass(frozen=True)
class Row:
    """One arm in one pass.

    Args:
        result: its arm, counts and memory.
        seconds: of one call.
        clips_per_sec: at the median.
        faster: times faster than the run's reference arm (median of rounds); 1 for itself.
        twin: label of the ordinary network by the same engine, in its best layout; None for that network.
        faster_engine: of `faster`, the engine's share: the twin's.
        faster_octave: the rest, octave's share: against the twin.
        to_twin: time over the twin's.
        flop_ratio: multiply-adds over the twin's.
        traffic_ratio: bytes that convolutions move, over the twin's.
        memory_ratio: peak memory over the twin's.
        of_peak: multiply-adds per second over the best of the machine's matrix product in this pass, at this precision
            or in f32, whichever is faster; None where none was measured at this precision.
    """

    result: ArmResult
    seconds: Spread
    clips_per_sec: float
    faster: float
    twin: str | None = None
    faster_engine: float | None = None
    faster_octave: float | None = None
    to_twin: Spread | None = None
    flop_ratio: float | None = None
    traffic_ratio: float | None = None
    memory_ratio: float | None = None
    of_peak: float | None = None

    @property
    def to_ideal(self) -> float | None:
        """Time ratio over FLOP ratio: 1 is where every saved multiply-add saves its time."""
        if self.to_twin is None or not self.flop_ratio:
            return None
        return self.to_twin.median / self.flop_ratio


def summarise(run: Run, found: Pass) -> list[Row]:
    """A row for each arm that was measured in a pass, in the run's order."""
    times = {label: clocks[found.clock] for label, clocks in found.seconds.items()}
    there = [result for result in run.arms if result.label in times]
    if not there:
        return []
    reference = times.get(run.reference, times[there[0].label])
    return [_row(result, there, times, reference, found) for result in there]


def _row(
    result: ArmResult, there: Sequence[ArmResult], times: dict[str, list[float]], reference: list[float], found: Pass
) -> Row:
    own, arm = times[result.label], result.arm
    seconds = spread(own)
    # Where the machine has no unit for bf16, engines fall back to f32: its peak is then the higher one.
    peaks = found.peak.get(arm.precision) and found.peak[arm.precision] + found.peak.get("f32", [])
    row = {
        "clips_per_sec": arm.batch / seconds.median,
        "faster": _median(ratios(reference, own)),
        "of_peak": result.multiply_adds / seconds.median / max(peaks) if peaks else None,
    }
    twin = find_twin(arm, there, times)
    if twin is None:
        return Row(result, seconds, **row)  # type: ignore[arg-type]
    memory, other = result.memory, twin.memory
    return Row(
        result,
        seconds,
        **row,  # type: ignore[arg-type]
        twin=twin.label,
        faster_engine=_median(ratios(reference, times[twin.label])),
        faster_octave=_median(ratios(times[twin.label], own)),
        to_twin=spread(ratios(own, times[twin.label])),
        flop_ratio=result.multiply_adds / twin.multiply_adds,
        traffic_ratio=result.traffic / twin.traffic if twin.traffic else None,
        memory_ratio=memory.peak / other.peak if memory and other else None,
    )


def find_twin(arm: Arm, there: Sequence[ArmResult], times: dict[str, list[float]]) -> ArmResult | None:
    """The ordinary network by the arm's own engine, the fastest where there are several layouts of it."""
    if arm.is_ordinary:
        return None
    twins = [other for other in there if arm.is_twin(other.arm)]
    return min(twins, key=lambda other: _median(times[other.label]), default=None)


def _median(values: Sequence[float]) -> float:
    return float(np.median(values))
