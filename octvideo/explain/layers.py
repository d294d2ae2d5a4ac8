"""Which layer of a network is looked at."""

from __future__ import annotations

import functools
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn

from octvideo.errors import UserError
from octvideo.inference.feature_network import HOW_TO_LIST, near_layers
from octvideo.octave import Octave


def last_layer(network: nn.Module, clips: Tensor) -> str:
    """The layer that explanations look at where none is named.

    In an octave network it is the last one that gives a pair, in an ordinary network the last one that gives a map, of
    more than one position; and of these the last one that nothing passes beside, as a shortcut does. Where something
    passes beside all of them, as in SlowFast, whose pathways meet behind their last maps, it is the very last.

    Args:
        network: in eval.
        clips: (N, 3, T, H, W).

    Raises:
        UserError: no layer gives maps.
    """
    pairs: dict[str, set[Any]] = {}  # layer → nodes of autograd's graph that its result comes from
    maps: dict[str, set[Any]] = {}

    def note(name: str, module: nn.Module, args: Any, result: Any) -> None:
        found, parts = (pairs, list(result)) if isinstance(result, Octave) else (maps, [result])
        if _gives_map(module, parts[0]):
            found.pop(name, None)  # of several calls the last one counts
            found[name] = {x.grad_fn for x in parts}

    logits, pixels = _noted(network, clips, note)
    if not pairs and not maps:
        raise UserError(f"no layer of {type(network).__name__} gives maps of more than one position")
    found = pairs or maps
    whole = (name for name, nodes in reversed(found.items()) if not _reaches(logits, pixels, nodes))
    return next(whole, list(found)[-1])


def passes_beside(network: nn.Module, layer: str, clips: Tensor) -> bool:
    """Whether a part of what the scores depend on does not come through a layer, but by a shortcut or another pathway.

    Of a layer that is not called, or gives no tensor, it says False.

    Args:
        network: in eval.
        layer: name of a module.
        clips: (N, 3, T, H, W).
    """
    nodes: set[Any] = set()

    def note(name: str, module: nn.Module, args: Any, result: Any) -> None:
        parts = list(result) if isinstance(result, Octave) else [result]
        if name == layer and isinstance(parts[0], Tensor):
            nodes.update(x.grad_fn for x in parts)

    logits, pixels = _noted(network, clips, note)
    return bool(nodes) and _reaches(logits, pixels, nodes)


def _noted(network: nn.Module, clips: Tensor, note: Callable[..., None]) -> tuple[Tensor, Tensor]:
    """Runs a network, with `note` told of each module's results; the logits, and the clips that they come from."""
    pixels = clips.detach().clone().requires_grad_()
    with ExitStack() as stack, torch.enable_grad():
        for name, module in network.named_modules():
            if name:
                handle = module.register_forward_hook(functools.partial(note, name))
                stack.callback(handle.remove)
        return network(pixels), pixels


def _reaches(logits: Tensor, pixels: Tensor, nodes: set[Any]) -> bool:
    """Whether logits depend on pixels by a way that goes through none of the nodes."""
    seen, waiting = set(nodes), [logits.grad_fn]
    while waiting:
        node: Any = waiting.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if getattr(node, "variable", None) is pixels:
            return True
        waiting += [following for following, _ in node.next_functions]
    return False


def _gives_map(module: nn.Module, value: Any) -> bool:
    ends_in_channels = isinstance(module, nn.Linear | nn.LayerNorm)
    return isinstance(value, Tensor) and value.dim() in (4, 5) and min(value.shape[-2:]) > 1 and not ends_in_channels


def check_layer(network: nn.Module, layer: str) -> None:
    """Raises where a network has no such layer.

    Raises:
        UserError: it has none; the message offers those with names like it.
    """
    modules = dict(network.named_modules())
    if not layer or layer not in modules:
        raise UserError(f"no layer '{layer}' in this network{near_layers(layer, modules)}; {HOW_TO_LIST}")


class Watched:
    """Keeps what a layer gives while a network computes, so that gradients can be asked for.

    Args:
        network: in eval; `close` leaves it as it was.
        layer: name of a module. Of one that is called several times the last call counts.

    Raises:
        UserError: no such layer.
    """

    def __init__(self, network: nn.Module, layer: str) -> None:
        check_layer(network, layer)
        self.layer, self._network, self._value = layer, network, None
        self._module = network.get_submodule(layer)
        self._handle = self._module.register_forward_hook(self._keep)

    def _keep(self, module: nn.Module, args: Any, result: Any) -> Any:
        self._value = result
        # What comes next may change it in place: it gets a copy.
        return Octave(*(x.clone() for x in result)) if isinstance(result, Octave) else _cloned(result)

    def __call__(self, clips: Tensor) -> tuple[Tensor, list[Tensor]]:
        """The network's logits (N, K), and the layer's maps: high and low, or one alone.

        Raises:
            UserError: the layer is not called, or gives no maps.
        """
        self._value = None
        logits = self._network(clips)
        value: Any = self._value
        if value is None:
            raise UserError(f"the network does not call its layer '{self.layer}'; {HOW_TO_LIST}")
        maps = list(value) if isinstance(value, Octave) else [value]
        if not _gives_map(self._module, maps[0]):
            got = tuple(maps[0].shape[1:]) if isinstance(maps[0], Tensor) else type(maps[0]).__name__
            raise UserError(
                f"layer '{self.layer}' gives {got}, expected maps (C, T, H, W) of more than one row and column, or "
                f"pairs of them; {HOW_TO_LIST}"
            )
        return logits, maps

    def close(self) -> None:
        """Ends the watch."""
        self._handle.remove()

    def __enter__(self) -> Watched:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


def _cloned(value: Any) -> Any:
    return value.clone() if isinstance(value, Tensor) else value
