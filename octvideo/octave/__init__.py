"""Octave convolution: features at two resolutions, layers for them, and the conversion of whole networks.

Needs torch only. Start with `octavize` (a network) or `OctConv3d` (a layer). This folder is the paper (Chen et al.
2019, arXiv 1904.05049), read from the top:

factor.py       which axes a low map halves, and which convolutions fit two such maps
ordinary.py     the ordinary convolutions that octave ones are made of
partition.py    which channels are low
resample.py     between the two resolutions: pooling, upsampling
features.py     `Octave`, a pair of maps; in by `split`, out by `merge`
paths.py        the four parts of the ordinary weight, and the terms that add up to each frequency
layer.py        a tensor's way through them
conv.py         OctConv1d, 2d, 3d
transposed.py   the same of transposed convolutions
temporal_shift.py   channels from the neighbouring frames, of maps and pairs
norms.py        batch norm of a pair
cost.py         multiply-adds, parameters and activations

and its rooms:

conversion/     an ordinary network becomes an octave one: `octavize`
fused/          layers that do in passing what surrounds them: `prepare_inference`, and `fuse_training` for GPUs
kernel/         what the processor does: C++ and its Python face
gpu/            what a CUDA device does: Triton, and plain torch where that is not there
"""

from octvideo.octave.conv import OctConv1d, OctConv2d, OctConv3d
from octvideo.octave.conversion.calibration import Calibration, CalibrationReport
from octvideo.octave.conversion.octavize import OctaveNetwork, octavize
from octvideo.octave.conversion.report import OctaveReport
from octvideo.octave.conversion.shifting import add_temporal_shifts, takes_num_frames
from octvideo.octave.conversion.value_classes import InvertedResiduals
from octvideo.octave.cost import Cost, count_cost, layer_flop_ratio, layer_memory_ratio
from octvideo.octave.factor import low_size
from octvideo.octave.features import Octave, merge, split
from octvideo.octave.fused.arrange import arrange
from octvideo.octave.fused.prepare import fuse_convolutions, prepare_inference
from octvideo.octave.fused.training import FusionReport, fuse_training, unfuse
from octvideo.octave.norms import OctBatchNorm1d, OctBatchNorm2d, OctBatchNorm3d
from octvideo.octave.partition import Partition, split_channels
from octvideo.octave.paths import Downsample, Exchange, OctaveDownsample
from octvideo.octave.resample import pool_down, upsample
from octvideo.octave.sync_norms import SynchronisedNorms
from octvideo.octave.temporal_shift import TemporalShift
from octvideo.octave.transposed import OctConvTranspose1d, OctConvTranspose2d, OctConvTranspose3d

__all__ = [
    "Calibration",
    "CalibrationReport",
    "Cost",
    "Downsample",
    "Exchange",
    "FusionReport",
    "InvertedResiduals",
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
    "OctaveDownsample",
    "OctaveNetwork",
    "OctaveReport",
    "Partition",
    "SynchronisedNorms",
    "TemporalShift",
    "add_temporal_shifts",
    "arrange",
    "count_cost",
    "fuse_convolutions",
    "fuse_training",
    "layer_flop_ratio",
    "layer_memory_ratio",
    "low_size",
    "merge",
    "octavize",
    "pool_down",
    "prepare_inference",
    "split",
    "split_channels",
    "takes_num_frames",
    "unfuse",
    "upsample",
]
