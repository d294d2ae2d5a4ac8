"""What all builders share: their arguments, checked and explained once, and the note of how a network was built."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ParamSpec, TypedDict

from torch import nn

from octvideo.errors import UserError
from octvideo.octave import Downsample, Exchange, OctaveNetwork, octavize

P = ParamSpec("P")
# One share, or shares of module path prefixes.
Alpha = float | dict[str, float]


class OctaveOptions(TypedDict, total=False):
    """How octave layers work, where not the paper's way; see `octvideo.octave.octavize`."""

    octave_downsample: Downsample
    exchange: Exchange
    factor: list[int]
    channel_multiple: int
    leaf_modules: list[str]


# What the builders' arguments mean, said once; help() shows it for each.
_ARGUMENTS = {
    "num_classes": "K.",
    "alpha": "share of low-frequency channels in res2 to res4; 0 is the ordinary network.",
    "downsample": """"stride", or "pool" (average pooling before every strided convolution behind the stem);
        None takes the paper's way, "pool" for octave networks and "stride" for ordinary ones. alpha = 0 with
        "pool" is the control between the two.""",
    "octave": """how octave layers work, where not the paper's way: octave_downsample ("pool" or "stride"), exchange
        ("both", "none", "high_to_low" or "low_to_high"), factor ([2, 2, 2] is a time octave), channel_multiple
        (8 makes alpha .1 faster on CPUs) and leaf_modules (names of module classes to keep whole); see octavize.""",
    "dropout": "before the classifier.",
    "zero_init_last_norm": "start every residual branch at zero.",
    "width": "channels of the stem, a quarter of res2's; the full networks have 64.",
}


def explained(**own: str) -> Callable[[Callable[P, nn.Module]], Callable[P, nn.Module]]:
    """A decorator that adds Args and Returns to a builder's docstring: what they share is written down once.

    Args:
        own: what arguments of this builder alone mean, or mean for it.
    """

    def explain(builder: Callable[P, nn.Module]) -> Callable[P, nn.Module]:
        texts = {**_ARGUMENTS, **own}
        arguments = "\n".join(f"    {name}: {texts[name]}" for name in inspect.signature(builder).parameters)
        returns = "Returns:\n    A network of clips (N, 3, T, H, W) to logits (N, K)."
        builder.__doc__ = f"{inspect.getdoc(builder)}\n\nArgs:\n{arguments}\n\n{returns}\n"
        return builder

    return explain


def check_arguments(alpha: Alpha, dropout: float, **counts: int) -> None:
    """Refuses what no network can be built from.

    Args:
        alpha: as the user gave it.
        dropout: a probability.
        counts: by the argument's name; all are 1 or more.

    Raises:
        UserError: the first argument out of range.
    """
    for argument, value in counts.items():
        if value < 1:
            raise UserError(f"{argument}: got {value}, expected 1 or more")
    for share in alpha.values() if isinstance(alpha, Mapping) else [alpha]:
        if not 0.0 <= share <= 1.0:
            raise UserError(f"alpha: got {share}, expected the share of low-frequency channels, 0 to 1")
    if not 0.0 <= dropout < 1.0:
        raise UserError(f"dropout: got {dropout}, expected a probability, 0 or more and less than 1")


def choose_downsample(downsample: Downsample | None, alpha: Alpha) -> Downsample:
    """What was asked for, or the paper's way: octave networks pool."""
    is_octave = any(alpha.values()) if isinstance(alpha, Mapping) else alpha > 0
    return downsample or ("pool" if is_octave else "stride")


def make_octave(
    ordinary: nn.Module,
    alpha: Alpha,
    *,
    downsample: Downsample,
    octave: OctaveOptions | None,
    leaf_modules: Sequence[type[nn.Module]] = (),
) -> OctaveNetwork:
    """`octavize` with a user's choices.

    Raises:
        UserError: an option that there is not, or what octavize refuses.
    """
    unknown = sorted(set(octave or {}) - set(OctaveOptions.__annotations__))
    if unknown:
        raise UserError(f"octave: got {unknown[0]!r}, expected {', '.join(OctaveOptions.__annotations__)}")
    options: dict[str, Any] = dict(octave or {})
    if options.get("factor") is not None:
        options["factor"] = tuple(options["factor"])
    leaves = [*leaf_modules, *(options.pop("leaf_modules", None) or ())]
    try:
        return octavize(ordinary, alpha, downsample=downsample, leaf_modules=leaves, **options)
    except ValueError as error:
        raise UserError(str(error)) from error


def remember(network: nn.Module, builder: str, /, **init_args: Any) -> nn.Module:
    """Notes in the network's `meta` which builder of octvideo.models made it from what; checkpoints keep that."""
    network.meta["built_from"] = {"class_path": f"octvideo.models.{builder}", "init_args": init_args}  # type: ignore
    return network
