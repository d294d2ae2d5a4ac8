"""What a benchmark found, as JSON holds it: numbers as measured, nothing that can be worked out from them."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from math import nan
from pathlib import Path
from typing import Any, Literal

from lab.benchmark.arms import Arm
from octvideo.errors import UserError
from octvideo.files import json_text

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
        peak: multiply-adds per second of the large matrix product, by precision, a number per round.
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
        interrupted: by Ctrl-C; what is there is complete in itself.
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
        for found, entry in zip(self.arms, content["arms"], strict=True):
            entry["arm"] = found.arm.to_dict()
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        Path(path).write_text(json_text(content, indent=1) + "\n", encoding="utf-8")

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
