"""What a benchmark found, as JSON holds it: numbers as measured, nothing that can be worked out from them.

`summarise` works it out: medians with quartiles, and ratios of the same round to other arms.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from math import nan
from pathlib import Path
from typing import Any, Literal

import numpy as np

from lab.benchmark.arms import Arm
from octvideo.errors import UserError
from octvideo.files import json_text, whole_text

FORMAT = 1
# "cpu": the process's CPU time; "wall": a clock's, with the GPU waited for; "gpu": between two events on the GPU.
Clock = Literal["cpu", "wall", "gpu"]


@dataclass(frozen=True)
class Memory:
    """Peak memory of one arm in bytes.

    Args:
        peak: network, engine and everything that one call needs, at once.
        call: of it, what was not there before the call.
        how: it was measured.
    """

    peak: int
    call: int
    how: str


@dataclass(frozen=True)
class Agreement:
    """How far the scores of an arm are from those of another that computes the same function.

    Args:
        other: label of that arm.
        difference: the largest of any logit.
        spread: standard deviation of the other's logits, to see it against.
        same_top1: clips whose best class is the same.
        clips: that were compared.
    """

    other: str
    difference: float
    spread: float
    same_top1: int
    clips: int


@dataclass
class ArmResult:
    """One arm, and what does not depend on the pass.

    Args:
        label: short and unique in its run.
        arm: what it is.
        multiply_adds: of one call: a batch, with the backward pass in training.
        traffic: bytes that convolutions read and write in one forward pass at the arm's precision, each map once.
        parameters: learnt numbers.
        memory: None where it was not measured.
        agreement: None where nothing else computes the same.
    """

    label: str
    arm: Arm
    multiply_adds: int
    traffic: int
    parameters: int
    memory: Memory | None = None
    agreement: Agreement | None = None


@dataclass
class Pass:
    """All arms, measured in turns with one number of threads.

    Args:
        device: "cpu" or "cuda".
        threads: that all could use.
        clock: the one that decides.
        seconds: of one call, by arm's label and clock, a number per round.
        peak: the most multiply-adds per second that the machine makes, by precision, a number per round.
        peak_how: which product that was, by precision.
        processes: that the rounds come from, one after the other, as many of each.
    """

    device: str
    threads: int
    clock: Clock
    seconds: dict[str, dict[Clock, list[float]]] = field(default_factory=dict)
    peak: dict[str, list[float]] = field(default_factory=dict)
    peak_how: dict[str, str] = field(default_factory=dict)
    processes: int = 1

    def join(self, other: Pass) -> None:
        """Takes the rounds of another pass with the same arms."""
        for label, clocks in self.seconds.items():
            self.seconds[label] = {clock: [*times, *other.seconds[label][clock]] for clock, times in clocks.items()}
        self.peak = {precision: [*rates, *other.peak[precision]] for precision, rates in self.peak.items()}
        self.processes += other.processes

    @property
    def rounds(self) -> int:
        """Complete ones."""
        return max((len(times) for clocks in self.seconds.values() for times in clocks.values()), default=0)


@dataclass
class Run:
    """One run of the tool.

    Args:
        machine: facts by name.
        command: that gives it.
        arms: in the order given; the first is what others are compared with, unless `reference` names another.
        passes: one for each number of threads.
        reference: label of the arm that all are compared with.
        left_out: arms that could not be built or run, with the reason.
        preset: name of the preset, if one was used.
        interrupted: before its end, as by Ctrl-C; the rounds that it has are complete.
    """

    machine: dict[str, str]
    command: str
    arms: list[ArmResult]
    passes: list[Pass]
    reference: str
    left_out: dict[str, str] = field(default_factory=dict)
    preset: str | None = None
    interrupted: bool = False

    def save(self, path: str | Path) -> None:
        """Writes JSON."""
        content = asdict(self) | {"format": FORMAT}
        for result, entry in zip(self.arms, content["arms"], strict=True):
            entry["arm"] = result.arm.to_dict()
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        with whole_text(Path(path)) as file:  # it may be written again and again, as arms are measured
            file.write(json_text(content, indent=1) + "\n")

    @classmethod
    def load(cls, path: str | Path) -> Run:
        """Reads what `save` wrote.

        Raises:
            UserError: no such file, or another.
        """
        try:
            content = json.loads(Path(path).read_text(encoding="utf-8"))
        except OSError as error:
            raise UserError(
                f"no results at {path} ({error.strerror}): tools/benchmark.py --json writes them"
            ) from error
        except ValueError as error:
            raise UserError(f"{path} is not JSON ({error}), expected what tools/benchmark.py --json writes") from error
        if not isinstance(content, dict) or content.pop("format", None) != FORMAT:
            raise UserError(f"{path} holds something else, expected what tools/benchmark.py --json writes (format 1)")
        arms = [_arm_result(entry) for entry in content.pop("arms")]
        passes = [Pass(**entry) for entry in content.pop("passes")]
        return cls(arms=arms, passes=passes, **content)


def _arm_result(entry: dict[str, Any]) -> ArmResult:
    memory, agreement = entry.pop("memory"), entry.pop("agreement") or {}
    known: dict[str, Any] = {key: nan if value is None else value for key, value in agreement.items()}
    return ArmResult(
        arm=Arm.from_dict(entry.pop("arm")),
        memory=memory and Memory(**memory),
        agreement=Agreement(**known) if known else None,
        **entry,
    )


# ── what the numbers say ──────────────────────────────────────────────────────────────────────────────────────────────


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
        of_peak: multiply-adds per second over the best of the machine's peak in this pass, at this precision
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
