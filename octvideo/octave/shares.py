"""Which low share each convolution of a network is asked for: the user's alphas, and the paper's exceptions."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Literal

from torch import fx, nn

from octvideo.octave.roles import ELEMENTWISE, ELEMENTWISE_FUNCTIONS, ELEMENTWISE_METHODS, Network
from octvideo.octave.trace import ACTIVATIONS_BY_NAME, CONVS, is_norm
from octvideo.octave.value_classes import ValueClasses

Alpha = float | Mapping[str, float]
# What is split in an inverted residual (MobileNetV2): the expanded width, or the thin ends too.
InvertedResiduals = Literal["hidden", "all"]
_NOT_ACTIVATIONS = (nn.Identity, nn.Dropout, nn.Dropout2d, nn.Dropout3d)


def wanted_shares(
    alpha: Alpha, network: Network, *, inverted_residuals: InvertedResiduals
) -> Callable[[fx.Node], float]:
    """For each convolution's node, the low share that its output should have.

    Args:
        alpha: one share for all but the stem, or shares by module path prefix, the longest deciding.
        network: the traced network.
        inverted_residuals: "hidden" leaves the thin ends of inverted residuals ordinary, as in the paper.

    Raises:
        ValueError: a share outside [0, 1], or a prefix of no convolution.
    """
    shares = dict(alpha) if isinstance(alpha, Mapping) else {"": float(alpha)}
    calls = {str(node.target) for node in network.graph.nodes if node.op == "call_module"}
    convs = [path for path in network.modules if path in calls and isinstance(network.modules[path], CONVS)]
    for prefix, share in shares.items():
        if not 0.0 <= share <= 1.0:
            raise ValueError(f"octavize: alpha of {prefix or 'the network'!r} is {share}, expected 0 <= alpha <= 1")
        if prefix and not any(_matches(path, prefix) for path in convs):
            raise ValueError(
                f"octavize: no convolution of this network is called {prefix!r} or lies in it; it has {convs[:4]} ..."
            )
    ends = thin_ends(network) if inverted_residuals == "hidden" else set()

    def wanted(node: fx.Node) -> float:
        path = str(node.target)
        prefixes = [prefix for prefix in shares if _matches(path, prefix)]
        if not prefixes or path in ends or (not isinstance(alpha, Mapping) and reads_input(node)):
            return 0.0
        return shares[max(prefixes, key=len)]

    return wanted


def _matches(path: str, prefix: str) -> bool:
    return prefix == "" or path == prefix or path.startswith(prefix + ".")


def reads_input(node: fx.Node) -> bool:
    """Whether a convolution is a stem: nothing but indexing lies between it and the network's input."""
    source = node.all_input_nodes[0]
    while source.op != "placeholder" and source.op != "call_module" and len(source.all_input_nodes) == 1:
        source = source.all_input_nodes[0]
    return source.op == "placeholder"


def thin_ends(network: Network) -> set[str]:
    """Paths of the convolutions that end an inverted residual: from a depthwise one to fewer channels, linearly.

    The paper splits only the expanded width of MobileNetV2: the first convolution of a block is a first
    octave convolution, the last one a last (arXiv 1904.05049, section 4.3).
    """
    classes = ValueClasses(network)
    ends = set()
    for node in classes.nodes:
        if classes.roles[node] != "conv":
            continue
        conv = classes.conv(node)
        hidden = classes[node.all_input_nodes[0]]
        depthwise = any(classes.roles[n] == "conv" and classes.is_depthwise(n) for n in hidden.nodes)
        if conv.groups == 1 and conv.out_channels < conv.in_channels and depthwise and not _activated(node, network):
            ends.add(str(node.target))
    return ends


def _activated(node: fx.Node, network: Network) -> bool:
    """Whether an activation follows a convolution, behind its norm."""
    users = list(node.users)
    while len(users) == 1 and isinstance(module := network.module(users[0]), nn.Module) and is_norm(module):
        held = getattr(module, "act", None)
        if held is not None and not isinstance(held, nn.Identity):
            return True
        users = list(users[0].users)
    return any(_is_activation(user, network) for user in users)


def _is_activation(node: fx.Node, network: Network) -> bool:
    module = network.module(node)
    if module is not None:
        known = isinstance(module, ELEMENTWISE) or type(module).__name__ in ACTIVATIONS_BY_NAME
        return known and not isinstance(module, _NOT_ACTIVATIONS)
    return node.target in ELEMENTWISE_FUNCTIONS or (
        node.op == "call_method" and node.target in ELEMENTWISE_METHODS[:-1]
    )
