"""The machine that a benchmark ran on: what its numbers depend on, and the most that its arithmetic can do."""

from __future__ import annotations

import platform
import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

import torch
from torch import Tensor

from octvideo.inference.engines import ENGINES

# Of /proc/cpuinfo: what decides how fast convolutions can be.
_FLAGS = ("avx2", "fma", "avx512f", "avx512_vnni", "avx512_bf16", "amx_bf16", "amx_int8", "asimd", "sve", "bf16")


def describe(device: torch.device) -> dict[str, str]:
    """CPU, its vector units, threads, library versions and, where it is used, the GPU."""
    there = set(_cpuinfo("flags", "Features").split())
    flags = " ".join(flag for flag in _FLAGS if flag in there)
    cpu = _cpuinfo("model name") or platform.processor() or platform.machine()
    facts = {"cpu": cpu, "flags": flags, "cores": str(torch.get_num_threads())}
    facts["torch's best CPU code"] = torch.backends.cpu.get_cpu_capability()
    if device.type == "cuda":
        facts["gpu"] = torch.cuda.get_device_name(device)
        facts["cuda"] = str(torch.version.cuda)
        facts["cudnn"] = str(torch.backends.cudnn.version())
    facts["python"], facts["torch"] = platform.python_version(), torch.__version__
    for name in _packages():
        try:
            facts[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return facts


def _packages() -> list[str]:
    """Those whose versions matter to engines, beside torch."""
    return [package for entry in ENGINES.values() for package in entry.packages]


def machine_line(facts: dict[str, str]) -> str:
    """The facts in one line."""
    parts = [facts[key] for key in ("gpu", "cpu") if key in facts]
    parts += ["1 thread" if facts["cores"] == "1" else f"{facts['cores']} threads", facts["flags"]]
    parts += [f"{key} {facts[key]}" for key in ("torch", "cuda", "cudnn", *_packages()) if key in facts]
    return ", ".join(part for part in parts if part)


def _cpuinfo(*keys: str) -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:  # not Linux
        return ""
    found = [line.partition(":")[2].strip() for line in lines if line.partition(":")[0].strip() in keys]
    return found[0] if found else ""


# ── the peak ────────────────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True)
class Product:
    """A matrix product that is as fast as this machine gets, to measure convolutions by.

    Args:
        once: computes it.
        multiply_adds: of one.
        text: which it is.
    """

    once: Callable[[], Tensor]
    multiply_adds: int
    text: str


def peak_product(precision: str, device: torch.device) -> Product:
    """The fastest form of a large square product: torch's own, or as 1x1 convolutions, which other kernels compute.

    For GPUs, and for CPUs that octvideo's kernel does not measure.

    The size is as large as takes no more than a tenth of a second: bf16 takes minutes by kernels that have no unit
    for it.

    Args:
        precision: "f32" or "bf16". On CUDA, f32 is what convolutions use: TF32, where torch allows them that.
        device: to run on.
    """
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    size, best = 256, _fastest(256, dtype, device)
    while size < (8192 if device.type == "cuda" else 1024) and 8 * best[0] < 0.1:
        size *= 2
        best = _fastest(size, dtype, device)
    return Product(best[1], size**3, f"{size} x {size}, {best[2]}")


def _fastest(size: int, dtype: torch.dtype, device: torch.device) -> tuple[float, Callable[[], Tensor], str]:
    a = torch.randn(size, size, device=device).to(dtype)
    image = a.reshape(1, size, size // 32, 32).contiguous(memory_format=torch.channels_last)
    kernels = a.reshape(size, size, 1, 1)
    tf32 = dtype is torch.float32 and device.type == "cuda" and torch.backends.cudnn.allow_tf32

    def product() -> Tensor:
        before = torch.backends.cuda.matmul.allow_tf32
        torch.backends.cuda.matmul.allow_tf32 = before or tf32
        result = a @ a
        torch.backends.cuda.matmul.allow_tf32 = before
        return result

    def convolution() -> Tensor:
        with torch.inference_mode():
            return torch.conv2d(image, kernels)

    suffix = " in TF32" if tf32 else ""
    forms: list[tuple[Callable[[], Tensor], str]] = [
        (product, f"torch.mm{suffix}"),
        (convolution, f"1x1 convolution{suffix}"),
    ]
    timed = [(_seconds(form, device), form, text) for form, text in forms]
    return min(timed, key=lambda one: one[0])


def _seconds(call: Callable[[], Tensor], device: torch.device) -> float:
    taken = []
    for _ in range(2):  # the first warms up, and bounds the second
        synchronize(device)
        started = time.perf_counter()
        call()
        synchronize(device)
        taken.append(time.perf_counter() - started)
        if taken[0] > 1.0:
            break
    return min(taken)


def synchronize(device: torch.device) -> None:
    """Waits until the device has nothing to do; a CPU never has."""
    if device.type != "cpu":
        torch.accelerator.synchronize(device)
