"""What a training step must withstand: losses and gradients that are NaN or infinite, errors of torch.compile,
convolutions that torch trains wrongly, and pools that have no deterministic gradient.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, distributed, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_map_only

from octvideo.errors import UserError
from octvideo.octave.kernel.library import bf16_pays


@dataclass(frozen=True)
class LeftOut:
    """What steps that were not finite there have been, since the last look.

    Args:
        steps: how many.
        in_a_row: at most, with those before the last look that they follow.
        loss: of the last of them; 0 where the gradients alone were not finite.
    """

    steps: int
    in_a_row: int
    loss: float

    @property
    def problem(self) -> str:
        """In words."""
        return "gradients were not finite" if math.isfinite(self.loss) else f"the loss was {self.loss}"


class NonFiniteSteps:
    """Keeps a network finite over such steps, and knows how many there were in a row.

    A forward pass has changed the statistics of norms by the time that its loss is known: they are put back. What is
    known of a step stays on the network's device until `look`, so that the host need not wait for a GPU.

    Args:
        most: in a row, before training is to end.

    Raises:
        UserError: `most` is not positive.
    """

    def __init__(self, most: int) -> None:
        if most < 1:
            raise UserError(f"max_nonfinite_steps: got {most}, expected 1 or more")
        self.most = most
        self._before: list[Tensor] = []  # the network's buffers, those of one dtype in a row
        self._finite: Tensor | None = None  # the loss of this batch
        self._loss: Tensor | None = None  # the last of this step's that is not finite, else 0
        self._counts: Tensor | None = None  # in a row now, most in a row, steps, loss; the last three since the look

    def before_forward(self, network: nn.Module) -> None:
        """To be called before each batch."""
        self._before = [torch.cat([buffer.flatten() for buffer in group]) for group in _buffers(network)]

    def note_loss(self, loss: Tensor) -> Tensor:
        """Takes the loss of a batch, and says whether it is finite: bool, of one element."""
        loss = loss.detach().float()
        self._finite = loss.isfinite()
        self._loss = torch.where(self._finite, torch.zeros_like(loss) if self._loss is None else self._loss, loss)
        return self._finite

    def after_backward(self, network: nn.Module) -> None:
        """Puts the norms' statistics back where the loss was not finite. Not sooner: the backward pass reads them."""
        if self._finite is None:
            return
        for group, before in zip(_buffers(network), self._before, strict=True):
            now = torch.cat([buffer.flatten() for buffer in group])
            kept = torch.where(self._finite, now, before).split([buffer.numel() for buffer in group])
            torch._foreach_copy_(group, [part.view(buffer.shape) for part, buffer in zip(kept, group, strict=True)])
        self._finite = None

    def end_step(self, network: nn.Module, *, looks_at_gradients: bool) -> tuple[Tensor, Tensor]:
        """Ends a step, the optimizer's being next.

        Args:
            network: with the gradients of all batches of the step.
            looks_at_gradients: whether infinite ones count. A GradScaler makes some, leaves them out itself, and then
                scales by less.

        Returns:
            1 where the optimizer must leave the step out, in this process and in all others, else 0; and 1 where a
            loss of this process is not the reason. Float32, of one element.
        """
        gradients = [parameter.grad for parameter in network.parameters() if parameter.grad is not None]
        device = next(network.parameters()).device
        loss = torch.zeros((), device=device) if self._loss is None else self._loss
        is_bad = ~loss.isfinite()
        if looks_at_gradients and gradients:
            is_bad |= ~torch.nn.utils.get_total_norm(gradients, norm_type=math.inf).isfinite()
        bad = is_bad.float()
        if distributed.is_available() and distributed.is_initialized():
            # A loss may be infinite and its gradients finite: the others would not know. Nor do those that hold other
            # shards of the weights.
            distributed.all_reduce(bad, distributed.ReduceOp.MAX)
        if self._counts is None:
            self._counts = torch.zeros(4, device=device)
        now, most, steps, last = self._counts.unbind()
        now = (now + 1) * bad
        last = torch.where(bad > 0, loss, last)
        self._counts = torch.stack([now, torch.maximum(most, now), steps + bad, last])
        self._loss = None
        return bad, bad * loss.isfinite()

    def look(self) -> LeftOut:
        """Waits for what is known of the steps since the last look."""
        if self._counts is None:
            return LeftOut(0, 0, 0.0)
        _, in_a_row, steps, loss = self._counts.tolist()
        self._counts[1:] = 0
        return LeftOut(int(steps), int(in_a_row), loss)


def _buffers(network: nn.Module) -> list[list[Tensor]]:
    """A network's buffers, grouped by their dtypes."""
    groups: dict[torch.dtype, list[Tensor]] = {}
    for buffer in network.buffers():
        groups.setdefault(buffer.dtype, []).append(buffer)
    return list(groups.values())


@contextmanager
def compiler_errors_in_words() -> Iterator[None]:
    """What torch can't compile, in one line.

    Raises:
        UserError: in the place of an error of torch._dynamo or torch._inductor.
    """
    try:
        yield
    except RuntimeError as error:  # theirs are all of this type
        if not type(error).__module__.startswith(("torch._dynamo", "torch._inductor")):
            raise
        cause = getattr(error, "inner_exception", error)
        reason = next((line for line in str(cause).splitlines() if line.strip()), type(cause).__name__)
        raise UserError(
            f"model.compile: torch can't compile here ({reason}); train with model.compile false"
        ) from error


def short_maps_in_float32(x: Tensor) -> AbstractContextManager[Any]:
    """Runs convolutions in float32 where torch 2.14 would train them wrongly: in bfloat16 on CPUs, with a kernel longer
    than the map (3 x 1 x 1 over 2 frames). There the gradient of the weight is uninitialised memory.

    Args:
        x: the input of the network.
    """
    dtype = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else x.dtype
    is_wrong = x.device.type == "cpu" and dtype == torch.bfloat16 and torch.is_grad_enabled()
    return _InFloat32() if is_wrong else nullcontext()


class _InFloat32(TorchFunctionMode):
    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if function not in (F.conv3d, F.conv_transpose3d) or _fits(*args, **kwargs):
            return function(*args, **kwargs)
        with torch.autocast("cpu", enabled=False):
            args, kwargs = tree_map_only(Tensor, Tensor.float, (args, kwargs))
            return function(*args, **kwargs).bfloat16()


def _fits(input: Tensor, weight: Tensor, *_: Any, **others: Any) -> bool:
    return all(size >= kernel for size, kernel in zip(input.shape[-3:], weight.shape[-3:], strict=True))


def precision_advice(precision: str, device: torch.device) -> str | None:
    """A line where a device multiplies no faster in bf16 than in another format, and is to train in it."""
    if not precision.startswith("bf16"):
        return None
    if device.type == "cuda" and not torch.cuda.is_bf16_supported(including_emulation=False):
        return f"This GPU has no units for bf16: --trainer.precision 16-mixed is faster than {precision}"
    if device.type == "cpu" and not bf16_pays():
        return f"This CPU multiplies no faster in bf16: --trainer.precision 32-true is no slower than {precision}"
    return None


def deterministic_pools() -> AbstractContextManager[Any]:
    """Where deterministic algorithms are asked for (`--trainer.deterministic true`), runs pools of clips in forms that
    have one on CUDA. In torch the gradient of avg_pool3d has none, and that of max_pool3d has none in 2.6.
    """
    return _Deterministic() if torch.are_deterministic_algorithms_enabled() else nullcontext()


class _Deterministic(TorchFunctionMode):
    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        form = {F.avg_pool3d: _avg_pool3d, F.max_pool3d: _max_pool3d}.get(function, function)
        return form(*args, **(kwargs or {}))


def _avg_pool3d(
    input: Tensor, kernel_size: Any, stride: Any = None, padding: Any = 0, *more: Any, **others: Any
) -> Tensor:
    kernel, stride, padding = (_triple(size) for size in (kernel_size, stride or kernel_size, padding))
    if any(padding) or any(more) or any(others.get(name) for name in ("ceil_mode", "divisor_override")):
        return F.avg_pool3d(input, kernel_size, stride, padding, *more, **others)
    for axis, (size, step) in enumerate(zip(kernel, stride, strict=True), start=input.dim() - 3):
        if (size, step) != (1, 1):
            input = input.unfold(axis, size, step).mean(-1)
    return input


def _max_pool3d(
    input: Tensor,
    kernel_size: Any,
    stride: Any = None,
    padding: Any = 0,
    dilation: Any = 1,
    ceil_mode: bool = False,
    return_indices: bool = False,
) -> Any:
    """In space by max_pool2d on frames, whose gradient is deterministic; in time by the frames' maximum."""
    kernel, steps = _triple(kernel_size), _triple(stride or kernel_size)
    pads, spaced = _triple(padding), _triple(dilation)
    is_cut = input.dim() != 5 or (ceil_mode and (input.shape[2] - kernel[0]) % steps[0] > 0)
    if is_cut or return_indices or pads[0] or spaced[0] > 1:
        pool: Any = F.max_pool3d
        return pool(input, kernel_size, stride, padding, dilation, ceil_mode, return_indices)
    frames = input.transpose(1, 2).flatten(0, 1)  # (N·T,C,H,W)
    pooled = F.max_pool2d(frames, kernel[1:], steps[1:], pads[1:], spaced[1:], ceil_mode)
    y = pooled.unflatten(0, (input.shape[0], input.shape[2])).transpose(1, 2)  # (N,C,T,H',W')
    return y if kernel[0] == steps[0] == 1 else y.unfold(2, kernel[0], steps[0]).amax(-1)


def _triple(size: Any) -> tuple[int, ...]:
    return (size,) * 3 if isinstance(size, int) else tuple(size) * (3 // len(size))
