"""Layers that follow each other, run by one call: from layer to layer there is no Python and no allocation.

`SequencePlan.of` decides for inputs of certain sizes where each map lies; `SequencePlan.run` computes the results.
"""

from __future__ import annotations

import ctypes
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from octvideo.octave.kernel.formats import F32, Format, Quantum
from octvideo.octave.kernel.fused_conv import FusedLayer, Layer, LayerKind, Shape, half_size
from octvideo.octave.kernel.large_pages import empty_in_large_pages
from octvideo.octave.kernel.layout import LAYOUTS
from octvideo.octave.kernel.library import load_library

_CACHE_LINE = 64  # bytes
_NO_MAP, _LOCAL, _WORKSPACE = -1, -2, 0  # slots
NO_VALUE = -1
CACHED_BYTES = 2 << 20  # of what a step reads and writes: what is larger has left the cache when the next step reads it


class Place(ctypes.Structure):
    """`struct Place` of layer.h."""

    _fields_ = tuple((name, ctypes.c_int64) for name in ("slot", "offset", "slice"))


class Step(ctypes.Structure):
    """`struct Step` of layer.h."""

    _fields_ = (
        ("layer", ctypes.POINTER(Layer)),
        ("group", ctypes.c_int64),
        *[(name, Place) for name in ("high", "low", "residual_high", "residual_low", "gate", "out_high", "out_low")],
    )


@dataclass(frozen=True)
class Wiring:
    """Which values the layers of a sequence read. A value has one map, or a high and a low one.

    Values are indexed: first the inputs, then the result of each layer.

    Args:
        reads: of each layer, the values that it reads: x; x and a residual, which the result overwrites and which
            nothing reads afterwards; or x, a residual or NO_VALUE, and a gate.
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
                if value >= 0:
                    last[value] = step
        return last

    def groups(self, layers: Sequence[FusedLayer]) -> list[range]:
        """Steps that the kernel computes together, part by part of their maps (group.h), and those that it does alone.

        Between them is a value that only the next one reads: a depthwise convolution is joined with the pointwise
        layers around it, and a product with a gate with the one after it.
        """
        readers = Counter(value for values in [*self.reads, self.results] for value in values)
        kinds = [_kind_in_group(layer.layer) for layer in layers]

        def follows(step: int) -> bool:
            value = self.num_inputs + step - 1
            return step < len(layers) and self.reads[step][0] == value and readers[value] == 1

        groups, begin = [], 0
        while begin < len(layers):
            end = begin + 1
            for pattern in _GROUPS:
                steps = range(begin, begin + len(pattern))
                if tuple(kinds[steps.start : steps.stop]) == pattern and all(follows(step) for step in steps[1:]):
                    end = steps.stop
                    break
            groups.append(range(begin, end))
            begin = end
        return groups

    def owners(self, groups: Sequence[range], *, keeps_inputs: bool) -> list[int]:
        """Of each value, the value in whose memory it lies.

        A result overwrites its residual, but not within a group, nor one that another layer of its group reads. What
        is scaled by a gate, and not read afterwards, is overwritten too, by a layer that is alone.

        Args:
            groups: of steps.
            keeps_inputs: results that would overwrite an input do not.
        """
        group_of = {step: group for group in groups for step in group}
        owners = list(range(self.num_inputs))
        last_reads = self.last_reads()
        for step, (x, *others) in enumerate(self.reads):
            residual, gate = (*others, NO_VALUE, NO_VALUE)[:2]
            overwritten, group = residual, group_of[step]
            if step != group[-1] or any(residual in self.reads[other] for other in group if other != step):
                overwritten = NO_VALUE  # some rows of what lies between layers are computed twice
            is_alone = len(group) == 1 and residual == NO_VALUE
            if is_alone and gate != NO_VALUE and x >= self.num_inputs and last_reads[x] == step:
                overwritten = x
            owner = len(owners) if overwritten == NO_VALUE else owners[overwritten]
            owners.append(len(owners) if keeps_inputs and owner < self.num_inputs else owner)
        return owners

    def shapes(self, layers: Sequence[FusedLayer], inputs: Sequence[Sequence[Shape]]) -> list[Sequence[Shape]]:
        """Of all values' maps, from the inputs'."""
        shapes = list(inputs)
        for layer, (x, *_) in zip(layers, self.reads, strict=True):
            shapes.append(layer.out_shapes(shapes[x]))
        return shapes


@dataclass
class SequencePlan:
    """A sequence of layers for inputs of certain sizes: where each map lies.

    Args:
        wiring: which values the layers read.
        layers: in order.
        results: of each value that is returned, the one in whose memory it lies, and its maps' shapes in one part.
        steps: of each layer, for one part. Slot 0 is the workspace; the maps of the inputs, and then of the results
            that are new, follow.
        size: bytes of a part's workspace.
        format: of all maps.
        parts: of the batch, see `num_parts`.
        sliced, slices: the first steps, and of each part how many slices of clips run through them one by one.
    """

    wiring: Wiring
    layers: Sequence[FusedLayer]
    results: list[tuple[int, Sequence[Shape]]]
    steps: list[Step]
    size: int
    format: Format
    parts: int = 1
    sliced: int = 0
    slices: int = 1

    def __post_init__(self) -> None:
        self._steps = (Step * len(self.steps))(*self.steps)

    @classmethod
    def of(
        cls,
        wiring: Wiring,
        layers: Sequence[FusedLayer],
        inputs: Sequence[Sequence[Shape]],
        *,
        keeps_inputs: bool = False,
        parts: int = 1,
        num_frames: int = 1,
        slices_above: int | None = None,
    ) -> SequencePlan | None:
        """A value lies in an input, in a new tensor if it is returned, or in memory that others had or will have.

        Args:
            inputs: shapes of their maps.
            keeps_inputs: no result overwrites one.
            parts: that the batch is computed in.
            num_frames: of a clip, where a batch of images has the frames of clips; a part has whole clips.
            slices_above: bytes of a step's maps, see `_sliced_steps`; None: the batch is not sliced.

        Returns:
            None where a batch has no whole clips, a low map that is read has not half the size of its high one, a
            residual is not of its result's shape or its layer adds none, or a gate has other sizes than one pixel for
            each clip.
        """
        if any(n % (parts * num_frames) for maps in inputs for n, *_ in maps):
            return None
        shapes = wiring.shapes(layers, [[(n // parts, *rest) for n, *rest in maps] for maps in inputs])
        if not all(_is_pair(shapes[x]) for x, *_ in wiring.reads):
            return None
        for value, (layer, (_, *others)) in enumerate(zip(layers, wiring.reads, strict=True), wiring.num_inputs):
            residual, gate = (*others, NO_VALUE, NO_VALUE)[:2]
            adds = layer.layer.kind in (LayerKind.CONVOLUTION, LayerKind.SCALE)
            if residual != NO_VALUE and (not adds or shapes[residual] != shapes[value]):
                return None
            if gate != NO_VALUE and not _is_gate(shapes[gate], shapes[value]):
                return None
        groups = wiring.groups(layers)
        owners, last_reads = wiring.owners(groups, keeps_inputs=keeps_inputs), wiring.last_reads()
        # Nothing that a group reads may be overwritten before all of it is done.
        ends = {step: group[-1] for group in groups for step in group}
        last_reads = [ends.get(step, step) for step in last_reads]
        local = {wiring.num_inputs + step: n for group in groups for n, step in enumerate(group[:-1])}
        sizes = {group[0]: len(group) for group in groups}
        last = [-1] * len(owners)
        for value, owner in enumerate(owners):
            last[owner] = max(last[owner], last_reads[value])

        format, num_slots, memory = layers[0].format if layers else F32, 1, _Memory()
        sliced, slices = 0, 1
        if slices_above is not None:
            sliced, slices = _sliced_steps(wiring, layers, shapes, groups, local, slices_above)
        places: list[list[Place]] = [[] for _ in owners]

        def place(value: int) -> None:
            nonlocal num_slots
            index = value - wiring.num_inputs  # of a layer
            for shape in shapes[value]:
                size = torch.Size(shape).numel() * format.dtype.itemsize
                if index < 0 or last[value] == len(layers):
                    places[value].append(Place(num_slots, 0, size // slices))
                    num_slots += 1
                elif index < sliced and last[value] < sliced:
                    places[value].append(Place(_WORKSPACE, memory.take(size // slices, until=last[value]), 0))
                else:
                    places[value].append(Place(_WORKSPACE, memory.take(size, until=last[value]), size // slices))

        placed = [value for value, owner in enumerate(owners) if owner == value and value not in local]
        # What slices leave behind has its memory from the start: the next slice must not write there.
        first = [value for value in placed if 0 <= value - wiring.num_inputs < sliced <= last[value] < len(layers)]
        for value in first:
            place(value)
        for value, owner in enumerate(owners):
            memory.free(before=value - wiring.num_inputs)
            if value in local:
                places[value] = [Place(_LOCAL, local[value])] * len(shapes[value])
            elif owner == value and value not in first:
                place(value)

        def maps_of(value: int) -> list[Place]:
            found = [] if value == NO_VALUE else places[owners[value]]
            return [*found, *[Place(_NO_MAP)] * (2 - len(found))]

        steps = []
        for value, (conv, (x, *others)) in enumerate(zip(layers, wiring.reads, strict=True), wiring.num_inputs):
            residual, gate = (*others, NO_VALUE, NO_VALUE)[:2]
            high, *low = shapes[x]
            sized = conv.layer.for_map(high, low[0][1] if low else 0)
            if value - wiring.num_inputs < sliced:
                sized.clips //= slices
            if sized.kind == LayerKind.SHIFT:
                sized.clips, sized.frames = sized.clips // num_frames, num_frames
            maps = (*maps_of(x), *maps_of(residual), maps_of(gate)[0], *maps_of(value))
            steps.append(Step(ctypes.pointer(sized), sizes.get(value - wiring.num_inputs, 1), *maps))
        results = [(owners[value], shapes[value]) for value in wiring.results]
        return cls(wiring, layers, results, steps, memory.size, format, parts, sliced, slices)

    def run(self, inputs: Sequence[Sequence[Tensor]], workspaces: list[Tensor]) -> list[Sequence[Tensor]]:
        """The maps of each result.

        Args:
            inputs: maps of the sizes planned for, in the format, channels last.
            workspaces: to take one from, and to give it back.
        """
        try:
            workspace = workspaces.pop()
        except IndexError:
            workspace = torch.empty(0)
        if workspace.nbytes < self.parts * self.size:
            workspace = empty_in_large_pages(-(-self.parts * self.size // workspace.itemsize))
        made: dict[int, Sequence[Tensor]] = dict(enumerate(inputs))  # in whose place results lie too
        maps = [x for maps in inputs for x in maps]
        for owner, shapes in sorted(self.results, key=lambda result: result[0]):  # in the order of their slots
            if owner not in made:
                made[owner] = [self._empty(n * self.parts, *rest) for n, *rest in shapes]
                maps += made[owner]
        # Of each part, where its workspace and its clips of each map begin.
        places = [(workspace.data_ptr(), self.size), *[(x.data_ptr(), x.nbytes // self.parts) for x in maps]]
        slots = [start + part * size for part in range(self.parts) for start, size in places]
        library = load_library()
        assert library is not None
        addresses = (ctypes.c_int64 * len(slots))(*slots)
        threads = torch.get_num_threads()
        library.run_sequence(
            self._steps, len(self.steps), addresses, len(places), self.parts, self.sliced, self.slices, threads
        )
        workspaces.append(workspace)
        return [made[owner] for owner, _ in self.results]

    def _empty(self, *shape: int) -> Tensor:
        return torch.empty(shape, dtype=self.format.dtype, memory_format=LAYOUTS[len(shape)])


_GROUPS = (
    ("pointwise", "depthwise", "pointwise"),
    ("pointwise", "depthwise"),
    ("depthwise", "pointwise"),
    ("scale", "pointwise"),
)


def _kind_in_group(layer: Layer) -> str:
    if layer.kind == LayerKind.DEPTHWISE:
        reaches = zip(layer.padding, layer.dilation, layer.kernel, strict=True)
        is_usual = all(p <= d * (k - 1) for p, d, k in reaches)  # every row of the result reads rows that there are
        return "depthwise" if is_usual else "alone"
    if layer.kind == LayerKind.SCALE:
        return "scale"
    sizes = {"kernel": 1, "stride": 1, "padding": 0, "pool_window": 1, "pool_stride": 1}
    one_pixel = all(set(getattr(layer, name)) == {size} for name, size in sizes.items())
    is_dense = layer.kind == LayerKind.CONVOLUTION and not layer.pool_first and layer.groups <= 1
    return "pointwise" if is_dense and one_pixel else "alone"


def num_parts(clips: int, threads: int) -> int:
    """In how many parts of equally many clips a batch is computed, each by one thread; 1: threads share each layer.

    Threads that share a layer wait for each other at its end, and read what other cores have written. Two parts or
    more for each thread let a fast core take more of them; parts that would leave threads without work for longer than
    a tenth of the time cost more than they save.
    """
    even = [n for n in range(threads, clips + 1) if clips % n == 0 and 9 * -(-n // threads) * threads <= 10 * n]
    if threads == 1 or not even:
        return 1
    return next((n for n in even if n >= 2 * threads), even[0])


def _sliced_steps(
    wiring: Wiring,
    layers: Sequence[FusedLayer],
    shapes: Sequence[Sequence[Shape]],
    groups: Sequence[range],
    local: Mapping[int, int],
    above: int,
) -> tuple[int, int]:
    """How many of the first steps some clips run through, and then the next clips; and in how many slices.

    The maps of a whole batch are larger than the cache, where one clip's may fit. Weights are read anew for each slice:
    steps are sliced only while the maps are larger than these.

    Args:
        local: values that lie nowhere as a whole.
        above: bytes of what a group of steps reads and writes; smaller ones gain nothing.
    """
    clips = shapes[0][0][0] if shapes and shapes[0] else 1
    sliced, largest = 0, 0
    for group in groups:
        values = {wiring.num_inputs + step for step in group}
        values |= {value for step in group for value in wiring.reads[step] if value >= 0}
        maps = [shape for value in values if value not in local for shape in shapes[value]]
        itemsize = layers[group[0]].format.dtype.itemsize
        size = sum(torch.Size(shape).numel() for shape in maps) * itemsize
        weights = sum(layers[step].weight_bytes for step in group)
        kinds = {layers[step].layer.kind for step in group}
        uneven = {shape[0] for shape in maps} != {clips} or LayerKind.SHIFT in kinds
        if size <= above or size < clips * weights or uneven:
            break
        sliced, largest = group[-1] + 1, max(largest, size)
    slices = next((n for n in range(1, clips + 1) if clips % n == 0 and largest <= n * above), clips)
    return (sliced, slices) if slices > 1 else (0, 1)


def _is_pair(maps: Sequence[Shape]) -> bool:
    """Whether a value's low map, if it has one, is of half the size of its high one."""
    (clips, _, *size), *others = maps
    return all((n, tuple(low)) == (clips, half_size(size)) for n, _, *low in others)


def _is_gate(gate: Sequence[Shape], result: Sequence[Shape]) -> bool:
    channels = sum(shape[1] for shape in result)
    return [tuple(shape) for shape in gate] == [(result[0][0], channels, *[1] * (len(result[0]) - 2))]


class _Memory:
    """Where maps lie in a workspace: first fit."""

    def __init__(self) -> None:
        self.size = 0
        self._taken: list[tuple[int, int, int]] = []  # start, end, the last step that reads it

    def free(self, before: int) -> None:
        self._taken = [map for map in self._taken if map[2] >= before]

    def take(self, size: int, until: int) -> int:
        size, start = -(-size // _CACHE_LINE) * _CACHE_LINE, 0
        for first, end, _ in sorted(self._taken):
            if first - start >= size:
                break
            start = max(start, end)
        self._taken.append((start, start + size, until))
        self.size = max(self.size, start + size)
        return start


def to_format(x: Tensor, format: Format, quantum: Quantum) -> Tensor:
    """A channels-last map (N, C, [T,] H, W) of real values, float32 or already in the format, in the format.

    Args:
        quantum: for int8.
    """
    if x.dtype == format.dtype:
        return x
    library = load_library()
    assert library is not None
    x = x.float()
    made = torch.empty(x.shape, dtype=format.dtype, memory_format=LAYOUTS[x.dim()])
    threads = torch.get_num_threads()
    library.convert_to(format.index, x.data_ptr(), made.data_ptr(), x.numel(), quantum.scale, quantum.zero, threads)
    return made


def from_format(x: Tensor, format: Format, quantum: Quantum) -> Tensor:
    """A channels-last map in the format as float32."""
    if x.dtype == torch.float32:
        return x
    library = load_library()
    assert library is not None
    made = torch.empty(x.shape, memory_format=LAYOUTS[x.dim()])
    threads = torch.get_num_threads()
    library.convert_from(format.index, x.data_ptr(), made.data_ptr(), x.numel(), quantum.scale, quantum.zero, threads)
    return made
