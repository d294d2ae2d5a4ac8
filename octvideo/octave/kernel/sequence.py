"""Layers that follow each other, run by one call: from layer to layer there is no Python and no allocation."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from octvideo.octave.kernel.fused_conv import FusedConv, Layer, Shape
from octvideo.octave.kernel.large_pages import empty_in_large_pages
from octvideo.octave.kernel.layout import LAYOUTS
from octvideo.octave.kernel.library import load_library

_CACHE_LINE = 16  # float32 elements
# Bytes of weights up to which frames (or clips, where a kernel has an extent in time) go through a sequence one after
# the other, so that maps stay in the cache. More weights would be read from memory again for each of them.
_FEW_WEIGHTS = 2**21
_NO_MAP, _WORKSPACE = -1, 0  # slots


class Place(ctypes.Structure):
    """`struct Place` of layer.h."""

    _fields_ = (("slot", ctypes.c_int64), ("offset", ctypes.c_int64))


class Step(ctypes.Structure):
    """`struct Step` of layer.h."""

    _fields_ = (
        ("layer", ctypes.POINTER(Layer)),
        *[(name, Place) for name in ("high", "low", "residual_high", "residual_low", "out_high", "out_low")],
    )


@dataclass(frozen=True)
class Wiring:
    """Which values the layers of a sequence read. A value has one map, or a high and a low one.

    Values are indexed: first the inputs, then the result of each layer.

    Args:
        reads: of each layer, the values that it reads: x, or x and a residual, which the result overwrites and which
            nothing reads afterwards.
        num_inputs: how many inputs there are.
        results: the values that are returned.
    """

    reads: tuple[tuple[int, ...], ...]
    num_inputs: int
    results: tuple[int, ...]

    def last_reads(self) -> list[int]:
        """Of each value, the index of the last layer that reads it; -1: none; the number of layers: it is returned."""
        last = [-1] * (self.num_inputs + len(self.reads))
        for step, values in enumerate([*self.reads, self.results]):
            for value in values:
                last[value] = step
        return last

    def owners(self) -> list[int]:
        """Of each value, the value in whose memory it lies: a result overwrites its residual."""
        owners = list(range(self.num_inputs))
        for _, *residual in self.reads:
            owners.append(owners[residual[0]] if residual else len(owners))
        return owners

    def shapes(self, layers: Sequence[FusedConv], inputs: Sequence[Sequence[Shape]]) -> list[Sequence[Shape]]:
        """Of all values' maps, from the inputs'."""
        shapes = list(inputs)
        for layer, (x, *_) in zip(layers, self.reads, strict=True):
            shapes.append(layer.out_shapes(shapes[x][0]))
        return shapes


@dataclass
class SequencePlan:
    """A sequence of layers for inputs of certain sizes: where each map lies.

    Args:
        wiring: which values the layers read.
        layers: in order.
        results: of each value that is returned, the one in whose memory it lies, and its maps' shapes.
        steps: of each layer. Slot 0 is the workspace; the maps of the inputs, and then of the results that are new,
            follow.
        slot_steps: elements from one part of the frames or clips to the next, in each slot.
        times: how many parts go through one after the other.
        size: elements of the workspace.
    """

    wiring: Wiring
    layers: Sequence[FusedConv]
    results: list[tuple[int, list[Shape]]]
    steps: list[Step]
    slot_steps: list[int]
    times: int
    size: int

    def __post_init__(self) -> None:
        self._steps = (Step * len(self.steps))(*self.steps)
        self._slot_steps = (ctypes.c_int64 * len(self.slot_steps))(*self.slot_steps)

    @classmethod
    def of(cls, wiring: Wiring, layers: Sequence[FusedConv], inputs: Sequence[Sequence[Shape]]) -> SequencePlan | None:
        """A value lies in an input, in a new tensor if it is returned, or in memory that others had or will have.

        Args:
            inputs: shapes of their maps.

        Returns:
            None where a residual is not of its result's shape.
        """
        times, by_frame = _times([shape for maps in inputs for shape in maps], layers)
        shapes = wiring.shapes(layers, [[_part(shape, times, by_frame) for shape in maps] for maps in inputs])
        for value, (_, *residual) in enumerate(wiring.reads, wiring.num_inputs):
            if residual and shapes[residual[0]] != shapes[value]:
                return None
        owners, last_reads = wiring.owners(), wiring.last_reads()
        last = [-1] * len(owners)
        for value, owner in enumerate(owners):
            last[owner] = max(last[owner], last_reads[value])

        slot_steps, memory = [0], _Memory()
        places: list[list[Place]] = [[] for _ in owners]
        for value, owner in enumerate(owners):
            index = value - wiring.num_inputs  # of a layer
            memory.free(before=index)
            if owner != value:
                continue
            for shape in shapes[value]:
                if index < 0 or last[value] == len(layers):
                    places[value].append(Place(len(slot_steps), 0))
                    slot_steps.append(_numel(shape))
                else:
                    places[value].append(Place(_WORKSPACE, memory.take(_numel(shape), until=last[value])))

        def maps_of(values: Sequence[int]) -> list[Place]:
            found = [place for value in values for place in places[owners[value]]]
            return [*found, *[Place(_NO_MAP)] * (2 - len(found))]

        steps = []
        for value, (layer, (x, *residual)) in enumerate(zip(layers, wiring.reads, strict=True), wiring.num_inputs):
            high, *low = shapes[x]
            sized = layer.for_map(high, low[0][1] if low else 0)
            steps.append(Step(ctypes.pointer(sized), *maps_of([x]), *maps_of(residual), *maps_of([value])))
        whole = inputs[0][0]
        lead = (whole[0], whole[2]) if by_frame else (whole[0],)
        results = [
            (owners[value], [(lead[0], shape[1], *lead[1:], *shape[1 + len(lead) :]) for shape in shapes[value]])
            for value in wiring.results
        ]
        return cls(wiring, layers, results, steps, slot_steps, times, memory.size)

    def run(self, inputs: Sequence[Sequence[Tensor]], workspaces: list[Tensor]) -> list[Sequence[Tensor]]:
        """The maps of each result.

        Args:
            inputs: maps of the sizes planned for, float32, channels last.
            workspaces: to take one from, and to give it back.
        """
        try:
            workspace = workspaces.pop()
        except IndexError:
            workspace = torch.empty(0)
        if workspace.numel() < self.size:
            workspace = empty_in_large_pages(self.size)
        results: list[Sequence[Tensor]] = []
        slots = [workspace, *[x for maps in inputs for x in maps]]
        for owner, shapes in self.results:
            if owner < self.wiring.num_inputs:
                results.append(inputs[owner])  # it has been overwritten
                continue
            results.append([torch.empty(shape, memory_format=LAYOUTS[len(shape)]) for shape in shapes])
            slots += results[-1]
        library = load_library()
        assert library is not None and len(slots) == len(self.slot_steps)
        addresses = (ctypes.c_int64 * len(slots))(*[x.data_ptr() for x in slots])
        counts = (self.times, torch.get_num_threads())
        library.run_sequence(self._steps, len(self.steps), addresses, self._slot_steps, *counts)
        workspaces.append(workspace)
        return results


class _Memory:
    """Where maps lie in a workspace: first fit."""

    def __init__(self) -> None:
        self.size = 0
        self._taken: list[tuple[int, int, int]] = []  # start, end, the last step that reads it

    def free(self, before: int) -> None:
        self._taken = [map for map in self._taken if map[2] >= before]

    def take(self, elements: int, until: int) -> int:
        elements, start = -(-elements // _CACHE_LINE) * _CACHE_LINE, 0
        for first, end, _ in sorted(self._taken):
            if first - start >= elements:
                break
            start = max(start, end)
        self._taken.append((start, start + elements, until))
        self.size = max(self.size, start + elements)
        return start


def _times(shapes: Sequence[Shape], layers: Sequence[FusedConv]) -> tuple[int, bool]:
    """How many parts of the frames or clips go through one after the other, and whether these are frames."""
    by_frame = all(len(shape) == 5 for shape in shapes) and not any(layer.reads_time for layer in layers)
    counts = {shape[0] * shape[2] if by_frame else shape[0] for shape in shapes}
    few = sum(layer.weight_bytes for layer in layers) <= _FEW_WEIGHTS
    count = counts.pop()
    if counts or not few or not count:
        return 1, by_frame
    threads = torch.get_num_threads()  # each has a frame or clip
    return max(count // n for n in range(1, count + 1) if count % n == 0 and (n >= threads or n == count)), by_frame


def _part(shape: Shape, times: int, by_frame: bool) -> Shape:
    """The shape of what goes through at a time."""
    if by_frame:
        return (1, shape[1], shape[0] * shape[2] // times, *shape[3:])
    return (shape[0] // times, *shape[1:])


def _numel(shape: Sequence[int]) -> int:
    return torch.Size(shape).numel()
