"""Devices by name."""

from __future__ import annotations

import torch

from octvideo.errors import UserError
from octvideo.files import one_line


def pick_device(name: str) -> torch.device:
    """The device of that name, "auto" being CUDA where there is one.

    Raises:
        UserError: there is no such device here.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        return torch.empty(0, device=name).device
    except (RuntimeError, AssertionError) as error:
        raise UserError(f"device '{name}' can't be used here: {one_line(error)}") from error
