"""What a training step must withstand: losses and gradients that are NaN or infinite, errors of torch.compile, and
convolutions that torch trains wrongly.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_map_only

from octvideo.errors import UserError


class NonFiniteSteps:
    """Keeps a network finite over such steps, and knows how many there were in a row.

    A forward pass has changed the statistics of norms by the time that its loss is known: they are put back. Gradients
    are taken away before they change weights and the optimizer's state.

    Args:
        most: in a row, before training is to end.

    Raises:
        UserError: `most` is not positive.
    """

    def __init__(self, most: int) -> None:
        if most < 1:
            raise UserError(f"max_nonfinite_steps: got {most}, expected 1 or more")
        self.most = most
        self.in_a_row = 0
        self._before: list[Tensor] = []  # the network's buffers
        self._puts_back = False
        self._loss: float | None = None  # the last of this step's that is not finite

    def before_forward(self, network: nn.Module) -> None:
        """To be called before each batch."""
        self._before = [buffer.clone() for buffer in network.buffers()]

    def is_finite(self, loss: Tensor) -> bool:
        """Whether the loss of a batch is; to be asked for each."""
        value = float(loss.detach())
        self._puts_back = not math.isfinite(value)
        if self._puts_back:
            self._loss = value
        return not self._puts_back

    def after_backward(self, network: nn.Module) -> None:
        """Puts the norms' statistics back where the loss was not finite. Not sooner: the backward pass reads them."""
        if self._puts_back:
            for buffer, before in zip(network.buffers(), self._before, strict=True):
                buffer.copy_(before)
        self._puts_back = False

    def take_gradients(self, network: nn.Module, *, looks_at_gradients: bool) -> str | None:
        """Ends a step, the optimizer's being next: takes the gradients away where something was not finite.

        Args:
            network: with the gradients of all batches of the step.
            looks_at_gradients: whether infinite ones count. A GradScaler makes some, leaves them out itself, and then
                scales by less.

        Returns:
            What was not finite, or None.
        """
        gradients = [parameter.grad for parameter in network.parameters() if parameter.grad is not None]
        problem = None
        if self._loss is not None:
            problem, self._loss = f"the loss was {self._loss}", None
        elif looks_at_gradients and not torch.nn.utils.get_total_norm(gradients, norm_type=math.inf).isfinite():
            problem = "gradients were not finite"
        if problem is None:
            self.in_a_row = 0
            return None
        self.in_a_row += 1
        network.zero_grad(set_to_none=True)
        return problem


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
