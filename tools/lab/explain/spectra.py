"""What channels lose at half resolution against depth: of video networks as built, of image networks as trained."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

import octvideo.models as models
from lab.probes.depth import depth_table
from lab.probes.networks import NETWORKS, load_network
from octvideo.errors import UserError
from octvideo.explain import LayerSpectrum, channel_spectra
from octvideo.files import walk_videos, whole_file, whole_text
from octvideo.inference.preparation import Normaliser
from octvideo.video import VideoReadError, ViewSettings, read_views

matplotlib.use("agg")
import matplotlib.pyplot as plt

Spectra = Mapping[str, LayerSpectrum]
_COLOURS = ("#2a78b5", "#d9622b", "#8a8a8a")
_NORMED_ON = 8  # clips, of which norms of random networks take their statistics


@dataclass(frozen=True)
class VideoNetwork:
    """A network of clips with the weights that it is built with.

    Args:
        title: for the picture.
        build: makes it.
        frames, px: of a clip.
        parts: path prefixes that are drawn apart, by name.
    """

    title: str
    build: Callable[[], nn.Module]
    frames: int
    px: int
    parts: Mapping[str, str]


VIDEO_NETWORKS = (
    VideoNetwork(
        "ResNet-50 on frames",
        lambda: models.frame_network("torchvision:resnet50", 400, 0.0),
        8,
        224,
        {"": "random weights"},
    ),
    VideoNetwork("I3D-50", lambda: models.i3d_r50(400, 0.0), 8, 224, {"": "random weights"}),
    VideoNetwork(
        "SlowFast-50",
        lambda: models.slowfast_r50(400, 0.0),
        32,
        224,
        {"multipathway_blocks.0": "slow, random weights", "multipathway_blocks.1": "fast, random weights"},
    ),
    VideoNetwork("X3D-S", lambda: models.x3d_s(400, 0.0), 13, 160, {"": "random weights"}),
)


def draw_evidence(
    folders: Sequence[str],
    weights: Sequence[str],
    num_clips: int,
    output: Path,
    *,
    watch: Callable[[Any, str], Any],
) -> None:
    """Writes spectra.png and spectra.md.

    Args:
        folders: of videos.
        weights: NETWORK=FILE of image networks.
        num_clips: a clip each of so many videos, spread over all of them.
        output: a folder.
        watch: (items, text) to the items: for progress.

    Raises:
        UserError: no videos, or no such network or file.
    """
    videos = [Path(folder, video) for folder in folders for video in walk_videos(folder)]
    if not videos:
        raise UserError(f"no videos in {', '.join(folders)}")
    videos = [videos[n * len(videos) // num_clips] for n in range(min(num_clips, len(videos)))]
    lines: dict[str, dict[str, Spectra]] = {}
    for own in VIDEO_NETWORKS:
        network = _as_built(own.build, 0)
        clips = _Clips(videos, own.frames, own.px, Normaliser((0.45,) * 3, (0.225,) * 3, torch.device("cpu")))
        _take_statistics(network, clips)
        found = channel_spectra(network, watch(clips, own.title))
        for prefix, name in own.parts.items():
            own_part = {layer: each for layer, each in found.items() if f".{prefix}" in f".{layer}"}
            lines.setdefault(own.title, {})[name] = own_part
    for text in weights:
        name, _, file = text.partition("=")
        if name not in NETWORKS or not file:
            raise UserError(f"--weights: got {text!r}, expected NETWORK=FILE with a network of {', '.join(NETWORKS)}")
        like = NETWORKS[name]
        clips = _Clips(videos, 8, 224, lambda views, like=like: like.clip(views[0].transpose(0, 1)))  # type: ignore
        title = {"efficientnet_lite0": "EfficientNet-Lite0", "mobilenet_v2": "MobileNetV2"}.get(name, name)
        random = _as_built(like.build, 0)
        _take_statistics(random, clips)
        lines[title] = {
            "trained on ImageNet": channel_spectra(load_network(name, Path(file)), watch(clips, title)),
            "random weights": channel_spectra(random, watch(clips, f"{title}, random weights")),
        }
    with whole_file(output / "spectra.png") as part:
        draw_lines(lines, part)
    shares = {
        (network, name, " and ".join(Path(folder).name for folder in folders)): {
            layer: torch.from_numpy(each.lost) for layer, each in spectra.items()
        }
        for network, of_network in lines.items()
        for name, spectra in of_network.items()
    }
    with whole_text(output / "spectra.md") as text_file:
        print(depth_table(shares), file=text_file)


def _as_built(build: Callable[[], nn.Module], seed: int) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return build().eval()


@torch.no_grad()
def _take_statistics(network: nn.Module, clips: Sequence[Tensor]) -> None:
    """Gives norms the statistics of some clips, as in training: else random channels are not centred."""
    norms = [module for module in network.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # the mean over all clips
        norm.train()
    for n in range(min(_NORMED_ON, len(clips))):
        network(clips[n])
    network.eval()


class _Clips(Sequence[Tensor]):
    """The middle clip of each video, as a network takes it; of those that can be read."""

    def __init__(self, videos: Sequence[Any], frames: int, px: int, prepare: Callable[[Tensor], Tensor]) -> None:
        views = ViewSettings(frames, 2, num_clips=1, num_crops=1, short_side_px=px, crop_px=px)
        self._pixels: list[Tensor] = []
        for video in videos:
            try:
                self._pixels.append(read_views(video, views))
            except VideoReadError:
                continue
        self._prepare = prepare

    def __len__(self) -> int:
        return len(self._pixels)

    def __getitem__(self, index: Any) -> Any:
        return self._prepare(self._pixels[index])

    def __iter__(self) -> Iterator[Tensor]:
        return (self[n] for n in range(len(self)))


def draw_lines(lines: Mapping[str, Mapping[str, Spectra]], file: Path) -> None:
    """A panel for each network: the medians of layers against depth, and bands from the 10th to the 90th percentile."""
    columns = 2
    rows = -(-len(lines) // columns)
    figure, axes = plt.subplots(rows, columns, figsize=(11, 3.3 * rows), sharey=True, squeeze=False)
    for axis in axes.flat[len(lines) :]:
        axis.set_visible(False)
    for axis, (title, of_network) in zip(axes.flat, lines.items(), strict=False):
        for (name, spectra), colour in zip(of_network.items(), _COLOURS, strict=False):
            low, median, high = (
                np.array([np.quantile(each.lost, at) for each in spectra.values()]) for at in (0.1, 0.5, 0.9)
            )
            depth = np.linspace(0, 1, len(median))
            axis.plot(depth, median, "-", color=colour, linewidth=1.4, label=f"{name} ({len(median)} convolutions)")
            axis.fill_between(depth, low, high, color=colour, alpha=0.15, linewidth=0)
        _mark_sizes(axis, next(iter(of_network.values())))
        axis.set_title(title, loc="left", fontsize=11)
        axis.set_ylim(0, 1)
        axis.set_xlim(0, 1)
        axis.legend(frameon=False, fontsize=8.5, loc="lower right")
        axis.spines[["top", "right"]].set_visible(False)
    for axis in axes[:, 0]:
        axis.set_ylabel("share of the variance that\nhalf resolution cannot hold")
    for axis in axes.flat[max(0, len(lines) - columns) : len(lines)]:
        axis.set_xlabel("depth: from the first convolution to the last")
    figure.tight_layout()
    drawn = io.BytesIO()
    figure.savefig(drawn, dpi=90, format="png")
    plt.close(figure)
    with Image.open(drawn) as image:  # in few colours, which is a third of the bytes
        image.convert("RGB").quantize(128).save(file, format="PNG", optimize=True)


def _mark_sizes(axis: Any, spectra: Spectra) -> None:
    """Lines where maps become smaller, and their size."""
    sizes = [min(each.size) for each in spectra.values()]
    places = {n / max(1, len(sizes) - 1): size for n, size in enumerate(sizes) if n == 0 or size < min(sizes[:n])}
    for depth, size in places.items():
        if depth:
            axis.axvline(depth, color="#b8bec7", linewidth=0.8, linestyle=":")
        if any(depth < other < depth + 0.07 for other in places):
            continue  # no room for its size
        axis.text(depth + 0.006, 0.985, f"{size} px", fontsize=7, color="#6d737d", va="top")
