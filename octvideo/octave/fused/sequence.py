"""Prepared layers that follow each other, or one alone, run by one call of the kernel.

octvideo/octave/kernel/sequence.py plans the call; from layer to layer there is then no Python and no allocation.
"""

from __future__ import annotations

import hashlib
import itertools
import weakref
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from octvideo.octave.features import Octave
from octvideo.octave.kernel.formats import F32, Format, LayerQuanta, Quanta, Quantum
from octvideo.octave.kernel.fused_conv import FusedLayer
from octvideo.octave.kernel.layout import LAYOUTS, channels_last, is_exporting
from octvideo.octave.kernel.sequence import (
    CACHED_BYTES,
    NO_VALUE,
    SequencePlan,
    Wiring,
    from_format,
    num_parts,
    to_format,
)

_MOST_PLANS = 4
_NO_PLAN: Any = object()  # None: there can't be one


class FusedSequence(nn.Module):
    """Prepared layers, in order; called one by one where one of them cannot be fused, or where torch exports.

    Values are indexed: first the inputs, then the result of each convolution.

    Args:
        convs: `PreparedLayer`s and `PreparedOperation`s.
        reads: for each of them the values that it reads, as `Wiring` has them.
        num_inputs: how many values `forward` takes.
        results: the values that it returns.

    Attributes:
        format: of maps within it; set it by `set_format`.
        quanta: for int8, of each value's maps.
        gives_format: results are returned in the format; else as float32.
    """

    def __init__(
        self,
        convs: Sequence[nn.Module],
        reads: Sequence[Sequence[int]],
        num_inputs: int,
        results: Sequence[int],
    ) -> None:
        super().__init__()
        self.convs = nn.ModuleList(convs)
        self.wiring = Wiring(tuple(map(tuple, reads)), num_inputs, tuple(results))
        self.format, self.gives_format = F32, False
        self.quanta: Sequence[Quanta] = ()
        self._last_reads = self.wiring.last_reads()
        self._shifts = any(conv.takes_num_frames for conv in convs)
        self._plans: dict[Any, SequencePlan | None] = {}
        self._workspaces: list[Tensor] = []  # of which each call takes one
        self._name: str | None = None  # in compiled graphs

    def forward(self, *inputs: Tensor | Octave, num_frames: int = 1) -> Any:
        """The result, or a tuple of results where there are several.

        Args:
            inputs: maps, or octave pairs of them.
            num_frames: T where layers shift and maps are of the N·T frames of N clips.
        """
        if not torch.compiler.is_compiling():
            results = self._run(inputs, num_frames)
        elif self._name is None or is_exporting() or torch.is_grad_enabled():
            results = self.one_by_one(inputs, num_frames)
        else:
            results = self._as_operation(inputs, num_frames)
        return results[0] if len(results) == 1 else tuple(results)

    def set_format(self, format: Format, quanta: Sequence[Quanta] = (), *, gives_format: bool = False) -> None:
        """Computes in that number format, which the kernel has here, from now on.

        Args:
            quanta: for int8, of each value's maps.
            gives_format: see `FusedSequence`.
        """
        self.format, self.quanta, self.gives_format = format, quanta, gives_format
        self._plans.clear()

    def fuse(self) -> bool:
        """Prepares for being fused, also in graphs that are compiled afterwards; whether that can be."""
        made: list[bool] = []
        for index, (conv, (x, *others)) in enumerate(zip(self.convs, self.wiring.reads, strict=True)):
            of_layer = None
            if self.quanta:
                y = self.quanta[self.wiring.num_inputs + index]
                of_others = [() if value == NO_VALUE else self.quanta[value] for value in others]
                of_layer = LayerQuanta(self.quanta[x], y, *of_others)
            made.append(conv.fuse(self.format, of_layer))  # type: ignore[operator]
        if not all(made):
            return False
        if self._name is None:
            # Inductor finds graphs of other networks in its cache on the disk: the name has all that sizes depend on.
            forms = [(layer.form, getattr(layer, "outs", ())) for layer in self._layers()]
            form = repr((forms, self.wiring, self.format.name, self.gives_format))
            self._name = f"{hashlib.sha256(form.encode()).hexdigest()[:16]} {next(_NUMBERS)}"
            _SEQUENCES[self._name] = self
        return True

    def _run(self, inputs: Sequence[Tensor | Octave], num_frames: int, *, keeps_inputs: bool = False) -> list[Any]:
        plan = self._plan_for(inputs, num_frames, keeps_inputs)
        if plan is None:
            copies = (_of_parts([part.clone() for part in _parts(value)]) for value in inputs)
            return self.one_by_one(list(copies) if keeps_inputs else inputs, num_frames)
        maps = [self._each(to_format, n, map(channels_last, _parts(value))) for n, value in enumerate(inputs)]
        results = plan.run(maps, self._workspaces)
        if not self.gives_format:
            results = [self._each(from_format, n, maps) for n, maps in zip(self.wiring.results, results, strict=True)]
        return [_of_parts(parts) for parts in results]

    def _each(self, change: Callable[..., Tensor], value: int, maps: Iterable[Tensor]) -> list[Tensor]:
        """The maps of a value, each changed to the format or from it."""
        quanta = self.quanta[value] if self.quanta else (Quantum(),) * 2
        return [change(x, self.format, quantum) for x, quantum in zip(maps, quanta, strict=False)]

    @property
    def result_dtype(self) -> torch.dtype:
        """Of what it returns."""
        return self.format.dtype if self.gives_format else torch.float32

    def _as_operation(self, inputs: Sequence[Tensor | Octave], num_frames: int) -> list[Any]:
        parts = [_parts(value) for value in inputs]
        counts, maps = [len(own) for own in parts], [part for own in parts for part in own]
        made = torch.ops.octvideo.fused_sequence(maps, counts, self._name, num_frames)
        pairs: list[Any] = [self.convs[n - self.wiring.num_inputs].gives_pair for n in self.wiring.results]
        return _values(made, [1 + pair for pair in pairs])

    def one_by_one(
        self,
        inputs: Sequence[Tensor | Octave],
        num_frames: int,
        watch: Callable[[int, Tensor | Octave], None] | None = None,
    ) -> list[Any]:
        """The results, by torch's operations.

        Args:
            inputs, num_frames: as of `forward`.
            watch: is called with the index of each value and the value, inputs too.
        """
        values: list[Any] = [*inputs]
        for n, value in enumerate(values if watch else ()):
            watch(n, value)  # type: ignore[misc]
        for step, (conv, reads) in enumerate(zip(self.convs, self.wiring.reads, strict=True)):
            given = [None if n == NO_VALUE else values[n] for n in reads]
            values.append(conv(*given, num_frames) if conv.takes_num_frames else conv(*given))
            if watch:
                watch(len(values) - 1, values[-1])
            for n in reads:
                if n != NO_VALUE and self._last_reads[n] == step:
                    values[n] = None
        return [values[n] for n in self.wiring.results]

    def _plan_for(self, inputs: Sequence[Tensor | Octave], num_frames: int, keeps_inputs: bool) -> SequencePlan | None:
        parts = [_parts(value) for value in inputs]
        if not all([_is_readable(part, self.format) for own in parts for part in own]):
            return None
        shapes = [[tuple(part.shape) for part in own] for own in parts]
        batches = {shape[0] for own in shapes for shape in own}
        if not self._shifts:
            num_frames = 1  # a batch is cut into parts between frames, too
        count = num_parts(batches.pop() // num_frames, torch.get_num_threads()) if len(batches) == 1 else 1
        sizes = count, num_frames, keeps_inputs, *map(tuple, shapes)
        plan = self._plans.get(sizes, _NO_PLAN)  # asked once: other threads add plans, and forget them
        if plan is _NO_PLAN or (plan is not None and plan.layers != self._layers()):
            if len(self._plans) >= _MOST_PLANS:
                self._plans.clear()
            self._plans[sizes] = plan = (
                SequencePlan.of(
                    self.wiring,
                    self._layers(),
                    shapes,
                    keeps_inputs=keeps_inputs,
                    parts=count,
                    num_frames=num_frames,
                    slices_above=CACHED_BYTES if count > 1 or torch.get_num_threads() == 1 else None,
                )
                if self.fuse()
                else None
            )
        return plan

    def _layers(self) -> list[FusedLayer]:
        return [conv.fused for conv in self.convs]  # type: ignore[misc]

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_plans": {}, "_workspaces": [], "_name": None}


# The same for graphs that are compiled, which know a sequence by a name in this process.
_NUMBERS = itertools.count()
_SEQUENCES: weakref.WeakValueDictionary[str, FusedSequence] = weakref.WeakValueDictionary()
torch.library.define(
    "octvideo::fused_sequence", "(Tensor[] maps, int[] counts, str name, int num_frames=1) -> Tensor[]"
)


@torch.library.impl("octvideo::fused_sequence", "CPU")
def _fused_sequence(maps: list[Tensor], counts: list[int], name: str, num_frames: int = 1) -> list[Tensor]:
    results = _SEQUENCES[name]._run(_values(maps, counts), num_frames, keeps_inputs=True)
    return [channels_last(part) for value in results for part in _parts(value)]


@torch.library.register_fake("octvideo::fused_sequence")
def _(maps: list[Tensor], counts: list[int], name: str, num_frames: int = 1) -> list[Tensor]:
    sequence = _SEQUENCES[name]
    inputs = [[tuple(part.shape) for part in _parts(value)] for value in _values(maps, counts)]
    shapes = sequence.wiring.shapes(sequence._layers(), inputs)
    return [
        torch.empty(shape, dtype=sequence.result_dtype, memory_format=LAYOUTS[len(shape)])
        for n in sequence.wiring.results for shape in shapes[n]
    ]  # fmt: skip


def _values(parts: Sequence[Tensor], counts: Sequence[int]) -> list[Any]:
    """Maps, one or two to each value."""
    left = iter(parts)
    return [_of_parts([next(left) for _ in range(count)]) for count in counts]


def _of_parts(parts: Sequence[Tensor]) -> Tensor | Octave:
    return parts[0] if len(parts) == 1 else Octave(*parts)


def _is_readable(x: Tensor, format: Format) -> bool:
    """Whether the kernel can read it now, as a copy where it is not channels last or in another format."""
    is_map = x.dtype in (torch.float32, format.dtype) and x.device.type == "cpu" and x.dim() in LAYOUTS
    return is_map and not torch.is_grad_enabled() and not torch.jit.is_tracing()


def _parts(value: Tensor | Octave) -> tuple[Tensor, ...]:
    return (value,) if isinstance(value, Tensor) else value
