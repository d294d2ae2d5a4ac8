"""Runs the arms: all in one process, in turns, round by round, with the machine's own peak among them.

`write_profile` says where an arm's time goes, operation by operation.
"""

from __future__ import annotations

import gc
import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile

from lab.benchmark.arms import Arm
from lab.benchmark.calls import Call, make_call
from lab.benchmark.machine import peak_product, synchronize
from lab.benchmark.networks import SEED, WeightStore, smooth_clips
from lab.benchmark.results import Agreement, Clock, Memory, Pass
from lab.timing import rounds_of
from octvideo.errors import UserError
from octvideo.files import one_line
from octvideo.octave.kernel.formats import FORMATS
from octvideo.octave.kernel.library import load_library, product_rates
from octvideo.progress import Progress

Times = dict[Clock, float]
# A turn lasts at least this long: shorter ones would be measured by a handful of ticks.
_TURN_SEC = 0.05
# Of training, gradients differ from call to call; of inference, as many clips are compared.
_COMPARED_CLIPS = 4
_PROFILED_OPERATIONS = 25


def build_calls(
    arms: dict[str, Arm],
    weights: WeightStore,
    *,
    threads: int,
    device: torch.device,
    progress: Progress,
    built: Callable[[dict[str, Call]], None] = lambda calls: None,
) -> tuple[dict[str, Call], dict[str, str]]:
    """Builds every arm and calls it once.

    Args:
        arms: by label.
        weights: of their networks.
        threads: that engines may use.
        device: to run on.
        progress: hears of each arm.
        built: called after each arm that runs, with all that have been built.

    Returns:
        The calls by label, with their memory on CUDA; and the arms that can't be built, with the reason.
    """
    calls: dict[str, Call] = {}
    left_out: dict[str, str] = {}
    for number, (label, arm) in enumerate(arms.items()):
        progress.begin(f"building for {_threads_text(threads)}", len(arms))
        progress.update(number, said=label)
        before = _allocated(device)
        try:
            call = make_call(arm, weights, threads=threads, device=device)
            call.once()
            calls[label] = replace(call, memory=_peak_memory(call, device, before))
        except (UserError, RuntimeError) as error:  # torch's, for want of memory or of a compiler
            left_out[label] = one_line(error)
        else:
            built(calls)
    return calls, left_out


def _allocated(device: torch.device) -> int:
    """Bytes that tensors take on a GPU."""
    if device.type != "cuda":
        return 0
    gc.collect()  # of arms that failed, or whose engine refers to itself
    torch.cuda.empty_cache()
    return torch.cuda.memory_allocated(device)


def _peak_memory(call: Call, device: torch.device, before_all: int) -> Memory | None:
    """Of one more call on CUDA. Peaks on a CPU need a process of their own (processes.py).

    Args:
        before_all: bytes that tensors took before the arm was built.
    """
    if device.type != "cuda":
        return None
    torch.cuda.synchronize(device)
    before = torch.cuda.memory_allocated(device)
    torch.cuda.reset_peak_memory_stats(device)
    call.once()
    torch.cuda.synchronize(device)
    peak = torch.cuda.max_memory_allocated(device)
    return Memory(peak - before_all, peak - before, "torch.cuda.max_memory_allocated during a call")


def run_pass(
    arms: dict[str, Arm], calls: dict[str, Call], found: Pass, *, rounds: int, device: torch.device, progress: Progress
) -> bool:
    """Measures all calls, and puts every complete round into `found`.

    Args:
        arms: by label.
        calls: of the arms, by label.
        found: filled.
        rounds: that are asked for.
        device: to run on.
        progress: hears of each turn.

    Returns:
        False after Ctrl-C.
    """
    turns: dict[str, Callable[[], Times]] = {}
    products = {}
    progress.begin(f"measuring on {_threads_text(found.threads)}", (rounds + 1) * len(calls))
    progress.update(said="in turns")
    for label, call in calls.items():
        turns[label] = turn_of(call.once, device, progress.advance)
    precisions = dict.fromkeys(("f32", *(arms[label].precision for label in calls)))
    by_kernel = device.type == "cpu" and load_library() is not None
    for precision in precisions:
        if by_kernel:
            found.peak_how[precision] = "products in registers"
        elif precision != "int8":  # torch has no product in it that is as fast as engines'
            products[precision] = peak_product(precision, device)
            turns[f"peak {precision}"] = turn_of(products[precision].once, device)
            found.peak_how[precision] = products[precision].text
    try:
        for measured in rounds_of(turns, rounds=rounds):
            for label in calls:
                for clock, seconds in measured[label].items():
                    found.seconds.setdefault(label, {}).setdefault(clock, []).append(seconds)
            for precision, product in products.items():
                seconds = measured[f"peak {precision}"][found.clock]
                found.peak.setdefault(precision, []).append(product.multiply_adds / seconds)
            rates = dict(zip(FORMATS, product_rates(), strict=True)) if by_kernel else {}
            for precision in precisions:
                if rate := rates.get(precision):
                    found.peak.setdefault(precision, []).append(rate * found.threads)
    except KeyboardInterrupt:
        return False
    return True


def turn_of(
    once: Callable[[], object], device: torch.device, done: Callable[[], None] = lambda: None
) -> Callable[[], Times]:
    """A turn of some calls: their mean times by all clocks. The first, in the warm-up, says how many calls it takes."""
    calls = 1

    def turn() -> Times:
        nonlocal calls
        with _clocks(device) as times:
            for _ in range(calls):
                once()
        mean: Times = {clock: seconds / calls for clock, seconds in times.items()}
        if calls == 1:
            calls = min(100, max(1, math.ceil(_TURN_SEC / max(mean["wall"], 1e-9))))
        done()
        return mean

    return turn


@contextmanager
def _clocks(device: torch.device) -> Iterator[Times]:
    """Seconds of the block by each clock, once it has ended."""
    times: Times = {}
    on_gpu = device.type == "cuda"
    synchronize(device)
    events = [torch.cuda.Event(enable_timing=True) for _ in range(2)] if on_gpu else []
    cpu, wall = time.process_time(), time.perf_counter()
    if on_gpu:
        events[0].record()
    yield times
    if on_gpu:
        events[1].record()
        synchronize(device)
    times["cpu"], times["wall"] = time.process_time() - cpu, time.perf_counter() - wall
    if on_gpu:
        times["gpu"] = events[0].elapsed_time(events[1]) / 1000


def agreements(arms: dict[str, Arm], calls: dict[str, Call]) -> dict[str, Agreement]:
    """Compares the scores of each arm with those of the first arm that computes the same function.

    The plainest comes first: the engine "plain" where there is one, f32 before others.
    """
    groups: dict[object, list[str]] = {}
    for label, call in calls.items():
        if call.logits is not None:
            groups.setdefault(arms[label].function, []).append(label)
    found = {}
    for members in groups.values():
        members = sorted(members, key=lambda label: (arms[label].precision != "f32", arms[label].engine != "plain"))
        first, *others = members
        if others:
            expected = _logits(arms[first], calls[first])  # (M,K)
            for label in others:
                logits = _logits(arms[label], calls[label])  # (M,K)
                found[label] = _agreement(first, expected, logits)
    return found


def _agreement(other: str, expected: torch.Tensor, logits: torch.Tensor) -> Agreement:
    clips = min(len(expected), len(logits))
    expected, logits = expected[:clips], logits[:clips]
    same = int((expected.argmax(1) == logits.argmax(1)).sum())
    difference = float((expected - logits).abs().max())
    return Agreement(other, difference, float(expected.std()), same, clips)


def _logits(arm: Arm, call: Call) -> torch.Tensor:
    """Of the same clips whatever the batch, (M, K) with M >= 4."""
    assert call.logits is not None
    clips = torch.cat([smooth_clips((1, *arm.clip_shape[1:]), seed=SEED + 100 + n) for n in range(_COMPARED_CLIPS)])
    batches = [clips[torch.arange(start, start + arm.batch) % len(clips)] for start in range(0, len(clips), arm.batch)]
    return torch.cat([call.logits(batch) for batch in batches])[: len(clips)]


def _threads_text(threads: int) -> str:
    return "1 thread" if threads == 1 else f"{threads} threads"


def write_profile(path: str | Path, calls: Mapping[str, Call], device: torch.device) -> None:
    """Writes the operations that take most time, a table for each arm.

    Engines beside torch's (onnx, openvino) are one call to it, and have an empty table.

    Args:
        path: of a text file.
        calls: by the arm's label; warmed up.
        device: that they run on.
    """
    on_gpu = device.type == "cuda"
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if on_gpu else [])]
    order = "self_cuda_time_total" if on_gpu else "self_cpu_time_total"
    tables = []
    for label, call in calls.items():
        with profile(activities=activities) as found:
            call.once()
            if on_gpu:
                torch.cuda.synchronize(device)
        table = found.key_averages().table(sort_by=order, row_limit=_PROFILED_OPERATIONS, max_name_column_width=60)
        tables.append(f"== {label} ==\n{table}")
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    Path(path).write_text("\n".join(tables), encoding="utf-8")
