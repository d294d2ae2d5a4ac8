"""The kernels of a network under torch.compile: the schedule that inductor makes, which needs no GPU.

dynamo traces the network with fake tensors, AOTAutograd makes and divides the graph of forward and backward, inductor
lowers both and decides what is one kernel: all of it torch's own code, in its order. Stopped is it where it would write
Triton. What a machine without a GPU can't answer, it is told: the device's properties. What inductor would time to
choose (padding of matrix products) is off.

A fused kernel moves what inductor itself says: each buffer that it reads or writes, once, or a part of it; what stays
inside the kernel is free. Convolutions and products are kernels of libraries, counted as in eager.py.
"""

from __future__ import annotations

import contextlib
import importlib.util
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from lab.roofline.device import Device, Kernel, Kind, Phase, Precision
from lab.roofline.eager import Mode
from lab.roofline.fake import autocast_on, fake_mode, gradients_from_python, laid_out, put_on_gpu
from lab.roofline.operations import kind_of, launches
from octvideo.errors import UserError

# A fused kernel is counted as the first of these that one of its operations is: a library convolves, and a kernel that
# stems from a convolution changes its input's or its result's dtype or layout.
_FIRST: tuple[Kind, ...] = (
    "normalisation",
    "pooling",
    "upsampling, addition",
    "other",
    "copy",
)
# Triton kernels of octvideo's own, beside those of batch norms.
_KINDS_OF_OURS: dict[str, Kind] = {"blocks_kernel": "copy"}


def fused_kernels(
    network: nn.Module,
    clip_shape: tuple[int, ...],
    device: Device,
    *,
    mode: Mode,
    precision: Precision = "bf16",
    channels_last: bool = True,
) -> list[Kernel]:
    """The kernels of one forward pass, or of forward and backward up to the logits' gradient: the loss is not compiled.

    Args:
        network: of clips to logits; its tensors are replaced by fake ones.
        clip_shape: (N, 3, T, H, W) of float32 clips.
        device: inductor asks for its multiprocessors and capability.
        mode, precision, channels_last: as `eager_kernels` has them.

    Raises:
        UserError: Triton is not installed, or this torch's inductor is another one inside than this file knows.
    """
    if importlib.util.find_spec("triton") is None:
        raise UserError("fused: torch.compile needs Triton for GPUs, which is not installed; --ways eager needs none")
    kernels: list[Kernel] = []
    try:
        with _stopped_inductor(device, kernels) as backend, fake_mode():
            network = put_on_gpu(network, channels_last=channels_last).train(mode == "training")
            clips = laid_out(torch.empty(clip_shape, device="cuda"), channels_last)
            compiled = torch.compile(network, backend=backend, fullgraph=True)
            grad = contextlib.nullcontext() if mode == "training" else torch.no_grad()
            with grad, autocast_on(precision), _stopping():
                compiled(clips)
    except (ImportError, AttributeError, TypeError) as error:
        raise UserError(
            f"fused: torch {torch.__version__} schedules otherwise than this tool knows ({error}); --ways eager needs "
            "nothing of it"
        ) from error
    return kernels


class _StopError(Exception):
    """The schedule is there."""


@contextlib.contextmanager
def _stopping() -> Iterator[None]:
    """Ends where a _StopError is raised within: dynamo and inductor wrap it in errors of their own."""
    try:
        yield
    except Exception as error:
        if not any(isinstance(cause, _StopError) for cause in _causes(error)):
            raise


@contextlib.contextmanager
def _stopped_inductor(device: Device, kernels: list[Kernel]) -> Iterator[Any]:
    """A backend of torch.compile that adds the kernels it would have written."""
    import triton
    from torch._dynamo.device_interface import CudaInterface
    from torch._functorch.aot_autograd import make_boxed_func
    from torch._inductor.compile_fx import compile_fx, compile_fx_inner
    from torch._inductor.fx_passes.joint_graph import UniformValueConstantFolder
    from torch._inductor.graph import GraphLowering
    from triton.backends.compiler import GPUTarget

    def stop(graph: Any) -> None:
        graph.init_wrapper_code()
        graph._update_scheduler()
        kernels.extend(_scheduled(graph))
        raise _StopError

    def inner(gm: Any, inputs: Any, **options: Any) -> Any:
        with _stopping():
            compile_fx_inner(gm, inputs, **options)
        return make_boxed_func(lambda *_: ())

    def backend(gm: Any, inputs: Any) -> Any:
        compile_fx(gm, inputs, inner_compile=inner)  # the graphs of forward and backward
        raise _StopError

    fold = UniformValueConstantFolder.run

    def fold_on_host(self: Any, *args: Any, **kwargs: Any) -> Any:
        with _OnHost():
            return fold(self, *args, **kwargs)

    answers = _properties(device)
    # Of Triton's driver, which kernels of our own are parsed for: inductor looks what they read and write.
    target = GPUTarget("cuda", 10 * device.capability[0] + device.capability[1], 32)
    driver = SimpleNamespace(get_current_target=lambda: target, get_current_device=lambda: 0)
    patches: list[Any] = [
        mock.patch.object(GraphLowering, "compile_to_module", stop),
        # torch remembers its answer, which others may have asked for before: without a GPU it is no.
        mock.patch("torch._inductor.scheduler.has_triton", lambda *_: True),
        mock.patch.object(UniformValueConstantFolder, "run", fold_on_host),
        mock.patch("torch.cuda.get_device_properties", lambda *_: answers),
        mock.patch("torch.cuda.get_device_capability", lambda *_: device.capability),
        mock.patch("torch.cuda.current_device", lambda: 0),
        mock.patch("torch.cuda.device_count", lambda: 1),
        mock.patch("torch.cuda.is_available", lambda: False),  # else random states would be asked for
        mock.patch.object(type(triton.runtime.driver), "active", property(lambda _: driver), create=True),
        mock.patch.object(CudaInterface.Worker, "get_device_properties", staticmethod(lambda *_: answers)),
        gradients_from_python(),
        torch._inductor.config.patch(shape_padding=False, force_disable_caches=True),
        torch._functorch.config.patch(enable_autograd_cache=False, force_non_lazy_backward_lowering=True),
    ]
    said = {
        "get_device_properties": answers,
        "get_compute_capability": str(10 * device.capability[0] + device.capability[1]),
        "is_bf16_supported": device.capability >= (8, 0),
        "is_available": True,
        "device_count": 1,
    }
    for name, answer in said.items():
        patches.append(mock.patch.object(CudaInterface, name, staticmethod(lambda *_, answer=answer, **__: answer)))
    torch._dynamo.reset()
    with contextlib.ExitStack() as stack:
        for patch in patches:
            stack.enter_context(patch)
        yield backend
    torch._dynamo.reset()


def _properties(device: Device) -> Any:
    """What CUDA tells of a device, as far as inductor asks."""
    return SimpleNamespace(
        name="modelled",
        major=device.capability[0],
        minor=device.capability[1],
        multi_processor_count=device.processors,
        total_memory=80 << 30,
        regs_per_multiprocessor=65536,
        max_threads_per_multi_processor=2048,
        max_threads_per_block=1024,
        warp_size=32,
        L2_cache_size=50 << 20,
        shared_memory_per_block=48 << 10,
        shared_memory_per_block_optin=99 << 10,
        shared_memory_per_multiprocessor=100 << 10,
        gcnArchName="",
    )


class _OnHost(TorchDispatchMode):
    """Constants that inductor works out beforehand are made on the CPU."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if kwargs.get("device") is not None:
            kwargs["device"] = torch.device("cpu")
        return func(*args, **kwargs)


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = getattr(error, "inner_exception", None) or error.__cause__ or error.__context__


# ── a schedule's kernels ──────────────────────────────────────────────────────────────────────────────────────────────


def _scheduled(graph: Any) -> Iterator[Kernel]:
    from torch._inductor.scheduler import ExternKernelSchedulerNode, NopKernelSchedulerNode

    phase: Phase = "backward" if graph.is_backward else "forward"
    for node in graph.scheduler.nodes:
        if isinstance(node, ExternKernelSchedulerNode):
            yield from _of_library(node, phase)
        elif not isinstance(node, NopKernelSchedulerNode) and not _only_allocates(node):
            yield _generated(node, phase)


def _of_library(node: Any, phase: Phase) -> Iterator[Kernel]:
    from torch._inductor.ir import MultiOutput, UserDefinedTritonKernel

    operation = node.node
    if isinstance(operation, MultiOutput):  # one of several results
        return
    if isinstance(operation, UserDefinedTritonKernel):
        kernel: Any = operation.get_kernel_and_metadata()[0]
        name = kernel.fn.__name__
        yield Kernel(name, _KINDS_OF_OURS.get(name, "normalisation"), _bytes(node), phase)
        return
    traced = _traced(operation)
    if traced is None:
        name = str(getattr(operation, "python_kernel_name", None) or type(operation).__name__)
        yield Kernel(name, kind_of(name.lower()), _bytes(node), phase)
        return
    args, kwargs = torch.fx.map_arg((traced.args, traced.kwargs), lambda n: n.meta.get("val"))
    # Layouts are inductor's own choice: it schedules what changes them.
    found = launches(traced.target, args, kwargs, traced.meta.get("val"), phase)
    yield from (kernel for kernel in found if kernel.name != "layout")


def _traced(operation: Any) -> Any:
    """The node of the traced graph that a library's kernel computes."""
    nodes = [operation.origin_node, *operation.origins] if operation.origin_node is not None else [*operation.origins]
    wanted = getattr(operation, "op_overload", None)
    operators = [n for n in nodes if isinstance(n.target, torch._ops.OpOverload)]
    return next((n for n in operators if wanted is None or n.target.overloadpacket is wanted.overloadpacket), None)


def _only_allocates(node: Any) -> bool:
    """Whether it is memory for a kernel's result, which inductor schedules as a map of no elements."""
    origins = [n for part in node.get_nodes() for n in part.node.origins] if hasattr(node, "get_nodes") else []
    return bool(origins) and all(_aten_name(n).startswith(("empty", "new_empty")) for n in origins)


def _generated(node: Any, phase: Phase) -> Kernel:
    origins = [n for part in node.get_nodes() for n in part.node.origins] if hasattr(node, "get_nodes") else []
    names = list(dict.fromkeys(_aten_name(n) for n in origins))
    kinds = {kind_of(name) for name in names}
    kind: Kind = next((kind for kind in _FIRST if kind in kinds), "copy")
    shapes = [tuple(x.shape) for n in origins if isinstance(x := n.meta.get("val"), Tensor)]
    largest = max(shapes, key=lambda shape: torch.Size(shape).numel(), default=())
    return Kernel(" + ".join(names), kind, _bytes(node), phase, shape=largest)


def _aten_name(traced: Any) -> str:
    """Of the operation that was there before it was decomposed."""
    original = traced.meta.get("original_aten") or traced.target
    name = original._schema.name if isinstance(original, torch._ops.OpOverload) else str(original)
    return name.rpartition("::")[2]


def _bytes(node: Any) -> int:
    """What inductor says that a kernel moves; of a buffer that is read in part, the part."""
    moved = 0
    for name, most in node.get_read_write_buffer_accesses(include_reads=True, include_writes=True).items():
        parts = [x for x in (*node.read_writes.reads, *node.read_writes.writes) if x.name == name]
        moved += min(most, sum(part.numbytes_hint() for part in parts)) if parts else most
    return int(moved)
