"""Which low share each convolution of a network is asked for: the user's alphas, and the paper's exceptions."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from torch import fx, nn

from octvideo.octave.roles import ELEMENTWISE, ELEMENTWISE_FUNCTIONS, ELEMENTWISE_METHODS, Network
from octvideo.octave.trace import ACTIVATIONS_BY_NAME, CONVS, is_norm
from octvideo.octave.value_classes import ValueClasses

Alpha = float | Mapping[str, float]
# What is split in an inverted residual (MobileNetV2): the expanded width, or the thin ends too.
InvertedResiduals = Literal["hidden", "all"]
_NOT_ACTIVATIONS = (nn.Identity, nn.Dropout, nn.Dropout2d, nn.Dropout3d)


class Shares:
    """For each convolution's node, the low share that its output should have.

    Args:
        alpha: one share for all but the stem, or shares by module path prefix, the longest deciding.
        network: the traced network.
        inverted_residuals: "hidden" leaves the thin ends of inverted residuals ordinary, as in the paper.

    Raises:
        ValueError: a share outside [0, 1], or a prefix of no convolution.
    """

    def __init__(self, alpha: Alpha, network: Network, *, inverted_residuals: InvertedResiduals) -> None:
        shares = alpha if isinstance(alpha, Mapping) else {"": alpha}
        try:
            self._shares = {str(prefix): float(share) for prefix, share in shares.items()}
        except (TypeError, ValueError):
            raise ValueError(f"alpha: got {alpha!r}, expected a number from 0 to 1, or one by module path") from None
        self._keeps_stem = not isinstance(alpha, Mapping)
        self._network = network
        calls = {str(node.target) for node in network.graph.nodes if node.op == "call_module"}
        convs = [path for path in network.modules if path in calls and isinstance(network.modules[path], CONVS)]
        for prefix, share in self._shares.items():
            if not 0.0 <= share <= 1.0:
                raise ValueError(f"octavize: alpha of {prefix or 'the network'!r} is {share}, expected 0 <= alpha <= 1")
            if prefix and not any(_matches(path, prefix) for path in convs):
                raise ValueError(
                    f"octavize: no convolution of this network is called {prefix!r} or lies in it; "
                    f"it has {convs[:4]} ..."
                )
        self._ends = thin_ends(network) if inverted_residuals == "hidden" else set()

    def __call__(self, node: fx.Node) -> float:
        prefixes = [prefix for prefix in self._shares if _matches(str(node.target), prefix)]
        if not prefixes or self._exception(node) is not None:
            return 0.0
        return self._shares[max(prefixes, key=len)]

    def reason(self, node: fx.Node) -> str:
        """Why a convolution is asked for no low channel."""
        return self._exception(node) or "alpha is 0 here"

    def _exception(self, node: fx.Node) -> str | None:
        if str(node.target) in self._ends:
            return "ends an inverted residual, of which only the expanded width is split"
        if self._keeps_stem and reads_input(node, self._network):
            return "reads the network's input"
        return None


def _matches(path: str, prefix: str) -> bool:
    return prefix == "" or path == prefix or path.startswith(prefix + ".")


def reads_input(node: fx.Node, network: Network) -> bool:
    """Whether a convolution is a stem: it reads the input, or what indexing and layers without weights make of it."""
    source = node.all_input_nodes[0]
    while source.op != "placeholder":
        module = network.module(source)
        weights = module is not None and next(module.parameters(), None) is not None
        if weights or len(source.all_input_nodes) != 1:
            return False
        source = source.all_input_nodes[0]
    return True


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
