"""Octave convolution: features at two resolutions, layers for them, and the conversion of whole networks.

Needs torch only. Start with `octavize` (a network) or `OctConv3d` (a layer).
"""

from octvideo.octave.conv import Downsample, Exchange, OctConv1d, OctConv2d, OctConv3d
from octvideo.octave.conversion.octavize import OctaveNetwork, octavize
from octvideo.octave.conversion.report import OctaveReport
from octvideo.octave.cost import Cost, count_cost, layer_flop_ratio, layer_memory_ratio
from octvideo.octave.factor import low_size
from octvideo.octave.features import Octave, merge, split
from octvideo.octave.fused.arrange import arrange
from octvideo.octave.fused.prepare import fuse_convolutions, prepare_inference
from octvideo.octave.norms import OctBatchNorm1d, OctBatchNorm2d, OctBatchNorm3d
from octvideo.octave.partition import Partition, split_channels
from octvideo.octave.resample import pool_down, upsample
from octvideo.octave.transposed import OctConvTranspose1d, OctConvTranspose2d, OctConvTranspose3d

__all__ = [
    "Cost",
    "Downsample",
    "Exchange",
    "OctBatchNorm1d",
    "OctBatchNorm2d",
    "OctBatchNorm3d",
    "OctConv1d",
    "OctConv2d",
    "OctConv3d",
    "OctConvTranspose1d",
    "OctConvTranspose2d",
    "OctConvTranspose3d",
    "Octave",
    "OctaveNetwork",
    "OctaveReport",
    "Partition",
    "arrange",
    "count_cost",
    "fuse_convolutions",
    "layer_flop_ratio",
    "layer_memory_ratio",
    "low_size",
    "merge",
    "octavize",
    "pool_down",
    "prepare_inference",
    "split",
    "split_channels",
    "upsample",
]
