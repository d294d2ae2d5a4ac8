"""Which parameters learn: the head, and frozen parts."""

from __future__ import annotations

from typing import Literal

from torch import nn
from torch.nn.modules.batchnorm import _NormBase

from octvideo.errors import UserError

Freeze = Literal["none", "backbone", "norms"]

NORMS = (_NormBase, nn.LayerNorm, nn.GroupNorm)


def find_head(network: nn.Module) -> nn.Linear:
    """The classifier: the last nn.Linear of the network.

    Raises:
        UserError: the network has none, so its number of classes can't be known.
    """
    linears = [module for module in network.modules() if isinstance(module, nn.Linear)]
    if not linears:
        raise UserError(
            f"the network {type(network).__name__} has no nn.Linear: expected a classifier as its last linear layer"
        )
    return linears[-1]


def freeze_parameters(network: nn.Module, freeze: Freeze) -> list[nn.Module]:
    """Stops the gradients of the frozen part.

    Args:
        network: changed in place.
        freeze: "backbone" is all but the head, "norms" the normalisation layers.

    Returns:
        The modules that must also stay in eval mode: norms that go on counting statistics, and dropouts, are
        not frozen.
    """
    if freeze == "none":
        return []
    if freeze == "norms":
        norms: list[nn.Module] = [module for module in network.modules() if isinstance(module, NORMS)]
        for module in norms:
            module.requires_grad_(False)
        return norms
    head = find_head(network)
    network.requires_grad_(False)
    head.requires_grad_(True)
    # Leaves only, and not the dropout before the head, which belongs to the head's training.
    return [m for m in network.modules() if not list(m.children()) and m is not head and not isinstance(m, nn.Dropout)]
