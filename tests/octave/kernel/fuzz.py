"""Random layers and sequences of them against the reference of cases.py: a program that test_formats.py runs.

All maps and weights lie at the very end, or the very start, of memory beside which nothing can be read or written.
Before each call, results, workspaces and what the kernel's threads keep are full of NaN, or of 255 in int8.
"""

from __future__ import annotations

import argparse
import ctypes
import itertools
import json
import mmap
import random as python_random
import time
import traceback
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from octvideo.octave.kernel import library
from octvideo.octave.kernel.formats import FORMATS, FormatName, LayerQuanta, Quantum
from octvideo.octave.kernel.fused_conv import ACTIVATIONS, Form, FusedConv, FusedLayer, Maps, MaxPool, half_size
from octvideo.octave.kernel.library import load_library
from octvideo.octave.kernel.light_layers import FusedDepthwise, FusedMean, FusedScale
from octvideo.octave.kernel.sequence import NO_VALUE, SequencePlan, Step, Wiring
from octvideo.octave.kernel.training import Weight
from tests.octave.kernel.cases import Case, halve, to_elements
from tests.octave.kernel.light_cases import LightCase, LightKind

_LIBC = ctypes.CDLL(None, use_errno=True)
_LIBC.mprotect.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
KINDS: dict[str, tuple[dict[str, bool], bool, bool, bool]] = {  # flags; x_low, y_low, a part of x_low is upsampled
    "ordinary": ({}, False, False, False),
    "pooled": ({"pool_first": True}, False, False, False),
    "octave": ({"low_reads_high": True, "low_reads_low": True}, True, True, True),
    "first": ({"low_reads_high": True}, False, True, False),
    "last": ({}, True, False, True),
    "no exchange": ({"low_reads_low": True}, True, True, False),
    "one way": ({"low_reads_low": True}, True, True, True),
    "other way": ({"low_reads_high": True, "low_reads_low": True}, True, True, False),
    "only crossing": ({"low_reads_high": True}, True, True, True),
    "strided": (
        {"pool_first": True, "high_reads_low": True, "low_reads_high": True, "low_reads_low": True},
        True,
        True,
        False,
    ),
    "strided, last": ({"pool_first": True, "high_reads_low": True}, True, False, False),
    "strided, first": ({"pool_first": True, "low_reads_high": True}, False, True, False),
    "strided, no exchange": ({"pool_first": True, "low_reads_low": True}, True, True, False),
}


class Guarded:
    """Makes memory that ends, or starts, where nothing may be read or written."""

    def __init__(self, *, at_end: bool) -> None:
        self.at_end = at_end

    def bytes(self, count: int, fill: int = 0xFF) -> Tensor:
        page = mmap.PAGESIZE
        inner = max(page, -(-count // page) * page)
        memory = mmap.mmap(-1, inner + 2 * page, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        whole = torch.frombuffer(memory, dtype=torch.uint8)
        whole.fill_(fill)
        for start in (0, page + inner):
            if _LIBC.mprotect(whole.data_ptr() + start, page, 0):
                raise OSError(ctypes.get_errno(), "mprotect")
        begin = page + (inner - count if self.at_end else 0)
        return whole[begin : begin + count]

    def map(self, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
        """A channels-last map (N, C, [T,] H, W), full of NaN or 255."""
        count, channels, *size = shape
        flat = self.bytes(torch.Size(shape).numel() * dtype.itemsize).view(dtype)
        return flat.view(count, *size, channels).movedim(-1, 1)

    def copy(self, x: Tensor) -> Tensor:
        made = self.map(x.shape, x.dtype)
        made.copy_(x)
        return made

    def copy_weights(self, fused: FusedLayer) -> list[Tensor]:
        """Lets the layer read copies of its weights, biases and scales, which must be kept."""
        made = []
        for name, tensor in getattr(fused, "_tensors", {}).items():
            if tensor.numel():
                made.append(self.bytes(tensor.nbytes))
                ctypes.memmove(made[-1].data_ptr(), tensor.data_ptr(), tensor.nbytes)
                setattr(fused.layer, name, made[-1].data_ptr())
        return made


def poison() -> None:
    """What threads keep is full of NaN in the next call."""
    kernel = load_library()
    assert kernel is not None
    ctypes.c_int64.in_dll(kernel, "poison_round").value += 1


def set_group_bytes(count: int) -> None:
    """How much may lie between the layers of a group; 0: as ever."""
    kernel = load_library()
    assert kernel is not None
    ctypes.c_int64.in_dll(kernel, "most_group_bytes").value = count


def run_plan(plan: SequencePlan, inputs: Sequence[Sequence[Tensor]], guarded: Guarded) -> list[Sequence[Tensor]]:
    """`SequencePlan.run` in guarded memory."""
    kernel = load_library()
    assert kernel is not None
    workspace = guarded.bytes(max(plan.size, 1))
    made: dict[int, Sequence[Tensor]] = dict(enumerate(inputs))
    slots = [workspace, *[x for maps in inputs for x in maps]]
    for owner, shapes in sorted(plan.results, key=lambda result: result[0]):
        if owner not in made:
            made[owner] = [guarded.map(shape, plan.format.dtype) for shape in shapes]
            slots += made[owner]
    addresses = (ctypes.c_int64 * len(slots))(*[x.data_ptr() for x in slots])
    poison()
    steps, threads = (Step * len(plan.steps))(*plan.steps), torch.get_num_threads()
    kernel.run_sequence(steps, len(plan.steps), addresses, len(addresses), 1, plan.sliced, plan.slices, threads)
    return [made[owner] for owner, _ in plan.results]


class RandomLayer:
    """The layer of a seed."""

    def __init__(self, seed: int, format: FormatName) -> None:
        self.random = python_random.Random(seed)
        choose, chance = self.random.choice, lambda p: self.random.random() < p
        self.kind = "ordinary" if chance(0.3) else choose(list(KINDS))
        flags, has_low, gives_low, upsampled = KINDS[self.kind]
        self.threads, self.at_end = choose((1, 2)), chance(0.7)
        self.pools_sums = format != "int8" and flags.get("low_reads_high", False) and chance(0.2)
        zeros = choose((0, 128)), choose((0, 128)), choose((0, 128)), choose((0, 128))
        spread = choose((0.9, 0.9, 0.3))
        while True:
            axes = choose((2, 3, 3))
            form, size = self._form(flags, axes)
            channels = self._channels(), has_low * self._channels(), self._channels(), gives_low * self._channels()
            if chance(0.3):
                form, channels = self._in_groups(form, channels)
            clips = choose((1, 1, 2, 3))
            activation = choose(ACTIVATIONS)
            if self.kind == "ordinary" and form.groups == 1 and chance(0.2):
                form = self._with_max_pool(form)
            if self._is_possible(form, (clips, channels[0], *size), channels, upsampled):
                break
        self.kind += " in groups" if form.groups > 1 else ""
        has_residual = form.max_pool is None and chance(0.5)
        options = {"residual": has_residual, "bias": chance(0.8), "activation": activation, "upsampled": upsampled}
        options |= {"clips": clips, "zeros": zeros, "spread": spread, "pools_sums": self.pools_sums}
        self.text = f"{self.kind}: {form}, channels={channels}, size={size}, {options}, threads={self.threads}"
        self.case = Case(form, channels, size, format=FORMATS[format], seed=seed, **options)  # type: ignore[arg-type]

    def _channels(self) -> int:
        among = (self.random.randint(1, 80), self.random.randint(1, 9), self.random.choice((3, 15, 16, 17, 31, 48, 64)))
        return self.random.choice(among)

    def _form(self, flags: dict[str, bool], axes: int) -> tuple[Form, tuple[int, ...]]:
        choose, randint = self.random.choice, self.random.randint
        in_time, in_space = choose((1, 1, 0)), choose((1, 1, 0))
        kernel = [randint(1, 5) if in_time and axes == 3 else 1, *(randint(1, 5) if in_space else 1 for _ in "hw")]
        stride, dilation = ([choose((1, 1, 1, 2, 3)) for _ in kernel] for _ in "sd")
        padding = [randint(0, d * (k - 1)) for k, d in zip(kernel, dilation, strict=True)]
        if self.random.random() < 0.5:  # as most layers of networks are
            kernel = [k - 1 + k % 2 for k in kernel]
            stride, padding = [1] * 3, [d * (k - 1) // 2 for k, d in zip(kernel, dilation, strict=True)]
        if axes == 2:
            kernel[0], stride[0], padding[0], dilation[0] = 1, 1, 0, 1
        height = randint(1, 60) if self.random.random() < 0.1 else randint(1, 20)
        size = (randint(1, 6), height, randint(1, 20))
        return Form(*map(tuple, (kernel, stride, padding, dilation)), **flags), size[-axes:]

    def _in_groups(self, form: Form, channels: tuple[int, ...]) -> tuple[Form, tuple[int, ...]]:
        groups = self.random.choice((2, 3, 4, 6, 8, 32))
        most = self.random.choice((1, 4, 9, 40))  # channels of a group
        return replace(form, groups=groups), tuple(n and groups * self.random.randint(1, most) for n in channels)

    def _with_max_pool(self, form: Form) -> Form:
        window = tuple(self.random.randint(1, 4) for _ in "hw")
        stride = tuple(self.random.randint(1, 3) for _ in "hw")
        pool = MaxPool(window, stride, tuple(self.random.randint(0, n // 2) for n in window))
        return Form(form.kernel, form.stride, form.padding, form.dilation, max_pool=pool)

    @staticmethod
    def _is_possible(form: Form, shape: tuple[int, ...], channels: tuple[int, ...], upsampled: bool) -> bool:
        """Whether there are results, which are upsampled from the right size, and not too many products."""
        plain = Form(form.kernel, form.stride, form.padding, form.dilation, form.pool_first)
        high, low = plain.out_shapes(shape, (channels[2], 1))
        pooled = form.out_shapes(shape, (channels[2], 0))[0]
        if min(high) < 1 or min(low) < 1 or min(pooled) < 1:
            return False
        if upsampled and any((n + 1) // 2 != half for n, half in zip(high[-2:], low[-2:], strict=True)):
            return False
        products = torch.Size(form.kernel).numel() * (channels[0] + channels[1]) * torch.Size(high).numel()
        return products < 2e7

    def check(self) -> float:
        """Fails where results are wrong; the greatest error as a part of what it may be."""
        case, guarded = self.case, Guarded(at_end=self.at_end)
        torch.set_num_threads(self.threads)
        conv = case.layer()
        kept = guarded.copy_weights(conv)
        maps = [None if x is None else guarded.copy(x) for x in (case.high, case.low, *case.residuals)]
        inputs = [[x for x in value if x is not None] for value in (maps[:2], maps[2:])]
        inputs = [value for value in inputs if value]
        wiring = Wiring((tuple(range(len(inputs))),), len(inputs), (len(inputs),))
        plan = SequencePlan.of(wiring, [conv], [[tuple(x.shape) for x in value] for value in inputs])
        assert plan is not None
        before = [x.clone() for x in inputs[0]]
        (results,) = run_plan(plan, inputs, guarded)
        assert all(torch.equal(x, y) for x, y in zip(inputs[0], before, strict=True)), "an input has changed"
        worst = case.check_results([results[0], results[1] if len(results) > 1 else None])
        if case.quanta is None and not case.form.high_reads_low and case.form.groups == 1 and len(inputs) == 1:
            self._pack_and_run(conv, inputs[0], results, guarded)
        del kept
        return worst

    def _pack_and_run(self, conv: FusedConv, maps: list[Tensor], results: Sequence[Tensor], guarded: Guarded) -> None:
        """As training does: by a weight that is packed in the call, which also gives what is pooled of x_high."""
        case, kernel, form = self.case, load_library(), self.case.form
        assert kernel is not None
        (outs_high, outs_low), in_high = conv.outs, case.high.shape[1]
        in_low = 0 if case.low is None else case.low.shape[1]
        whole = torch.full((outs_high + outs_low, in_high + in_low, *case.high_weight.shape[2:]), torch.nan)
        whole[:outs_high, :in_high] = case.high_weight
        if case.from_low is not None:
            whole[:outs_high, in_high:] = 2 * case.from_low  # see scale_from_low
        if case.low_weight is not None:
            whole[outs_high:, in_high * (not form.low_reads_high) : in_high + in_low * form.low_reads_low] = (
                case.low_weight
            )
        weight = guarded.bytes(4 * whole.numel()).view(torch.float32).view(whole.shape)
        weight.copy_(whole)
        taps = weight[0, 0].numel()
        given = Weight(weight.data_ptr(), weight.stride(0), weight.stride(1), 1 if taps > 1 else 0, 0.5)
        made = [guarded.map(y.shape, y.dtype) for y in results]
        pooled = None
        if form.low_reads_high and outs_low:
            read = halve(case.high) if form.pool_first else case.high
            pooled = halve(read, sums=self.pools_sums)
        kept = None if pooled is None else guarded.map(pooled.shape, pooled.dtype)
        low = maps[1] if len(maps) > 1 else None
        arguments = Maps.of(
            high=maps[0], low=low, out_high=made[0], out_low=made[1] if len(made) > 1 else None, out_pooled=kept
        )
        layer = conv.layer.for_map(tuple(case.high.shape), in_low)
        poison()
        kernel.pack_and_run_layer(*map(ctypes.byref, (layer, given, arguments)), self.threads)
        assert all(torch.equal(x, y) for x, y in zip(made, results, strict=True)), "packed in the call: other results"
        assert pooled is None or kept is None or torch.equal(kept, pooled), "what is pooled of x_high is wrong"


class RandomSequence:
    """Layers with one number of channels, some of which add residuals: the sequence of a seed."""

    def __init__(self, seed: int, format: FormatName) -> None:
        self.random = python_random.Random(-1 - seed)
        choose, randint, random = self.random.choice, self.random.randint, self.random.random
        self.format, self.threads, self.at_end = FORMATS[format], choose((1, 2)), random() < 0.7
        low = choose((0, randint(1, 40)))
        channels = randint(1, 60), low
        size, self.clips = (randint(1, 4), randint(1, 15), randint(1, 15)), choose((1, 2, 3))
        flags, _, _, upsampled = KINDS["octave" if low else "ordinary"]
        self.cases: list[Case] = []
        reads: list[tuple[int, ...]] = []
        free = {0}  # values that may be overwritten: nothing has read them
        for index in range(randint(2, 7)):
            kernel = choose(((1, 1, 1), (3, 1, 1), (1, 3, 3), (3, 3, 3)))
            form = Form(kernel, padding=tuple(k // 2 for k in kernel), **flags)
            case = Case(
                form, (*channels, *channels), size, clips=self.clips, upsampled=upsampled, bias=random() < 0.8,
                relu=random() < 0.5, format=self.format, seed=seed + index, zeros=(128, 128, 128, 128), residual=True,
            )  # fmt: skip
            last, residuals = index, [n for n in free if n != index]
            if residuals and random() < 0.6:
                residual = choose(residuals)
                free.discard(residual)
                reads.append((last, residual))
            else:
                reads.append((last,))
            free.add(index + 1)
            if random() < 0.5:  # else a later layer may add it, after this one has read it
                free.discard(last)
            self.cases.append(case)
        for case, values in zip(self.cases, reads, strict=True):
            if len(values) == 1:
                case.residuals, case.residual_quanta = (None, None), case.y_quanta
        taken = {values[1] for values in reads if len(values) > 1}
        results = {len(reads), *[n for n in range(1, len(reads)) if n not in taken and random() < 0.2]}
        self.wiring = Wiring(tuple(reads), 1, tuple(sorted(results)))
        self.slices_above = choose((None, 1, 5_000, 50_000))
        self.text = f"sequence: {self.wiring}, channels={channels}, size={size}, threads={self.threads}"

    def check(self) -> float:
        """Fails where a result is not bit for bit that of the layers by themselves, in memory of their own."""
        guarded = Guarded(at_end=self.at_end)
        torch.set_num_threads(self.threads)
        convs = [case.layer() for case in self.cases]
        first = [x for x in (self.cases[0].high, self.cases[0].low) if x is not None]
        values: list[Sequence[Tensor]] = [first]
        for conv, reads in zip(convs, self.wiring.reads, strict=True):
            alone = Wiring((tuple(range(len(reads))),), len(reads), (len(reads),))
            given = [[guarded.copy(x) for x in values[n]] for n in reads]
            plan = SequencePlan.of(alone, [conv], [[tuple(x.shape) for x in maps] for maps in given])
            assert plan is not None
            values += run_plan(plan, given, guarded)
        shapes = [[tuple(x.shape) for x in first]]
        plan = SequencePlan.of(self.wiring, convs, shapes, slices_above=self.slices_above)
        assert plan is not None
        self.kind = "sliced sequence" if plan.slices > 1 else "sequence"
        made = run_plan(plan, [[guarded.copy(x) for x in first]], guarded)
        for n, found in zip(self.wiring.results, made, strict=True):
            assert all(torch.equal(x, y) for x, y in zip(found, values[n], strict=True)), f"value {n} is another one"
        return 0.0


class RandomLight:
    """The depthwise convolution, the mean, the product with a gate or the temporal shift of a seed."""

    def __init__(self, seed: int, format: FormatName) -> None:
        self.random = python_random.Random(seed)
        choose, randint, chance = self.random.choice, self.random.randint, lambda p: self.random.random() < p
        self.kind: LightKind = choose(("depthwise", "depthwise", "depthwise", "mean", "scale", "shift"))
        self.threads, self.at_end = choose((1, 2)), chance(0.7)
        channels = choose((randint(1, 130), randint(1, 9), 16, 32)), choose((0, randint(1, 40), 16))
        axes, has_low = 2 if self.kind == "shift" else choose((2, 3, 3)), bool(channels[1])
        while True:
            size = (randint(1, 6), randint(1, 70) if chance(0.1) else randint(1, 20), randint(1, 30))
            usual = choose(((1, 3, 3), (3, 3, 3), (5, 1, 1), (1, 5, 5), (3, 1, 1), (1, 7, 7)))
            kernel = usual if chance(0.5) else (randint(1, 7), randint(1, 7), randint(1, 16))
            stride = choose((1, 1, 2)), choose((1, 1, 2, 3)), choose((1, 1, 2))
            dilation = (choose((1, 1, 2)), choose((1, 1, 2)), 1)
            reach = [d * (k - 1) for k, d in zip(kernel, dilation, strict=True)]
            padding = [n // 2 for n in reach] if chance(0.7) else [randint(0, n + 2) for n in reach]
            if axes == 2:
                kernel, stride, dilation, padding[0] = (1, *kernel[1:]), (1, *stride[1:]), (1, dilation[1], 1), 0
            flags = {"pool_first": chance(0.15), "low_reads_low": has_low, "is_depthwise": True}
            form = Form(kernel, stride, tuple(padding), dilation, **flags)
            high, low = ((1, *shape[2:])[-3:] for shape in form.out_shapes((1, 1, *size[-axes:]), (1, 1)))
            if min(high) > 0 and (not has_low or low == half_size(high)):
                break
        zeros = choose((0, 128)), choose((0, 100, 128)), choose((0, 128)), choose((0, 128))
        options: Any = {"clips": randint(1, 3), "bias": chance(0.8), "activation": choose(ACTIVATIONS), "zeros": zeros}
        options["residual"] = self.kind == "scale" and chance(0.5)
        if self.kind == "shift":
            runs = [(first := randint(0, n), randint(0, n - first)) for n in channels]
            options |= {"num_frames": randint(1, 5), "runs": runs}
        self.text = f"{self.kind}: {form}, {channels=}, {size=}, {axes} axes, {options}, threads={self.threads}"
        self.case = LightCase(
            self.kind, channels, size[-axes:], form=form, format=FORMATS[format], seed=seed, **options
        )

    def check(self) -> float:
        """Fails where results are wrong; the greatest error as a part of what it may be."""
        case, guarded = self.case, Guarded(at_end=self.at_end)
        torch.set_num_threads(self.threads)
        plan = case.plan()
        kept = [guarded.copy_weights(layer) for layer in plan.layers]
        plan = case.plan(plan.layers[0])
        (results,) = run_plan(plan, [[guarded.copy(x) for x in maps] for maps in case.values], guarded)
        worst = case.check_results(results)
        del kept
        return worst


class RandomBlocks:
    """Light blocks of a seed, ordinary and octave, whose layers the kernel joins in groups of several parts."""

    def __init__(self, seed: int, format: FormatName) -> None:
        self.random = python_random.Random(seed)
        choose, randint, chance = self.random.choice, self.random.randint, lambda p: self.random.random() < p
        self.format, self.threads, self.at_end = FORMATS[format], choose((1, 2)), chance(0.7)
        self.group_bytes = choose((1, 3000, 20_000, 100_000, 0))
        self.slices_above = choose((None, 1, 5_000, 50_000))
        self.generator = torch.Generator().manual_seed(seed)
        self.layers: list[FusedLayer] = []
        self.reads: list[tuple[int, ...]] = []
        axes = choose((2, 3, 3))
        self.values = [(choose((randint(1, 40), 16)), choose((0, randint(1, 20))))]  # channels
        size = (randint(1, 9), choose((randint(1, 12), randint(13, 40))), randint(1, 20))
        sizes, clips = (size, half_size(size)), randint(1, 3)
        self.shapes = [(clips, n, *own[-axes:]) for n, own in zip(self.values[0], sizes, strict=True)]
        self.shapes = self.shapes[: 1 + bool(self.values[0][1])]
        results, kinds = set(), []
        for _ in range(randint(1, 3)):
            kinds.append(self._add_block(axes))
            if chance(0.2):
                results.add(randint(1, len(self.values) - 1))
        taken = {reads[1] for reads in self.reads if len(reads) > 1 and reads[1] > 0}
        results = {n for n in results if n not in taken} | {len(self.values) - 1}
        self.wiring = Wiring(tuple(self.reads), 1, tuple(sorted(results)))
        self.text = f"blocks: {kinds}, {self.shapes}, {self.group_bytes} bytes, threads={self.threads}"

    def _quanta(self, *values: int) -> list[Any]:
        return [[Quantum(2.0**-5, 128)] * (1 + bool(self.values[n][1])) if n >= 0 else () for n in values]

    def _weight(self, *shape: int) -> Tensor:
        return torch.randn(shape, generator=self.generator) / max(torch.Size(shape[1:]).numel(), 1) ** 0.5

    def _add(self, outs: tuple[int, int], *reads: int) -> dict[str, Any]:
        """One more value; what its layer needs."""
        self.values.append(outs)
        self.reads.append(reads)
        activation = self.random.choice(("none", "relu", "relu6", "silu", "hardswish"))
        quanta = self._quanta(reads[0], len(self.values) - 1, *reads[1:]) if self.format.name == "int8" else None
        return {
            "activation": activation,
            "format": self.format,
            "quanta": None if quanta is None else LayerQuanta(*quanta),
        }

    def _pointwise(self, outs: tuple[int, int], *reads: int, axes: int) -> int:
        (in_high, in_low), ones = self.values[reads[0]], (1,) * axes
        given = self._add(outs, *reads)
        form = Form((1, 1, 1), low_reads_high=bool(outs[1]), low_reads_low=bool(outs[1] and in_low))
        weights = {
            "high": self._weight(outs[0], in_high, *ones),
            "from_low": self._weight(outs[0], in_low, *ones) if in_low else None,
            "low": self._weight(outs[1], in_high + in_low, *ones) if outs[1] else None,
        }
        biases = {"bias_high": self._weight(outs[0]), "bias_low": self._weight(outs[1]) if outs[1] else None}
        self.layers.append(FusedConv(form, num_high=in_high, **weights, **biases, **given))  # type: ignore[arg-type]
        return len(self.values) - 1

    def _depthwise(self, form: Form, x: int, axes: int) -> int:
        given, (high, low) = self._add(self.values[x], x), self.values[x]
        kernel = form.kernel[-axes:]
        weights = {"high": self._weight(high, 1, *kernel), "low": self._weight(low, 1, *kernel) if low else None}
        biases = {"bias_high": self._weight(high), "bias_low": self._weight(low) if low else None}
        self.layers.append(FusedDepthwise(form, **weights, **biases, **given))  # type: ignore[arg-type]
        return len(self.values) - 1

    def _gate(self, x: int, residual: int, axes: int) -> int:
        channels = sum(self.values[x])
        given = self._add((channels, 0), x)
        self.layers.append(FusedMean(self.format, given["quanta"]))
        middle = self._pointwise((self.random.randint(1, 9), 0), len(self.values) - 1, axes=axes)
        gate = self._pointwise((channels, 0), middle, axes=axes)
        given = self._add(self.values[x], x, residual, gate)
        self.layers.append(FusedScale(**given))
        return len(self.values) - 1

    def _add_block(self, axes: int) -> str:
        choose, randint, chance = self.random.choice, self.random.randint, lambda p: self.random.random() < p
        kind = choose(
            ("expand dw project", "expand dw project", "dw project", "expand dw", "dw", "expand gate project")
        )
        block = x = len(self.values) - 1
        if "expand" in kind:
            low = choose((0, randint(1, 40)))
            x = self._pointwise((choose((randint(1, 70), 48)), low), x, axes=axes)
        is_strided = False
        if "dw" in kind:
            kernel = choose(((1, 3, 3), (3, 3, 3), (5, 1, 1), (1, 5, 5), (3, 1, 1), (1, 7, 7)))
            dilation = choose((1, 1, 1, 2)) if kernel[0] > 1 and axes == 3 else 1
            stride = choose((1, 1, 2)) if axes == 3 else 1, *[choose((1, 1, 2))] * 2
            kernel = kernel if axes == 3 else (1, *kernel[1:])
            padding = (dilation * (kernel[0] // 2), kernel[1] // 2, kernel[2] // 2)
            flags = {"pool_first": chance(0.1), "low_reads_low": bool(self.values[x][1]), "is_depthwise": True}
            form = Form(kernel, stride, padding, (dilation, 1, 1), **flags)
            x = self._depthwise(form, x, axes)
            is_strided = max(stride) > 1 or form.pool_first
        if "gate" in kind or chance(0.3):
            # The block's input may be added before the projection, too: nothing reads it afterwards then.
            adds = not is_strided and self.values[x] == self.values[block] and x != block and chance(0.5)
            x = self._gate(x, block if adds else NO_VALUE, axes)
            is_strided |= adds
        if "project" in kind:
            adds = not is_strided and chance(0.6)
            outs = self.values[block] if adds else (choose((randint(1, 40), 24)), choose((0, randint(1, 20))))
            self._pointwise(outs, x, *([block] if adds else []), axes=axes)
        return kind

    def check(self) -> float:
        """Fails where a result is not bit for bit that of the layers by themselves, in memory of their own."""
        guarded = Guarded(at_end=self.at_end)
        torch.set_num_threads(self.threads)
        kept = [guarded.copy_weights(layer) for layer in self.layers]
        real = [torch.randn(shape, generator=self.generator) for shape in self.shapes]
        first = [to_elements(x, self.format, Quantum(2.0**-5, 128)) for x in real]
        values: list[Sequence[Tensor]] = [first]
        for layer, reads in zip(self.layers, self.reads, strict=True):
            given = [[guarded.copy(x) for x in values[n]] for n in reads if n >= 0]
            indices = iter(range(len(given)))
            alone = Wiring((tuple(n if n < 0 else next(indices) for n in reads),), len(given), (len(given),))
            plan = SequencePlan.of(alone, [layer], [[tuple(x.shape) for x in maps] for maps in given])
            assert plan is not None
            values += run_plan(plan, given, guarded)
        shapes = [[tuple(x.shape) for x in first]]
        plan = SequencePlan.of(self.wiring, self.layers, shapes, slices_above=self.slices_above)
        assert plan is not None
        self.kind = "sliced blocks" if plan.slices > 1 else "blocks"
        set_group_bytes(self.group_bytes)
        try:
            made = run_plan(plan, [[guarded.copy(x) for x in first]], guarded)
        finally:
            set_group_bytes(0)
        for n, found in zip(self.wiring.results, made, strict=True):
            for x, y in zip(found, values[n], strict=True):
                assert torch.equal(x, y), f"value {n} is another one: {(x.float() - y.float()).abs().max()}"
        del kept
        return 0.0


def main(arguments: Sequence[str] | None = None) -> None:
    """Prints each format and seed before it is tried, and at the end what was found, as JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--library", type=Path, help="a compiled kernel; without it, the usual one")
    parser.add_argument("--format", choices=FORMATS, nargs="+", required=True)
    parser.add_argument("--first", type=int, default=0, help="the first seed")
    parser.add_argument("--count", type=int, default=100, help="how many seeds")
    parser.add_argument(
        "--others-every",
        type=int,
        default=10,
        help="of so many seeds one is a light layer, one light blocks, one a sequence",
    )
    given = parser.parse_args(arguments)
    if given.library:
        library.kernel_file = lambda: given.library
        load_library.cache_clear()  # cases.py has asked for the usual one
    makers: dict[int, Any] = {1: RandomSequence, 2: RandomBlocks, 3: RandomLight}
    kinds: Counter[str] = Counter()
    failures, worst, began = [], (0.0, 0), time.process_time()
    for format, seed in itertools.product(given.format, range(given.first, given.first + given.count)):
        print(f"{format}, seed {seed}", flush=True)
        made: Any = None
        try:
            with torch.inference_mode():
                maker = makers.get(given.others_every - seed % given.others_every, RandomLayer)
                made = maker(seed, format)
                worst = max(worst, (made.check(), seed))
            kinds[getattr(made, "kind", maker.__name__)] += 1
        except BaseException as error:  # pytest's failures are no Exceptions
            if isinstance(error, KeyboardInterrupt):
                raise
            what = traceback.format_exc().strip().splitlines()[-1]
            failures.append(f"--format {format} --first {seed} --count 1: {what[:300]}; {getattr(made, 'text', '')}")
    took = time.process_time() - began
    found = {"failures": failures, "kinds": kinds, "worst": worst, "seconds": round(took, 1)}
    print(json.dumps(found))


if __name__ == "__main__":
    main()
