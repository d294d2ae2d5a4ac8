"""Sequences of fused convolutions against the same convolutions called one by one, and against torch in float64."""

from __future__ import annotations

import copy
import gc
import itertools
import pickle
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from octvideo.octave import octavize, prepare_inference
from octvideo.octave.features import Octave
from octvideo.octave.fused import sequence as fused_sequence
from octvideo.octave.fused.conv import PreparedConv
from octvideo.octave.fused.sequence import FusedSequence
from octvideo.octave.kernel.formats import FORMATS, Format
from octvideo.octave.kernel.fused_conv import has_format
from octvideo.octave.kernel.library import load_library
from octvideo.octave.kernel.sequence import num_parts

library = load_library()
pytestmark = pytest.mark.skipif(library is None or library.num_registers() < 32, reason="not all is fused here")
LAST = {4: torch.channels_last, 5: torch.channels_last_3d}


def last(x: Tensor) -> Tensor:
    return x.contiguous(memory_format=LAST[x.dim()])


@pytest.fixture(autouse=True)
def no_gradients() -> Iterator[None]:
    with torch.inference_mode():
        yield


class Network(nn.Module):
    """A stem, blocks with and without a projection, and two maps that go on."""

    def __init__(self, axes: int, time: int = 3) -> None:
        super().__init__()
        conv: Any = nn.Conv2d if axes == 2 else nn.Conv3d
        pool: Any = nn.MaxPool2d if axes == 2 else nn.MaxPool3d
        one, pad = ((), ()) if axes == 2 else ((time,), (time // 2,))
        only, none = ((), ()) if axes == 2 else ((1,), (0,))
        self.stem = conv(3, 24, (*one, 7, 7), (*only, 2, 2), (*pad, 3, 3))
        self.pool = pool((*only, 3, 3), (*only, 2, 2), (*none, 1, 1))
        self.project = conv(24, 48, 1)
        self.a, self.b, self.c = conv(24, 32, (*one, 1, 1), 1, (*pad, 0, 0)), conv(32, 32, 1), conv(32, 48, 1)
        self.b = conv(32, 32, (*only, 3, 3), 1, (*none, 1, 1))
        self.d, self.e = conv(48, 32, 1), conv(32, 48, 1)
        self.f = conv(48, 40, (*only, 3, 3), (*only, 2, 2), (*none, 1, 1))
        self.means = tuple(range(2, 2 + axes))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = self.pool(torch.relu(self.stem(x)))
        x = torch.relu(self.project(x) + self.c(torch.relu(self.b(torch.relu(self.a(x))))))
        x = torch.relu(x + self.e(torch.relu(self.d(x))))
        y = torch.relu(self.f(x))
        return x.mean(self.means), y.mean(self.means)


def prepared(axes: int, alpha: float, time: int = 3) -> tuple[nn.Module, nn.Module, FusedSequence]:
    torch.manual_seed(0)
    network = octavize(Network(axes, time), alpha).eval()
    ready = prepare_inference(network)
    (sequence,) = (m for m in ready.modules() if isinstance(m, FusedSequence))
    return network, ready, sequence


def plans(sequence: FusedSequence) -> list[Any]:
    return list(sequence._plans.values())


def one_after_the_other(sequence: FusedSequence, x: Tensor) -> list[Any]:
    values: list[Any] = [x]
    for conv, reads in zip(sequence.convs, sequence.wiring.reads, strict=True):
        alone = FusedSequence([conv], [range(len(reads))], len(reads), [len(reads)])
        values.append(alone(*[values[n] for n in reads]))
    return [values[n] for n in sequence.wiring.results]


@pytest.mark.parametrize("threads", [1, 2, pytest.param(5, marks=pytest.mark.slow)])
@pytest.mark.parametrize("alpha", [0, pytest.param(0.125, marks=pytest.mark.slow), 0.25, 0.5])
@pytest.mark.parametrize(("axes", "time"), [(2, 1), (3, 1), (3, 3)], ids=["images", "frames", "clips"])
def test_sequences(axes: int, time: int, alpha: float, threads: int) -> None:
    """Bit for bit what the convolutions give one by one."""
    network, ready, sequence = prepared(axes, alpha, time)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(threads)
        for clips, frames, size in ((1, 1, (32, 32)), (3, 4, (29, 39)), (4, 2, (17, 50)), (3, 4, (29, 39))):
            shape = (clips, 3, *([frames] if axes == 3 else []), *size)
            x = last(torch.randn(shape, generator=torch.Generator().manual_seed(clips)))
            found, expected = ready(x), network.double()(x.double())
            for got, want in zip(found, expected, strict=True):
                torch.testing.assert_close(got.double(), want, atol=1e-4, rtol=1e-4)
            for got, want in zip(sequence(x), one_after_the_other(sequence, x), strict=True):
                for own, other in zip(fused_sequence._parts(got), fused_sequence._parts(want), strict=True):
                    assert torch.equal(own, other) and own.stride() == other.stride()
        assert len(plans(sequence)) == 3 and None not in plans(sequence)
    finally:
        torch.set_num_threads(before)
        network.float()


@pytest.mark.parametrize("alpha", [0.0, 0.25])
@pytest.mark.parametrize(("clips", "threads"), [(1, 1), (3, 1), (12, 1), (12, 2)])
def test_the_first_steps_are_sliced_where_maps_are_large(
    clips: int, threads: int, alpha: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Clip by clip, with the same results bit for bit, in less memory."""
    _, _, sequence = prepared(3, alpha)
    x = last(torch.randn(clips, 3, 2, 61, 77))
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(threads)
        whole = sequence(x)
        monkeypatch.setattr(fused_sequence, "CACHED_BYTES", 30_000)
        sequence._plans.clear()
        sliced = sequence(x)
    finally:
        torch.set_num_threads(before)
    (plan,) = plans(sequence)
    (monkeypatch.undo(), sequence._plans.clear(), sequence(x))
    assert plan.slices == {1: 1, 3: 3, 12: 12 // plan.parts}[clips]
    if plan.slices > 1:
        assert plan.sliced >= 3 and plan.size < plans(sequence)[0].size
    for own, other in zip(sliced, whole, strict=True):
        assert all(map(torch.equal, fused_sequence._parts(own), fused_sequence._parts(other)))


@pytest.mark.parametrize(
    "format", [f for f in FORMATS.values() if f.name != "int8" and has_format(f)], ids=lambda f: f.name
)
@pytest.mark.parametrize(
    ("clips", "threads", "parts"), [(4, 2, 4), (9, 3, 9), (10, 3, 1), (6, 2, 6), (3, 2, 1), (2, 2, 2), (8, 1, 1)]
)
def test_a_batch_in_parts(clips: int, threads: int, parts: int, format: Format) -> None:
    """Each clip's results are those that it has alone, bit for bit."""
    assert num_parts(clips, threads) == parts
    _, _, sequence = prepared(3, 0.25)
    sequence.set_format(format, gives_format=True)
    x = last(torch.randn(clips, 3, 2, 29, 39))
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        alone = [sequence(last(x[n : n + 1])) for n in range(clips)]
        torch.set_num_threads(threads)
        together = sequence(x)
        assert plans(sequence)[-1].parts == parts
    finally:
        torch.set_num_threads(before)
    for index, values in enumerate(zip(*alone, strict=True)):
        for own, others in zip(
            fused_sequence._parts(together[index]), zip(*map(fused_sequence._parts, values), strict=True), strict=True
        ):
            assert own.dtype == format.dtype and torch.equal(own, torch.cat(others))


def test_results_are_not_overwritten_by_the_next_call() -> None:
    _, ready, _ = prepared(3, 0.25)
    x = [last(torch.randn(1, 3, 2, 32, 32)) for _ in range(2)]
    first = ready(x[0])
    kept = [y.clone() for y in first]
    ready(x[1])
    assert all(torch.equal(y, k) for y, k in zip(first, kept, strict=True))


def test_results_that_lie_in_a_residual_before_others() -> None:
    """The last result lies in the first one's place, so that its memory comes before the second one's."""
    convs = [PreparedConv.of(nn.Conv2d(8, channels, 1)) for channels in (8, 8, 8, 24)]
    assert all(conv is not None for conv in convs)
    sequence = FusedSequence([c for c in convs if c is not None], [[0], [1], [2, 1], [2]], 1, [2, 4, 3])
    x = last(torch.randn(2, 8, 5, 5))
    first = convs[0](x)  # type: ignore[misc]
    second = convs[1](first)  # type: ignore[misc]
    expected = [second, convs[3](second), convs[2](second) + first]  # type: ignore[misc]
    for got, want in zip(sequence(x), expected, strict=True):
        torch.testing.assert_close(got, want, atol=1e-5, rtol=1e-5)
    assert None not in plans(sequence)


def test_a_residual_from_outside_is_overwritten() -> None:
    convs = [PreparedConv.of(nn.Conv2d(8, 8, 1)) for _ in range(2)]
    assert convs[0] is not None and convs[1] is not None
    sequence = FusedSequence([convs[0], convs[1]], [[0], [2, 1]], 2, [3])
    x, residual = last(torch.randn(2, 8, 5, 5)), last(torch.randn(2, 8, 5, 5))
    expected = convs[1](convs[0](x)) + residual
    compiled = torch.compile(sequence, backend="eager", fullgraph=True)
    assert sequence.fuse()
    before = residual.clone()
    torch.testing.assert_close(compiled(x, residual), expected, atol=1e-5, rtol=1e-5)
    assert torch.equal(residual, before)  # a graph's operation changes nothing
    checks = ("test_schema", "test_faketensor")
    torch.library.opcheck(torch.ops.octvideo.fused_sequence, ([x, residual], [1, 1], sequence._name), test_utils=checks)
    torch._dynamo.reset()
    assert sequence(x, residual) is residual
    torch.testing.assert_close(residual, expected, atol=1e-5, rtol=1e-5)


def test_a_residual_that_is_broadcast_stays_as_it_is() -> None:
    """In a graph too, which finds out when it runs."""
    convs = [PreparedConv.of(nn.Conv2d(8, 8, 1)) for _ in range(2)]
    assert convs[0] is not None and convs[1] is not None
    sequence = FusedSequence([convs[0], convs[1]], [[0, 1], [3, 2]], 3, [4])
    x, fits, spread = last(torch.randn(2, 8, 5, 5)), last(torch.randn(2, 8, 5, 5)), last(torch.randn(1, 8, 5, 5))
    expected = convs[1](convs[0](x) + fits) + spread
    assert sequence.fuse()
    before = fits.clone()
    (found,) = torch.ops.octvideo.fused_sequence([x, fits, spread], [1, 1, 1], sequence._name)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    assert torch.equal(fits, before)


def test_what_cannot_be_planned_is_called_one_by_one() -> None:
    """A residual that is broadcast; others than float32. Maps in another layout are copied."""
    convs = [PreparedConv.of(nn.Conv2d(8, 8, 1)) for _ in range(2)]
    assert convs[0] is not None and convs[1] is not None
    sequence = FusedSequence([convs[0], convs[1]], [[0], [2, 1]], 2, [3])
    x, residual = last(torch.randn(2, 8, 5, 5)), last(torch.randn(1, 8, 5, 5))
    expected = convs[1](convs[0](x)) + residual
    for _ in range(2):
        torch.testing.assert_close(sequence(x, residual), expected, atol=1e-5, rtol=1e-5)
    assert plans(sequence) == [None]

    network, ready, own = prepared(3, 0.25)
    x = torch.randn(1, 3, 2, 32, 32)
    torch.testing.assert_close(ready(x), network(x), atol=1e-5, rtol=1e-5)
    assert None not in plans(own) and len(plans(own)) == 1
    own._plans.clear()
    torch.testing.assert_close(ready.double()(last(x.double())), network.double()(x.double()))
    assert not plans(own)


def test_new_weights_are_packed_anew() -> None:
    network, ready, sequence = prepared(3, 0.25)
    x = last(torch.randn(1, 3, 2, 32, 32))
    ready(x)
    for clone in (copy.deepcopy(ready), pickle.loads(pickle.dumps(ready))):
        torch.testing.assert_close(clone(x), network(x), atol=1e-5, rtol=1e-5)
    expected = network(x)
    ready.double().float()  # to other places
    (old,) = plans(sequence)
    torch.testing.assert_close(ready(x), expected, atol=1e-5, rtol=1e-5)
    assert plans(sequence) != [old]


def test_few_sizes_are_kept() -> None:
    network, ready, sequence = prepared(2, 0.25)
    for size in range(20, 40):
        x = last(torch.randn(1, 3, size, size))
        torch.testing.assert_close(ready(x), network(x), atol=1e-5, rtol=1e-5)
        assert len(plans(sequence)) <= 4


def test_several_threads_of_a_program_at_once() -> None:
    _, ready, _ = prepared(2, 0.25)
    x = [last(torch.randn(1, 3, 48, 48)) for _ in range(8)]
    expected = [ready(each) for each in x]
    wrong: list[int] = []

    def run(n: int) -> None:
        with torch.inference_mode():
            for _ in range(50):
                if not all(torch.equal(a, b) for a, b in zip(ready(x[n]), expected[n], strict=True)):
                    wrong.append(n)

    threads = [threading.Thread(target=run, args=(n,)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_a_plan_that_another_thread_makes_meanwhile() -> None:
    """It is taken, or made anew: layers called one by one would give other scores in bfloat16 and int8."""

    class MeanwhilePlanned(dict[Any, Any]):
        def get(self, key: Any, default: Any = None) -> Any:
            found = super().get(key, default)
            self[key] = plan
            return found

    _, ready, sequence = prepared(2, 0.25)
    x = last(torch.randn(1, 3, 48, 48))
    expected = ready(x)
    (plan,) = plans(sequence)
    sequence._plans = MeanwhilePlanned()
    sequence._one_by_one = None  # type: ignore[assignment]
    assert all(torch.equal(a, b) for a, b in zip(ready(x), expected, strict=True))


@pytest.mark.parametrize("shape", [(0, 8, 20, 20), (2, 8, 0, 20), (2, 8, 20, 0)])
@pytest.mark.parametrize("threads", [1, 2])
def test_maps_without_elements(shape: tuple[int, ...], threads: int) -> None:
    """Their results have none either; of layers with many weights, which are computed block by block, and of others."""
    layers = nn.Conv2d(8, 400, 1), nn.ReLU(), nn.Conv2d(400, 400, 1), nn.Conv2d(400, 8, 3, 1, 1), nn.MaxPool2d(3, 1, 1)
    ready, before = prepare_inference(nn.Sequential(*layers)), torch.get_num_threads()
    try:
        torch.set_num_threads(threads)
        assert ready(last(torch.randn(shape))).shape == shape
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("alpha", [0, 0.25])
def test_the_operation_is_what_it_says_to_compilers(alpha: float) -> None:
    _, _, sequence = prepared(3, alpha)
    assert sequence.fuse()
    x = last(torch.randn(2, 3, 4, 32, 32))
    operation = torch.ops.octvideo.fused_sequence
    torch.library.opcheck(operation, ([x], [1], sequence._name), test_utils=("test_schema", "test_faketensor"))
    expected = sequence(x)
    counts = [len(fused_sequence._parts(want)) for want in expected]
    assert max(counts) == 1 + (alpha > 0)
    made = fused_sequence._values(operation([x], [1], sequence._name), counts)
    for got, want in zip(made, expected, strict=True):
        assert isinstance(got, Octave) == isinstance(want, Octave)
        assert all(map(torch.equal, fused_sequence._parts(got), fused_sequence._parts(want)))


@pytest.mark.slow
def test_compiled_networks_are_not_taken_for_each_other(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Graphs lie in inductor's cache on the disk, where networks of other processes find them."""
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    with torch.inference_mode(False), torch.no_grad():
        x = last(torch.randn(1, 3, 2, 32, 32))
        for alpha in (0.25, 0.5):
            torch._dynamo.reset()  # as in a new process
            monkeypatch.setattr(fused_sequence, "_NUMBERS", itertools.count())
            _, ready, sequence = prepared(3, alpha)
            assert sequence.fuse()
            compiled = torch.compile(ready, fullgraph=True, options={"freezing": True})
            for got, want in zip(compiled(x), ready(x), strict=True):
                torch.testing.assert_close(got, want, atol=1e-5, rtol=1e-5)
    torch._dynamo.reset()


def test_a_sequence_that_is_gone_is_forgotten() -> None:
    _, ready, sequence = prepared(2, 0)
    sequence.fuse()
    name = sequence._name
    assert name in fused_sequence._SEQUENCES
    del ready, sequence
    gc.collect()
    assert name not in fused_sequence._SEQUENCES
