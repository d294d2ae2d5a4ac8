"""Training steps whose loss or gradients are NaN or infinite: left out of the weights, and counted."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

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
