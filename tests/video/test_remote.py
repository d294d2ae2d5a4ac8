"""Videos behind addresses: the frames of the file, by every reader, and one error where they can't be had."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from octvideo.data.augment import Augmentation
from octvideo.data.dataset import TrainingClips
from octvideo.data.records import VideoRecord
from octvideo.video import FileFrames, VideoReadError, read_frames
from octvideo.video.checking import check_video
from octvideo.video.frames import RemoteVideo, VideoBytes, fetched
from octvideo.video.isolated import IsolatedPool
from octvideo.video.overlay import write_overlay
from tests.file_server import FileServer, file_server
from tests.video.reference import torchcodec_reason

SOME = [0, 7, 8, 30, 39]


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch, video: Path) -> Iterator[FileServer]:
    monkeypatch.setattr("octvideo.stores.requests.FIRST_WAIT_SEC", 0.0)
    with file_server() as server:
        server.contents["a.mp4"] = video.read_bytes()
        yield server


@pytest.fixture(params=["whole", "by blocks"])
def size(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    if request.param == "by blocks":
        monkeypatch.setattr("octvideo.stores.reading.WHOLE_BYTES", 100)
        monkeypatch.setattr("octvideo.stores.reading.BLOCK_BYTES", 1024)
    return str(request.param)


def chosen(num_frames: int) -> Tensor:
    return torch.tensor([frame for frame in SOME if frame < num_frames])


@pytest.mark.parametrize("decoder", ["auto", "decord", "torchcodec"])
def test_frames_are_those_of_the_file(
    server: FileServer, video: Path, size: str, decoder: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    if decoder == "torchcodec" and (reason := torchcodec_reason()):
        pytest.skip(reason)
    if size == "by blocks":  # packets are not kept, as of a large file
        monkeypatch.setattr("octvideo.video.packets._HELD_BYTES", 0)
    local = read_frames(video, chosen, decoder=decoder)
    if (decoder, size) == ("decord", "by blocks"):
        with pytest.raises(VideoReadError, match="decord reads no file behind an address that is this large"):
            read_frames(server.url("a.mp4"), chosen, decoder=decoder)
        return
    remote = read_frames(server.url("a.mp4"), chosen, decoder=decoder)
    assert torch.equal(remote.frames, local.frames) and remote.decoder == local.decoder
    assert (len(server.asked) == 1) == (size == "whole")


def test_every_container_by_blocks(file: Path, server: FileServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("octvideo.stores.reading.WHOLE_BYTES", 100)
    monkeypatch.setattr("octvideo.stores.reading.BLOCK_BYTES", 700)
    server.contents[file.name] = file.read_bytes()
    remote, local = read_frames(server.url(file.name.replace(" ", "%20")), chosen), read_frames(file, chosen)
    assert torch.equal(remote.frames, local.frames) and remote.num_missing == local.num_missing


def test_frames_from_front_to_back(server: FileServer, video: Path, size: str) -> None:
    with FileFrames(server.url("a.mp4"), 48) as remote, FileFrames(str(video), 48) as local:
        assert remote.name == server.url("a.mp4") and remote.duration_sec == local.duration_sec
        assert all(a.time == b.time and torch.equal(a.image, b.image) for a, b in zip(remote, local, strict=True))
    assert (len(server.asked) == 1) == (size == "whole")


def test_what_is_opened(server: FileServer, size: str) -> None:
    source = fetched(server.url("a.mp4?sig=0badcafe", "me:pw@"))
    assert isinstance(source, VideoBytes if size == "whole" else RemoteVideo)
    assert str(source) == server.url("a.mp4?sig=***", "***@")
    local = Path("https://host/a.mp4")  # a path is never an address
    assert fetched(local) is local


@pytest.mark.parametrize(
    ("trouble", "reason", "may_pass"),
    [
        ("404", "no such file", False),
        ("403", r"not allowed \(403\)", False),
        ("503", "the server answers 503 Service Unavailable", True),
        ("cut", "the connection was cut", True),
        ("silent", r"no answer for 0\.2 s", True),
    ],
)
@pytest.mark.parametrize("reader", ["read_frames", "FileFrames"])
def test_troubles_have_their_line(
    server: FileServer,
    trouble: str,
    reason: str,
    may_pass: bool,
    reader: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("OCTVIDEO_REMOTE_TIMEOUT", "0.2")
    server.faults["a.mp4"] = [trouble] * 9
    with pytest.raises(
        VideoReadError, match=rf"cannot read video 'http://\*\*\*@.*/a\.mp4\?token=\*\*\*': {reason}"
    ) as e:
        name = server.url("a.mp4?token=x", "me:pw@")
        _ = read_frames(name, chosen) if reader == "read_frames" else list(FileFrames(name, 48))
    assert e.value.may_pass == may_pass


@pytest.mark.parametrize("reader", ["read_frames", "FileFrames"])
@pytest.mark.parametrize("after", [2, 6, 12])
def test_a_store_that_goes_away_in_the_middle_is_no_end_of_the_video(
    server: FileServer, reader: str, after: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a file that ends in the middle what is there would be read, with a warning."""
    monkeypatch.setattr("octvideo.stores.reading.WHOLE_BYTES", 100)
    monkeypatch.setattr("octvideo.stores.reading.BLOCK_BYTES", 512)
    monkeypatch.setattr("octvideo.stores.reading._BLOCKS", 2)
    monkeypatch.setattr("octvideo.video.packets._HELD_BYTES", 0)
    assert len(server.contents["a.mp4"]) > 13 * 400
    server.faults["a.mp4"] = [""] * after + ["503"] * 99
    with pytest.raises(VideoReadError, match="the server answers 503") as caught:
        _ = (
            read_frames(server.url("a.mp4"), chosen)
            if reader == "read_frames"
            else [frame.image for frame in FileFrames(server.url("a.mp4"), 48)]
        )
    assert caught.value.may_pass


def test_overlays(server: FileServer, video: Path, tmp_path: Path, size: str) -> None:
    painted: list[list[tuple[float, bytes]]] = []
    for source in (server.url("a.mp4"), str(video)):
        images: list[tuple[float, bytes]] = []
        report = write_overlay(
            source, tmp_path / "out.mkv", lambda image, time, images=images: images.append((time, image.tobytes()))
        )
        assert report.num_frames == len(images) == 40
        painted.append(images)
    assert painted[0] == painted[1]


def test_forked_workers(server: FileServer, video: Path, size: str) -> None:
    """The parent has connections, and a thread behind them: they stay out of its children."""
    fetched(server.url("a.mp4"))

    def clips(path: str) -> TrainingClips:
        records = [VideoRecord(path, label) for label in range(4)]
        return TrainingClips(records, Augmentation(crop_px=32, short_side_px=(32, 40)), clip_frames=4, frame_stride=2)

    keys: Any = [(3, index) for index in range(4)]
    loaded = list(
        DataLoader(clips(server.url("a.mp4")), sampler=keys, batch_size=None, num_workers=2, timeout=60)  # type: ignore[arg-type]
    )
    local = clips(str(video))
    assert all(torch.equal(item.video, local[key].video) for item, key in zip(loaded, keys, strict=True))  # type: ignore[union-attr]


def test_processes_that_can_be_killed(server: FileServer) -> None:
    server.contents["rotten.mp4"] = b"no video"
    names = [server.url(f"{name}.mp4?sig=0badcafe") for name in ("a", "gone", "rotten")]
    with IsolatedPool[Any](check_video, num_processes=2, timeout_s=60, memory_bytes=2**31) as pool:
        found = {item[0]: outcome.value for item, outcome in pool.run([(name, name, "auto") for name in names])}
    good, gone, rotten = (found[name] for name in names)
    assert (good.verdict, good.num_frames, good.stamp) == ("ok", 40, (len(server.contents["a.mp4"]), 0))
    assert (gone.verdict, gone.reason, gone.stamp, gone.may_pass) == ("unreadable", "no such file", None, False)
    assert rotten.verdict == "unreadable" and rotten.stamp == (8, 0)


def test_real_clips(server: FileServer, real_videos: Path, size: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if size == "by blocks":
        monkeypatch.setattr("octvideo.stores.reading.BLOCK_BYTES", 64 * 1024)
    for path in sorted((real_videos / "clips").glob("*.*"))[:3]:
        server.contents[path.name] = path.read_bytes()
        remote, local = read_frames(server.url(path.name), chosen), read_frames(path, chosen)
        assert torch.equal(remote.frames, local.frames) and remote.num_frames == local.num_frames
