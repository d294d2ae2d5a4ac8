"""Temporal shifts in a network of images that `octavize` made: before the first convolution of each residual block.

The shortcut stays unshifted, so that what a frame shows by itself is not lost ("residual shift", arXiv 1811.08383).
"""

from __future__ import annotations

from torch import fx, nn

from octvideo.octave.conversion.modules import OctMap
from octvideo.octave.conversion.roles import ADDITIONS, operand_nodes
from octvideo.octave.conversion.trace import add_operation
from octvideo.octave.layer import OctaveLayer
from octvideo.octave.temporal_shift import TemporalShift

_NUM_FRAMES = "num_frames"  # the second input of a network with shifts
_LAYERS = (nn.modules.conv._ConvNd, nn.Linear)


def add_temporal_shifts(network: fx.GraphModule, share: float, *, online: bool = False) -> None:
    """Lets a network of images see time, in place; its state_dict stays as it is.

    Afterwards it takes the frames of N clips (N·T, 3, H, W), and T. A residual block is what an addition ends of whose
    sides one, the branch, has layers one after the other, and more than the other, the shortcut.

    Args:
        network: made by `octavize`, at any alpha.
        share: of channels, in each direction; an eighth in the paper.
        online: from the frame before only.

    Raises:
        ValueError: it has shifts already, or no residual block; or no network can shift by that share.
    """
    if takes_num_frames(network):
        raise ValueError("the network has temporal shifts already")
    graph, modules = network.graph, dict(network.named_modules())
    found = _first_convs(graph, modules)
    if not found:
        raise ValueError("there is no residual block in this network, before whose first convolution it could shift")
    first = next(iter(graph.nodes))
    with graph.inserting_after(first):
        num_frames = graph.placeholder(_NUM_FRAMES)
    for node in found:
        conv = modules[str(node.target)]
        is_pair = isinstance(conv, OctaveLayer) and not conv.partition_in.is_ordinary
        channels = conv.partition_in if is_pair else conv.in_channels
        shift = TemporalShift(channels, share, online=online)  # type: ignore[arg-type]
        source = node.args[0]
        with graph.inserting_before(node):
            path = add_operation(network, f"shift_{node.name}", shift)
            call = graph.call_module(path, (source, num_frames))
        call.meta = dict(node.meta)  # where it was traced
        node.replace_input_with(source, call)  # type: ignore[arg-type]
    graph.lint()
    network.recompile()


def takes_num_frames(network: nn.Module) -> bool:
    """Whether `add_temporal_shifts` changed a network, so that it takes T beside its frames."""
    graph = getattr(network, "graph", None)
    return isinstance(graph, fx.Graph) and any(node.target == _NUM_FRAMES for node in graph.nodes)


def _first_convs(graph: fx.Graph, modules: dict[str, nn.Module]) -> list[fx.Node]:
    """The first convolution of each residual block's branch, or several where the branch begins with several."""
    nodes = list(graph.nodes)
    order = {node: n for n, node in enumerate(nodes)}
    ancestors: list[int] = []  # of each node, itself and all that it is computed from: a bit for each node
    for n, node in enumerate(nodes):
        own = 1 << n
        for source in node.all_input_nodes:
            own |= ancestors[order[source]]
        ancestors.append(own)
    layers = [
        n for n, node in enumerate(nodes) if node.op == "call_module" and isinstance(modules[node.target], _LAYERS)
    ]
    found: set[int] = set()
    for addition in nodes:
        if not _adds(addition, modules):
            continue
        sides = [ancestors[order[operand]] for operand in operand_nodes(addition)]
        entry = (sides[0] & sides[1]).bit_length() - 1  # the last value that both are computed from
        if entry < 0:
            continue
        within = [[n for n in layers if n > entry and side >> n & 1 and ancestors[n] >> entry & 1] for side in sides]
        branch, shortcut = sorted(within, key=len, reverse=True)
        firsts = [n for n in branch if not any(ancestors[n] >> other & 1 for other in branch if other != n)]
        if len(firsts) < len(branch) > len(shortcut):
            found |= {n for n in firsts if not isinstance(modules[nodes[n].target], nn.Linear)}
    return [nodes[n] for n in sorted(found)]


def _adds(node: fx.Node, modules: dict[str, nn.Module]) -> bool:
    """Whether a node adds two values, as tensors or as pairs."""
    module = modules[str(node.target)] if node.op == "call_module" else None
    operation = module.function if isinstance(module, OctMap) else node.target
    return operation in ADDITIONS and len(set(operand_nodes(node))) == 2 == len(node.args)
