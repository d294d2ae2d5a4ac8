"""Networks from clips to logits, ordinary or octave: pytorchvideo's, and image networks on every frame.

layers.py           parts that depend on the size of the clip, non-local blocks, initialisation
builders.py         what all builders of networks share: arguments, checks, the note of how a network was built
video.py            the ResNets (C2D, I3D, Slow) and SlowFast
library.py          networks of pytorchvideo, torchvision and timm by name; X3D, CSN, R(2+1)D
streams.py          frames of a stream, one by one
weight_sources.py   a path, a URL or a name → a file
weight_files.py     a file → its tensors
checkpoint_keys.py  other programs' names of weights → ours
weights.py          weights → a network, with a report in words
shared_files.py     the two files by which a network is shared; hub.py: the same from the Hugging Face hub
checkpoint.py       a checkpoint of octvideo → its network with its weights
pretrained.py       a shared network, written and read
costs.py            multiply-adds and memory of networks at several alphas
"""

import warnings

with warnings.catch_warnings():
    # pytorchvideo calls torch.jit.script on import; who uses octvideo can do nothing about torch's advice.
    warnings.simplefilter("ignore", FutureWarning)
    from octvideo.models.library import (
        csn_r101,
        frame_network,
        r2plus1d_r50,
        video_network,
        x3d_l,
        x3d_m,
        x3d_s,
        x3d_xs,
    )
    from octvideo.models.video import (
        c2d_nl_r50,
        c2d_r50,
        c2d_small,
        i3d_nl_r50,
        i3d_nl_small,
        i3d_r50,
        i3d_small,
        slow_r50,
        slow_small,
        slowfast_4x16_r50,
        slowfast_8x8_r50,
        slowfast_r50,
        slowfast_small,
    )

__all__ = [
    "c2d_r50",
    "c2d_small",
    "i3d_r50",
    "i3d_small",
    "slow_r50",
    "slow_small",
    "c2d_nl_r50",
    "i3d_nl_r50",
    "i3d_nl_small",
    "slowfast_4x16_r50",
    "slowfast_8x8_r50",
    "slowfast_r50",
    "slowfast_small",
    "x3d_xs",
    "x3d_s",
    "x3d_m",
    "x3d_l",
    "csn_r101",
    "r2plus1d_r50",
    "frame_network",
    "video_network",
]
