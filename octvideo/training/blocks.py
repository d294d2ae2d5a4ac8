"""Where a network divides: its blocks, and how deep each parameter lies. Learning rates by depth and gradient
checkpoints go by them.
"""

from __future__ import annotations

import re

from torch import nn

from octvideo.errors import UserError
from octvideo.training.freezing import NORMS, find_head

_NUMBERED = re.compile(r"(|b|.*(?:block|layer)[\w-]*?)\d+")  # 0, b1, block1-0, encoder_layer_0; not branch1
_PATHWAY = re.compile(r"\bmultipathway_blocks\.\d+")  # pytorchvideo's: pathways lie beside each other


def blocks_of(network: nn.Module) -> dict[str, nn.Module]:
    """The blocks by name, in the order of the network: the innermost entries of numbered lists that hold a norm and not
    the classifier (pytorchvideo's res_blocks, torchvision's layer1 to layer4 and features, timm's blocks).

    Told by names, not by classes: a converted network has plain modules where the ordinary one has lists.

    Args:
        network: with an nn.Linear as its classifier.

    Raises:
        UserError: it has no such list.
    """
    found = _inside("", network, find_head(network), is_entry=False)
    if not found:
        raise UserError(
            f"the network {type(network).__name__} has no blocks: expected lists of them, as in ResNets "
            "(leave out model.layer_decay and model.checkpoint_gradients)"
        )
    return found


def block_at(path: str, blocks: dict[str, nn.Module]) -> str | None:
    """The block that a module or parameter is in, by its path; None where it is in none."""
    while path:
        if path in blocks:
            return path
        path = path.rpartition(".")[0]
    return None


def layers_of(network: nn.Module) -> dict[str, int]:
    """How deep each parameter lies, by name, from 0: the stem, each block, the classifier.

    Parameters behind a block count to it, as timm has it. Pathways beside each other are equally deep.

    Args:
        network: see `blocks_of`.

    Raises:
        UserError: it has no blocks.
    """
    blocks, head = blocks_of(network), {id(parameter) for parameter in find_head(network).parameters()}
    depths: dict[str, int] = {}
    layers: dict[str, int] = {}
    layer = "stem"
    for name, parameter in network.named_parameters():
        if id(parameter) not in head:
            layer = _PATHWAY.sub("", block_at(name, blocks) or "") or layer
            layers[name] = depths.setdefault(layer, len(depths))
    of_head = (name for name, parameter in network.named_parameters() if id(parameter) in head)
    return layers | dict.fromkeys(of_head, len(depths))


def _inside(path: str, module: nn.Module, head: nn.Module, *, is_entry: bool) -> dict[str, nn.Module]:
    found: dict[str, nn.Module] = {}
    is_list = _is_list(module)
    for name, child in module.named_children():
        found |= _inside(f"{path}.{name}".lstrip("."), child, head, is_entry=is_list)
    if found or is_list or not is_entry:
        return found
    parts = list(module.modules())
    is_block = len(parts) > 1 and head not in parts and any(isinstance(part, NORMS) for part in parts)
    return {path: module} if is_block else {}


def _is_list(module: nn.Module) -> bool:
    """Whether its children are numbered."""
    matches = [_NUMBERED.fullmatch(name) for name, _ in module.named_children()]
    return bool(matches) and len({match and match[1] for match in matches}) == 1 and matches[0] is not None
