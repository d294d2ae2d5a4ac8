"""Weights into a network: names translated, kernels inflated, checked key by key, reported in words.

    source ─ weight_sources ─▶ file ─ weight_files ─▶ Weights
       ─ checkpoint_keys ─▶ the network's names ─ inflate_kernel ─▶ its shapes ─ load_weights ─▶ network, report

An octave network has the keys and shapes of the ordinary one, so any weights load at any alpha without an
error; whether they keep their accuracy there is another matter, and is said aloud.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from octvideo.class_names import ClassMatch, match_classes
from octvideo.errors import UserError
from octvideo.models.checkpoint_keys import match_keys, without_shortcut_norms
from octvideo.models.weight_files import OctaveSetting, PixelScale, Weights, first_of, weights_in
from octvideo.models.weight_sources import library_pixels, read_weights
from octvideo.octave import OctConv1d, OctConv2d, OctConv3d

__all__ = [
    "OctaveSetting", "PixelScale", "Weights", "WeightsReport", "check_finite", "classifier_keys", "first_nonfinite",
    "library_pixels", "load_weights", "read_weights", "weights_in",
]  # fmt: skip

log = logging.getLogger("octvideo.models")

# What torchvision and timm train nearly all of their networks with.
_IMAGENET = PixelScale((0.485, 0.456, 0.406), (0.229, 0.224, 0.225), assumed=True)


@dataclass(frozen=True)
class WeightsReport:
    """What `load_weights` did; its text is for the user.

    Args:
        loaded: how many of the network's keys were found and fitted.
        total: how many keys the network has.
        classes: (in the file, in the network) where the head was left as initialised.
        class_names: how the classes' names compare with the data's, where there is something to say.
        translated: how many of these keys the file has under another program's names.
        owner: whose names those are.
        inflated: keys of the network whose kernels were made from kernels over one frame.
        missing: keys of the network that the file lacks; left as initialised.
        unexpected: keys of the file that the network lacks; not used.
        misfits: the network's keys that have another shape in the file, with both; left as initialised.
        pixels: what the network's input should be normalised with, where that is known or to be assumed.
        warning: why accuracy is not kept, where it is not; `load_weights` has logged it.
    """

    loaded: int
    total: int
    classes: tuple[int, int] | None = None
    class_names: str = ""
    translated: int = 0
    owner: str | None = None
    inflated: tuple[str, ...] = ()
    missing: tuple[str, ...] = ()
    unexpected: tuple[str, ...] = ()
    misfits: tuple[str, ...] = ()
    pixels: PixelScale | None = None
    warning: str | None = None

    def __str__(self) -> str:
        lines = [f"{self.loaded} of {self.total} weights loaded"]
        if self.classes is not None:
            lines[0] += f", new head ({self.classes[0]} -> {self.classes[1]} classes)"
        if self.class_names:
            lines.append(f"  it has {self.class_names}")
        if self.owner is not None:
            lines.append(f"  {self.translated} found under {self.owner} names")
        if self.inflated:
            lines.append(f"  {len(self.inflated)} inflated over time (average)")
        for what, then, keys in self._differences():
            lines.append(f"  {len(keys)} {what}, {then}: {first_of(keys)}")
        return "\n".join(lines)

    def _differences(self) -> Iterator[tuple[str, str, Sequence[str]]]:
        """What does not fit, what became of it, and its keys."""
        for what, then, keys in (
            ("missing in the file", "left as initialised", self.missing),
            ("of another shape in the file", "left as initialised", self.misfits),
            ("only in the file", "not used", self.unexpected),
        ):
            if keys:
                yield what, then, keys

    def why_unfit(self, source: str, expected: str, *, only_head: bool) -> str:
        """What to say of weights that are refused: what differs, and what to do."""
        parts = [f"{self.loaded} of the network's {self.total} weights match"]
        parts += [f"{len(keys)} {what}: {first_of(keys)}" for what, _, keys in self._differences()]
        advice = "build the network that these weights were trained in"
        if only_head and self.classes is not None:
            advice += f", with num_classes={self.classes[0]}"
        return f"weights from {source} do not fit: {'; '.join(parts)}. Expected {expected} to match: {advice}"

    def pixel_advice(self, used: PixelScale) -> str | None:
        """What to say where the weights' pixels are not normalised as the network's are; else None."""
        if self.pixels is None or self.pixels.is_close(used):
            return None
        trained = "image networks mostly are" if self.pixels.assumed else "they were"
        return f"{trained} trained with {self.pixels}, here it is {used}: set model.mean and model.std to match"


def load_weights(
    network: nn.Module,
    weights: Weights,
    *,
    head: Literal["strict", "swap"],
    class_names: Sequence[str] | None = None,
) -> WeightsReport:
    """Copies weights into a network, and warns where their accuracy is not kept (another alpha).

    Names of torchvision, timm and PySlowFast are translated where the network has pytorchvideo's, a prefix
    that all keys have on one side ("model.") is ignored, and kernels over one frame are inflated where the
    network has longer ones.

    Args:
        network: changed in place.
        weights: from `read_weights`.
        head: "strict" demands every key and shape. "swap" leaves the classifier (the last nn.Linear) as it is
            where its shape or its classes differ, and whatever else the file lacks, and reports it.
        class_names: K names of the data; the same ones in another order move the head's rows. None compares none.

    Returns:
        What was loaded and what was not.

    Raises:
        UserError: something does not fit ("strict"), or more than half does not ("swap"); weights are not finite.
    """
    own = network.state_dict()
    matching = match_keys(weights.tensors, own)
    given = without_shortcut_norms(weights.tensors, matching)
    tensors = {matching.keys[key]: tensor for key, tensor in given.items()}
    # Old files lack this counter, which only a cumulative average reads.
    wanted = [key for key in own if key in tensors or not key.endswith(".num_batches_tracked")]
    inflated = _inflated(tensors, own)
    from_images = any(tensors[key].ndim == 4 for key in inflated)
    tensors.update(inflated)
    fitting = {key for key in wanted if key in tensors and tensors[key].shape == own[key].shape}
    misfits = [key for key in wanted if key in tensors and key not in fitting]
    classifier = classifier_keys(network)
    body = set(wanted) - set(classifier)
    classes, said = None, ""
    if held := [key for key in classifier if key in tensors]:
        match = match_classes(weights.class_names, class_names) if class_names else ClassMatch([])
        if not fitting.issuperset(held) or match.order is None:
            fitting.difference_update(held)  # weight and bias go together
            classes = (len(tensors[held[0]]), len(own[held[0]]))
        elif match.reorders:
            tensors.update({key: tensors[key][match.order] for key in held})
        said = match.said if weights.class_names or classes is None else ""
    report = WeightsReport(
        loaded=len(fitting),
        total=len(wanted),
        classes=classes,
        class_names=said,
        translated=matching.translated,
        owner=matching.owner,
        inflated=tuple(inflated),
        missing=tuple(key for key in wanted if key not in tensors),
        unexpected=tuple(key for key in tensors if key not in own),
        misfits=tuple(
            f"{key} {tuple(tensors[key].shape)}, here {tuple(own[key].shape)}"
            for key in misfits
            if head == "strict" or key not in classifier
        ),
        pixels=weights.pixels or (_IMAGENET if from_images else None),
        warning=_accuracy_warning(weights.setting, _setting_of(network)),
    )
    if head == "strict" and (report.missing or report.unexpected or report.misfits):
        raise UserError(report.why_unfit(weights.source, "all", only_head=body <= fitting))
    if head == "swap" and 2 * len(fitting & body) < len(body):
        raise UserError(report.why_unfit(weights.source, "at least half", only_head=False))
    check_finite({key: tensors[key] for key in own if key in fitting}, weights.source)
    network.load_state_dict({key: tensors[key] for key in fitting}, strict=False)
    if report.warning is not None:
        log.warning("weights from %s: %s", weights.source, report.warning)
    return report


def first_nonfinite(tensors: Iterable[tuple[str, Tensor]]) -> str | None:
    """The name of the first tensor that holds NaN or infinity, or None."""
    return next((name for name, tensor in tensors if not (tensor.is_meta or tensor.isfinite().all())), None)


def check_finite(weights: Mapping[str, Tensor], source: object) -> None:
    """Refuses weights that hold NaN or infinity.

    Raises:
        UserError: with the name of the first.
    """
    if name := first_nonfinite(weights.items()):
        raise UserError(
            f"weights from {source} are not finite, the first is {name}: take a checkpoint from before training "
            "diverged, or train anew"
        )


def _inflated(tensors: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The kernels that fit once they are inflated, so made."""
    kernels = {}
    for key in own.keys() & tensors.keys():
        if tensors[key].shape != own[key].shape:
            kernel = inflate_kernel(tensors[key].to(own[key].dtype), own[key].shape)
            if kernel is not None:
                kernels[key] = kernel
    return {key: kernels[key] for key in own if key in kernels}


def inflate_kernel(kernel: Tensor, shape: torch.Size) -> Tensor | None:
    """A convolution's kernel over one frame as a kernel over several: repeated over time, and divided by the number of
    repetitions (I3D, Carreira & Zisserman, arXiv 1705.07750, section 2.5).

    Where nothing moves, the network then computes what the image network does.

    Args:
        kernel: (C_out, C_in, H, W), or (C_out, C_in, 1, H, W) as C2D's.
        shape: (C_out, C_in, T, H, W).

    Returns:
        A new tensor of that shape, or None where the kernel differs in more than time.
    """
    if kernel.ndim == 4:
        kernel = kernel[:, :, None]
    if kernel.ndim != 5 or len(shape) != 5 or kernel.shape != (*shape[:2], 1, *shape[3:]):
        return None
    return kernel.expand(shape) / shape[2]


def classifier_keys(network: nn.Module) -> list[str]:
    """Keys of the classifier's weight and bias in the network's state_dict: of its last nn.Linear."""
    linears = [(path, module) for path, module in network.named_modules() if isinstance(module, nn.Linear)]
    path, module = linears[-1] if linears else ("", nn.Identity())
    return [f"{path}.{name}" for name, _ in module.named_parameters()]


def _setting_of(network: nn.Module) -> OctaveSetting:
    built_from = getattr(network, "meta", {}).get("built_from")
    if built_from is not None:
        return OctaveSetting.built_from(built_from)
    convs = [m for m in network.modules() if isinstance(m, OctConv1d | OctConv2d | OctConv3d)]
    alpha = max((conv.partition_out.alpha for conv in convs), default=0.0)
    return OctaveSetting(alpha, "pool" if any(conv.downsample == "pool" for conv in convs) else "stride")


def _accuracy_warning(trained: OctaveSetting | None, used: OctaveSetting) -> str | None:
    if trained is None or trained.is_close(used):
        return None
    return f"trained at {trained} and used at {used}, so their accuracy is not kept until they are fine-tuned"
