"""What the kernel takes for each of a network's layers, beside what its multiply-adds and its bytes would take.

A network runs once by the engine "eager". The plans of its sequences are kept with the maps that they got. Then their
steps run again, group by group in order, and each is timed: what a group reads has just been written, as in the whole
network. The bound is the larger of multiply-adds over the peak (`product_rates`) and bytes over what a copy in memory
reaches. A group that is far above both is held by instructions: short rows, half-filled vectors, pooling, padding.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from functools import partial
from math import prod
from pathlib import Path

import torch
from torch import Tensor

from lab.benchmark.arms import Arm, arm_text, parse_arms
from lab.benchmark.calls import make_call
from lab.benchmark.machine import describe, machine_line
from lab.benchmark.networks import WeightStore
from lab.timing import torch_threads
from octvideo.cli.arguments import Parser, positive
from octvideo.cli.ending import command
from octvideo.cli.tables import print_table
from octvideo.errors import UserError
from octvideo.files import json_text, whole_text
from octvideo.octave.kernel.formats import FORMATS
from octvideo.octave.kernel.fused_conv import FusedLayer, LayerKind, Shape, half_size
from octvideo.octave.kernel.library import load_library, product_rates
from octvideo.octave.kernel.sequence import SequencePlan

_THEN = ", "  # between the layers of a group
_KINDS = {value: name.lower() for name, value in vars(LayerKind).items() if isinstance(value, int)}


@dataclass(frozen=True)
class Group:
    """Steps that the kernel computes together.

    Args:
        layers: in words.
        multiply_adds: of all clips.
        num_bytes: of the maps that are read and written as a whole, and of weights.
        seconds: CPU time, the best of the rounds.
    """

    layers: str
    multiply_adds: int
    num_bytes: int
    seconds: float


def groups_of(arm: Arm, *, rounds: int) -> tuple[list[Group], float]:
    """The groups of steps of a network, in order, and the CPU seconds of the whole network.

    Raises:
        UserError: the kernel does not run this arm.
    """
    with torch_threads(1), torch.inference_mode():
        call = make_call(arm, WeightStore(as_built=True), threads=1, device=torch.device("cpu"))
        call.once()
        with _kept_plans() as runs:
            call.once()
        if not runs:
            raise UserError(f"{arm.network}: no layer of it runs by the kernel (engine {arm.engine}, {arm.precision})")
        parts = [part for plan, _, _ in runs for part in _parts(plan)]
        best, whole = [float("inf")] * len(parts), float("inf")
        for _ in range(rounds):
            whole = min(whole, _seconds(call.once))
            at = 0
            for plan, inputs, workspaces in runs:
                for part in _parts(plan):
                    best[at] = min(best[at], _seconds(partial(part.run, inputs, workspaces)))
                    at += 1
        counted = [group for plan, inputs, _ in runs for group in _counted(plan, inputs)]
    return [replace(group, seconds=seconds) for group, seconds in zip(counted, best, strict=True)], whole


@contextmanager
def _kept_plans() -> Iterator[list[tuple[SequencePlan, Sequence[Sequence[Tensor]], list[Tensor]]]]:
    runs: list[tuple[SequencePlan, Sequence[Sequence[Tensor]], list[Tensor]]] = []
    run = SequencePlan.run

    def keep(
        plan: SequencePlan, inputs: Sequence[Sequence[Tensor]], workspaces: list[Tensor]
    ) -> list[Sequence[Tensor]]:
        runs.append((plan, [[x.clone() for x in maps] for maps in inputs], workspaces))
        return run(plan, inputs, workspaces)

    SequencePlan.run = keep  # type: ignore[method-assign, assignment]
    try:
        yield runs
    finally:
        SequencePlan.run = run  # type: ignore[method-assign]


def _ranges(plan: SequencePlan) -> list[range]:
    ranges, begin = [], 0
    while begin < len(plan.steps):
        ranges.append(range(begin, begin + plan.steps[begin].group))
        begin = ranges[-1].stop
    return ranges


def _parts(plan: SequencePlan) -> list[SequencePlan]:
    """A plan for each group alone, in the same memory."""
    return [
        replace(plan, steps=[plan.steps[step] for step in steps], sliced=len(steps) if steps.stop <= plan.sliced else 0)
        for steps in _ranges(plan)
    ]


def _counted(plan: SequencePlan, inputs: Sequence[Sequence[Tensor]]) -> Iterator[Group]:
    wiring = plan.wiring
    shapes = wiring.shapes(plan.layers, [[tuple(x.shape) for x in maps] for maps in inputs])
    itemsize = plan.format.dtype.itemsize
    for steps in _ranges(plan):
        inside = {wiring.num_inputs + step for step in steps[:-1]}
        read = {value for step in steps for value in wiring.reads[step] if value >= 0} - inside
        maps = [shape for value in [*read, wiring.num_inputs + steps[-1]] for shape in shapes[value]]
        layers = [plan.layers[step] for step in steps]
        num_bytes = sum(map(prod, maps)) * itemsize + sum(layer.weight_bytes for layer in layers)
        through = [(shapes[wiring.reads[step][0]], shapes[wiring.num_inputs + step]) for step in steps]
        text = _THEN.join(_in_words(layer, *maps) for layer, maps in zip(layers, through, strict=True))
        multiply_adds = sum(_multiply_adds(layer, *maps) for layer, maps in zip(layers, through, strict=True))
        yield Group(text, multiply_adds, num_bytes, 0.0)


def _multiply_adds(layer: FusedLayer, source: Sequence[Shape], result: Sequence[Shape]) -> int:
    """Those from or to a low map are at its size, but where the layer pools first: its low input has the high result's
    size. Groups that the kernel joins are counted as it multiplies them."""
    made = layer.layer
    if made.kind == LayerKind.DEPTHWISE:
        return sum(map(prod, result)) * prod(made.kernel)
    if made.kind != LayerKind.CONVOLUTION:
        return 0
    clips, _, *rest = source[0]
    size: Shape = (1, *rest)[-3:]
    sides = zip(
        half_size(size) if made.pool_first else size, made.kernel, made.stride, made.padding, made.dilation, strict=True
    )
    high = [(side + 2 * p - d * (k - 1) - 1) // s + 1 for side, k, s, p, d in sides]  # before a max-pooling
    sizes = [prod(high), prod(half_size(high))]
    taps = prod(made.kernel) * clips
    return sum(
        taps * out[1] * x[1] * sizes[to or (of and not made.pool_first)] // max(made.groups, 1)
        for to, out in enumerate(result)
        for of, x in enumerate(source)
    )


def _in_words(layer: FusedLayer, source: Sequence[Shape], result: Sequence[Shape]) -> str:
    made = layer.layer
    kind, channels = _KINDS[made.kind], _of_parts(result)
    size = "x".join(map(str, result[0][2:]))
    if made.kind not in (LayerKind.CONVOLUTION, LayerKind.DEPTHWISE):
        return f"{kind} {channels} at {size}"
    if made.kind == LayerKind.CONVOLUTION:
        kind = f"{made.groups} groups" if made.groups > 1 else "conv"
        channels = f"{_of_parts(source)} to {channels}"
    stride = f" / {made.stride[-1]}" if made.stride[-1] > 1 else ""
    return f"{kind} {'x'.join(map(str, made.kernel))}{stride} {channels} at {size}"


def _of_parts(maps: Sequence[Shape]) -> str:
    return "+".join(str(shape[1]) for shape in maps)


def copied_bytes_per_second() -> float:
    """Of one thread that copies in memory, what it reads and writes."""
    source, target = torch.ones(1 << 26), torch.empty(1 << 26)  # 256 MiB each: larger than caches
    return 2 * source.nbytes / min(_seconds(lambda: target.copy_(source)) for _ in range(5))


def _seconds(work: Callable[[], object]) -> float:
    started = time.process_time()
    work()
    return time.process_time() - started


@command()
def main(argv: Sequence[str]) -> int:
    parser = Parser(description=_DESCRIPTION)
    parser.add_argument("arms", nargs="+", metavar="ARM", help="as tools/benchmark.py takes them; engine eager")
    parser.add_argument("--rounds", type=positive, default=20, metavar="N", help="best of (20)")
    parser.add_argument("--markdown", action="store_true", help="print Markdown")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the numbers too")
    args = parser.parse_args(argv)
    if load_library() is None:
        raise UserError("octvideo's kernel is not here, so nothing can be timed: see docs/installing.md")
    arms = parse_arms(args.arms, engine="eager")
    machine, bandwidth = machine_line(describe(torch.device("cpu"))), copied_bytes_per_second()
    rates = dict(zip(FORMATS, product_rates(), strict=True))
    found = []
    for arm in arms:
        groups, whole = groups_of(arm, rounds=args.rounds)
        found.append({"arm": arm_text(arm), "seconds": whole, "groups": [asdict(group) for group in groups]})
        peak = rates[arm.precision]
        title = (
            f"{arm_text(arm)}: {1000 * whole:.1f} ms, {1000 * sum(group.seconds for group in groups):.1f} of them below"
        )
        rows = [_row(*alike, peak, bandwidth, one_line=args.markdown) for alike in _alike(groups)]
        print_table(_HEADER, rows, title=title, as_markdown=args.markdown)
    peaks = ", ".join(f"{name} {rate / 1e9:.0f}" for name, rate in rates.items())
    print(f"Peak, G multiply-adds a second: {peaks}. A copy in memory: {bandwidth / 1e9:.1f} GB a second. {machine}")
    if args.json is not None:
        with whole_text(args.json) as file:
            file.write(json_text({"machine": machine, "rates": rates, "bandwidth": bandwidth, "arms": found}, indent=1))
    return 0


_DESCRIPTION = """What the kernel takes for each layer of a network, beside multiply-adds and bytes, on one thread.

  tools/kernel_layers.py x3d_s:alpha=0/.5,frames=13,crop=160
  tools/kernel_layers.py torchvision:mobilenet_v2:alpha=.25,frames=1,batch=8,precision=bf16 --markdown

Layers that the kernel computes together, part by part, have one row; equal ones are summed. `bound` is the larger of
multiply-adds over the machine's peak and bytes over the speed of a copy in memory, as a share of the time: 1 is all
that there is, or more where maps stay in the cache."""

_HEADER = ("layers", "times", "ms", "M multiply-adds", "MB", "G/s", "GB/s", "bound")


def _alike(groups: Sequence[Group]) -> list[tuple[Group, int]]:
    """Groups of the same layers as one with their sums, and how many there are."""
    found: dict[str, tuple[Group, int]] = {}
    for group in groups:
        before, number = found.get(group.layers, (Group(group.layers, 0, 0, 0.0), 0))
        sums = (getattr(before, name) + getattr(group, name) for name in ("multiply_adds", "num_bytes", "seconds"))
        found[group.layers] = (Group(group.layers, *sums), number + 1)
    return list(found.values())


def _row(group: Group, number: int, peak: float, bandwidth: float, *, one_line: bool) -> tuple[str, ...]:
    bound = max(group.multiply_adds / peak, group.num_bytes / bandwidth) / group.seconds
    rate, flow = group.multiply_adds / group.seconds / 1e9, group.num_bytes / group.seconds / 1e9
    numbers = (1e3 * group.seconds, group.multiply_adds / 1e6, group.num_bytes / 1e6, rate, flow, bound)
    cells = (
        format(value, spec) for value, spec in zip(numbers, (".2f", ".1f", ".2f", ".0f", ".1f", ".2f"), strict=True)
    )
    return (group.layers if one_line else group.layers.replace(_THEN, _THEN.rstrip() + "\n"), str(number), *cells)
