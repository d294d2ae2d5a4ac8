"""Folders of images as videos: the frames and views of an array, errors with the image's name, times by the rate."""

from __future__ import annotations

import io
import pickle
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from octvideo.errors import UserError
from octvideo.video import (
    FrameArchive,
    FrameFolder,
    FrameNames,
    VideoArray,
    VideoReadError,
    ViewSettings,
    decode_views,
    frame_windows,
    read_frames,
)
from octvideo.video.image_frames import folders_of_images
from octvideo.video.image_source import FolderFrames
from tests.conftest import moving_frames

NAMES = FrameNames("img_{:05d}.png")


def write_images(folder: Path, frames: Tensor, names: FrameNames = NAMES, **options: object) -> Path:
    """Writes frames (T, H, W, C) with Pillow, which reads none of them here."""
    folder.mkdir(parents=True, exist_ok=True)
    for n, frame in enumerate(frames.numpy()):
        Image.fromarray(frame).save(folder / names[n], **options)
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_images(tmp_path_factory.mktemp("frames") / "my clip", moving_frames(14))


def as_video(folder: Path, num_frames: int = 14, start: int = 0, fps: float | None = 20.0) -> FrameFolder:
    return FrameFolder(str(folder), num_frames, NAMES, start, fps)


def test_frames_are_those_that_were_written_and_each_is_read_once(folder: Path) -> None:
    read = read_frames(as_video(folder), lambda n: torch.tensor([[3, n - 1], [3, 0]]))
    assert read.frames.equal(moving_frames(14)[[0, 3, 13]]) and read.frames.is_contiguous()
    assert read.places.tolist() == [[1, 2], [1, 0]] and (read.num_frames, read.num_missing) == (14, 0)
    later = read_frames(as_video(folder, 5, start=9), lambda n: torch.arange(n))
    assert later.frames.equal(moving_frames(14)[9:])


@pytest.mark.parametrize("first", [0, 1, 7])
def test_names_count_from_the_first(first: int) -> None:
    names = FrameNames("img_{:03d}.jpg", first)
    assert [names[n] for n in (0, 12)] == [f"img_{first:03d}.jpg", f"img_{first + 12:03d}.jpg"]


def test_jpeg_is_decoded_as_pillow_does(tmp_path: Path) -> None:
    names = FrameNames("{:03d}.jpg", first=0)
    write_images(tmp_path, moving_frames(3), names, quality=95, subsampling=0)
    read = read_frames(FrameFolder(str(tmp_path), 3, names), lambda n: torch.arange(n))
    expected = np.stack([np.asarray(Image.open(tmp_path / names[n]).convert("RGB")) for n in range(3)])
    assert np.abs(read.frames.numpy().astype(int) - expected).max() <= 2  # another rounding of the same transform


@pytest.mark.parametrize("sampling", ["dense", "segments"])
@pytest.mark.parametrize("target_fps", [None, 10.0])
def test_views_are_those_of_the_same_frames_in_memory(folder: Path, sampling: str, target_fps: float | None) -> None:
    how = {"clip_frames": 4, "frame_stride": 2, "short_side_px": 32, "crop_px": 32, "num_clips": 2}
    settings = ViewSettings(**how, target_fps=target_fps, sampling=sampling)  # type: ignore[arg-type]
    of_images = decode_views(as_video(folder), settings).cut()
    assert of_images.equal(decode_views(VideoArray(moving_frames(14), 20.0), settings).cut())


def test_many_frames_are_made_small_a_chunk_at_a_time(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("octvideo.video.frames.CHUNK_BYTES", 3 * 48 * 64 * 4)
    sizes: list[int] = []

    def small(frames: Tensor) -> Tensor:
        sizes.append(len(frames))
        return frames[:, ::2]

    read = read_frames(as_video(folder), lambda n: torch.arange(n), resize=small)
    assert sizes == [4, 4, 4, 2] and read.frames.equal(moving_frames(14)[:, ::2])


def broken(folder: Path, kind: str) -> str:
    """Breaks the fourth image, and says what is told of it."""
    image = folder / "img_00004.png"
    if kind == "missing":
        image.unlink()
        return "no such file"
    if kind == "empty":
        image.write_bytes(b"")
        return "the file is empty"
    if kind == "text":
        image.write_text("no image at all")
        return ""
    if kind == "cut off":
        image.write_bytes(image.read_bytes()[:200])
        return ""
    if kind == "16 bit":
        Image.fromarray(np.zeros((48, 64), np.uint16)).save(image)
        return "got uint16 (3, 48, 64), expected 8 bits a channel"
    Image.fromarray(np.zeros((40, 64, 3), np.uint8)).save(image)
    return "got 64 x 40 pixels, expected 64 x 48 as img_00001.png has"


@pytest.mark.parametrize("kind", ["missing", "empty", "text", "cut off", "16 bit", "other size"])
def test_a_broken_image_is_named(tmp_path: Path, kind: str) -> None:
    write_images(tmp_path / "clip", moving_frames(6))
    told = broken(tmp_path / "clip", kind)
    with pytest.raises(VideoReadError) as raised:
        read_frames(as_video(tmp_path / "clip", 6), lambda n: torch.arange(n))
    assert raised.value.path == str(tmp_path / "clip")
    assert raised.value.reason.startswith("its frame img_00004.png: ") and raised.value.reason.endswith(told)
    assert "\n" not in str(raised.value)
    unharmed = read_frames(as_video(tmp_path / "clip", 6), lambda n: torch.tensor([0, 2, 4]))
    assert len(unharmed.frames) == 3  # what is not wanted is not opened


def test_a_broken_jpeg_is_named(tmp_path: Path) -> None:
    names = FrameNames("{:05d}.jpg")
    write_images(tmp_path, moving_frames(2), names)
    file = tmp_path / "00002.jpg"
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    with pytest.raises(VideoReadError, match=r"its frame 00002.jpg: "):
        read_frames(FrameFolder(str(tmp_path), 2, names), lambda n: torch.arange(n))


@pytest.mark.parametrize("template", ["img.jpg", "img_{:05d}.gif", "img_{:05d", "{name}.jpg", "img_{:05z}.png"])
def test_templates_that_can_not_be_meant(template: str) -> None:
    with pytest.raises(UserError, match="expected how images are called"):
        FrameNames(template)


def test_a_clock_needs_a_rate(folder: Path) -> None:
    with pytest.raises(UserError, match="whose rate nobody has said: give frame_fps"):
        read_frames(as_video(folder, fps=None), lambda n: torch.arange(n), target_fps=10)


def test_all_images_of_a_folder_in_natural_order(tmp_path: Path) -> None:
    frames = moving_frames(12)
    write_images(tmp_path / "a" / "b", frames, FrameNames("f{}.png"))  # f10 comes after f9
    (tmp_path / "a" / "b" / ".hidden.png").write_bytes(b"")
    (tmp_path / "a" / "notes.txt").write_text("none")
    assert list(folders_of_images(tmp_path)) == [str(tmp_path / "a" / "b")]
    found = FrameFolder.found(tmp_path / "a" / "b", 5)
    assert read_frames(found, lambda n: torch.arange(n)).frames.equal(frames)
    with pytest.raises(VideoReadError, match="it is a folder without images"):
        FrameFolder.found(tmp_path / "a")
    assert pickle.loads(pickle.dumps(found)) == found


def archive_of(folder: Path, num_frames: int) -> bytes:
    """What Python's tarfile writes of the images, without the end of an archive."""
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w", format=tarfile.USTAR_FORMAT) as archive:
        for n in range(num_frames):
            archive.add(folder / NAMES[n], NAMES[n])
        size = archive.offset
    return content.getvalue()[:size]


def test_images_in_an_archive(folder: Path) -> None:
    members = archive_of(folder, 14)
    video = FrameArchive("my clip", 14, members, 20.0)
    assert read_frames(video, lambda n: torch.arange(n)).frames.equal(moving_frames(14))
    assert video.image_name(3) == "img_00004.png"
    for wrong in (members[:-512], members[512:], members[:-700], b""):
        with pytest.raises(VideoReadError, match="its archive holds"):
            FrameArchive("my clip", 14, wrong)


def test_windows_have_the_times_of_the_rate(folder: Path) -> None:
    settings = ViewSettings(clip_frames=2, frame_stride=2, num_clips=1, num_crops=1, short_side_px=48, crop_px=48)
    with FolderFrames(as_video(folder, fps=10.0), 48) as source:
        assert source.duration_sec == 1.4
        windows = list(frame_windows(source, settings, window_sec=0.5, stride_sec=0.5))
    assert [(window.start_sec, window.end_sec) for window in windows] == [(0, 0.5), (0.5, 1.0), (0.9, 1.4)]
    assert windows[1].frames[0].image.equal(moving_frames(14)[5])


def test_cuts_of_a_folder_are_found(tmp_path: Path) -> None:
    dark, light = (
        torch.full((10, 48, 64, 3), 20, dtype=torch.uint8),
        torch.full((10, 48, 64, 3), 200, dtype=torch.uint8),
    )
    write_images(tmp_path, torch.cat([dark, light]))
    with FolderFrames(as_video(tmp_path, 20, fps=10.0), 48) as source:
        assert len(list(source)) == 20
        assert source.cuts_sec == [1.0] and source.trouble == ""
