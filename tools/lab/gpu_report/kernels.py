"""Where a step's time goes: kernels by name, and the kinds of work that the names tell."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

# The first that a name holds decides: names of cuDNN, cuBLAS, torch, inductor, octvideo; and of torch's CPU operations.
_KINDS = {
    "optimizer": r"multi_tensor|foreach|fused_sgd|adam",
    "pooling": r"pool",
    "layout and copies": r"nchw_?to|nhwc_?to|blocks_kernel|transform|transpose|copy|mem(cpy|set)|cat_?array|aten::cat",
    "norm": r"batch_?norm|bn_fw|bn_bw|moments|normali[sz]e|^_(finish_)?sums$|^_gradient$|welford|var_mean",
    "convolution, product": r"conv|gemm|xmma|nvjet|cutlass|wgrad|dgrad|fprop|gemv|implicit|aten::(add)?mm",
    "sum": r"reduce|triton_red|triton_per|aten::(sum|mean)",
    "element by element": r"elementwise|vectorized|triton_poi|upsample|aten::(add|mul|relu|threshold|div|sub)",
}


@dataclass(frozen=True)
class Kernel:
    """All calls of one name in one step.

    Args:
        name: of a kernel; on a CPU, of torch's operation.
        count: calls.
        seconds: of all.
    """

    name: str
    count: int
    seconds: float

    @property
    def kind(self) -> str:
        """Of work."""
        return next((kind for kind, names in _KINDS.items() if re.search(names, self.name, re.IGNORECASE)), "other")

    @property
    def short_name(self) -> str:
        """Without C++'s return type and arguments."""
        name = re.sub(r"<.*|\(.*", "", self.name.removeprefix("void ")) if "::" in self.name else self.name
        return name if len(name) <= 70 else f"{name[:69]}…"


def profiled(call: Callable[[], object], device: torch.device) -> list[Kernel]:
    """The kernels of one call, those that take most time first; of a warm one."""
    on_gpu = device.type == "cuda"
    with profile(activities=[ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if on_gpu else [])]) as found:
        call()
        if on_gpu:
            torch.cuda.synchronize(device)
    kernels = []
    for event in found.key_averages():
        # Of names that programs give to stretches of time there are events on the GPU too.
        is_kernel = event.device_type == torch.autograd.DeviceType.CUDA and not getattr(event, "is_user_annotation", 0)
        if on_gpu and not is_kernel:
            continue
        seconds = _self_seconds(event, on_gpu)
        if seconds > 0:
            kernels.append(Kernel(event.key, event.count, seconds))
    return sorted(kernels, key=lambda kernel: -kernel.seconds)


def _self_seconds(event: Any, on_gpu: bool) -> float:
    return 1e-6 * float(event.self_device_time_total if on_gpu else event.self_cpu_time_total)


def by_kind(kernels: list[Kernel]) -> dict[str, tuple[int, float]]:
    """Calls and seconds of each kind, in the order of their time."""
    counts: Counter[str] = Counter()
    seconds: Counter[str] = Counter()
    for kernel in kernels:
        counts[kernel.kind] += kernel.count
        seconds[kernel.kind] += kernel.seconds  # type: ignore[assignment]
    return {kind: (counts[kind], float(spent)) for kind, spent in seconds.most_common()}
