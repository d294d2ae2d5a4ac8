"""The pointing game on the demo: is the strongest point of saliency on the moving object, more often than by chance?"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from lab.explain.clips import Demo, DemoClip
from octvideo.explain import Method, Saliency, explain_clip, pointing_chance, pointing_trial, shuffled_networks
from octvideo.explain.layers import last_layer
from octvideo.files import markdown

_DRAWS = 10_000
_SAMPLES = 8  # of smoothed gradients
_CELLS = 8  # along each side: single pixels of gradients are noise, so their strongest cell is taken
HEADER = (
    "network", "layer", "method", "path", "clips", "hits, % (95 %)", "chance, %", "times chance",
    "middle of the clip, %", "hits where the middle misses, %",
)  # fmt: skip


@dataclass
class Game:
    """All trials of one arm.

    Args:
        scenes: of each trial; trials of a scene are alike, so that intervals resample scenes.
        hits, chances, centres: of each trial.
    """

    scenes: list[tuple[int, int]] = field(default_factory=list)
    hits: list[bool] = field(default_factory=list)
    chances: list[float] = field(default_factory=list)
    centres: list[bool] = field(default_factory=list)

    def add(self, saliency: Saliency, path: Any, clip: DemoClip) -> None:
        trial = pointing_trial(saliency, path, clip.boxes)
        chance = pointing_chance(saliency, clip.boxes)
        self.scenes.append(clip.scene)
        self.hits.append(trial.hit if trial else False)  # a map that is 0 everywhere points at nothing
        self.chances.append(trial.chance if trial else chance)
        self.centres.append(trial.centre_hit if trial else False)

    def interval(self) -> tuple[float, float]:
        """Of the share of hits: 95 %, by resampling scenes."""
        names = sorted(set(self.scenes))
        place = {name: n for n, name in enumerate(names)}
        hits, counts = np.zeros(len(names)), np.zeros(len(names))
        for scene, hit in zip(self.scenes, self.hits, strict=True):
            hits[place[scene]] += hit
            counts[place[scene]] += 1
        drawn = np.random.default_rng(0).integers(0, len(names), (_DRAWS, len(names)))
        shares = hits[drawn].sum(1) / counts[drawn].sum(1)
        low, high = np.quantile(shares, (0.025, 0.975))
        return float(low), float(high)

    def row(self) -> tuple[str, ...]:
        hits, centres = np.array(self.hits), np.array(self.centres)
        low, high = self.interval()
        chance = float(np.mean(self.chances))
        away = hits[~centres]
        return (
            str(len(hits)),
            f"{100 * hits.mean():.1f} ({100 * low:.1f}–{100 * high:.1f})",
            f"{100 * chance:.1f}",
            f"{hits.mean() / chance:.1f}",
            f"{100 * centres.mean():.1f}",
            f"{100 * away.mean():.1f} of {len(away)}" if len(away) else "",
        )


def play(demo: Demo, clips: Iterable[DemoClip], *, watch: Callable[[Any], Any] = iter) -> dict[tuple[str, ...], Game]:
    """Plays with each network at its own layer, and with all at the first one's; then with all weights shuffled.

    Args:
        demo: networks; the first is the octave one.
        clips: to play on.
        watch: sees them go by.

    Returns:
        Games by network, layer, method and path.
    """
    clips = list(clips)
    like = clips[0].pixels[None]
    layers = {run: last_layer(network, like) for run, network in demo.networks.items()}
    first = next(iter(layers.values()))
    arms = [(run, network, layers[run], "gradcam") for run, network in demo.networks.items()]
    arms += [(run, network, first, "gradcam") for run, network in demo.networks.items() if layers[run] != first]
    arms += [(run, network, first, "gradients") for run, network in demo.networks.items()]
    for run, network in demo.networks.items():
        *_, (_, shuffled) = shuffled_networks(network)
        arms.append((f"{run}, weights shuffled", shuffled, first, "gradcam"))
    games: dict[tuple[str, ...], Game] = {}
    for number, clip in enumerate(watch(clips)):
        for run, network, layer, method in arms:
            # Gradients take many passes: of a quarter of the crops, another corner for each clip.
            if method == "gradients" and clip.corner != number // 4 % 4:
                continue
            found = explained(network, clip, layer, method)  # type: ignore[arg-type]
            for path in found.maps:
                games.setdefault((run, layer, method, path), Game()).add(found, path, clip)
    return games


def explained(network: torch.nn.Module, clip: DemoClip, layer: str, method: Method) -> Saliency:
    """Saliency for the clip's own class; of gradients the means of cells."""
    found = explain_clip(network, clip.pixels, clip.label, layer=layer, method=method, num_samples=_SAMPLES)
    if method == "gradcam":
        return found
    maps = {
        path: F.adaptive_avg_pool2d(torch.from_numpy(each)[:, None], _CELLS)[:, 0].numpy()
        for path, each in found.maps.items()
    }
    return replace(found, maps=maps)


def game_table(games: dict[tuple[str, ...], Game]) -> str:
    """Markdown."""
    return markdown(HEADER, [(*key, *game.row()) for key, game in games.items()], left=4)
