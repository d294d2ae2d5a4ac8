"""int8: how a prepared network's maps are quantised, found from clips that it is shown (calibration).

`quantize` does all: ranges of all maps are observed in float32, each map gets a scale, biases are corrected for what
rounding the weights moves them by, and the sequences compute in int8 from then on. Weights have a scale for each output
channel; the kernel rounds them when it packs them (kernel/formats.py).

Ranges come from `torch.ao.quantization`'s MinMaxObserver, which is part of torch: the least and the greatest element on
all clips. HistogramObserver, which looks for the range with the least squared error, cuts off large elements, and in
trained networks these carry the scores: logits of other clips then differed by up to twice as much. A mean of the
clips' ranges did far worse.
"""

from __future__ import annotations

import contextlib
import operator
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.ao.quantization.observer import MinMaxObserver

from octvideo.octave.conversion.modules import OctPool
from octvideo.octave.features import Octave
from octvideo.octave.fused.conv import PreparedConv, PreparedLayer, PreparedOctConv
from octvideo.octave.fused.sequence import FusedSequence
from octvideo.octave.kernel.formats import FORMATS, Quanta, Quantum, quantised_weight

_INT8 = FORMATS["int8"]


@dataclass(frozen=True)
class Calibration:
    """What is known of the values of one `FusedSequence`: first the inputs, then each layer's result.

    Args:
        quanta: of each value, of its high map and, if there is one, of its low one.
        means: likewise, of each channel: (C,) in float64.
    """

    quanta: Sequence[Quanta]
    means: Sequence[Sequence[Tensor]]


def quantize(prepared: nn.Module, clips: Iterable[Tensor]) -> None:
    """Let a prepared network compute its sequences in int8; everything else stays float32.

    Args:
        prepared: by `prepare_inference`, on the CPU, in float32; changed in place. Its biases are corrected for int8,
            so that float32 scores from it are no longer the network's.
        clips: what `prepared` takes, like those that it will see. New clips seldom leave the ranges of thirty.

    Raises:
        ValueError: no clips; or a map has NaN or infinite elements.
    """
    calibrations = calibrate(prepared, clips)
    for name, calibration in calibrations.items():
        sequence = prepared.get_submodule(name)
        assert isinstance(sequence, FusedSequence)
        correct_biases(sequence, calibration)
        sequence.set_format(_INT8, calibration.quanta)


def calibrate(
    prepared: nn.Module,
    clips: Iterable[Tensor],
    *,
    make_observer: Callable[[], Any] = lambda: MinMaxObserver(qscheme=torch.per_tensor_affine),
) -> dict[str, Calibration]:
    """Choose how each value of each sequence is quantised.

    A map that is never negative on the clips has zero 0; others have a zero within. A value that comes out of a
    sequence and reaches another one through a max pool alone keeps its quanta, so that it is not rounded twice.

    Args:
        prepared, clips: see `quantize`; not changed.
        make_observer: makes an observer of torch.ao.quantization, for quint8 and a whole map.

    Returns:
        By the sequences' names in `prepared`.

    Raises:
        ValueError: no clips; or a map has NaN or infinite elements.
    """
    sequences = {name: m for name, m in prepared.named_modules() if isinstance(m, FusedSequence)}
    observed = {name: _Observed(sequence, make_observer) for name, sequence in sequences.items()}
    with contextlib.ExitStack() as stack, torch.no_grad():
        for each in observed.values():
            stack.enter_context(each.in_place())
        for clip in clips:
            prepared(clip)
    if not all(each.maps[0] for each in observed.values()):
        raise ValueError("no clips to calibrate with")
    quanta = {name: each.quanta() for name, each in observed.items()}
    for name, value, source, result in _max_pooled_results(prepared):
        quanta[name][value] = quanta[source][result]
    return {name: Calibration(quanta[name], each.means()) for name, each in observed.items()}


def correct_biases(sequence: FusedSequence, calibration: Calibration) -> None:
    """Change biases by what rounding the weights adds to each output channel's mean.

    Args:
        sequence: its layers' biases are replaced.
        calibration: its means tell what a weight's rounding error is multiplied by, on average.
    """
    for conv, (x, *_) in zip(sequence.convs, sequence.wiring.reads, strict=True):
        if not isinstance(conv, PreparedLayer) or (conv.form is not None and conv.form.is_depthwise):
            continue  # no weights, or float32 ones
        quanta, means = calibration.quanta[x], calibration.means[x]
        for target, shift in _shifts(conv, quanta, means):
            bias = shift.new_zeros(len(shift)) if target.bias is None else target.bias.double()
            target.bias = (bias - shift).to(target.weight.dtype)


class _Map:
    """What is seen of a map: its range, and the sum of each channel."""

    def __init__(self, observer: Any) -> None:
        self.observer = observer
        self.sums: Tensor | None = None
        self.count = 0

    def observe(self, x: Tensor) -> None:
        if not x.isfinite().all():
            raise ValueError("calibration: a map has NaN or infinite elements")
        self.observer(x)
        sums = x.sum([n for n in range(x.dim()) if n != 1], dtype=torch.float64)
        self.sums = sums if self.sums is None else self.sums + sums
        self.count += x.numel() // max(x.shape[1], 1)

    def quantum(self) -> Quantum:
        if self.sums is None or not self.sums.numel():
            return Quantum()
        scale, zero = self.observer.calculate_qparams()
        return Quantum(float(scale), int(zero))

    def mean(self) -> Tensor:
        assert self.sums is not None
        return self.sums / max(self.count, 1)


class _Observed:
    """A sequence whose values are observed while it runs, layer by layer."""

    def __init__(self, sequence: FusedSequence, make_observer: Callable[[], Any]) -> None:
        self.sequence, self.make_observer = sequence, make_observer
        num_values = sequence.wiring.num_inputs + len(sequence.convs)
        self.maps: list[list[_Map]] = [[] for _ in range(num_values)]

    @contextlib.contextmanager
    def in_place(self) -> Iterator[None]:
        """Runs in the sequence's place."""
        self.sequence.forward = self.forward  # type: ignore[method-assign]
        try:
            yield
        finally:
            del self.sequence.forward

    def forward(self, *inputs: Tensor | Octave, num_frames: int = 1) -> Any:
        results = self.sequence.one_by_one(inputs, num_frames, self.observe)
        return results[0] if len(results) == 1 else tuple(results)

    def observe(self, n: int, value: Tensor | Octave) -> None:
        parts = value if isinstance(value, Octave) else (value,)
        if not self.maps[n]:
            self.maps[n] = [_Map(self.make_observer()) for _ in parts]
        for own, part in zip(self.maps[n], parts, strict=True):
            own.observe(part)

    def quanta(self) -> list[Quanta]:
        return [tuple(own.quantum() for own in maps) for maps in self.maps]

    def means(self) -> list[Sequence[Tensor]]:
        return [tuple(own.mean() for own in maps) for maps in self.maps]


def _max_pooled_results(prepared: nn.Module) -> Iterator[tuple[str, int, str, int]]:
    """Inputs of sequences that are other sequences' results, or max pools of such: (sequence, input, source, result).

    Args:
        prepared: a traced network; another one has none.
    """
    if not isinstance(prepared, fx.GraphModule):
        return
    modules = dict(prepared.named_modules())

    def called(node: Any) -> nn.Module | None:
        return modules.get(str(node.target)) if isinstance(node, fx.Node) and node.op == "call_module" else None

    for node in prepared.graph.nodes:
        if not isinstance(called(node), FusedSequence):
            continue
        for value, source in enumerate(node.args):
            while _takes_maxima(called(source)):
                source = source.args[0]
            index = 0
            if source.target is operator.getitem:
                source, index = source.args  # one of several results
            made = called(source)
            if isinstance(made, FusedSequence):
                yield str(node.target), value, str(source.target), made.wiring.results[index]


def _takes_maxima(module: nn.Module | None) -> bool:
    if isinstance(module, OctPool):
        module = module.pool
    return isinstance(module, nn.MaxPool2d | nn.MaxPool3d)


def _shifts(conv: PreparedLayer, quanta: Quanta, means: Sequence[Tensor]) -> Iterator[tuple[PreparedConv, Tensor]]:
    """Of the layer's convolutions that have a bias, and how rounding the weights shifts the means of their results.

    Args:
        quanta, means: of what the layer reads.
    """
    if isinstance(conv, PreparedConv):
        yield conv, _shift(conv.weight, quanta, means, conv.weight.shape[1], conv.groups)
        return
    assert isinstance(conv, PreparedOctConv) and conv.form is not None
    num_high, form = conv.num_high, conv.form
    high, from_low, low = conv.weights
    shift = _shift(high, quanta, means, num_high, form.groups)
    if from_low is not None:
        shift = shift + _shift(from_low, quanta, means, 0, form.groups)
    yield conv.main, shift
    if low is None:
        return
    own_high = num_high if form.low_reads_high else 0
    # The kernel rounds those parts by themselves that it computes by themselves.
    alone = form.shares_low(len(low), adds_from_low=from_low is not None, format=_INT8)
    parts = [(low, own_high)]
    if alone:
        parts = [(low[:, :own_high], own_high), (low[:, own_high:], 0)]
    shifts = [_shift(weight, quanta, means, count, form.groups) for weight, count in parts]
    yield conv.low[0], torch.stack(shifts).sum(0)  # type: ignore[misc]


def _shift(weight: Tensor, quanta: Quanta, means: Sequence[Tensor], num_high: int, groups: int = 1) -> Tensor:
    """By how much rounding a weight shifts the mean of each output: (C_out,), in float64.

    Args:
        weight: (C_out, C_in of a group, ...), of `num_high` high channels and then low ones.
    """
    if groups > 1:
        parts = zip(weight.chunk(groups), *[mean.chunk(groups) for mean in means], strict=True)
        return torch.cat([_shift(own, quanta, own_means, num_high) for own, *own_means in parts])
    num_low = weight.shape[1] - num_high
    each = [*[quanta[0]] * num_high, *[quanta[-1]] * num_low]
    mean = torch.cat([means[0][:num_high], means[-1][:num_low]])
    integers, scales, _ = quantised_weight(weight, each)
    ends = (-1, *[1] * (weight.dim() - 1))
    of_map = torch.tensor([quantum.scale for quantum in each], dtype=torch.float64).view(1, *ends[:-1])
    error = integers.double() * scales.double().view(ends) / of_map - weight.double()
    return (error.flatten(2).sum(2) if weight.dim() > 2 else error) @ mean
