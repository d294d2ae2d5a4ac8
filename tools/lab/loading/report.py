"""The tables of tools/benchmark_loading.py."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lab.benchmark.report import Sheet
from lab.loading.loaders import Need, Rate
from lab.loading.ways import FLOOR

# By way (or stage), a number per round.
Rounds = Mapping[str, Sequence[float]]


def times_sheet(title: str, results: Sequence[Mapping[str, Any]], kind: str) -> Sheet:
    """A line per video: CPU milliseconds of each way, and its ratio to the bare decoder in the same round."""
    names = list(dict.fromkeys(name for result in results for name in result[kind]))
    lines: list[tuple[str, ...]] = []
    for result in results:
        times: Rounds = result[kind]
        cells = [_cell(times[name], times[FLOOR], name) if name in times else "" for name in names]
        lines.append((_video_name(result), *cells))
    return Sheet(title, ("video", *names), lines, ("median CPU ms of one thread (times the bare decoder, paired)",))


def stages_sheet(title: str, results: Sequence[Mapping[str, Any]], kind: str) -> Sheet:
    """A line per video: the milliseconds of each stage and its share."""
    stages = list(results[0][kind])
    lines: list[tuple[str, ...]] = []
    for result in results:
        medians = {stage: statistics.median(result[kind][stage]) for stage in stages}
        total = sum(medians.values())
        cells = [f"{ms:.1f} ({100 * ms / total:.0f} %)" for ms in medians.values()]
        lines.append((_video_name(result), *cells, f"{total:.1f}"))
    return Sheet(title, ("video", *stages, "all"), lines, ("median CPU ms of one thread (share)",))


def loaders_sheet(kind: str, rates: Mapping[str, Sequence[Rate]], num_workers: int) -> Sheet:
    """A line per loader: rates by the clock and by CPU time."""
    ours = [_per_cpu(rate) for rate in rates["octvideo"]]
    lines: list[tuple[str, ...]] = []
    for name, found in rates.items():
        per_cpu = [_per_cpu(rate) for rate in found]
        clock = statistics.median(rate.items / rate.seconds for rate in found)
        ratio = statistics.median(mine / other for mine, other in zip(ours, per_cpu, strict=True))
        lines.append((name, f"{clock:.1f}", f"{statistics.median(per_cpu):.1f}", f"{ratio:.2f}"))
    header = ("loader", f"{kind}/s by the clock", f"{kind}/s per CPU", "octvideo is faster")
    return Sheet(f"DataLoader with {num_workers} workers, {kind}", header, lines)


def _per_cpu(rate: Rate) -> float:
    return rate.items / rate.cpu_seconds


def need_line(kind: str, need: Need, num_views: int) -> str:
    """Whether a GPU would wait, in words, for training clips ("clips") or for whole videos ("videos")."""
    if kind == "clips":
        return f"Training at {need.wanted:g} clips/s: {_verdict(need)}"
    return f"Tests at {need.wanted * num_views:g} views/s ({need.wanted:.1f} videos/s): {_verdict(need)}"


def _verdict(need: Need) -> str:
    asked = f"loading keeps {need.cpus:.1f} CPUs busy (data.num_workers {need.num_workers})"
    if need.starves:
        reached = need.available / need.cpus
        return f"the GPU STARVES: {asked}, this process has {need.available}, enough for {100 * reached:.0f} %"
    return f"the GPU is fed: {asked}, this process has {need.available}"


def _cell(times: Sequence[float], floor: Sequence[float], name: str) -> str:
    middle = f"{statistics.median(times):.0f}"
    if name == FLOOR:
        return middle
    ratio = statistics.median(a / b for a, b in zip(times, floor, strict=True))
    return f"{middle} ({ratio:.2f})"


def _video_name(result: Mapping[str, Any]) -> str:
    name, video = Path(result["video"].path).name, result["video"]
    name = name if len(name) <= 28 else f"{name[:27]}…"
    return f"{name} {video.width}x{video.height}"
