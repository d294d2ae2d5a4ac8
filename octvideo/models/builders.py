"""What all builders share: their arguments, checked and explained once, and the note of how a network was built."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Concatenate, ParamSpec, TypedDict, TypeVar

from torch import nn

from octvideo.errors import UserError
from octvideo.octave import (
    Downsample,
    Exchange,
    InvertedResiduals,
    OctaveDownsample,
    OctaveNetwork,
    octavize,
)

P = ParamSpec("P")
Plan = TypeVar("Plan")
# One share, or shares of module path prefixes.
Alpha = float | dict[str, float]


class OctaveOptions(TypedDict, total=False):
    """How octave layers work, where not the paper's way; see `octvideo.octave.octavize`."""

    octave_downsample: OctaveDownsample
    exchange: Exchange
    factor: list[int]
    channel_multiple: int
    inverted_residuals: InvertedResiduals
    leaf_modules: list[str]


# What the builders' arguments mean, said once; help() shows it for each.
_ARGUMENTS = {
    "num_classes": "K.",
    "alpha": """share of low-frequency channels in res2 to res4; 0 is the ordinary network. Or shares of module path
        prefixes ({"blocks.1": 0.5}), 0 elsewhere.""",
    "downsample": """"stride", or "pool" (average pooling before every strided convolution after the stem);
        None takes the paper's way, "pool" for octave networks and "stride" for ordinary ones. alpha = 0 with
        "pool" is the control between the two.""",
    "octave": """how octave layers work, where not the paper's way: octave_downsample ("pool", "stride" or "keep"),
        exchange ("both", "none", "high_to_low" or "low_to_high"), factor ([2, 2, 2] is a time octave), channel_multiple
        (8 makes alpha .1 faster on CPUs), inverted_residuals ("hidden", or "all" with their thin ends) and leaf_modules
        (names of module classes to keep whole); see octavize.""",
    "dropout": "before the classifier.",
    "zero_init_last_norm": "start every residual branch at zero.",
    "width": "channels of the stem, a quarter of res2's; the full networks have 64.",
}


_COUNTS = ("num_classes", "width", "frame_ratio")  # 1 or more


def builder(**own: str) -> Callable[[Callable[P, nn.Module]], Callable[P, nn.Module]]:
    """A decorator for functions that build networks: checks and explains what all of them take, notes what was given.

    The docstring gets Args and Returns, `downsample` is chosen where it is None, and the network's `meta` says which
    builder of octvideo.models made it from what, which checkpoints keep.

    Args:
        own: what arguments of this builder alone mean, or mean for it.
    """
    return lambda build: _checked(build, inspect.signature(build), own)


def preset(
    build: Callable[Concatenate[Plan, P], nn.Module], plan: Plan, name: str, summary: str, **own: str
) -> Callable[P, nn.Module]:
    """A builder called `name` that builds one plan; else as `builder` makes it.

    Args:
        build: takes the plan first.
        plan: of the network.
        name: in octvideo.models.
        summary: the docstring, to which Args and Returns are added.
        own: see `builder`.
    """

    def of_plan(*args: P.args, **kwargs: P.kwargs) -> nn.Module:
        return build(plan, *args, **kwargs)

    of_plan.__name__ = of_plan.__qualname__ = name
    of_plan.__module__, of_plan.__doc__ = build.__module__, summary
    signature = inspect.signature(build, eval_str=True)
    return _checked(of_plan, signature.replace(parameters=list(signature.parameters.values())[1:]), own)


def _checked(
    build: Callable[P, nn.Module], signature: inspect.Signature, own: Mapping[str, str]
) -> Callable[P, nn.Module]:
    @functools.wraps(build)
    def checked(*args: P.args, **kwargs: P.kwargs) -> nn.Module:
        bound = signature.bind(*args, **kwargs)
        bound.apply_defaults()
        given = bound.arguments
        _check(given)
        given["downsample"] = given["downsample"] or ("pool" if any(_shares(given["alpha"])) else "stride")
        given["octave"] = given["octave"] and dict(given["octave"])
        network = build(*bound.args, **bound.kwargs)
        made_by = {"class_path": f"octvideo.models.{build.__name__}", "init_args": dict(given)}
        network.meta["built_from"] = made_by  # type: ignore
        return network

    texts = {**_ARGUMENTS, **own}
    arguments = "\n".join(f"    {name}: {texts[name]}" for name in signature.parameters)
    returns = "Returns:\n    A network of clips (N, 3, T, H, W) to logits (N, K)."
    checked.__doc__ = f"{inspect.getdoc(build)}\n\nArgs:\n{arguments}\n\n{returns}\n"
    checked.__signature__ = signature  # type: ignore[attr-defined]
    return checked


def _check(given: Mapping[str, Any]) -> None:
    for argument in _COUNTS:
        if given.get(argument, 1) < 1:
            raise UserError(f"{argument}: got {given[argument]}, expected 1 or more")
    for share in _shares(given["alpha"]):
        if not 0.0 <= share <= 1.0:
            raise UserError(f"alpha: got {share}, expected the share of low-frequency channels, 0 to 1")
    if not 0.0 <= given["dropout"] < 1.0:
        raise UserError(f"dropout: got {given['dropout']}, expected a probability, 0 or more and less than 1")


def _shares(alpha: Alpha) -> list[float]:
    return list(alpha.values()) if isinstance(alpha, Mapping) else [alpha]


def make_octave(
    ordinary: nn.Module,
    alpha: Alpha,
    *,
    downsample: Downsample | None,
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
        return octavize(ordinary, alpha, downsample=downsample or "stride", leaf_modules=leaves, **options)
    except ValueError as error:
        raise UserError(str(error)) from error
