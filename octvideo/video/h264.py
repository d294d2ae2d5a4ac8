"""Which encoder of H.264 this PyAV has, and works."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import av
import numpy as np

from octvideo.errors import UserError

# Encoders of H.264 and what they need to be told, the best first. Those of GPUs may be there and not work.
ENCODERS: dict[str, dict[str, str]] = {
    "libx264": {"preset": "veryfast", "crf": "20"},
    "libopenh264": {},
    "h264_videotoolbox": {},
    "h264_nvenc": {},
    "h264_qsv": {},
    "h264_amf": {},
    "h264_mf": {},
}


def encoder_name() -> str:
    """The first encoder of H.264 that works here.

    Raises:
        UserError: there is none.
    """
    there = [name for name in ENCODERS if name in av.codecs_available]
    for name in there:
        if name == "libx264" or _works(name):
            return name
    tried = f" that works (tried {', '.join(there)})" if there else ""
    raise UserError(
        f"this PyAV has no encoder of H.264{tried}; its wheels have: pip install --force-reinstall --only-binary av av"
    )


def _works(name: str) -> bool:
    try:
        coder: Any = av.CodecContext.create(name, "w")
        coder.width, coder.height, coder.pix_fmt, coder.time_base = 256, 256, "yuv420p", Fraction(1, 25)
        frame = av.VideoFrame.from_ndarray(np.zeros((384, 256), np.uint8), format="yuv420p")
        frame.pts = 0
        return bool([*coder.encode(frame), *coder.encode(None)])
    except (av.FFmpegError, ValueError):
        return False
