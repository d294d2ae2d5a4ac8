"""Fused convolutions that follow each other, run by one call: from layer to layer there is no Python and no allocation.

Of 22 ms that Oct-ResNet-50 takes for one image, calls of its layers and the memory for their results were one.
"""

from __future__ import annotations

import ctypes
import hashlib
import itertools
import weakref
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from octvideo.octave.features import Octave
from octvideo.octave.fused.conv import PreparedConv
from octvideo.octave.fused.octave_conv import PreparedOctConv
from octvideo.octave.kernel.fused_conv import FusedConv, layer_of, out_shapes
from octvideo.octave.kernel.large_pages import empty_in_large_pages
from octvideo.octave.kernel.layout import LAYOUTS, is_exporting
from octvideo.octave.kernel.library import load_library

_LINE = 16  # float32 numbers of a cache line
_MOST_PLANS = 4
# Bytes of weights up to which frames (or clips, where a kernel has an extent in time) go through a sequence one after
# the other, so that maps stay in the cache: stem and res2 of Oct-C2D-50, 8 frames at once 31.5, by two 30.5 ms. More
# weights would be read from memory again for each of them.
_FEW_WEIGHTS = 2**21
_Shapes = list[tuple[int, ...]]  # of a value's high map, and of its low one if there is one
_Place = tuple[int, int]  # a slot (see `_Plan`) and how many numbers behind its start
_NOWHERE, _WORKSPACE = -1, 0


class FusedSequence(nn.Module):
    """Prepared convolutions, in order; called one by one where one of them cannot be fused, or is being compiled.

    Values are numbered: first the inputs, then the result of each convolution.

    Args:
        convs: prepared convolutions.
        reads: for each of them the values that it reads: x, or x and the base, which is added and overwritten and
            not read afterwards.
        num_inputs: how many values `forward` takes.
        results: the values that it returns.
    """

    def __init__(
        self,
        convs: Sequence[PreparedConv | PreparedOctConv],
        reads: Sequence[Sequence[int]],
        num_inputs: int,
        results: Sequence[int],
    ) -> None:
        super().__init__()
        self.convs = nn.ModuleList(convs)
        self.reads, self.num_inputs, self.results = [tuple(r) for r in reads], num_inputs, tuple(results)
        self._last_reads = [-1] * (num_inputs + len(self.reads))  # by which convolution; results are read behind all
        for step, numbers in enumerate([*self.reads, self.results]):
            for n in numbers:
                self._last_reads[n] = step
        self._plans: dict[Any, _Plan | None] = {}
        self._workspaces: list[Tensor] = []  # of which each call takes one
        self._name: str | None = None  # in compiled graphs

    def forward(self, *inputs: Tensor | Octave) -> Any:
        """The result, or a tuple of results where there are several."""
        if torch.compiler.is_compiling():
            fused = self._name is not None and not is_exporting() and not torch.is_grad_enabled()
            results = self._as_operation(inputs) if fused else self._one_by_one(inputs)
        else:
            results = self._run(inputs)
        return results[0] if len(results) == 1 else tuple(results)

    def fuse(self) -> bool:
        """Prepares for being fused, also in graphs that are compiled afterwards; whether that can be."""
        if not all([conv.fuse() for conv in self.convs]):  # type: ignore[operator]
            return False
        overwrites = any(len(reads) > 1 and reads[1] < self.num_inputs for reads in self.reads)
        if self._name is None and not overwrites:
            self._name = f"{self._digest()} {next(_NUMBERS)}"
            _SEQUENCES[self._name] = self
        return True

    def _digest(self) -> str:
        """Of all that results' sizes depend on: inductor finds graphs of other networks in its cache on the disk."""
        layers = [conv._fused.numbers for conv in self.convs]  # type: ignore[union-attr]
        form = repr((layers, self.reads, self.num_inputs, self.results))
        return hashlib.sha256(form.encode()).hexdigest()[:16]

    def _run(self, inputs: Sequence[Tensor | Octave]) -> list[Any]:
        plan = self._plan_for(inputs)
        if plan is None:
            return self._one_by_one(inputs)
        return plan.run([_of_parts(_channels_last(_parts(value))) for value in inputs], self._workspaces)

    def _as_operation(self, inputs: Sequence[Tensor | Octave]) -> list[Any]:
        parts = [_parts(value) for value in inputs]
        counts, maps = [len(own) for own in parts], [part for own in parts for part in own]
        made = torch.ops.octvideo.fused_sequence(maps, counts, self._name)
        pairs: list[Any] = [self.convs[n - self.num_inputs].gives_pair for n in self.results]
        return _values(made, [1 + pair for pair in pairs])

    def _one_by_one(self, inputs: Sequence[Tensor | Octave]) -> list[Any]:
        values: list[Any] = [*inputs]
        for step, (conv, reads) in enumerate(zip(self.convs, self.reads, strict=True)):
            values.append(conv(*[values[n] for n in reads]))
            for n in reads:
                if self._last_reads[n] == step:
                    values[n] = None
        return [values[n] for n in self.results]

    def _plan_for(self, inputs: Sequence[Tensor | Octave]) -> _Plan | None:
        key: list[object] = [torch.get_num_threads()]
        for value in inputs:
            for part in _parts(value):
                if not _is_readable(part):
                    return None
                key.append(part.shape)
            key.append(None)
        sizes = tuple(key)
        plan = self._plans.get(sizes)
        if sizes not in self._plans or (plan is not None and not plan.is_of(self.convs)):
            if len(self._plans) >= _MOST_PLANS:
                self._plans.clear()
            shapes = [[tuple(part.shape) for part in _parts(value)] for value in inputs]
            plan = self._plans[sizes] = self._make_plan(shapes) if self.fuse() else None
        return plan

    def _make_plan(self, shapes: list[_Shapes]) -> _Plan | None:
        """Where each value is: an input, a new tensor if it is returned, or memory that others had or will have.

        Args:
            shapes: of the inputs.

        Returns:
            None where a base is not of its result's shape.
        """
        fused: list[FusedConv] = [conv._fused for conv in self.convs]  # type: ignore[misc]
        whole, steps = shapes[0][0], len(fused)
        times, by_frame = self._times([shape for value in shapes for shape in value], fused)
        shapes = [[_part(shape, times, by_frame) for shape in value] for value in shapes]
        shapes = self.shapes(shapes)
        roots = list(range(self.num_inputs))  # the value in whose place each one is: a base and what overwrites it
        for step, (_, *base) in enumerate(self.reads):
            if base and shapes[base[0]] != shapes[len(roots)]:
                return None
            roots.append(roots[base[0]] if base else self.num_inputs + step)
        last = [-1] * len(roots)
        for n, root in enumerate(roots):
            last[root] = max(last[root], self._last_reads[n])

        slot_steps, memory = [0], _Memory()
        places: list[list[_Place]] = [[] for _ in roots]
        for n, root in enumerate(roots):
            step = n - self.num_inputs
            memory.free(before=step)
            if root != n:
                continue
            for shape in shapes[n]:
                if step < 0 or last[n] == steps:
                    places[n].append((len(slot_steps), 0))
                    slot_steps.append(_numel(shape))
                else:
                    places[n].append((_WORKSPACE, memory.take(_numel(shape), until=last[n])))
        layers, maps = [], []
        for step, (x, *base) in enumerate(self.reads):
            low = shapes[x][1:]
            layers.append(layer_of(fused[step].numbers, fused[step].addresses, shapes[x][0], low[0][1] if low else 0))
            for found in (
                places[roots[x]],
                places[roots[base[0]]] if base else [],
                places[roots[self.num_inputs + step]],
            ):
                maps += [*found, *[(_NOWHERE, 0)] * (2 - len(found))]
        lead = (whole[0], whole[2]) if by_frame else (whole[0],)
        results = [
            (roots[n], [(lead[0], shape[1], *lead[1:], *shape[1 + len(lead) :]) for shape in shapes[n]])
            for n in self.results
        ]
        return _Plan(self.num_inputs, results, fused, layers, maps, slot_steps, times, memory.size)

    def shapes(self, shapes: list[_Shapes]) -> list[_Shapes]:
        """Of all values, from the inputs'."""
        shapes = shapes[:]
        for conv, (x, *_) in zip(self.convs, self.reads, strict=True):
            shapes.append(out_shapes(conv._fused.numbers, shapes[x][0]))  # type: ignore[union-attr]
        return shapes

    def _times(self, shapes: Sequence[tuple[int, ...]], fused: Sequence[FusedConv]) -> tuple[int, bool]:
        """How often a part of the frames or clips goes through, and whether these are frames."""
        by_frame = all(len(shape) == 5 for shape in shapes) and not any(conv.reads_time for conv in fused)
        counts = {shape[0] * shape[2] if by_frame else shape[0] for shape in shapes}
        few = sum(conv.weight_bytes for conv in fused) <= _FEW_WEIGHTS
        count = counts.pop()
        if counts or not few or not count:
            return 1, by_frame
        threads = torch.get_num_threads()  # each has a frame or clip
        return max(count // n for n in range(1, count + 1) if count % n == 0 and (n >= threads or n == count)), by_frame

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_plans": {}, "_workspaces": [], "_name": None}


class _Memory:
    """Where maps lie in a workspace, first fit."""

    def __init__(self) -> None:
        self.size = 0
        self._taken: list[tuple[int, int, int]] = []  # start, end, the last step that reads it

    def free(self, before: int) -> None:
        self._taken = [map for map in self._taken if map[2] >= before]

    def take(self, numbers: int, until: int) -> int:
        numbers, start = -(-numbers // _LINE) * _LINE, 0
        for first, end, _ in sorted(self._taken):
            if first - start >= numbers:
                break
            start = max(start, end)
        self._taken.append((start, start + numbers, until))
        self.size = max(self.size, start + numbers)
        return start


@dataclass
class _Plan:
    """A sequence for inputs of certain sizes.

    Args:
        num_inputs: as in `FusedSequence`.
        results: of each, the value in whose place it is, and its shapes.
        fused: what the layers belong to.
        layers: `struct Layer` of each.
        maps: six for each layer, as run_layer of fused_conv.cpp takes them. Slot 0 is the workspace; the parts of the
            inputs and then of the results that are new follow.
        slot_steps: numbers from one part of the frames or clips to the next.
        times: how many parts there are.
        size: numbers in the workspace.
    """

    num_inputs: int
    results: list[tuple[int, _Shapes]]
    fused: list[FusedConv]
    layers: list[ctypes.Array[ctypes.c_int64]]
    maps: list[_Place]
    slot_steps: list[int]
    times: int
    size: int

    def __post_init__(self) -> None:
        addresses = [ctypes.addressof(layer) for layer in self.layers]
        self._layers = (ctypes.c_int64 * len(addresses))(*addresses)
        self._maps = (ctypes.c_int64 * (2 * len(self.maps)))(*[n for place in self.maps for n in place])
        self._steps = (ctypes.c_int64 * len(self.slot_steps))(*self.slot_steps)

    def is_of(self, convs: nn.ModuleList) -> bool:
        """Whether no weight has been packed anew since."""
        return all(conv._fused is fused for conv, fused in zip(convs, self.fused, strict=True))

    def run(self, inputs: Sequence[Tensor | Octave], workspaces: list[Tensor]) -> list[Tensor | Octave]:
        """The results.

        Args:
            inputs: of the sizes planned for.
            workspaces: to take one from, and to give it back.
        """
        try:
            workspace = workspaces.pop()
        except IndexError:
            workspace = torch.empty(0)
        if workspace.numel() < self.size:
            workspace = empty_in_large_pages(self.size)
        slots = [workspace.data_ptr(), *[part.data_ptr() for value in inputs for part in _parts(value)]]
        results: list[Tensor | Octave] = []
        for root, shapes in self.results:
            if root < self.num_inputs:
                results.append(inputs[root])  # it has been overwritten
                continue
            parts = [torch.empty(shape, memory_format=LAYOUTS[len(shape)]) for shape in shapes]
            slots += [part.data_ptr() for part in parts]
            results.append(_of_parts(parts))
        library = load_library()
        assert library is not None and len(slots) == len(self.slot_steps)
        addresses = (ctypes.c_int64 * len(slots))(*slots)
        counts = (len(self.layers), self.times, torch.get_num_threads())
        library.run_layers(self._layers, self._maps, addresses, self._steps, *counts)
        workspaces.append(workspace)
        return results


# The same for graphs that are compiled, which know a sequence by a name in this process.
_NUMBERS = itertools.count()
_SEQUENCES: weakref.WeakValueDictionary[str, FusedSequence] = weakref.WeakValueDictionary()
torch.library.define("octvideo::fused_sequence", "(Tensor[] maps, int[] counts, str name) -> Tensor[]")


@torch.library.impl("octvideo::fused_sequence", "CPU")
def _fused_sequence(maps: list[Tensor], counts: list[int], name: str) -> list[Tensor]:
    results = _SEQUENCES[name]._run(_values(maps, counts))
    return _channels_last([part for value in results for part in _parts(value)])


@torch.library.register_fake("octvideo::fused_sequence")
def _(maps: list[Tensor], counts: list[int], name: str) -> list[Tensor]:
    sequence = _SEQUENCES[name]
    shapes = sequence.shapes([[tuple(p.shape) for p in _parts(value)] for value in _values(maps, counts)])
    return [
        torch.empty(shape, memory_format=LAYOUTS[len(shape)]) for n in sequence.results for shape in shapes[n]
    ]  # fmt: skip


def _values(parts: Sequence[Tensor], counts: Sequence[int]) -> list[Any]:
    """Maps, one or two to each value."""
    values, left = [], list(parts)
    for count in counts:
        own, left = left[:count], left[count:]
        values.append(_of_parts(own))
    return values


def _of_parts(parts: Sequence[Tensor]) -> Tensor | Octave:
    return parts[0] if len(parts) == 1 else Octave(*parts)


def _channels_last(parts: Sequence[Tensor]) -> list[Tensor]:
    return [part.contiguous(memory_format=LAYOUTS[part.dim()]) for part in parts]


def _is_readable(x: Tensor) -> bool:
    """Whether fused_conv.cpp can read it now, as a copy where it is not channels last."""
    is_map = x.dtype == torch.float32 and x.device.type == "cpu" and x.dim() in LAYOUTS
    return is_map and not torch.is_grad_enabled() and not torch.jit.is_tracing()


def _parts(value: Tensor | Octave) -> tuple[Tensor, ...]:
    return (value,) if isinstance(value, Tensor) else value


def _part(shape: tuple[int, ...], times: int, by_frame: bool) -> tuple[int, ...]:
    """The shape of what goes through at a time."""
    if by_frame:
        return (1, shape[1], shape[0] * shape[2] // times, *shape[3:])
    return (shape[0] // times, *shape[1:])


def _numel(shape: Sequence[int]) -> int:
    return torch.Size(shape).numel()
