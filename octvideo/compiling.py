"""torch.compile, for any number of networks in one process."""

from __future__ import annotations

import itertools
from typing import Any

import torch
from torch import nn

_numbers = itertools.count()


def compile_module(module: nn.Module, **options: Any) -> None:
    """Compile a module in place, as `module.compile(**options)` does, however many others are.

    torch keeps what it has compiled with the code of the function, and compiles no more than eight variants of it. All
    modules of one class have one `forward`: the ninth would fail, or run uncompiled. And where they take clips of
    different sizes, the second would be compiled for any size, which is slower. So each gets a function of its own.

    Args:
        module: of any class; copies of it are not compiled, nor are keys of its state changed.
        options: of torch.compile.
    """

    def run(*args: Any, **kwargs: Any) -> Any:
        return module._call_impl(*args, **kwargs)  # type: ignore[no-untyped-call]  # not the compiled one, which is this

    # The name counts too: by it torch remembers which sizes change.
    run.__code__ = run.__code__.replace(co_name=f"run_{type(module).__name__}_{next(_numbers)}")
    module._compiled_call_impl = torch.compile(run, **options)
