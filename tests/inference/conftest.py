"""One small video made here: H.264, 24 frames of a moving square."""

from __future__ import annotations

from pathlib import Path

import av
import numpy as np
import pytest


@pytest.fixture(scope="session")
def tiny_video(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("video") / "square.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=24, width=64, height=48, pix_fmt="yuv420p")
        for t in range(24):
            image = np.zeros((48, 64, 3), np.uint8)
            image[10:30, t : t + 20] = (250, 120, 30)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(stream.encode())
    return path
