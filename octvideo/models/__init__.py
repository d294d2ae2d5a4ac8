"""Networks from clips to logits, ordinary or octave: pytorchvideo's, and image networks on every frame."""

import warnings

with warnings.catch_warnings():
    # pytorchvideo calls torch.jit.script on import; who uses octvideo can do nothing about torch's advice.
    warnings.simplefilter("ignore", FutureWarning)
    from octvideo.models.frames import frame_network
    from octvideo.models.library import video_network
    from octvideo.models.slowfast import slowfast_4x16_r50, slowfast_8x8_r50, slowfast_small
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
    "slowfast_small",
    "frame_network",
    "video_network",
]
