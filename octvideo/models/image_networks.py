"""2-D networks of torchvision and timm by name ("torchvision:resnet50", "timm:mobilenetv2_100"), for K classes."""

from __future__ import annotations

import difflib
from collections.abc import Sequence

import torchvision
from torch import Tensor, nn

from octvideo.errors import UserError

_FORM = "torchvision:NAME or timm:NAME, such as torchvision:resnet50"


class DropoutLinear(nn.Linear):
    """A classifier with dropout before it, for networks that have none; keys are the ordinary layer's.

    Its class name makes octvideo's tracer keep it whole.
    """

    def __init__(self, linear: nn.Linear, p: float) -> None:
        super().__init__(linear.in_features, linear.out_features, linear.bias is not None, device="meta")
        self.weight, self.bias = linear.weight, linear.bias
        self.dropout = nn.Dropout(p)

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(self.dropout(input))


def split_name(name: str, libraries: Sequence[str], form: str = _FORM) -> tuple[str, str]:
    """A network's library and its name there.

    Args:
        name: as the user gave it.
        libraries: that are expected.
        form: for the message.

    Raises:
        UserError: no such library, or none given.
    """
    library, colon, own_name = name.partition(":")
    if not colon or library not in libraries:
        raise UserError(f"network: got {name!r}, expected {form}")
    return library, own_name


def check_known(name: str, library: str, known: Sequence[str]) -> None:
    """Refuses a name that the library does not list, and says which are close.

    Raises:
        UserError: not listed.
    """
    if name not in known:
        close = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
        meant = f"did you mean {' or '.join(f'{library}:{other}' for other in close)}?" if close else ""
        raise UserError(f"{library} has no network {name!r}" + (f": {meant}" if meant else ""))


def image_network(name: str, num_classes: int, *, dropout: float = 0.0) -> nn.Module:
    """A network of images (N, 3, H, W) to logits (N, K), with the library's initialisation.

    Args:
        name: "torchvision:NAME" or "timm:NAME", as in their list_models(); nothing is downloaded.
        num_classes: K.
        dropout: before the classifier; it takes the place of the network's own.

    Raises:
        UserError: no such network, timm is not installed, or the network ends in no linear classifier.
    """
    library, own_name = split_name(name, ("torchvision", "timm"))
    if library == "timm":
        try:
            import timm
        except ImportError as error:
            raise UserError(f"{name} needs timm, which is not installed: pip install 'octvideo[image]'") from error
        check_known(own_name, library, timm.list_models())
        network = timm.create_model(own_name, pretrained=False, num_classes=num_classes, drop_rate=dropout)
        classifier_path(network, name, num_classes)
        return network
    check_known(own_name, library, torchvision.models.list_models(module=torchvision.models))
    # Two old networks give tuples in training unless told otherwise.
    options = {"aux_logits": False, "init_weights": False} if own_name in ("googlenet", "inception_v3") else {}
    network = torchvision.models.get_model(own_name, weights=None, num_classes=num_classes, **options)
    set_dropout(network, classifier_path(network, name, num_classes), dropout)
    return network


def classifier_path(network: nn.Module, name: str, num_classes: int) -> str:
    """Where the classifier is: the last nn.Linear.

    Raises:
        UserError: there is none of K outputs.
    """
    linears = [path for path, module in network.named_modules() if isinstance(module, nn.Linear)]
    if not linears or network.get_submodule(linears[-1]).out_features != num_classes:
        raise UserError(f"{name} does not end in a linear classifier, expected a network that does")
    return linears[-1]


def set_dropout(network: nn.Module, path: str, dropout: float) -> None:
    """Gives the dropouts beside the classifier this probability, or the classifier one where there are none."""
    parent = network.get_submodule(path.rpartition(".")[0])
    own = [module for module in parent.children() if isinstance(module, nn.Dropout)]
    for module in own:
        module.p = dropout
    if not own:
        classifier = network.get_submodule(path)
        assert isinstance(classifier, nn.Linear)
        network.set_submodule(path, DropoutLinear(classifier, dropout))
