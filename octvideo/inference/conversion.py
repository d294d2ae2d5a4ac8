"""Trained ordinary networks, made octave without training.

A converted network is a network of its builder like any other: with the low share of each convolution, and weights
whose channels have new places. `octvideo.octave.Calibration` says how it is made.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

import torch
from pytorchvideo.models.head import ResNetBasicHead
from torch import Tensor, nn

import octvideo.models as models
from octvideo.class_names import read_class_names
from octvideo.errors import UserError
from octvideo.evaluation.scoring import Scoring
from octvideo.inference.checkpoint import network_of_checkpoint
from octvideo.inference.choice import clock_of, measured
from octvideo.inference.preparation import Normaliser
from octvideo.models.layers import LEAVES
from octvideo.models.library import CLIP_FORMS, LIBRARY_NETWORKS, FrameNetwork
from octvideo.models.weights import library_pixels, load_weights, read_weights
from octvideo.octave import Calibration, OctaveReport, count_cost, octavize, prepare_inference
from octvideo.video import VideoReadError, ViewSettings, read_views

# Builders of ours that have a hub network's keys and scores.
_OURS = {name: name for name in ("c2d_r50", "i3d_r50", "slow_r50", "x3d_xs", "x3d_s", "x3d_m", "x3d_l", "csn_r101")}
_OURS |= {"slowfast_r50": "slowfast_8x8_r50", "r2plus1d_r50": "r2plus1d_r50"}
_HELD_OUT = 5  # of so many videos one is left for the comparison of scores
# What `Calibration` knows of each: choose, spread, refit.
CHOICES = {name: get_args(hint) for name, hint in get_type_hints(Calibration).items() if get_origin(hint) is Literal}


# -- where networks come from --------------------------------------------------------------------------------


@dataclass(frozen=True)
class Trained:
    """A network with its weights, and what its scores depend on.

    Args:
        network: made by a builder of octvideo.models, in eval.
        class_names: K names.
        views: how clips are cut from a video.
        mean, std: per channel, of pixels scaled to [0, 1].
        source: where it comes from, in words.
        scoring: what makes scores of logits.
    """

    network: nn.Module
    class_names: Sequence[str]
    views: ViewSettings
    mean: Sequence[float]
    std: Sequence[float]
    source: str
    scoring: Scoring = field(default_factory=Scoring)

    @property
    def built_from(self) -> dict[str, Any]:
        """Its builder, and the builder's arguments."""
        return self.network.meta["built_from"]  # type: ignore[index, return-value, union-attr]


def trained_checkpoint(path: str | Path) -> Trained:
    """The ordinary network of a checkpoint of octvideo.

    Raises:
        UserError: no such file, none of ours, or no ordinary network with strides.
    """
    network, settings = network_of_checkpoint(path)
    trained = Trained(network, **settings)
    given = trained.built_from["init_args"]
    shares = given["alpha"]
    if any(shares.values() if isinstance(shares, Mapping) else [shares]):
        raise UserError(f"{path} holds an octave network already (alpha {shares}): give the ordinary one")
    if given.get("shift"):
        raise UserError(
            f"{path} was trained with temporal shift, and such networks are not converted: train the octave network "
            "from these weights (octvideo fit --init)"
        )
    if given["downsample"] == "pool":
        raise UserError(
            f"{path} was trained with downsample pool, and networks with strides are converted: train one with "
            "downsample stride, or train the octave network from these weights (octvideo fit --init)"
        )
    return trained


def trained_by_name(name: str, *, weights: str | None = None, num_classes: int | None = None) -> Trained:
    """A network of a library, with the library's weights or others.

    Args:
        name: "pytorchvideo:x3d_s", "torchvision:resnet50", "timm:efficientnet_lite0", ...
        weights: a file or URL in place of the library's.
        num_classes: K; None is 400 for networks of clips and 1000 for those of images.

    Raises:
        UserError: no such network, or weights that do not fit.
    """
    library, _, own = name.partition(":")
    of_clips = name in LIBRARY_NETWORKS or (library == "pytorchvideo" and own in _OURS)
    num_classes = num_classes or (400 if of_clips else 1000)
    init_args: dict[str, Any] = {"num_classes": num_classes, "alpha": 0.0, "downsample": "stride"}
    if library == "pytorchvideo" and own in _OURS:
        builder = _OURS[own]
    else:
        builder = "video_network" if of_clips else "frame_network"
        init_args["network"] = name
    network = getattr(models, builder)(**init_args)
    found = read_weights(weights or name)
    load_weights(network, found, head="strict")
    size = 256 if of_clips else 224
    frames, stride = 8, 8
    if (library, of_clips) == ("torchvision", True):
        frames, stride, size = 16, 2, 112
    elif of_clips and own in CLIP_FORMS:
        form = CLIP_FORMS[own]
        frames, stride, size = form.frames, form.stride, form.test_px
    views = ViewSettings(clip_frames=frames, frame_stride=stride, short_side_px=size, crop_px=size)
    names = [str(n) for n in range(num_classes)]
    if of_clips and num_classes == 400:
        names = read_class_names("kinetics400")
    pixels = found.pixels or library_pixels(name)
    source = f"{name} with weights of {found.source}"
    return Trained(network.eval(), names, views, pixels.mean, pixels.std, source)


# -- clips ---------------------------------------------------------------------------------------------------


class Clips(Sequence[Tensor]):
    """Clips kept as pixels and normalised when they are asked for: a quarter of the memory.

    Args:
        pixels: uint8 (1, 3, T, H, W) each.
        videos: the path of each one's video.
        mean, std: per channel, of pixels scaled to [0, 1].
    """

    def __init__(
        self, pixels: Sequence[Tensor], videos: Sequence[str], mean: Sequence[float], std: Sequence[float]
    ) -> None:
        self.pixels, self.videos, self._mean, self._std = pixels, videos, mean, std
        self._normalise = Normaliser(mean, std, torch.device("cpu"))

    def __len__(self) -> int:
        return len(self.pixels)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return self.take(range(len(self))[index])
        return self._normalise(self.pixels[index])

    def take(self, indices: Iterable[int]) -> Clips:
        """Some of them."""
        taken = list(indices)
        return Clips([self.pixels[n] for n in taken], [self.videos[n] for n in taken], self._mean, self._std)

    def shared_out(self) -> tuple[Clips, Clips]:
        """Clips to work on, and others to compare scores on: all of every fifth video. Clips of a video are alike, so
        that those of a single one, the last fifth, say little; and one clip has to do for both.
        """
        held = set(list(dict.fromkeys(self.videos))[::_HELD_OUT])
        if held != set(self.videos):
            is_held = [video in held for video in self.videos]
        else:
            is_held = [n >= len(self) - max(1, len(self) // _HELD_OUT) for n in range(len(self))]
        compared = self.take(n for n, is_one in enumerate(is_held) if is_one)
        return self.take(n for n, is_one in enumerate(is_held) if not is_one or len(self) == 1), compared


class Frames(Sequence[Tensor]):
    """The frames of clips, (T, 3, H, W) each, for networks of images.

    Args:
        clips: (1, 3, T, H, W) each.
    """

    def __init__(self, clips: Sequence[Tensor]) -> None:
        self._clips = clips

    def __len__(self) -> int:
        return len(self._clips)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return Frames(self._clips[index])
        return self._clips[index][0].transpose(0, 1).contiguous()


def read_clips(
    videos: Sequence[str],
    trained: Trained,
    count: int,
    *,
    watch: Callable[[Sequence[str]], Iterable[str]] = iter,
) -> tuple[Clips, list[tuple[str, str]]]:
    """Clips spread evenly over the videos, and over each video's length.

    Args:
        videos: paths.
        trained: whose views they are.
        count: of clips, at most.
        watch: sees the paths go by.

    Returns:
        The clips, and path and reason of each video that can't be read.

    Raises:
        UserError: none can be read.
    """
    chosen = [videos[n * len(videos) // min(count, len(videos))] for n in range(min(count, len(videos)))]
    each = max(1, count // len(chosen))
    views = replace(trained.views, num_clips=each, num_crops=1)
    pixels: list[Tensor] = []
    sources: list[str] = []
    unreadable = []
    for video in watch(chosen):
        try:
            pixels += read_views(video, views).split(1)
            sources += [video] * (len(pixels) - len(sources))
        except VideoReadError as error:
            unreadable.append((video, error.reason))
    if not pixels:
        raise UserError(f"none of {len(chosen)} videos can be read, the first for {unreadable[0][1]}")
    return Clips(pixels, sources, trained.mean, trained.std), unreadable


# -- conversion ----------------------------------------------------------------------------------------------


def convert(
    trained: Trained,
    clips: Sequence[Tensor],
    alpha: float | Mapping[str, float],
    octave: Mapping[str, Any],
    **options: Any,
) -> Trained:
    """The network, made octave.

    Args:
        trained: an ordinary one.
        clips: float32 (1, 3, T, H, W) each.
        alpha: the low share, where the builder applies one, or shares by module path prefix.
        octave: options of octave layers, as builders take them.
        options: of `Calibration`.

    Returns:
        The octave network, of the same builder; its weights have the ordinary network's keys.

    Raises:
        UserError: an alpha or an option that the builder refuses.
    """
    octave = {"octave_downsample": "keep", **octave}
    init_args = {**trained.built_from["init_args"], "downsample": "stride", "octave": octave}
    with torch.device("meta"):  # for its shares alone
        shares = _inner(_built(trained, {**init_args, "alpha": alpha})).octave_report.alpha
    ordinary = _inner(trained.network)
    inputs = Frames(clips) if isinstance(trained.network, FrameNetwork) else clips
    how = {key: value for key, value in octave.items() if key not in ("leaf_modules", "factor")}
    made = octavize(
        ordinary,
        shares,
        leaf_modules=[*LEAVES, ResNetBasicHead, *octave.get("leaf_modules", ())],
        factor=tuple(octave["factor"]) if octave.get("factor") else None,
        calibration=Calibration(inputs, **options),
        **how,
    )
    network = _built(trained, {**init_args, "alpha": dict(made.octave_report.alpha)})  # type: ignore[arg-type]
    inner = _inner(network)
    inner.load_state_dict(made.state_dict())
    inner.meta["octave"] = made.octave_report
    return replace(trained, network=network.eval())


def untouched(trained: Trained, alpha: float | Mapping[str, float], octave: Mapping[str, Any]) -> Trained:
    """What `convert` gives, but for its weights, which are the ordinary network's: to know what it costs.

    Args:
        trained, alpha, octave: of `convert`.
    """
    octave = {"octave_downsample": "keep", **octave}
    init_args = {**trained.built_from["init_args"], "downsample": "stride", "octave": octave}
    network = _built(trained, {**init_args, "alpha": alpha})
    network.load_state_dict(trained.network.state_dict())
    return replace(trained, network=network.eval())


def with_weights(trained: Trained, path: str | Path) -> Trained:
    """The same network with the weights of a checkpoint."""
    network = copy.deepcopy(trained.network)
    load_weights(network, read_weights(path), head="strict")
    return replace(trained, network=network.eval())


def _built(trained: Trained, init_args: Mapping[str, Any]) -> nn.Module:
    name = trained.built_from["class_path"].rpartition(".")[2]
    return getattr(models, name)(**init_args)


def _inner(network: nn.Module) -> Any:
    return network.image_network if isinstance(network, FrameNetwork) else network


def report_of(trained: Trained) -> OctaveReport:
    """What became octave, and what was done with clips."""
    return _inner(trained.network).octave_report


def channels_of(trained: Trained) -> tuple[dict[str, list[float]], dict[str, list[int]]]:
    """Of each group of layers, by the first of them: the share of each channel's variance that half resolution cannot
    hold; and which channels are low, by the ordinary network's indices.
    """
    details, low = {}, {}
    calibration = report_of(trained).calibration
    assert calibration is not None
    for name, loss in calibration.losses.items():
        details[name] = (loss.detail / loss.energy.clamp_min(1e-30)).clamp(0, 1).tolist()
        order = calibration.orders.get(name, tuple(range(len(loss.detail))))
        count = round(calibration.shares[name] * len(order))
        low[name] = sorted(order[len(order) - count :])
    return details, low


# -- what it is worth ----------------------------------------------------------------------------------------


def logits_of(network: nn.Module, clips: Sequence[Tensor]) -> Tensor:
    """(M, K) of M clips."""
    prepared = prepare_inference(network)
    with torch.inference_mode():
        return torch.cat([prepared(clip) for clip in clips])


def share_of_multiply_adds(octave: Trained, ordinary: Trained) -> float:
    """The octave network's, of the ordinary one's."""
    views = ordinary.views
    shape = (1, 3, views.clip_frames, views.crop_px, views.crop_px)
    return count_cost(octave.network, shape).multiply_adds / count_cost(ordinary.network, shape).multiply_adds


def cpu_seconds(networks: Sequence[nn.Module], clip: Tensor) -> list[float]:
    """CPU seconds of each network on a clip (1, 3, T, H, W), prepared in float32, in turns and on one thread: what else
    the machine does changes them least.
    """
    prepared = dict(enumerate(map(prepare_inference, networks)))
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with torch.inference_mode():
            found = measured(prepared, clip, clock_of(1))
    finally:
        torch.set_num_threads(threads)
    return [float(found[n]) for n in prepared]


def alpha_for(share: float, measure: Callable[[float], float], *, most: float = 0.75, steps: int = 6) -> float:
    """The least alpha at which `measure` gives `share` or less, by halving.

    Args:
        share: wanted.
        measure: of an alpha, falling.
        most: the largest alpha tried.
        steps: halvings.

    Raises:
        UserError: it is not reached.
    """
    if (least := measure(most)) > share:
        raise UserError(f"got {share:g}, but at alpha {most:g} it is {least:.3f} still: ask for more")
    low, high = 0.0, most
    for _ in range(steps):
        middle = (low + high) / 2
        low, high = (low, middle) if measure(middle) <= share else (middle, high)
    return high
