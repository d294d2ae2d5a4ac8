"""The tables of a benchmark, for a terminal or a README."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from rich import box
from rich.table import Table

from lab.benchmark.arms import common
from lab.benchmark.machine import machine_line
from lab.benchmark.results import ArmResult, Pass, Row, Run, Spread, spread, summarise
from octvideo.files import markdown

_CLOCKS = {"cpu": "process CPU time", "wall": "wall time", "gpu": "time between GPU events"}


@dataclass(frozen=True)
class Sheet:
    """A table: its title, its header and lines of as many cells, and notes below."""

    title: str
    header: tuple[str, ...]
    lines: list[tuple[str, ...]]
    notes: tuple[str, ...] = ()

    def drawn(self) -> Table:
        """For a terminal, without the title, which a narrow table would break."""
        table = Table(box=box.SIMPLE_HEAD)
        for place, name in enumerate(self.header):
            table.add_column(name, justify="left" if place == 0 else "right", no_wrap=place == 0)
        for line in self.lines:
            table.add_row(*line)
        return table

    def markdown(self) -> str:
        """For a README."""
        return f"{self.title}\n\n{markdown(self.header, self.lines)}"


def sheets(run: Run) -> Iterator[Sheet]:
    """One table of times for each pass, then one of what was counted."""
    rows: list[Row] = []
    for found in run.passes:
        if found.rounds:
            rows = summarise(run, found)
            yield _times(run, found, rows)
    if run.arms:
        yield _counts(run, rows)


def _times(run: Run, found: Pass, rows: Sequence[Row]) -> Sheet:
    octave, several = any(row.twin for row in rows), len(rows) > 1
    header = ["arm", "ms a call (quartiles)", "clips/s"]
    header += ["× faster"] if several else []
    header += ["by engine", "by octave", "time ratio (quartiles)", "FLOP ratio", "time / FLOP"] if octave else []
    header.append("of peak")
    lines = []
    for row in rows:
        cells = [row.result.label, _spread(row.seconds, 1000, 1), f"{row.clips_per_sec:.3g}"]
        cells += [_number(row.faster)] if several else []
        if octave:
            cells += [_number(row.faster_engine), _number(row.faster_octave)]
            cells += ["" if row.to_twin is None else _spread(row.to_twin, 1, 3)]
            cells += [_number(row.flop_ratio, 3), _number(row.to_ideal)]
        cells.append("" if row.of_peak is None else f"{100 * row.of_peak:.0f} %")
        lines.append(tuple(cells))
    threads = "one thread" if found.threads == 1 else f"{found.threads} threads"
    where = "GPU" if found.device == "cuda" else threads
    rounds = f"{found.rounds} rounds in turns"
    if found.processes > 1:
        rounds = f"{found.processes} processes, {rounds}"
    title = f"{_CLOCKS[found.clock]}, {where}, {rounds}: {common([r.arm for r in run.arms])}"
    notes = list(_peaks(found))
    if several:
        notes.insert(0, f"× faster: than {run.reference}, the median of the rounds; octave's share of it is against")
        notes[0] += " the ordinary network by the same engine, in its faster layout, as are the ratios."
    return Sheet(title, tuple(header), lines, tuple(notes))


def _peaks(found: Pass) -> Iterator[str]:
    for precision, rates in found.peak.items():
        giga = max(rates) / 1e9
        yield f"peak, {precision}: {giga:.1f} G multiply-adds/s, best of the rounds ({found.peak_how[precision]})"
    between = {label: spread(clocks["gpu"]).median for label, clocks in found.seconds.items() if "gpu" in clocks}
    if between:
        texts = [f"{label} {1000 * seconds:.1f}" for label, seconds in between.items()]
        yield f"ms between events on the GPU: {', '.join(texts)}"


def _counts(run: Run, rows: Sequence[Row]) -> Sheet:
    by_label = {row.result.label: row for row in rows}
    remembers = any(result.memory for result in run.arms)
    agrees = any(result.agreement for result in run.arms)
    header = ["arm", "multiply-adds, G", "parameters, M", "maps moved, MB", "ratio"]
    header += ["peak memory, MB", "ratio", "of a call, MB"] if remembers else []
    header += ["logits: largest difference", "to", "same top-1"] if agrees else []
    lines = []
    for result in run.arms:
        row = by_label.get(result.label)
        cells = [result.label, f"{result.multiply_adds / 1e9:.2f}", f"{result.parameters / 1e6:.2f}"]
        cells += [_mega(result.traffic), _number(row.traffic_ratio if row else None, 3)]
        if remembers:
            memory = result.memory
            peak, call = ("", "") if memory is None else (_mega(memory.peak), _mega(memory.call))
            cells += [peak, _number(row.memory_ratio if row else None, 3), call]
        if agrees:
            cells += _agreement(result)
        lines.append(tuple(cells))
    notes = [
        "Multiply-adds of one call, with the backward pass in training. Maps moved: each that a convolution reads or"
    ]
    notes[0] += " writes, once, in a forward pass."
    notes += sorted({f"Memory: {result.memory.how}." for result in run.arms if result.memory})
    if agrees:
        notes.append("Logits: of arms that compute the same, with weights drawn by chance; σ is their own deviation.")
    return Sheet("what it takes", tuple(header), lines, tuple(notes))


def _mega(count: float) -> str:
    return f"{count / 1e6:.0f}" if count >= 1e8 else f"{count / 1e6:.3g}"


def _agreement(result: ArmResult) -> list[str]:
    found = result.agreement
    if found is None:
        return ["", "", ""]
    difference = f"{found.difference:.1e} (σ {found.spread:.2g})"
    return [difference, found.other, f"{found.same_top1} of {found.clips}"]


def _spread(value: Spread, scale: float, digits: int) -> str:
    middle, low, high = (f"{scale * number:.{digits}f}" for number in (value.median, value.low, value.high))
    return f"{middle} ({low}–{high})"


def _number(value: float | None, digits: int = 2) -> str:
    return "" if value is None else f"{value:.{digits}f}"


def remarks(run: Run) -> list[str]:
    """What else is to know: the machine, what was left out, whether it is complete."""
    lines = [machine_line(run.machine)]
    lines += [f"left out: {label}: {reason}" for label, reason in run.left_out.items()]
    if run.interrupted:
        lines.append("stopped before its end: the rounds above are complete ones")
    lines.append(f"command: {run.command}")
    return lines
