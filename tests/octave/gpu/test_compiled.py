"""Triton's kernels without a device: compiled for an H200, and as nodes of torch.compile's graphs."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor

triton = pytest.importorskip("triton")
from triton.backends.compiler import GPUTarget  # noqa: E402

from octvideo.octave.gpu import devices, norm  # noqa: E402

if devices.INTERPRETED:
    pytest.skip("interpreted kernels are not compiled", allow_module_level=True)

TARGET = GPUTarget("cuda", 90, 32)
TYPES = {torch.float32: "*fp32", torch.bfloat16: "*bf16", torch.float16: "*fp16"}


def load_cases() -> ModuleType:
    spec = importlib.util.spec_from_file_location("octave_norm_cases", Path(__file__).with_name("test_norm.py"))
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


cases = load_cases()


class H200:
    """As much of a driver as torch asks for when it looks into a kernel."""

    def get_current_target(self) -> GPUTarget:
        return TARGET

    def get_current_device(self) -> int:
        return 0

    def get_benchmarker(self) -> None:  # Triton 3.2 asks for it
        return None


@pytest.fixture(autouse=True)
def on_cpu_tensors(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """CPU tensors stand for a device's; nothing here runs a kernel."""
    monkeypatch.setattr(norm, "runs_on", lambda _: True)
    before = dict(vars(triton.runtime.driver))
    triton.runtime.driver.set_active(H200())
    yield
    vars(triton.runtime.driver).update(before)


@pytest.fixture
def launches(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, tuple[Any, ...], dict[str, Any]]]:
    """Kernels with their arguments, in place of running them."""
    from octvideo.octave.gpu import norm_ops

    found: list[tuple[Any, tuple[Any, ...], dict[str, Any]]] = []

    class Recorder:
        def __init__(self, kernel: Any) -> None:
            self.kernel = kernel

        def __getitem__(self, grid: tuple[int, ...]) -> Callable[..., None]:
            assert all(0 < n < 2**31 for n in grid)
            return lambda *args, **options: found.append((self.kernel, args, options))

    monkeypatch.setattr(norm_ops, "wrap_triton", Recorder)
    return found


def compile_launch(kernel: Any, args: tuple[Any, ...], options: dict[str, Any]) -> Any:
    """What Triton compiles at this launch, for `TARGET`."""
    options = dict(options)
    num_warps = options.pop("num_warps")
    signature, constants, attributes = {}, {}, {}
    for n, name in enumerate(kernel.arg_names):
        if name in options:
            signature[name], constants[(n,)] = "constexpr", options[name]
        elif isinstance(args[n], Tensor):
            signature[name], attributes[(n,)] = TYPES[args[n].dtype], [["tt.divisibility", 16]]
        else:
            signature[name] = "fp32" if isinstance(args[n], float) else "i32"
    source = triton.compiler.ASTSource(kernel, signature, constants, attributes)
    return triton.compile(source, target=TARGET, options={"num_warps": num_warps})


@pytest.mark.slow
@pytest.mark.parametrize("case", cases.FORMS, ids=range(len(cases.FORMS)))
def test_every_kernel_compiles_for_the_device(case: Any, launches: list[Any]) -> None:
    cases.run(norm.octave_norm, case, "cpu")
    assert launches
    for kernel, args, options in launches:
        compiled = compile_launch(kernel, args, options)
        assert len(compiled.asm["cubin"]) > 1000


@pytest.mark.slow
def test_thick_maps_are_read_in_whole_vectors(launches: list[Any]) -> None:
    case = cases.Case((2, 2, 4, 4), (72, 24), dtype=torch.bfloat16, residual=(True, True))
    cases.run(norm.octave_norm, case, "cpu")
    for kernel, args, options in launches:
        if "VEC" in options:
            ptx = compile_launch(kernel, args, options).asm["ptx"]
            assert options["VEC"] == 8
            assert "ld.global.v4.b32" in ptx and "ld.global.b16" not in ptx  # 16 bytes a thread, none of 2


def test_three_kernels_run_forward_and_three_back_and_one_in_evaluation(launches: list[Any]) -> None:
    case = cases.FORMS[1]
    values = cases.make(case, "cpu")
    results = norm.octave_norm(**values, **cases.options(case))
    assert [kernel.fn.__name__ for kernel, _, _ in launches] == [
        "moments_kernel",
        "finish_moments_kernel",
        "normalize_kernel",
    ]
    launches.clear()
    cases.gradients(case, dict(zip(cases.RESULTS[:3], results, strict=True)), values)
    assert [kernel.fn.__name__ for kernel, _, _ in launches] == [
        "sums_kernel",
        "finish_sums_kernel",
        "gradient_kernel",
    ]
    launches.clear()
    with torch.no_grad():
        norm.octave_norm(**values, **{**cases.options(case), "training": False})
    assert [kernel.fn.__name__ for kernel, _, _ in launches] == ["normalize_kernel"]


def test_torch_compile_sees_three_kernels_each_way_in_one_graph() -> None:
    from functorch.compile import make_boxed_func
    from torch._dynamo.backends.common import aot_autograd

    graphs: list[list[str]] = []

    def keep(graph: torch.fx.GraphModule, _: Any) -> Callable[..., Any]:
        """Runs nothing: results have the sizes that the graph says."""
        graphs.append([str(node.target) for node in graph.graph.nodes if node.op == "call_function"])
        (output,) = (node for node in graph.graph.nodes if node.op == "output")
        results = [None if node is None else node.meta["val"] for node in output.args[0]]
        return make_boxed_func(
            lambda *_: [x if x is None else torch.zeros(tuple(x.shape), dtype=x.dtype) for x in results]
        )

    step = torch.compile(
        lambda values: norm.octave_norm(**values, **cases.options(cases.FORMS[1])),
        backend=aot_autograd(fw_compiler=keep, bw_compiler=keep),
        fullgraph=True,
    )
    y_high, y_low, joined = step(cases.make(cases.FORMS[1], "cpu"))
    (y_high.sum() + y_low.sum() + joined.sum()).backward()
    assert len(graphs) == 2
    for targets in graphs:
        assert targets.count("triton_kernel_wrapper_functional") == 3
        assert not [target for target in targets if "octvideo" in target]
