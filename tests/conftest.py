"""Shared fixtures: where the real clips are, and quiet, repeatable torch.

Libraries are imported where they are used: pytest-xdist's controller, which runs no test, loads this file too.
"""

from __future__ import annotations

import gc
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil
import pytest

from tests.fake_hub import Hub, serve_hub

if TYPE_CHECKING:
    from torch import Tensor

REPO = Path(__file__).resolve().parents[1]


def pytest_configure() -> None:
    """Searches for garbage took a tenth of the time."""
    gc.set_threshold(20_000, 10, 10)


def pytest_collection_finish() -> None:
    """Thousands of tests and all libraries stay to the end: they are no garbage."""
    gc.freeze()


_resident = [0]  # bytes after the last search for garbage


def pytest_runtest_teardown() -> None:
    """Garbage that holds networks is large before it is many objects."""
    process = psutil.Process()
    if process.memory_info().rss > _resident[0] + 2**30:
        gc.collect()
        _resident[0] = process.memory_info().rss


@pytest.fixture(autouse=True)
def ordinary_priority() -> Iterator[None]:
    """SVT-AV1, run by root, leaves its process with real-time priority, which nothing on that core then gets past."""
    yield
    if hasattr(os, "sched_getscheduler") and os.sched_getscheduler(0) != os.SCHED_OTHER:
        os.sched_setscheduler(0, os.SCHED_OTHER, os.sched_param(0))


@pytest.fixture(scope="session")
def real_videos() -> Path:
    """Folder of real clips (OCTVIDEO_TEST_VIDEOS, default ../shared/videos beside the repository)."""
    folder = Path(os.environ.get("OCTVIDEO_TEST_VIDEOS", REPO.parent / "shared" / "videos"))
    if not folder.is_dir():
        pytest.skip(f"no real videos at {folder}; set OCTVIDEO_TEST_VIDEOS to a folder that has them")
    return folder


@pytest.fixture(scope="session")
def repo() -> Path:
    """The root of the checkout, for tests that run tools and configs."""
    return REPO


def moving_frames(num_frames: int = 20, height: int = 48, width: int = 64) -> Tensor:
    """RGB frames (T, H, W, C) that all differ, and differ left from right and top from bottom."""
    import numpy as np
    import torch

    x, y = np.meshgrid(np.arange(width), np.arange(height))
    frames = []
    for t in range(num_frames):
        image = np.stack([40 + x * 160 // width, 40 + y * 160 // height, np.full_like(x, 60 + t % 40 * 3)], -1)
        left = (5 * t) % (width - 8)
        image[height // 4 : height // 2, left : left + 8] = 230, 10 * t % 256, 20
        frames.append(image.astype(np.uint8))
    return torch.from_numpy(np.stack(frames))


def encode_video(path: Path, frames: Tensor, codec: str = "libx264", *, rotation: int = 0, **options: Any) -> Path:
    """Encodes RGB frames with PyAV.

    Args:
        path: of the file; its folder is made.
        frames: uint8 (T, H, W, C).
        codec: an encoder of FFmpeg.
        rotation: in degrees, counter-clockwise, for players to apply.
        options: of the encoder, with _ for -; also pix_fmt, rate, and movflags, of the container.
    """
    import av

    path.parent.mkdir(parents=True, exist_ok=True)
    pix_fmt, rate = options.pop("pix_fmt", "yuv420p"), options.pop("rate", 20)
    flags = {key: options.pop(key) for key in ("movflags",) if key in options}
    with av.open(str(path.absolute()), "w", options=flags) as container:
        settings = {key.replace("_", "-"): str(value) for key, value in options.items()}
        stream = container.add_stream(codec, rate=rate, options=settings)
        _, stream.height, stream.width, _ = frames.shape
        stream.pix_fmt = pix_fmt
        stream.thread_count = 1
        if rotation:
            stream.set_display_rotation(rotation)
        for image in frames.numpy():
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(stream.encode())
    return path


@pytest.fixture(scope="session")
def moving() -> Callable[..., Tensor]:
    """`moving_frames`, for tests that need pictures."""
    return moving_frames


@pytest.fixture(scope="session")
def encode() -> Callable[..., Path]:
    """`encode_video`, for tests that need files."""
    return encode_video


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A Hugging Face hub on this machine."""
    yield from serve_hub(tmp_path, monkeypatch)


@pytest.fixture(autouse=True)
def _seed() -> None:
    import torch

    torch.manual_seed(0)
