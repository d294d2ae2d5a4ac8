"""How much saliency depends on what was learnt: rank correlation with the original, as weights are shuffled."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from lab.explain.clips import Demo, DemoClip
from lab.explain.pointing import explained
from octvideo.explain import Method, rank_correlation, shuffled_networks
from octvideo.explain.layers import last_layer
from octvideo.files import markdown

# By run, method, path and stage: the mean over clips.
Correlations = dict[tuple[str, str, str], dict[str, float]]


def stage_of(module: str) -> str:
    """The part of the network that a module belongs to: blocks.4."""
    return ".".join(module.split(".")[:2])


def compare(
    demo: Demo, clips: Sequence[DemoClip], methods: Sequence[Method], *, watch: Callable[[Any], Any] = iter
) -> Correlations:
    """Rank correlation of maps with the trained network's, after each stage of the network has been shuffled, too.

    Args:
        demo: networks.
        clips: to explain.
        methods: of `explain_clip`.
        watch: sees (run, stage) go by.
    """
    layer = last_layer(next(iter(demo.networks.values())), clips[0].pixels[None])
    found: Correlations = {}
    for run, network in demo.networks.items():
        before = {
            (method, n): explained(network, clip, layer, method).maps
            for method in methods
            for n, clip in enumerate(clips)
        }
        names = [name for name, _ in shuffled_networks(network)]
        ends = {name for name, after in zip(names, [*names[1:], ""], strict=True) if stage_of(name) != stage_of(after)}
        for name, shuffled in shuffled_networks(network):
            if name not in ends:
                continue
            for method in methods:
                sums: dict[str, list[float]] = {}
                for n, clip in enumerate(watch(clips)):
                    now = explained(shuffled, clip, layer, method).maps
                    for path, maps in before[method, n].items():
                        sums.setdefault(path, []).append(rank_correlation(maps, now[path]))
                for key, each in sums.items():
                    found.setdefault((run, method, key), {})[stage_of(name)] = float(np.mean(each))
    return found


def correlation_table(found: Correlations) -> str:
    """Markdown: a column for each stage, from the last one on."""
    stages = list(dict.fromkeys(stage for row in found.values() for stage in row))
    rows = [(*key, *(f"{row[stage]:.2f}" for stage in stages)) for key, row in found.items()]
    return markdown(("network", "method", "path", *(f"{stage} on" for stage in stages)), rows, left=3)
