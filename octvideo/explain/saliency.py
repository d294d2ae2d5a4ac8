"""Which places of a clip speak for a class, and by which path of a layer: Grad-CAM, and smoothed input gradients.

At a layer that gives a pair, `high` is what its channels at full resolution say, `low` what those at half resolution
say, and `both` is their sum. All three have one scale. Where a layer gives one map there is `both` alone.

The two paths mix in all layers before: each octave convolution passes information from high to low and from low to
high. So "by the low path" says in which channels of *this* layer something is held, not which details of the frames it
was made of. What the layers after it do with the two, the gradient follows.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from octvideo.errors import UserError
from octvideo.explain.layers import Watched, last_layer
from octvideo.octave import upsample

Method = Literal["gradcam", "gradients"]
PathName = Literal["high", "low", "both"]
NUM_SAMPLES, NOISE = 16, 0.15  # of SmoothGrad; the noise is a share of the clip's range


@dataclass(frozen=True)
class Saliency:
    """Maps of one clip.

    Args:
        maps: "high", "low" and "both", or "both" alone: float32 (T', h, w), 0 or more, all on one scale.
        layer: that was looked at.
        class_index: whose score was followed.
        logit: that score, before softmax.
        method: how.
        clip_shape: (T, H, W).
    """

    maps: Mapping[PathName, np.ndarray]
    layer: str
    class_index: int
    logit: float
    method: Method
    clip_shape: tuple[int, int, int]

    def upsampled(self, path: PathName) -> np.ndarray:
        """One path's maps at the size of the clip, float32 (T, H, W).

        In space they are interpolated; in time each frame has the map of the step that it belongs to.
        """
        _, height, width = self.clip_shape
        maps = torch.from_numpy(self.maps[path])
        if maps.shape[1:] != (height, width):
            maps = F.interpolate(maps[:, None], (height, width), mode="bilinear", align_corners=False)[:, 0]
        return maps.numpy()[self.step_of_frame]

    @property
    def step_of_frame(self) -> np.ndarray:
        """The time step that each of T frames belongs to."""
        return np.arange(self.clip_shape[0]) * len(self.maps["both"]) // self.clip_shape[0]

    @property
    def low_share(self) -> float | None:
        """The low path's part of the sum of both paths' maps; None without paths, or where all is 0."""
        if "low" not in self.maps:
            return None
        high, low = float(self.maps["high"].mean()), float(self.maps["low"].mean())
        return low / (high + low) if high + low > 0 else None


def explain_clip(
    network: nn.Module,
    clip: Tensor,
    class_index: int | None = None,
    *,
    method: Method = "gradcam",
    layer: str | None = None,
    num_samples: int = NUM_SAMPLES,
    noise: float = NOISE,
    seed: int = 0,
) -> Saliency:
    """Which places of a clip raise the score of a class.

    "gradcam" (Selvaraju et al. 2017, arXiv 1610.02391): the layer's channels, each weighted by the mean of its gradient
    over positions and time, added up, and what is below 0 left out. There is one map for each of the layer's time
    steps. Channels at half resolution count as often as they are repeated, so `both` is what Grad-CAM gives for the
    merged map.

    "gradients" (SmoothGrad, Smilkov et al. 2017, arXiv 1706.03825): the gradient with respect to the pixels, the mean
    over noisy copies of the clip, its size summed over colours. For `high` it goes from the score back to the layer,
    from there through the high channels alone, and on to the pixels by all ways that lead there; for `low` likewise.
    Their sum before the size is taken is `both`. What passes beside the layer, as by a shortcut around it, is in none.

    Args:
        network: clips to logits; it is run in eval, and left as it is.
        clip: normalised, (3, T, H, W), on the network's device.
        class_index: None is the class with the highest score.
        method: see above.
        layer: name of a module; None is `last_layer`.
        num_samples: noisy copies, of "gradients".
        noise: their standard deviation, as a share of the clip's range.
        seed: of the noise.

    Raises:
        UserError: no such layer, one that gives no maps or that the score does not depend on, or no such class.

    Example:
        >>> from octvideo.models import i3d_small
        >>> found = explain_clip(i3d_small(num_classes=5, alpha=0.25), torch.randn(3, 4, 32, 32), 2)
        >>> {path: maps.shape for path, maps in found.maps.items()}
        {'high': (2, 2, 2), 'low': (2, 2, 2), 'both': (2, 2, 2)}
    """
    if method not in get_args(Method):
        raise UserError(f"method: got {method!r}, expected {' or '.join(get_args(Method))}")
    was_training = network.training
    network.eval()
    try:
        clips = clip[None].detach()  # (1,3,T,H,W)
        layer = layer or last_layer(network, clips)
        with Watched(network, layer) as watched, torch.enable_grad():
            logits, values = watched(clips.clone().requires_grad_())
            chosen = _chosen_class(logits[0], class_index)
            if method == "gradcam":
                parts = _grad_cam(values, _gradients(watched, logits, values, chosen, keep=False))
            else:
                parts = _smooth_gradients(watched, clips, chosen, num_samples, noise, seed)
    finally:
        network.train(was_training)
    maps = {path: x.float().cpu().numpy() for path, x in parts.items()}
    shape: tuple[int, int, int] = tuple(clip.shape[1:])  # type: ignore[assignment]
    return Saliency(maps, layer, chosen, float(logits[0, chosen].detach()), method, shape)


def _chosen_class(logits: Tensor, class_index: int | None) -> int:
    if class_index is None:
        return int(logits.argmax())
    if not 0 <= class_index < len(logits):
        raise UserError(f"class {class_index}: expected 0 to {len(logits) - 1}")
    return class_index


def _gradients(watched: Watched, logits: Tensor, maps: list[Tensor], class_index: int, *, keep: bool) -> list[Tensor]:
    """Of the class's score with respect to the layer's maps."""
    found = torch.autograd.grad(logits[0, class_index], maps, retain_graph=keep, allow_unused=True)
    if all(gradient is None for gradient in found):
        raise UserError(f"the scores do not depend on layer '{watched.layer}': take a later one")
    return [torch.zeros_like(x) if g is None else g for x, g in zip(maps, found, strict=True)]


def _grad_cam(values: list[Tensor], gradients: list[Tensor]) -> dict[PathName, Tensor]:
    both = zip(values, gradients, strict=True)
    of_paths = [(_with_time(x.detach()), _with_time(gradient)) for x, gradient in both]  # (C,T',h,w) each
    positions = of_paths[0][0][0].numel()  # of the merged map: the gradient of a low position is the sum of its copies'
    weights = [gradient.sum((1, 2, 3), keepdim=True) / positions for _, gradient in of_paths]
    cams = [(x * weight).sum(0) for (x, _), weight in zip(of_paths, weights, strict=True)]  # (T',h,w) each
    if len(cams) == 1:
        return {"both": cams[0].relu()}
    cams[1] = _like(cams[1], cams[0])
    return {"high": cams[0].relu(), "low": cams[1].relu(), "both": (cams[0] + cams[1]).relu()}


def _with_time(x: Tensor) -> Tensor:
    """A clip's map (C, T', h, w); a network of images has the frames of a clip as its batch."""
    return x.transpose(0, 1) if x.dim() == 4 else x[0]


def _like(low: Tensor, high: Tensor) -> Tensor:
    """A map (T', h, w) repeated to the size of another one, as the network's own layers do it."""
    factor = tuple(1 if a == b else 2 for a, b in zip(low.shape, high.shape, strict=True))
    return upsample(low[None, None], high.shape, factor)[0, 0]


def _smooth_gradients(
    watched: Watched, clips: Tensor, class_index: int, num_samples: int, noise: float, seed: int
) -> dict[PathName, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    deviation = noise * float(clips.max() - clips.min())
    sums: list[Tensor] = []
    for _ in range(max(1, num_samples)):
        drawn = torch.randn(clips.shape, generator=generator).to(clips)
        noisy = (clips + deviation * drawn).requires_grad_()
        logits, maps = watched(noisy)
        gradients = _gradients(watched, logits, maps, class_index, keep=True)
        for n, (x, gradient) in enumerate(zip(maps, gradients, strict=True)):
            (at_pixels,) = torch.autograd.grad(x, noisy, gradient, retain_graph=n + 1 < len(maps))
            if len(sums) <= n:
                sums.append(torch.zeros_like(clips))
            sums[n] += at_pixels
    means = [total[0] / max(1, num_samples) for total in sums]  # (3,T,H,W)
    sizes = [mean.abs().sum(0) for mean in (*means, sum(means))]  # type: ignore[union-attr]
    return {"both": sizes[0]} if len(means) == 1 else dict(zip(get_args(PathName), sizes, strict=True))
