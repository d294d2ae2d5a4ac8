"""The "octvideo" block of a checkpoint: what it takes to use its weights without config or data."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from octvideo._version import __version__
from octvideo.class_names import match_classes
from octvideo.errors import UserError
from octvideo.evaluation.scoring import Scoring
from octvideo.models.weights import classifier_keys

log = logging.getLogger("octvideo.training")


def built_from(network: nn.Module) -> dict[str, Any] | None:
    """The builder of octvideo.models and its arguments, or None for a network from elsewhere."""
    return getattr(network, "meta", {}).get("built_from")


def make_block(
    network: nn.Module,
    class_names: Sequence[str],
    *,
    views: Any,
    mean: Sequence[float],
    std: Sequence[float],
    scoring: Scoring = Scoring(),  # noqa: B008 (frozen)
) -> dict[str, Any]:
    """The block, in plain types so that it loads with weights_only=True.

    Args:
        network: made by a builder of octvideo.models, or not.
        class_names: K names.
        views: the data's ViewSettings, or None.
        mean: per channel, of pixels scaled to [0, 1].
        std: per channel, of the same pixels.
        scoring: from logits to scores and labels.
    """
    return {
        "format": 1,
        "version": __version__,
        "network": built_from(network),
        "class_names": [str(name) for name in class_names],
        "views": None if views is None else dict(views.as_dict()),
        "mean": [float(value) for value in mean],
        "std": [float(value) for value in std],
        "scoring": scoring.as_dict(),
    }


def scoring_of(checkpoint: Mapping[str, Any]) -> Scoring:
    """What a checkpoint says of its scores; one that says nothing means a softmax."""
    block = checkpoint.get("octvideo") or {}
    return Scoring.from_dict(block.get("scoring"), num_classes=len(block.get("class_names", ())))


def check_fits(checkpoint: Mapping[str, Any], own: Mapping[str, Tensor], network: nn.Module) -> None:
    """Refuses a checkpoint of another network in words, and warns where the builder's arguments differ.

    The argument that matters is alpha: weights have the same shapes for every alpha, and load without a word.

    Args:
        checkpoint: Lightning's.
        own: state_dict of the module that is to load it.
        network: of that module.

    Raises:
        UserError: names or shapes of weights differ.
    """
    theirs = checkpoint["state_dict"]
    both = own.keys() & theirs.keys()
    wrong = sorted((own.keys() ^ theirs.keys()) | {key for key in both if own[key].shape != theirs[key].shape})
    then, now = (checkpoint.get("octvideo") or {}).get("network"), built_from(network)
    if wrong:
        raise UserError(
            f"the checkpoint does not fit the network: {len(wrong)} weights differ, the first is {wrong[0]}; "
            f"it was made with {then}, the config builds {now}. Use the config of its run, or --init"
        )
    if then is not None and now is not None and then != now:
        log.warning("the checkpoint was trained as %s and is used as %s: its accuracy is not kept", then, now)


def check_fit_goes_on(checkpoint: Mapping[str, Any], optimizer: str, groups: Sequence[Mapping[str, Any]]) -> None:
    """Refuses the state of another optimizer in words, and lets an epoch continue that max_steps or max_time has
    cut short: Lightning takes it for finished.

    Args:
        checkpoint: Lightning's; its record of epochs is changed.
        optimizer: "sgd" or "adamw".
        groups: of parameters, that it trains.

    Raises:
        UserError: the checkpoint's differs.
    """
    own = [len(group["params"]) for group in groups]
    for state in checkpoint["optimizer_states"]:
        theirs, sizes = state["param_groups"], [len(group["params"]) for group in state["param_groups"]]
        name = "sgd" if "momentum" in theirs[0] else "adamw"
        if (name, sum(sizes)) != (optimizer, sum(own)):
            raise UserError(
                f"the checkpoint's run trains {sum(sizes)} parameters by {name}, this one {sum(own)} by {optimizer}: "
                "give its model.optimizer and model.freeze, or start a new run from its weights with --init"
            )
        if sizes != own:
            raise UserError(
                f"the checkpoint's run has {len(sizes)} groups of parameters by learning rate and decay, this one "
                f"{len(own)}: give its model.layer_decay and model.backbone_lr_scale, or start a new run from its "
                "weights with --init"
            )
    loop = checkpoint["loops"]["fit_loop"]
    if not loop["epoch_loop.batch_progress"]["is_last_batch"]:
        for counts in (loop["epoch_progress"]["current"], loop["epoch_progress"]["total"]):
            counts["processed"] = counts["completed"]


def fit_classes(
    checkpoint: dict[str, Any], names: Sequence[str], network: nn.Module, optimized: Sequence[nn.Parameter]
) -> list[int] | None:
    """Moves the rows of a checkpoint's head to the order of the data's classes, where it has the same in another one.

    Args:
        checkpoint: Lightning's, changed: weights, averages of weights, and the optimizer's state of these rows.
        names: of the data's classes.
        network: of the module that is to load it.
        optimized: the optimizer's parameters in its order.

    Returns:
        For each class the row that it had; None where all rows stay.

    Raises:
        UserError: it was trained on other classes.
    """
    match = match_classes((checkpoint.get("octvideo") or {}).get("class_names"), names)
    order = match.needed_order()
    if match.said:
        log.warning("the checkpoint has %s", match.said)
    if not match.reorders:
        return None
    optimizers = [optimizer.get("state", {}) for optimizer in checkpoint.get("optimizer_states", [])]
    for name in classifier_keys(network):
        key, parameter = f"network.{name}", network.get_parameter(name)
        for part in checkpoint.values():  # beside "state_dict" the one that a callback keeps while it averages weights
            if isinstance(part, dict) and key in part:
                part[key] = part[key][order]
        number = next((number for number, other in enumerate(optimized) if other is parameter), None)
        for state in optimizers:
            for held in (state.get(key), state.get(number)):  # by name where a strategy gathers it
                for what, value in (held or {}).items():
                    if isinstance(value, Tensor) and value.shape == parameter.shape:
                        held[what] = value[order]
    return order
