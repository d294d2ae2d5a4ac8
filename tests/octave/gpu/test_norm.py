"""`octave_norm` against torch's own operations in float64, by plain torch and by Triton.

Triton's kernels run on a CUDA device (-m gpu); and on the CPU in Triton's interpreter, if TRITON_INTERPRET=1 was set
before Triton was imported: test_interpreted.py runs this file so.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from octvideo.octave.gpu.devices import INTERPRETED
from octvideo.octave.gpu.norm import octave_norm
from octvideo.octave.gpu.plain import plain_norm
from octvideo.octave.resample import pool_down, upsample
from tests.octave.gpu.traffic import traffic

GPU = pytest.param("cuda", marks=pytest.mark.gpu)
KERNELS = pytest.mark.parametrize("device", ["cpu", GPU] if INTERPRETED else [GPU])
MAPS = ("high", "half", "low", "residual_high", "residual_low")
RESULTS = ("y_high", "y_low", "joined", "y_high_again", "y_low_again", "joined_again")


@dataclass(frozen=True)
class Case:
    size: tuple[int, ...]  # N, [T,] H, W
    channels: tuple[int, int]  # high, low
    half: bool = True
    residual: tuple[bool, bool] = (False, False)
    affine: bool = True
    running: bool = True
    training: bool = True
    relu: bool = True
    pools: bool = True
    again: bool = False
    layout: str = "channels last"  # or contiguous, slices of wider maps, images cut out of larger ones
    dtype: torch.dtype = torch.float32
    unused: tuple[str, ...] = ()  # results without a gradient
    mean: float = 0.5

    @property
    def low_size(self) -> tuple[int, ...]:
        return (*self.size[:-2], -(-self.size[-2] // 2), -(-self.size[-1] // 2))


def random_case(seed: int) -> Case:
    r = random.Random(seed)

    def coin(share: float = 0.5) -> bool:
        return r.random() < share

    layout = r.choice(["channels last"] * 3 + ["contiguous", "slices", "cut out"])
    channels = r.choice([(6, 2), (58, 6), (16, 16), (13, 3), (1, 1), (72, 24), (0, 5), (9, 0)])
    if layout == "contiguous":  # a program for each channel: many take the interpreter long
        channels = r.choice([(3, 1), (0, 2), (4, 0)])
    residual = coin()
    outputs = ["y_high", *(["y_low"] if channels[1] else []), "joined"]
    again = coin()
    outputs += [f"{name}_again" for name in outputs] if again else []
    return Case(
        size=(r.choice([2, 3]), *([r.choice([1, 3])] if coin(0.7) else []), r.randint(1, 9), r.randint(1, 9)),
        channels=channels,
        half=coin(0.8),
        residual=(residual, residual if coin(0.9) else not residual),
        affine=coin(0.9),
        running=coin(0.8),
        training=coin(0.8),
        relu=coin(0.8),
        pools=coin(0.7),
        again=again,
        layout=layout,
        dtype=r.choice([torch.float32, torch.bfloat16, torch.float16]),
        unused=tuple(r.sample(outputs, len(outputs) // 3)) if coin(0.5 if again else 0.2) else (),
    )


def make_map(case: Case, channels: int, size: tuple[int, ...], device: str) -> Tensor:
    n, *spatial = size
    wide = {"slices": channels + 5}.get(case.layout, channels)
    cut = 2 if case.layout == "cut out" else 0
    x = torch.randn(n, wide, *spatial[:-1], spatial[-1] + cut) * 2 + case.mean
    if case.layout != "contiguous":
        x = x.contiguous(memory_format=torch.channels_last if x.dim() == 4 else torch.channels_last_3d)
    x = x.to(device, case.dtype)[:, wide - channels :]
    return x[..., cut:].detach().requires_grad_()


def make(case: Case, device: str) -> dict[str, Tensor | None]:
    """Arguments of `octave_norm`."""
    high, low = case.channels
    total = high + low

    def vector(low: float, there: bool) -> Tensor | None:
        return (torch.rand(total) + low).to(device) if there else None

    values: dict[str, Tensor | None] = {
        "high": make_map(case, high, case.size, device),
        "half": make_map(case, high, case.low_size, device) if case.half else None,
        "low": make_map(case, low, case.low_size, device) if low else None,
        "residual_high": make_map(case, high, case.size, device) if case.residual[0] else None,
        "residual_low": make_map(case, low, case.low_size, device) if case.residual[1] and low else None,
        "weight": vector(0.5, case.affine),
        "bias": vector(-0.5, case.affine),
        "running_mean": vector(case.mean, case.running),
        "running_var": vector(0.5, case.running),
    }
    for name in ("weight", "bias"):
        if values[name] is not None:
            values[name].requires_grad_()
    return values


def options(case: Case) -> dict[str, Any]:
    given = {"training": case.training, "momentum": 0.3, "eps": 1e-3, "relu": case.relu, "pools": case.pools}
    return {**given, "again": True} if case.again else given


def gradients(case: Case, results: dict[str, Tensor | None], inputs: dict[str, Tensor | None]) -> dict[str, Tensor]:
    torch.manual_seed(7)
    taken, upstream = [], []
    for name, y in results.items():
        if y is not None:
            dy = torch.randn(y.shape)
            if name not in case.unused and y.requires_grad and y.numel():
                taken.append(y)
                upstream.append(dy.to(case.dtype).to(y.device, y.dtype))
    wanted = {name: x for name, x in inputs.items() if x is not None and x.requires_grad}
    found = torch.autograd.grad(taken, list(wanted.values()), upstream, allow_unused=True)
    return {name: torch.zeros_like(x) if d is None else d for (name, x), d in zip(wanted.items(), found, strict=True)}


def run(operation: Callable[..., Any], case: Case, device: str) -> dict[str, Tensor]:
    """Results, gradients (d_...) and running statistics."""
    torch.manual_seed(3)
    values = make(case, device)
    made = operation(**values, **options(case))
    results = dict(zip(RESULTS, made, strict=False))
    found = {f"d_{name}": d for name, d in gradients(case, results, values).items()}
    found |= {name: values[name] for name in ("running_mean", "running_var")}
    return {name: x.detach() for name, x in {**results, **found}.items() if x is not None}


def expected(case: Case, results: dict[str, Tensor]) -> dict[str, Tensor]:
    """The same in float64, by torch; a ReLU's gradient goes where `results` say: rounding decides that near zero."""
    torch.manual_seed(3)
    values = {name: x if x is None else x.detach().double() for name, x in make(case, "cpu").items()}
    for name in (*MAPS, "weight", "bias"):
        if values[name] is not None:
            values[name].requires_grad_()
    high, half, low = values["high"], values["half"], values["low"]
    if half is not None and case.channels[0]:
        high = high + upsample(half, high.shape[2:])
    parts = {"y_high": high, "y_low": low}
    found: dict[str, Tensor | None] = {}
    for (name, x), where in zip(
        parts.items(), (slice(0, case.channels[0]), slice(case.channels[0], None)), strict=True
    ):
        if x is None:
            continue
        vectors = [v if v is None else v[where] for v in (values[n] for n in ("weight", "bias"))]
        running = [v if v is None else v[where] for v in (values[n] for n in ("running_mean", "running_var"))]
        if x.shape[1]:
            x = F.batch_norm(x, *running, *vectors, case.training or not case.running, 0.3, 1e-3)
        residual = values[name.replace("y", "residual")]
        if residual is not None:
            x = x + residual
        if case.relu:
            torch.testing.assert_close(F.relu(x), x * (results[name].cpu() > 0), rtol=0, atol=bound(case, x))
            x = x * (results[name].cpu() > 0)
        found[name] = x
    parts_of_joined = [pool_down(found["y_high"]), found.get("y_low")]
    found["joined"] = torch.cat([x for x in parts_of_joined if x is not None], 1) if case.pools else None
    found |= {f"{name}_again": found.get(name) for name in RESULTS[:3]} if case.again else {}
    grads = gradients(case, {name: found.get(name) for name in RESULTS[: 6 if case.again else 3]}, values)
    found |= {f"d_{name}": d for name, d in grads.items()}
    found |= {name: values[name] for name in ("running_mean", "running_var")}
    return {name: x.detach() for name, x in found.items() if x is not None}


def bound(case: Case, x: Tensor) -> float:
    """Some roundings of the largest value. float32 sums of up to some hundred terms stay within its last 16."""
    eps = torch.finfo(case.dtype).eps
    return (3 * eps if case.dtype != torch.float32 else 32 * eps) * (
        1 + float(x.detach().abs().max() if x.numel() else 0)
    )


def check(operation: Callable[..., Any], case: Case, device: str) -> None:
    results = run(operation, case, device)
    wanted = expected(case, results)
    assert results.keys() == wanted.keys()
    for name, x in results.items():
        want = wanted[name]
        atol = bound(case, want)
        if name in ("d_weight", "d_bias"):  # sums over all pixels of values that were rounded
            atol *= 4 * math.sqrt(math.prod(case.size))
        assert x.shape == want.shape
        torch.testing.assert_close(x.double().cpu(), want, rtol=0, atol=atol, msg=lambda m, n=name: f"{n}: {m}")
        if name.startswith(("running", "d_weight", "d_bias")):
            assert x.dtype == torch.float32
        else:
            assert x.dtype == case.dtype


FORMS = [
    Case((2, 3, 5, 7), (6, 2)),
    Case((2, 3, 5, 7), (6, 2), residual=(True, True)),
    Case((2, 1, 9, 9), (58, 6), residual=(True, True), dtype=torch.bfloat16),
    Case((3, 8, 5), (3, 1), layout="contiguous", dtype=torch.float16),
    Case((2, 2, 6, 4), (72, 24), layout="slices", dtype=torch.bfloat16, pools=False),
    Case((2, 2, 5, 3), (6, 2), layout="cut out", residual=(True, False)),
    Case((2, 2, 7, 7), (0, 5), residual=(True, True)),
    Case((2, 2, 7, 7), (9, 0), half=False, residual=(True, True)),
    Case((2, 1, 1, 1), (16, 16), relu=False, residual=(True, True)),
    Case((2, 2, 4, 4), (6, 2), training=False),
    Case((2, 2, 4, 4), (6, 2), training=False, running=False, affine=False, residual=(True, True)),
    Case((2, 2, 4, 4), (6, 2), training=False, affine=False, residual=(False, True)),
    Case((2, 2, 4, 5), (6, 2), unused=("y_high",), residual=(True, True)),
    Case((2, 2, 4, 5), (6, 2), unused=("joined", "y_low")),
    Case((2, 2, 5, 3), (6, 2), again=True, residual=(True, True), dtype=torch.bfloat16),
    Case((2, 2, 5, 3), (6, 2), again=True),
    Case((2, 2, 3, 5), (6, 2), again=True, residual=(True, True), unused=("joined_again",), dtype=torch.bfloat16),
    Case((2, 2, 3, 5), (6, 2), again=True, residual=(True, True), unused=("y_high", "y_low", "joined")),
    Case(
        (2, 2, 3, 5), (6, 2), again=True, residual=(True, True), unused=("y_high_again", "y_low_again", "joined_again")
    ),
    Case((2, 2, 3, 3), (0, 5), again=True, residual=(True, True)),
    Case((2, 3, 3), (3, 1), again=True, layout="contiguous", residual=(False, True)),
    Case((2, 2, 4, 4), (6, 2), again=True, training=False, affine=False, layout="slices", unused=("y_high",)),
    Case((2, 2, 4, 3), (9, 0), again=True, half=False, pools=False, residual=(True, False), relu=False),
]


@pytest.mark.parametrize("case", FORMS, ids=range(len(FORMS)))
def test_plain_operation_equals_torch(case: Case) -> None:
    # torch rounds between the steps, which in a narrow format would be the reference's error
    check(octave_norm if case.again else plain_norm, replace(case, dtype=torch.float32), "cpu")


# The interpreter takes its time: by default it runs the forms that have most in them.
FIRST = {1, 2, 3, 7, 12, 14, 15, 16}


@KERNELS
@pytest.mark.parametrize(
    "case", [pytest.param(c, id=str(n), marks=[] if n in FIRST else pytest.mark.slow) for n, c in enumerate(FORMS)]
)
def test_kernels_equal_torch(case: Case, device: str) -> None:
    check(octave_norm, case, device)


@pytest.mark.slow
@KERNELS
@pytest.mark.parametrize("seed", range(60))
def test_kernels_equal_torch_in_random_forms(seed: int, device: str) -> None:
    check(octave_norm, random_case(seed), device)


@KERNELS
def test_more_programs_than_tiles_and_more_tiles_than_programs(device: str) -> None:
    """Several blocks with sums, of several tiles each, the last one not full."""
    from octvideo.octave.gpu import norm_ops

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(norm_ops, "SUM_PROGRAMS", 4)
        patch.setattr(norm_ops, "SUM_TILE", 128)
        check(octave_norm, Case((2, 11, 15), (7, 3)), device)


@KERNELS
def test_variance_survives_a_mean_that_is_large_beside_it(device: str) -> None:
    case = replace(FORMS[0], mean=3000.0, half=False)
    torch.manual_seed(3)
    values = make(case, device)
    octave_norm(**values, **{**options(case), "momentum": 1.0})
    x = values["high"].detach().double()
    want = x.transpose(0, 1).flatten(1).var(1)
    # Of squares that were not shifted, 3000^2 in float32, nothing would be left of a variance of 4.
    torch.testing.assert_close(values["running_var"][: x.shape[1]].double(), want, rtol=1e-5, atol=0)


@KERNELS
def test_every_run_gives_the_same_bits(device: str) -> None:
    case = Case((2, 2, 5, 4), (6, 2), residual=(True, True), dtype=torch.bfloat16)
    first, second = (run(octave_norm, case, device) for _ in range(2))
    for name, x in first.items():
        assert torch.equal(x, second[name]), name


@KERNELS
def test_nan_reaches_the_result(device: str) -> None:
    case = replace(FORMS[0], training=False)
    values = make(case, device)
    with torch.no_grad():
        values["high"][0, 1, 0, 2, 3] = math.nan
    y_high, y_low, joined = octave_norm(**values, **options(case))
    assert y_high.isnan().nonzero().tolist() == [[0, 1, 0, 2, 3]]
    assert joined.isnan().nonzero().tolist() == [[0, 1, 0, 1, 1]]
    assert not y_low.isnan().any()


@pytest.mark.parametrize("operation", [plain_norm, pytest.param(octave_norm, id="octave_norm")])
def test_one_value_a_channel_is_refused_in_training(operation: Callable[..., Any]) -> None:
    values = make(Case((1, 1, 2, 2), (4, 2)), "cpu")
    with pytest.raises(ValueError, match="more than 1 value per channel"):
        operation(**values, **options(FORMS[0]))


@KERNELS
def test_gradients_of_gradients_are_refused_in_words(device: str) -> None:
    case = Case((2, 3, 2), (3, 1), residual=(True, True))
    values = make(case, device)
    once = torch.autograd.grad(octave_norm(**values, **options(case))[0].sum(), values["high"])
    y_high, *_ = octave_norm(**values, **options(case))
    (twice,) = torch.autograd.grad(y_high.sum(), values["high"], create_graph=True)
    assert torch.equal(twice, *once)
    with pytest.raises(NotImplementedError, match=r"no gradients of gradients: call octvideo\.octave\.unfuse"):
        twice.square().sum().backward()


@pytest.mark.slow
@KERNELS
def test_results_keep_their_layout(device: str) -> None:
    values = make(FORMS[0], device)
    for y in octave_norm(**values, **options(FORMS[0])):
        assert y.is_contiguous(memory_format=torch.channels_last_3d) and not y.is_contiguous()
    case = Case((2, 3, 5, 7), (6, 2), layout="contiguous")
    for y in octave_norm(**make(case, device), **options(case)):
        assert y.is_contiguous()


@pytest.mark.slow
@KERNELS
def test_results_do_not_depend_on_autocast(device: str) -> None:
    case = replace(FORMS[0], dtype=torch.bfloat16)
    want = run(octave_norm, case, device)
    with torch.autocast(device, torch.bfloat16):
        got = run(octave_norm, case, device)
    for name, x in want.items():
        assert torch.equal(x, got[name]), name


@pytest.mark.slow
@KERNELS
@pytest.mark.parametrize("case", [FORMS[n] for n in (0, 1, 6, 9)], ids=range(4))
def test_operators_keep_torchs_rules(case: Case, device: str) -> None:
    from octvideo.octave.gpu.norm_ops import octave_moments, octave_normalize

    values = make(case, device)
    maps, rest = [values[name] for name in MAPS], [values["weight"], values["bias"]]
    maps, rest = (
        [x if x is None else x.detach() for x in values] for values in (maps, rest)
    )  # Normalize has gradients
    detached = maps[:3]
    statistics = values["running_mean"], values["running_var"]
    tests = ("test_schema", "test_faketensor", "test_aot_dispatch_static")
    torch.library.opcheck(octave_moments, (*detached, *statistics, 0.1), test_utils=tests)
    mean, var = octave_moments(*detached, None, None, 0.1)
    args = (*maps, *rest, mean, var, case.training, 1e-3, case.relu, case.pools)
    torch.library.opcheck(octave_normalize, args, test_utils=tests)


@pytest.mark.slow
@KERNELS
@pytest.mark.parametrize("case", [FORMS[1], replace(FORMS[16], dtype=torch.float32)], ids=["once", "again"])
def test_compiled_in_one_graph_it_gives_the_same(case: Case, device: str) -> None:
    want = run(octave_norm, case, device)
    got = run(torch.compile(octave_norm, backend="aot_eager", fullgraph=True), case, device)
    for name, x in want.items():
        torch.testing.assert_close(got[name], x, msg=lambda m, n=name: f"{n}: {m}")


@pytest.mark.gpu
@pytest.mark.parametrize("case", [FORMS[2], replace(FORMS[16], dtype=torch.float32)], ids=["once", "again"])
def test_inductor_gives_the_same(case: Case) -> None:
    want = run(octave_norm, case, "cuda")
    got = run(torch.compile(octave_norm, fullgraph=True), case, "cuda")
    for name, x in want.items():
        torch.testing.assert_close(got[name], x, msg=lambda m, n=name: f"{n}: {m}")


@pytest.mark.gpu
def test_a_cuda_graph_replays_a_step() -> None:
    case = replace(FORMS[2])
    torch.manual_seed(3)
    values = make(case, "cuda")

    def step() -> list[Tensor]:
        y_high, y_low, joined = octave_norm(**values, **options(case))
        loss = y_high.float().square().mean() + y_low.float().square().mean() + joined.float().square().mean()
        wanted = [values[name] for name in (*MAPS, "weight", "bias")]
        return [loss, *torch.autograd.grad(loss, wanted)]

    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        want = step()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        got = step()
    graph.replay()
    for x, y in zip(got, want, strict=True):
        torch.testing.assert_close(x, y, rtol=0, atol=0)


# -- bytes -------------------------------------------------------------------------------------------------


def test_traffic_of_one_case_counted_by_hand() -> None:
    # high 2x6x3x4x4 is 576 elements; half and pooled 144 each; low 2x2x3x2x2 48; joined 192.
    forward, backward = traffic((2, 6, 3, 4, 4), 2, half=True, residual=True, pools=True)
    x, y, joined = 576 + 144 + 48, 576 + 48, 192
    assert (forward.read, forward.written, forward.kernels) == (2 * (2 * x + y), 2 * (y + joined), 3)
    assert (backward.read, backward.written) == (2 * (y + joined + x + y + y + x), 2 * (y + x))
    assert backward.kernels == 3
    _, of_two = traffic((2, 6, 3, 4, 4), 2, half=True, residual=True, pools=True, again=True)
    assert (of_two.read - backward.read, of_two.written) == (2 * (y + joined), backward.written)


@pytest.mark.skipif(not INTERPRETED, reason="counts what the interpreter loads and stores")
@pytest.mark.parametrize(
    ("residual", "training", "pools", "again"),
    [(True, True, True, False), (False, True, True, False), (True, False, False, False), (True, True, True, True)],
)
def test_traffic_is_what_kernels_load_and_store(
    residual: bool, training: bool, pools: bool, again: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    from triton.runtime.interpreter import InterpreterBuilder

    counted = {"read": 0, "written": 0}

    def count(kind: str, name: str, mask_at: int) -> None:
        original = getattr(InterpreterBuilder, name)

        def counting(self: Any, *args: Any) -> Any:
            is_map = args[0].dtype.scalar.element_ty.primitive_bitwidth == 16  # vectors and sums are float32
            addresses = args[0].data[args[mask_at].data]
            counted[kind] += 2 * len(set(addresses.tolist())) * is_map  # what a tile loads twice is fetched once
            return original(self, *args)

        monkeypatch.setattr(InterpreterBuilder, name, counting)

    count("read", "create_masked_load", 1)
    count("written", "create_masked_store", 2)
    shape, low = (2, 6, 3, 5, 4), 2
    case = Case(
        (2, 3, 5, 4),
        (6, low),
        residual=(residual,) * 2,
        training=training,
        pools=pools,
        again=again,
        dtype=torch.bfloat16,
    )
    values = make(case, "cpu")
    results = octave_norm(**values, **options(case))
    forward, backward = traffic(shape, low, half=True, residual=residual, pools=pools, training=training, again=again)
    first_pixels = 2 * (2 * 6 + 2) * training  # what sums are shifted by: one pixel of high, half and low a block
    assert counted == {"read": forward.read + first_pixels, "written": forward.written}
    counted.update(read=0, written=0)
    gradients(case, dict(zip(RESULTS, results, strict=False)), values)
    unused_x = 0 if training or not residual else 2 * (2 * 3 * (5 * 4 * 6 + 3 * 2 * 8))  # a compiler drops this load
    assert counted == {"read": backward.read + unused_x, "written": backward.written}
