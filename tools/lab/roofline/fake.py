"""Networks and tensors that are "on a GPU" without one: shapes, strides, dtypes and devices, and no memory.

torch's FakeTensors are that, but for three things where there is no GPU. Results of convolutions lack cuDNN's layout;
`fake_mode` gives it to them. Autocast switches itself off; `autocast_on` sets what it would set. And autograd's engine,
which is C++, asks the GPU for its streams; `gradients` goes through the same graph from Python: each node is called as
the engine calls it, in the same order, and sums are torch's operations too.
"""

from __future__ import annotations

import heapq
import itertools
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn
from torch._prims_common import suggest_memory_format
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd.graph import get_gradient_edge

from lab.roofline.device import Precision

DTYPES = {"f32": torch.float32, "bf16": torch.bfloat16, "f16": torch.float16}
_LAYOUTS = {4: torch.channels_last, 5: torch.channels_last_3d}


@contextmanager
def fake_mode() -> Iterator[None]:
    """Within it, all new tensors are fake, on any device, and convolutions are cuDNN's."""
    layout = mock.patch.object(torch._C, "_conv_determine_backend_memory_format", lambda x, w, _: conv_layout(x, w))
    with layout, FakeTensorMode(allow_non_fake_inputs=True):
        yield


def conv_layout(x: Tensor, weight: Tensor) -> torch.memory_format:
    """In which cuDNN computes: channels last if the maps or the weight are."""
    last = _LAYOUTS.get(weight.dim())
    found = suggest_memory_format(x), suggest_memory_format(weight)
    return last if last is not None and last in found else torch.contiguous_format


def put_on_gpu(network: nn.Module, *, channels_last: bool) -> nn.Module:
    """Replaces a network's tensors by fake ones on "cuda", in place; to be called within `fake_mode`.

    Args:
        network: on any device, meta too.
        channels_last: arrange weights of convolutions so.
    """
    made: dict[int, Tensor] = {}  # shared ones stay shared
    for module in network.modules():
        tables: list[dict[str, Any]] = [module._parameters, module._buffers]
        for table in tables:
            for name, tensor in table.items():
                if tensor is None:
                    continue
                if id(tensor) not in made:
                    fake = laid_out(torch.empty(tensor.shape, dtype=tensor.dtype, device="cuda"), channels_last)
                    is_learnt = isinstance(tensor, nn.Parameter)
                    made[id(tensor)] = nn.Parameter(fake, requires_grad=tensor.requires_grad) if is_learnt else fake
                table[name] = made[id(tensor)]
    return network


def laid_out(x: Tensor, channels_last: bool) -> Tensor:
    """`x`, channels last if it has the axes of images or clips."""
    return x.contiguous(memory_format=_LAYOUTS[x.dim()]) if channels_last and x.dim() in _LAYOUTS else x


@contextmanager
def autocast_on(precision: Precision) -> Iterator[None]:
    """torch.autocast("cuda"), whether or not there is a GPU; nothing in float32."""
    if precision == "f32":
        yield
        return
    before = torch.is_autocast_enabled("cuda"), torch.get_autocast_dtype("cuda")
    torch.set_autocast_enabled("cuda", True)
    torch.set_autocast_dtype("cuda", DTYPES[precision])
    torch.autocast_increment_nesting()
    try:
        yield
    finally:
        if torch.autocast_decrement_nesting() == 0:
            torch.clear_autocast_cache()
        torch.set_autocast_enabled("cuda", before[0])
        torch.set_autocast_dtype("cuda", before[1])


# ── backward ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def gradients_from_python() -> AbstractContextManager[Any]:
    """Within it, torch.autograd.grad is `gradients`: for AOTAutograd, which traces the backward pass by it."""
    return mock.patch("torch.autograd.grad", gradients)


def gradients(
    outputs: Sequence[Tensor],
    inputs: Sequence[Tensor],
    grad_outputs: Sequence[Tensor] | None = None,
    **_: Any,
) -> tuple[Tensor | None, ...]:
    """torch.autograd.grad by nodes that are called from Python; None where an input has no part in it.

    Args:
        outputs, inputs: lists of tensors.
        grad_outputs: as torch has them; None for ones.
    """
    starts = [torch.ones_like(y) for y in outputs] if grad_outputs is None else grad_outputs
    edges = [get_gradient_edge(x) for x in inputs]
    ends = [(edge.node, edge.output_nr) for edge in edges]
    found = _run([(*get_gradient_edge(y)[:2], grad) for y, grad in zip(outputs, starts, strict=True)], ends)
    return tuple(found.get(end) for end in ends)


def backward(loss: Tensor) -> None:
    """`loss.backward()`: gradients are left at the leaves, in the layout of each.

    A gradient of the leaf's layout is kept as it is, another one is copied, as AccumulateGrad does.
    """
    edge = get_gradient_edge(loss)
    leaves: list[Any] = []
    for node in _reached_from([edge.node]):
        if hasattr(node, "variable"):
            leaves.append(node)
    with torch.no_grad():
        found = _run([(edge.node, edge.output_nr, torch.ones_like(loss))], [(leaf, 0) for leaf in leaves])
        for leaf in leaves:
            if (grad := found.get((leaf, 0))) is None:
                continue
            variable = leaf.variable
            if variable.grad is not None:
                variable.grad += grad
            elif _same_strides(grad, variable):
                variable.grad = grad.detach()
            else:
                variable.grad = torch.empty_like(variable).copy_(grad)


def _same_strides(x: Tensor, y: Tensor) -> bool:
    return all(a == b for a, b, size in zip(x.stride(), y.stride(), y.shape, strict=True) if size > 1)


End = tuple[Any, int]  # a node of autograd's graph, and which of its inputs


def _run(starts: Sequence[tuple[Any, int, Tensor]], ends: Sequence[End]) -> dict[End, Tensor]:
    """The gradients that arrive at `ends`, of `starts` (node, input, gradient)."""
    nodes = _reached_from([node for node, _, _ in starts])
    waits_for: dict[Any, int] = defaultdict(int)
    before: dict[Any, list[Any]] = defaultdict(list)
    for node in nodes:
        for following, _ in node.next_functions:
            if following is not None:
                waits_for[following] += 1
                before[following].append(node)
    leads_on = set()  # nodes that have an end behind them; the engine calls no other
    queue = [node for node, _ in ends]
    while queue:
        for node in before[queue.pop()]:
            if node not in leads_on:
                leads_on.add(node)
                queue.append(node)

    arrived: dict[Any, dict[int, Tensor]] = defaultdict(dict)
    found: dict[End, Tensor] = {}
    wanted = set(ends)

    def arrive(node: Any, number: int, grad: Tensor) -> None:
        meta = node._input_metadata[number]
        if tuple(grad.shape) != tuple(meta.shape):
            grad = grad.sum_to_size(tuple(meta.shape))
        grad = grad.to(meta.dtype)
        sums = arrived[node]
        sums[number] = grad if number not in sums else sums[number] + grad

    for node, number, grad in starts:
        arrive(node, number, grad)
    # The latest operation first, as the engine does.
    count = itertools.count()
    ready = [(-node._sequence_nr(), next(count), node) for node in nodes if not waits_for[node]]
    heapq.heapify(ready)
    while ready:
        node = heapq.heappop(ready)[2]
        sums = arrived.pop(node, {})
        found |= {(node, number): grad for number, grad in sums.items() if (node, number) in wanted}
        goes_on = bool(sums) and node in leads_on
        results: list[Tensor | None] = _call(node, sums) if goes_on else [None] * len(node.next_functions)
        for (following, number), result in zip(node.next_functions, results, strict=True):
            if following is None:
                continue
            if result is not None:
                arrive(following, number, result)
            waits_for[following] -= 1
            if not waits_for[following]:
                heapq.heappush(ready, (-following._sequence_nr(), next(count), following))
    return found


def _reached_from(starts: Sequence[Any]) -> list[Any]:
    seen, queue = dict[Any, None](), list(starts)
    while queue:
        node = queue.pop()
        if node not in seen:
            seen[node] = None
            queue += [following for following, _ in node.next_functions if following is not None]
    return list(seen)


def _call(node: Any, sums: dict[int, Tensor]) -> list[Tensor | None]:
    """What a node gives to each of its next functions."""
    metas = node._input_metadata
    grads: list[Tensor | None] = [sums.get(number) for number in range(len(metas))]
    is_in_python = isinstance(node, torch.autograd.function.FunctionCtx)
    if not is_in_python:
        results = node(*grads)
        return list(results) if isinstance(results, tuple) else [results]
    # A function written in Python. The engine fills in zeros for it, unless it says that it wants none.
    if getattr(node, "_fills_in", True):
        grads = [
            torch.zeros(tuple(meta.shape), dtype=meta.dtype, device=meta.device) if grad is None else grad
            for grad, meta in zip(grads, metas, strict=True)
        ]
    given = node.apply(*grads)
    given = given if isinstance(given, tuple) else (given,)
    # One for each argument, where next functions are those of tensors alone.
    wanted = iter([grad for grad, needs in zip(given, node.needs_input_grad, strict=False) if needs])
    return [None if following is None else next(wanted) for following, _ in node.next_functions]


@contextmanager
def functions_say_what_they_want() -> Iterator[None]:
    """Within it, `ctx.set_materialize_grads` can be read afterwards; to be on while the forward pass runs."""
    known: Callable[..., None] = torch.autograd.function.FunctionCtx.set_materialize_grads

    def noted(self: Any, value: bool) -> None:
        self._fills_in = value
        known(self, value)

    with mock.patch.object(torch.autograd.function.FunctionCtx, "set_materialize_grads", noted):
        yield
