"""Octave convolution: features at two resolutions, layers for them, and the conversion of whole networks.

Needs torch only. Start with `octavize` (a network) or `OctConv3d` (a layer).
"""

from octvideo.octave.conv import Downsample, OctConv1d, OctConv2d, OctConv3d
from octvideo.octave.convert import OctaveNetwork, OctaveReport, octavize
from octvideo.octave.cost import Cost, count_cost, layer_flop_ratio, layer_memory_ratio
from octvideo.octave.features import Octave, merge, pool_down, split, upsample
from octvideo.octave.norms import OctBatchNorm1d, OctBatchNorm2d, OctBatchNorm3d
from octvideo.octave.partition import Partition, split_channels

__all__ = [
    "Cost",
    "Downsample",
    "OctBatchNorm1d",
    "OctBatchNorm2d",
    "OctBatchNorm3d",
    "OctConv1d",
    "OctConv2d",
    "OctConv3d",
    "Octave",
    "OctaveNetwork",
    "OctaveReport",
    "Partition",
    "count_cost",
    "layer_flop_ratio",
    "layer_memory_ratio",
    "merge",
    "octavize",
    "pool_down",
    "split",
    "split_channels",
    "upsample",
]
