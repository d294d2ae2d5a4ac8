"""Which parameters learn: the head, frozen parts, and the groups with and without weight decay."""

from __future__ import annotations

from collections.abc import Container
from typing import Any, Literal

from torch import nn
from torch.nn.modules.batchnorm import _NormBase

from octvideo.errors import UserError

Freeze = Literal["none", "backbone", "norms"]

_FSDP = "_fsdp_wrapped_module."  # in the names of what it wraps
_NORMS = (_NormBase, nn.LayerNorm, nn.GroupNorm)


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
        norms: list[nn.Module] = [module for module in network.modules() if isinstance(module, _NORMS)]
        for module in norms:
            module.requires_grad_(False)
        return norms
    head = find_head(network)
    network.requires_grad_(False)
    head.requires_grad_(True)
    # Leaves only, and not the dropout before the head, which belongs to the head's training.
    return [m for m in network.modules() if not list(m.children()) and m is not head and not isinstance(m, nn.Dropout)]


def decayed_names(network: nn.Module) -> frozenset[str]:
    """Parameters that weight decay is for: weights, not norms and biases (everything of one dimension).

    To be asked before a strategy takes the network apart: shards of weights may have one dimension.
    """
    return frozenset(name for name, parameter in network.named_parameters() if parameter.ndim > 1)


def decay_groups(network: nn.Module, weight_decay: float, decayed: Container[str]) -> list[dict[str, Any]]:
    """Optimizer groups, with decay and without.

    Args:
        network: also wrapped by FSDP.
        weight_decay: of the first group.
        decayed: see `decayed_names`.
    """
    learning = [(name.replace(_FSDP, ""), p) for name, p in network.named_parameters() if p.requires_grad]
    groups = [
        {"params": [p for name, p in learning if name in decayed], "weight_decay": weight_decay},
        {"params": [p for name, p in learning if name not in decayed], "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]
