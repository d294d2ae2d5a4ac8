"""Weights from a file into a network: found in whatever saved them, checked key by key, reported in words.

An octave network has the keys and shapes of the ordinary one, so any weights load at any alpha without an
error; whether they keep their accuracy there is another matter, and is said aloud.
"""

from __future__ import annotations

import logging
import math
import pickle
import re
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from octvideo.errors import UserError
from octvideo.octave import OctConv1d, OctConv2d, OctConv3d

log = logging.getLogger("octvideo.models")

_EXPECTED = "a checkpoint of octvideo, pytorchvideo, PySlowFast or Lightning, or a state_dict from torch.save"
# Where programs put the state_dict: pytorchvideo and PySlowFast, Lightning, torchvision's references.
_PLACES = ("model_state", "state_dict", "model_state_dict", "model")
_WRAPPERS = ("module.", "_orig_mod.")  # DistributedDataParallel, torch.compile


@dataclass(frozen=True)
class OctaveSetting:
    """What the accuracy of weights depends on, though their keys and shapes do not."""

    alpha: float = 0.0
    downsample: str = "stride"

    def __str__(self) -> str:
        return f"alpha {self.alpha:g} with downsample {self.downsample}"

    def is_close(self, other: OctaveSetting) -> bool:
        return math.isclose(self.alpha, other.alpha) and self.downsample == other.downsample


@dataclass(frozen=True)
class Weights:
    """The tensors of a network, and where they come from.

    Args:
        tensors: state_dict key to tensor.
        source: for messages: a path, a URL.
        setting: what they were trained as; None where the file cannot say.
    """

    tensors: Mapping[str, Tensor]
    source: str
    setting: OctaveSetting | None = OctaveSetting()


@dataclass(frozen=True)
class WeightsReport:
    """What `load_weights` did; its text is for the user.

    Args:
        loaded: number of the network's keys that were found and fitted.
        total: number of the network's keys.
        classes: (in the file, in the network) where the head was left as initialised.
        missing: keys of the network that the file lacks; left as initialised.
        unexpected: keys of the file that the network lacks; not used.
        misfits: the network's keys that have another shape in the file, with both; left as initialised.
        warning: why accuracy is not kept, where it is not; `load_weights` has logged it.
    """

    loaded: int
    total: int
    classes: tuple[int, int] | None = None
    missing: tuple[str, ...] = ()
    unexpected: tuple[str, ...] = ()
    misfits: tuple[str, ...] = ()
    warning: str | None = None

    def __str__(self) -> str:
        lines = [f"{self.loaded} of {self.total} weights loaded"]
        if self.classes is not None:
            lines[0] += f", new head ({self.classes[0]} -> {self.classes[1]} classes)"
        for what, keys in (
            ("missing in the file, left as initialised", self.missing),
            ("of another shape in the file, left as initialised", self.misfits),
            ("only in the file, not used", self.unexpected),
        ):
            if keys:
                lines.append(f"  {len(keys)} {what}: {_first(keys)}")
        return "\n".join(lines)


# -- file to weights --------------------------------------------------------------------------------------


def read_weights(path: str | Path) -> Weights:
    """The weights in a file; the tensors are mapped from it, not read, where its format allows that.

    Args:
        path: of a checkpoint of octvideo, of pytorchvideo or PySlowFast ("model_state"), of another Lightning
            module ("state_dict"), or of a state_dict by itself.

    Raises:
        UserError: no such file, not a file of torch.save, more than tensors in it, or none.

    Example:
        >>> weights = read_weights("I3D_8x8_R50.pyth")  # doctest: +SKIP
        >>> load_weights(i3d_r50(), weights, head="strict")  # doctest: +SKIP
    """
    if not Path(path).is_file():
        got = "a folder" if Path(path).is_dir() else "no such file"
        raise UserError(f"no weights at {path}: got {got}, expected {_EXPECTED}")
    try:
        # Files from before torch 1.6 are no zip archives and cannot be mapped.
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except Exception as error:  # torch has no common type for "not a checkpoint"
        raise UserError(_why_unreadable(path, error)) from error
    return weights_in(content, source=str(path))


def _why_unreadable(path: str | Path, error: Exception) -> str:
    refused = re.search(r"GLOBAL (\S+) was not an allowed", str(error))
    if isinstance(error, pickle.UnpicklingError) and refused:
        return (
            f"{path} is refused: besides tensors it holds Python objects ({refused[1]}), and reading those "
            "can run code from the file. Where it was made, save the weights alone: "
            "torch.save(model.state_dict(), PATH)"
        )
    first_line = (str(error) or type(error).__name__).splitlines()[0]
    reason = first_line if zipfile.is_zipfile(path) else "it is not a file of torch.save"
    return f"{path} can't be read as weights: {reason}; expected {_EXPECTED}"


def weights_in(content: Any, *, source: str) -> Weights:
    """The weights in what torch.load returned.

    Args:
        content: a checkpoint or a state_dict.
        source: for messages: a path, a URL.

    Raises:
        UserError: there are no tensors where programs put them.
    """
    holder = content if isinstance(content, Mapping) else {}
    states = [holder[place] for place in _PLACES if isinstance(holder.get(place), Mapping)]
    tensors = {str(key): t for key, t in (states or [holder])[0].items() if isinstance(t, Tensor)}
    setting: OctaveSetting | None = OctaveSetting()
    if isinstance(holder.get("octvideo"), Mapping):
        # Lightning's own state lies beside the network's.
        tensors = {key.removeprefix("network."): t for key, t in tensors.items() if key.startswith("network.")}
        built_from = holder["octvideo"].get("network")
        setting = None if built_from is None else _setting_from(built_from)
    if not tensors:
        got = f"keys {_first([str(key) for key in holder])}" if holder else f"a {type(content).__name__}"
        raise UserError(f"{source} holds no weights: got {got}, expected {_EXPECTED}")
    for wrapper in _WRAPPERS:
        if all(key.startswith(wrapper) for key in tensors):
            tensors = {key.removeprefix(wrapper): tensor for key, tensor in tensors.items()}
    return Weights(tensors, source, setting)


# -- weights to network -----------------------------------------------------------------------------------


def load_weights(network: nn.Module, weights: Weights, *, head: Literal["strict", "swap"]) -> WeightsReport:
    """Copies weights into a network, and warns where their accuracy is not kept (another alpha).

    A prefix that all of the network's keys have in the file ("model.") is ignored.

    Args:
        network: changed in place.
        weights: from `read_weights`.
        head: "strict" demands every key and shape. "swap" leaves the classifier (the last nn.Linear) as it is
            where its shape differs, and whatever else the file lacks, and reports it.

    Returns:
        What was loaded and what was not.

    Raises:
        UserError: something does not fit ("strict"), or more than half does not ("swap").
    """
    own = network.state_dict()
    tensors = _without_prefix(weights.tensors, own)
    # Old files lack this counter, which only a cumulative average reads.
    wanted = [key for key in own if key in tensors or not key.endswith(".num_batches_tracked")]
    fitting = {key for key in wanted if key in tensors and tensors[key].shape == own[key].shape}
    misfits = [key for key in wanted if key in tensors and key not in fitting]
    classifier = _classifier_keys(network)
    body = set(wanted) - classifier
    classes = None
    if other := [key for key in misfits if key in classifier]:
        fitting -= classifier  # weight and bias go together
        classes = (len(tensors[other[0]]), len(own[other[0]]))
    report = WeightsReport(
        loaded=len(fitting),
        total=len(wanted),
        classes=classes,
        missing=tuple(key for key in wanted if key not in tensors),
        unexpected=tuple(key for key in tensors if key not in own),
        misfits=tuple(
            f"{key} {tuple(tensors[key].shape)}, here {tuple(own[key].shape)}"
            for key in misfits
            if head == "strict" or key not in classifier
        ),
        warning=_accuracy_warning(weights.setting, _setting_of(network)),
    )
    if head == "strict" and (report.missing or report.unexpected or report.misfits):
        raise UserError(_why_unfit(report, weights.source, "all", only_head=body <= fitting))
    if head == "swap" and 2 * len(fitting & body) < len(body):
        raise UserError(_why_unfit(report, weights.source, "at least half", only_head=False))
    network.load_state_dict({key: tensors[key] for key in fitting}, strict=False)
    if report.warning is not None:
        log.warning("weights from %s: %s", weights.source, report.warning)
    return report


def _without_prefix(tensors: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors by the network's keys: without the prefix ("model.") that makes most of them match."""
    some = list(own)[:: max(1, len(own) // 8)]
    prefixes = {key.removesuffix(end) for end in some for key in tensors if key.endswith("." + end)}
    prefix = max(["", *sorted(prefixes)], key=lambda start: sum(start + key in tensors for key in own))
    return {key.removeprefix(prefix): tensor for key, tensor in tensors.items()}


def _classifier_keys(network: nn.Module) -> set[str]:
    linears = [(path, module) for path, module in network.named_modules() if isinstance(module, nn.Linear)]
    path, module = linears[-1] if linears else ("", nn.Identity())
    return {f"{path}.{name}" for name, _ in module.named_parameters()}


def _why_unfit(report: WeightsReport, source: str, expected: str, *, only_head: bool) -> str:
    parts = [f"{report.loaded} of the network's {report.total} weights match"]
    for what, keys in (
        ("missing in the file", report.missing),
        ("only in the file", report.unexpected),
        ("of another shape in the file", report.misfits),
    ):
        if keys:
            parts.append(f"{len(keys)} {what}: {_first(keys)}")
    advice = "build the network that these weights were trained in"
    if only_head and report.classes is not None:
        advice += f", with num_classes={report.classes[0]}"
    return f"weights from {source} do not fit: {'; '.join(parts)}. Expected {expected} to match: {advice}"


# -- what accuracy depends on -----------------------------------------------------------------------------


def _setting_from(built_from: Mapping[str, Any]) -> OctaveSetting:
    init_args = built_from["init_args"]
    return OctaveSetting(float(init_args.get("alpha", 0.0)), init_args.get("downsample") or "stride")


def _setting_of(network: nn.Module) -> OctaveSetting:
    built_from = getattr(network, "meta", {}).get("built_from")
    if built_from is not None:
        return _setting_from(built_from)
    convs = [m for m in network.modules() if isinstance(m, OctConv1d | OctConv2d | OctConv3d)]
    alpha = max((conv.partition_out.alpha for conv in convs), default=0.0)
    return OctaveSetting(alpha, "pool" if any(conv.downsample == "pool" for conv in convs) else "stride")


def _accuracy_warning(trained: OctaveSetting | None, used: OctaveSetting) -> str | None:
    if trained is None or trained.is_close(used):
        return None
    return f"trained at {trained} and used at {used}, so their accuracy is not kept until they are fine-tuned"


def _first(keys: Sequence[str]) -> str:
    return ", ".join(keys[:3]) + (", ..." if len(keys) > 3 else "")
