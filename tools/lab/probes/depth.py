"""Spectrum against depth: which share of a channel's variance half resolution cannot hold, layer by layer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib
import numpy as np
from torch import Tensor

from octvideo.files import markdown

matplotlib.use("agg")
import matplotlib.pyplot as plt

# Of each layer in the order of computing: of each channel, the share of detail in its variance, (C,).
Shares = Mapping[str, Tensor]
HEADER = (
    "network", "weights", "data", "layers", "median, first third", "median, last third",
    "slowest quarter to all, median", "slowest quarter by both data sets, %",
)  # fmt: skip
_COLOURS = ("#2a78b5", "#d9622b", "#8a8a8a", "#c8b400")


def draw_depth(found: Mapping[tuple[str, str, str], Shares], file: Path) -> None:
    """A panel for each network: medians of layers, and bands from the 10th to the 90th percentile of channels.

    Args:
        found: by network, "trained" or "random" weights, and data.
        file: a PNG to write.
    """
    networks = list(dict.fromkeys(network for network, _, _ in found))
    figure, axes = plt.subplots(len(networks), 1, figsize=(11, 4.4 * len(networks)), squeeze=False, sharey=True)
    for axis, network in zip(axes[:, 0], networks, strict=True):
        lines = {key[1:]: shares for key, shares in found.items() if key[0] == network}
        for ((weights, data), shares), colour in zip(lines.items(), _COLOURS, strict=False):
            low, median, high = (
                np.array([float(np.quantile(each.numpy(), at)) for each in shares.values()]) for at in (0.1, 0.5, 0.9)
            )
            places = np.arange(len(median))
            axis.plot(places, median, "o-", color=colour, markersize=4, label=f"{weights} weights, {data}")
            axis.fill_between(places, low, high, color=colour, alpha=0.15, linewidth=0)
            axis.set_xticks(places, list(shares), rotation=90, fontsize=7)
        axis.set_title(f"{network}: medians of channels, and their 10th to 90th percentile", loc="left")
        axis.set_ylabel("share of the variance that\nhalf resolution cannot hold")
        axis.set_ylim(0, None)
        axis.grid(alpha=0.3)
        axis.legend(frameon=False, fontsize=9)
    figure.tight_layout()
    figure.savefig(file, dpi=110)
    plt.close(figure)


def depth_table(found: Mapping[tuple[str, str, str], Shares]) -> str:
    """What the picture shows, in figures."""
    rows = []
    for (network, weights, data), shares in found.items():
        layers = [each.numpy() for each in shares.values()]
        medians = [float(np.median(each)) for each in layers]
        third = max(1, len(layers) // 3)
        quarters = [float(np.mean(np.sort(each)[: max(1, len(each) // 4)]) / np.mean(each)) for each in layers]
        others = [found[key] for key in found if key[:2] == (network, weights) and key[2] != data]
        rows.append(
            (
                network,
                weights,
                data,
                str(len(layers)),
                f"{np.mean(medians[:third]):.2f}",
                f"{np.mean(medians[-third:]):.2f}",
                f"{np.median(quarters):.2f}",
                f"{100 * _agreement(layers, [each.numpy() for each in others[0].values()]):.0f}" if others else "",
            )
        )
    return markdown(HEADER, rows, left=3)


def _agreement(one: Sequence[np.ndarray], other: Sequence[np.ndarray]) -> float:
    """Of the slowest quarters of channels by one, the share that the other has, too."""
    same = total = 0
    for ours, theirs in zip(one, other, strict=True):
        count = max(1, len(ours) // 4)
        same += len(set(np.argsort(ours)[:count].tolist()) & set(np.argsort(theirs)[:count].tolist()))
        total += count
    return same / total
