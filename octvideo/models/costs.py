"""What the networks cost at several alphas, beside the ordinary network and the paper's figures."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch

import octvideo.models as models
from octvideo.errors import UserError
from octvideo.files import one_line
from octvideo.models.library import CLIP_FORMS, LIBRARY_NETWORKS
from octvideo.octave import Cost, count_cost

Clip = tuple[int, ...]
CLIP: Clip = (1, 3, 8, 224, 224)
# Multiply-adds in G of (network, alpha) on CLIP: Table 8 of arXiv 1904.05049.
PAPER = {("c2d_r50", 0.0): 19.3, ("c2d_r50", 0.1): 17.4, ("i3d_r50", 0.0): 28.1, ("i3d_r50", 0.1): 25.6}

HEADER = (
    "network", "alpha", "multiply-adds (G)", "of ordinary", "paper (G)", "parameters (M)", "activations (MB)",
    "of ordinary",
)  # fmt: skip


def parse_clip(text: str) -> Clip | None:
    """`1x3x8x224x224` as numbers; `own` as None.

    Raises:
        UserError: it is not five positive numbers, with three channels.
    """
    if text == "own":
        return None
    sizes = tuple(int(size) if size.isdecimal() else 0 for size in text.split("x"))
    if len(sizes) != 5 or min(sizes) < 1 or sizes[1] != 3:
        raise UserError(f"clip: got {text!r}, expected NxCxTxHxW with C = 3, such as 1x3x8x224x224, or own")
    return sizes


def cost_rows(
    networks: Sequence[str], alphas: Sequence[float], *, clip: Clip | None = CLIP, num_classes: int = 400
) -> Iterator[tuple[str, ...]]:
    """Counts every network at every alpha; nothing is computed, so this takes seconds.

    Args:
        networks: names of builders of octvideo.models, or networks of libraries (pytorchvideo:x3d_s, timm:resnet26).
        alphas: low shares.
        clip: (N, C, T, H, W). None is one of each network's own size, which is named then: what it was published
            with, else that of `CLIP`.
        num_classes: K.

    Returns:
        Rows of text, in the order of HEADER; activations in float32.

    Raises:
        UserError: no such network, an alpha or a class count out of range, or a clip too short.
    """
    for name in networks:
        size = clip or _own_clip(name)
        ordinary = _count(name, 0.0, size, num_classes)
        for alpha in alphas:
            cost = ordinary if alpha == 0 else _count(name, alpha, size, num_classes)
            paper_giga = PAPER.get((name, alpha)) if size == CLIP else None
            yield (
                name if clip else f"{name} {size[2]}x{size[3]}²",
                f"{alpha:g}",
                f"{cost.multiply_adds / 1e9:.2f}",
                f"{100 * cost.multiply_adds / ordinary.multiply_adds:.0f} %",
                "" if paper_giga is None else f"{paper_giga:.1f}",
                f"{cost.parameters / 1e6:.2f}",
                f"{4 * cost.activations / 1e6:.1f}",
                f"{100 * cost.activations / ordinary.activations:.0f} %",
            )


def _own_clip(name: str) -> Clip:
    form = CLIP_FORMS.get(name.removeprefix("pytorchvideo:"))
    return CLIP if form is None else (1, 3, form.frames, form.train_px, form.train_px)


def _count(name: str, alpha: float, clip: Clip, num_classes: int) -> Cost:
    if name not in models.__all__ and ":" not in name:
        raise UserError(f"no network {name!r}: there are {', '.join(models.__all__)}, and LIBRARY:NAME")
    with torch.device("meta"):  # nothing is allocated or initialised
        if ":" in name:
            build = models.video_network if name in LIBRARY_NETWORKS else models.frame_network
            network = build(name, num_classes=num_classes, alpha=alpha)
        else:
            network = getattr(models, name)(num_classes=num_classes, alpha=alpha)
    try:
        return count_cost(network, clip)
    except (RuntimeError, UserError) as error:
        shape, reason = "x".join(map(str, clip)), one_line(error)
        raise UserError(f"{name} takes no clip of {shape}: {reason}") from error
