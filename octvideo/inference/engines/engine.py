"""What every engine is: clips in, logits out; which there are, and what each needs."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from types import ModuleType
from typing import Literal, Protocol, get_args

import torch
from torch import Tensor

from octvideo.errors import UserError

EngineName = Literal["eager", "compile", "aot", "onnx", "openvino"]
Precision = Literal["f32", "bf16", "int8"]

# What each engine computes in. ONNX Runtime's CPU kernels for convolutions have no bf16.
PRECISIONS: dict[str, tuple[Precision, ...]] = {
    "eager": ("f32", "bf16"),
    "compile": ("f32", "bf16"),
    "aot": ("f32", "bf16"),
    "onnx": ("f32",),
    "openvino": ("f32", "bf16", "int8"),
}


class Engine(Protocol):
    """Runs one network.

    Args:
        name: one of `EngineName`.
        precision: that it computes in.
        views_per_call: clips that go through the network at once; other numbers are cut and filled up to it.
            None: any number at once.
    """

    name: str
    precision: str
    views_per_call: int | None

    def __call__(self, clips: Tensor) -> Tensor:
        """Logits float32 (N, K) of normalised clips float32 (N, 3, T, H, W)."""
        ...


def check_choice(name: str, precision: str) -> None:
    """Refuses an engine that there is not, or a precision that it does not have.

    Raises:
        UserError: with those there are.
    """
    if name not in get_args(EngineName):
        raise UserError(f"engine: got '{name}', expected {', '.join(get_args(EngineName))}")
    if precision not in PRECISIONS[name]:
        able = [engine for engine, known in PRECISIONS.items() if precision in known]
        hint = f" (engines with {precision}: {', '.join(able)})" if able else ""
        raise UserError(
            f"precision: got '{precision}' for engine '{name}', expected {' or '.join(PRECISIONS[name])}{hint}"
        )


def check_cpu(name: str, device: torch.device) -> None:
    """Refuses a GPU for an engine that we run on CPUs only.

    Raises:
        UserError: with the engines for GPUs.
    """
    if device.type != "cpu":
        raise UserError(
            f"engine '{name}' runs on the CPU here, got device '{device}': add --device cpu, or --engine aot"
        )


def needs(module: str, extra: str) -> ModuleType:
    """A library of an optional extra.

    Raises:
        UserError: it is not installed, with what to install.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise UserError(f"this needs {module} ({error}): pip install 'octvideo[{extra}]'") from error


def in_batches(run: Callable[[Tensor], Tensor], clips: Tensor, size: int) -> Tensor:
    """Runs a network of a fixed batch size on any number of clips; what fills up the last batch is thrown away.

    Args:
        run: clips (size, 3, T, H, W) to logits (size, K).
        clips: (N, 3, T, H, W), N of 1 or more.
        size: of a batch.

    Returns:
        (N, K).
    """
    logits = []
    for batch in clips.split(size):
        missing = size - len(batch)
        full = torch.cat([batch, batch.new_zeros(missing, *batch.shape[1:])]) if missing else batch
        logits.append(run(full)[: len(batch)])
    return torch.cat(logits)
