"""The optimizer's groups: which parameters decay, and how fast each learns."""

from __future__ import annotations

import itertools
from collections.abc import Container, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import nn

from octvideo.errors import UserError
from octvideo.training.blocks import layers_of
from octvideo.training.freezing import find_head

OptimizerName = Literal["sgd", "adamw"]

_FSDP = "_fsdp_wrapped_module."  # in the names of what it wraps


@dataclass(frozen=True)
class LearningRates:
    """How fast the parameters of a network learn: at the top of the schedule, by depth and by batch.

    Args:
        lr: of the classifier.
        layer_decay: factor from each layer to the one below it (timm's `layer_decay`; Clark et al., ELECTRA).
        backbone_scale: factor of all but the classifier.
        batch_size: that `lr` is for; the rate of other ones is in proportion (Goyal et al., arXiv 1706.02677). None
            takes `lr` for whatever batch.

    Raises:
        UserError: for values that can't be meant.
    """

    lr: float
    layer_decay: float = 1.0
    backbone_scale: float = 1.0
    batch_size: int | None = None

    def __post_init__(self) -> None:
        for name, value in (("lr", self.lr), ("backbone_lr_scale", self.backbone_scale)):
            if not value >= 0:  # nor NaN
                raise UserError(f"model.{name}: got {value}, expected 0 or more")
        if not 0 < self.layer_decay <= 1:
            raise UserError(f"model.layer_decay: got {self.layer_decay}, expected more than 0 and 1 at most (1 is off)")
        if self.batch_size is not None and self.batch_size < 1:
            raise UserError(f"model.lr_batch_size: got {self.batch_size}, expected 1 or more clips")

    def for_batch(self, clips: int) -> float:
        """The classifier's rate where so many clips make an optimizer step."""
        return self.lr if self.batch_size is None else self.lr * clips / self.batch_size

    def factors(self, network: nn.Module) -> dict[str, float]:
        """Of each parameter that learns, by name, on the classifier's rate.

        Raises:
            UserError: `layer_decay` is not 1 and the network has no blocks.
        """
        head = {id(parameter) for parameter in find_head(network).parameters()}
        learning = {name: p for name, p in network.named_parameters() if p.requires_grad}
        layers = layers_of(network) if self.layer_decay != 1 else dict.fromkeys(learning, 0)
        top = max(layers.values(), default=0)
        of_part = {name: 1.0 if id(p) in head else self.backbone_scale for name, p in learning.items()}
        return {name: scale * self.layer_decay ** (top - layers[name]) for name, scale in of_part.items()}

    def described(self, factors: Mapping[str, float], *, clips: int | None) -> list[str]:
        """Lines for the start of a run, where rates are not one and the same.

        Args:
            factors: of the network.
            clips: of an optimizer step.
        """
        lines, lr = [], self.lr
        if self.batch_size is not None and clips is not None:
            lr = self.for_batch(clips)
            lines.append(f"learning rate: {self.lr:g} for {self.batch_size} clips a step, so {lr:g} for {clips}")
        rates = list(dict.fromkeys(lr * factor for factor in factors.values()))
        if len(rates) > 1:
            shown = ", ".join(f"{rate:.3g}" for rate in rates)
            lines.append(f"learning rates from the first layer to the classifier: {shown}")
        return lines


def decayed_names(network: nn.Module) -> frozenset[str]:
    """Parameters that weight decay is for: weights, not norms and biases (everything of one dimension).

    To be asked before a strategy takes the network apart: shards of weights may have one dimension.
    """
    return frozenset(name for name, parameter in network.named_parameters() if parameter.ndim > 1)


def parameter_groups(
    network: nn.Module, weight_decay: float, decayed: Container[str], factors: Mapping[str, float]
) -> list[dict[str, Any]]:
    """Optimizer groups, of each rate one with decay and one without; `lr_scale` is the factor of their rate.

    Args:
        network: also wrapped by FSDP.
        weight_decay: of the groups with decay.
        decayed: see `decayed_names`.
        factors: see `LearningRates`.
    """
    learning = [(name.replace(_FSDP, ""), p) for name, p in network.named_parameters() if p.requires_grad]
    groups: dict[tuple[float, bool], list[nn.Parameter]] = {}
    for factor in dict.fromkeys(factors[name] for name, _ in learning):
        groups |= {(factor, decays): [] for decays in (True, False)}
    for name, parameter in learning:
        groups[factors[name], name in decayed].append(parameter)
    return [
        {"params": parameters, "weight_decay": weight_decay if decays else 0.0, "lr_scale": factor}
        for (factor, decays), parameters in groups.items()
        if parameters
    ]


def make_optimizer(
    name: OptimizerName, groups: list[dict[str, Any]], *, lr: float, momentum: float, fused: bool | None
) -> torch.optim.Optimizer:
    """SGD, with Nesterov momentum, or AdamW.

    Args:
        name: which.
        groups: of parameters; see `parameter_groups`.
        lr: of groups without a scale.
        momentum: of SGD.
        fused: whether it is to be one of torch's fused ones, which leave a step out by themselves; None lets torch
            choose.
    """
    optimizer: torch.optim.Optimizer
    if name == "adamw":
        # torch's 1e-8 is 0 in float16, and an update of a weight without gradient 0/0.
        eps = max(1e-8, torch.finfo(groups[0]["params"][0].dtype).tiny)
        optimizer = torch.optim.AdamW(groups, lr=lr, eps=eps, fused=fused)
    else:
        nesterov = momentum > 0
        optimizer = torch.optim.SGD(groups, lr=lr, momentum=momentum, nesterov=nesterov, fused=fused)
        if fused and nesterov:
            # torch makes them uninitialised at the first step, and leaves them so where it skips that.
            for parameter in itertools.chain.from_iterable(group["params"] for group in groups):
                optimizer.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
    # Lightning unscales gradients before it clips them, and refuses to clip where an optimizer could unscale too.
    optimizer._step_supports_amp_scaling = False  # type: ignore[attr-defined]
    return optimizer
