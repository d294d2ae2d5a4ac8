"""torch.compile for training: in place, and with its errors in words."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

from torch import nn

from octvideo.errors import UserError

CompileMode = Literal["default", "reduce-overhead", "max-autotune", "max-autotune-no-cudagraphs"]


def compile_in_place(network: nn.Module, mode: CompileMode | None) -> None:
    """Compiles a network at its next call; it stays the module it is, so that no key of a checkpoint gets a prefix.

    Args:
        network: changed in place.
        mode: of torch.compile; None is its default.
    """
    network.compile(mode=mode)


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
