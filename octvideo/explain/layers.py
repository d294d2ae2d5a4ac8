"""Which layer of a network is looked at."""

from __future__ import annotations

import functools
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn

from octvideo.errors import UserError
from octvideo.inference.feature_network import HOW_TO_LIST, near_layers
from octvideo.octave import Octave


def last_layer(network: nn.Module, clips: Tensor) -> str:
    """The layer that explanations look at where none is named.

    In an octave network it is the last one that gives a pair: after it there is one resolution alone. In an ordinary
    network it is the last one whose maps have more than one position. In SlowFast that is the last of one pathway.

    Args:
        network: in eval.
        clips: (N, 3, T, H, W).

    Raises:
        UserError: no layer gives maps.
    """
    pairs: dict[str, None] = {}
    maps: dict[str, None] = {}

    def note(name: str, module: nn.Module, args: Any, result: Any) -> None:
        for found, is_one in ((pairs, isinstance(result, Octave)), (maps, _gives_map(module, result))):
            if is_one:
                found.pop(name, None)
                found[name] = None

    with ExitStack() as stack, torch.no_grad():
        for name, module in network.named_modules():
            if name:
                handle = module.register_forward_hook(functools.partial(note, name))
                stack.callback(handle.remove)
        network(clips)
    if not pairs and not maps:
        raise UserError(f"no layer of {type(network).__name__} gives maps of more than one position")
    return list(pairs or maps)[-1]


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
