"""Files that several tests of readers use."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from torch import Tensor

import octvideo.video.pyav_reader as pyav_reader
from tests.video.reference import FILES, has_encoder

Encode = Callable[..., Path]
Moving = Callable[..., Tensor]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("videos")


@pytest.fixture(params=FILES)
def file(request: pytest.FixtureRequest, folder: Path, encode: Encode, moving: Moving) -> Path:
    encoder, options, _, _ = FILES[request.param]
    if not has_encoder(encoder):
        pytest.skip(f"this PyAV has no {encoder}")
    path = folder / request.param
    # 64 pixels or more: x265 writes outside its buffers for less.
    return path if path.exists() else encode(path, moving(40, 64, 96), encoder, **options)


@pytest.fixture
def video(folder: Path, encode: Encode, moving: Moving) -> Path:
    """40 frames of H.264 with B-frames and a keyframe every 8."""
    path = folder / "h264 with B-frames.mp4"
    return path if path.exists() else encode(path, moving(40, 64, 96), **FILES[path.name][1])


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> list[bytes]:
    """The packets that PyAV decodes."""
    contents: list[bytes] = []
    real = pyav_reader.decoded_frames
    monkeypatch.setattr(pyav_reader, "decoded_frames", lambda packet: contents.append(bytes(packet)) or real(packet))
    return contents
