"""Every reader gives the frames that plain decoding gives, whatever is asked for."""

from __future__ import annotations

import logging
import pickle
from collections.abc import Callable
from pathlib import Path

import av
import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from octvideo.video import Decoder, VideoBytes, VideoReadError, read_frames
from tests.video.reference import FILES, every, plainly, wanted

Encode = Callable[..., Path]
Moving = Callable[..., Tensor]


# ── the right frames ────────────────────────────────────────────────────────────────────────────────────────


def test_every_decoder_gives_the_frames_of_plain_decoding(file: Path, caplog: pytest.LogCaptureFixture) -> None:
    _, _, expected, _ = FILES[file.name]
    frames = plainly(file)
    assert len(frames) == 40
    decoders: list[Decoder] = ["auto", "pyav"] + (["decord"] if expected == "decord" else [])  # type: ignore[list-item]
    # Last, first of a group, in its middle, far apart over keyframes: where decord would seek.
    choices = [every, wanted(39), wanted(8, 9, 10), wanted(10, 11), wanted(3, 20, 21, 38), wanted(16, 24, 32)]
    for decoder in decoders:
        for choose in choices:
            read = read_frames(file, choose, decoder=decoder)
            assert read.num_frames == 40 and read.decoder == ("pyav" if decoder == "auto" else decoder)
            assert read.frames.dtype == torch.uint8 and read.frames.shape[1:] == (64, 96, 3)
            assert torch.equal(read.frames[read.places], frames[choose(40)]), (decoder, choose(40))
    assert not caplog.records


def test_a_file_in_memory_is_the_file(file: Path) -> None:
    held = VideoBytes("in memory", file.read_bytes())
    of_file = read_frames(file, wanted(39, 3, 21))
    of_bytes = read_frames(held, wanted(39, 3, 21))
    assert of_bytes.decoder == of_file.decoder and torch.equal(of_bytes.frames, of_file.frames)


def test_what_is_wrong_with_a_file_in_memory_is_told_by_its_name() -> None:
    for content, reason in ((b"", "the file is empty"), (b"nothing", "Invalid data found when processing input")):
        with pytest.raises(VideoReadError) as error:
            read_frames(VideoBytes("shard.tar/a.mp4", content), every)
        assert str(error.value) == f"cannot read video 'shard.tar/a.mp4': {reason}"
        assert pickle.loads(pickle.dumps(error.value)).path == "shard.tar/a.mp4"


def test_decord_is_refused_where_it_would_give_other_frames(file: Path) -> None:
    _, _, expected, reason = FILES[file.name]
    if expected == "decord":
        return
    with pytest.raises(VideoReadError) as error:
        read_frames(file, every, decoder="decord")
    assert str(error.value) == f"cannot read video '{file}': {reason} (with decoder 'decord'; 'auto' takes PyAV)"


@pytest.mark.parametrize("decoder", ["decord", "pyav"])
def test_places_are_right_for_unsorted_and_repeated_numbers(video: Path, decoder: Decoder) -> None:
    frames = plainly(video)
    asked = torch.tensor([[30, 2, 2], [17, 39, 2]])
    read = read_frames(video, lambda num_frames: asked, decoder=decoder)
    assert read.frames.shape == (4, 64, 96, 3)  # each distinct frame once
    assert torch.equal(read.frames, frames[[2, 17, 30, 39]])  # in the order of the video
    assert read.places.tolist() == [[2, 0, 0], [1, 3, 0]]
    assert torch.equal(read.frames[read.places], frames[asked])


@pytest.mark.parametrize("numbers", [(), (-1, 3), (3, 40)])
@pytest.mark.parametrize("decoder", ["decord", "pyav"])
def test_frame_numbers_outside_the_video_are_a_mistake_of_the_program(
    video: Path, numbers: tuple[int, ...], decoder: Decoder
) -> None:
    with pytest.raises(ValueError, match=r"frame indices: got .*, expected some in \[0, 40\)"):
        read_frames(video, wanted(*numbers), decoder=decoder)


@pytest.mark.parametrize("decoder", ["auto", "pyav"])
def test_an_error_in_the_choice_is_not_taken_for_one_of_the_file(video: Path, decoder: Decoder) -> None:
    def choose(num_frames: int) -> Tensor:
        raise RuntimeError("out of dice")

    with pytest.raises(RuntimeError, match="out of dice"):
        read_frames(video, choose, decoder=decoder)


@pytest.mark.parametrize("rotation", [90, 180, -90])
def test_rotated_videos_are_upright(tmp_path: Path, encode: Encode, moving: Moving, rotation: int) -> None:
    if not hasattr(av.VideoStream, "set_display_rotation"):
        pytest.skip("this PyAV can't write a rotation")
    path = encode(tmp_path / "phone.mp4", moving(6, 64, 96), rotation=rotation)
    upright = torch.rot90(plainly(path), rotation // 90, dims=(1, 2))  # counter-clockwise
    for decoder in ("decord", "pyav"):
        assert torch.equal(read_frames(path, every, decoder=decoder).frames, upright), decoder


def test_frames_after_a_change_of_resolution_have_the_size_of_the_first(
    tmp_path: Path, encode: Encode, moving: Moving
) -> None:
    parts = [encode(tmp_path / f"{width}.h264", moving(5, 64, width)) for width in (96, 128)]
    path = tmp_path / "both.h264"
    path.write_bytes(b"".join(part.read_bytes() for part in parts))
    read = read_frames(path, every)
    assert read.frames.shape == (10, 64, 96, 3)
    assert (read.frames[5:].float() - read.frames[:5].float()).abs().mean() < 12  # the same pictures


@pytest.mark.parametrize("height, width", [(63, 97), (2, 2), (16, 16), (48, 48)])
def test_sizes_that_decord_gets_wrong_are_read_all_the_same(
    tmp_path: Path, encode: Encode, moving: Moving, height: int, width: int
) -> None:
    path = encode(tmp_path / "small.mkv", moving(4, height, max(width, 16))[:, :, :width], "ffv1", pix_fmt="yuv444p")
    assert torch.equal(read_frames(path, every).frames, plainly(path))


# ── processes and other users of decord ─────────────────────────────────────────────────────────────────────


class Firsts(Dataset[Tensor]):
    def __init__(self, path: Path, decoder: Decoder) -> None:
        self.path, self.decoder = path, decoder

    def __len__(self) -> int:
        return 4

    def __getitem__(self, index: int) -> Tensor:
        return read_frames(self.path, wanted(index), decoder=self.decoder).frames[0]


@pytest.mark.timeout(60)  # a decord reader that is open in the parent would hang the child
@pytest.mark.parametrize("decoder", ["decord", "pyav"])
def test_workers_forked_after_a_read_in_the_parent(video: Path, decoder: Decoder) -> None:
    frames = read_frames(video, every, decoder=decoder).frames
    loader = DataLoader(Firsts(video, decoder), batch_size=2, num_workers=2, multiprocessing_context="fork")
    assert torch.equal(torch.cat(list(loader)), frames[:4])
    with pytest.raises(ValueError, match="frame indices"):
        read_frames(video, wanted(999), decoder=decoder)
    assert torch.equal(torch.cat(list(loader)), frames[:4])  # nor after a read that failed


def test_another_bridge_of_decord_does_not_matter(video: Path) -> None:
    from octvideo.video.decord_reader import decord

    decord.bridge.set_bridge("torch")
    try:
        read = read_frames(video, every, decoder="decord")
    finally:
        decord.bridge.set_bridge("native")
    assert read.frames.dtype == torch.uint8 and torch.equal(read.frames, plainly(video))


# ── real clips ──────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    "name",
    [
        "bikes.mp4",
        "k400_arm_wrestling_demo.mp4",
        "k400_cleaning_pool_test.mp4",
        "k400_flipping_pancake.mkv",
        "nasa_13013.mp4",
    ],
)
def test_decord_and_pyav_agree_bit_by_bit_on_real_h264(real_videos: Path, name: str) -> None:
    path = real_videos / "clips" / name
    if not path.exists():
        pytest.skip(f"no {path}")

    def some(num_frames: int) -> Tensor:
        return torch.tensor([0, 1, num_frames // 3, num_frames // 2, num_frames // 2 + 8])

    decord, pyav = (read_frames(path, some, decoder=decoder) for decoder in ("decord", "pyav"))
    assert decord.num_frames == pyav.num_frames
    assert torch.equal(decord.frames, pyav.frames)


# ── names ───────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    "name", ["-f.mp4", "a b  c.mp4", "a:b.mp4", "concat:a.mp4|b.mp4", "100%d.mp4", "été.mp4", "[1]*?.mp4"]
)
@pytest.mark.parametrize("decoder", ["decord", "pyav"])
def test_names_that_mean_something_else_to_ffmpeg(
    tmp_path: Path, video: Path, name: str, decoder: Decoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path(name).write_bytes(video.read_bytes())
    assert read_frames(name, every, decoder=decoder).num_frames == 40
    assert read_frames(tmp_path / name, every, decoder=decoder).decoder == decoder


def test_a_name_that_is_no_text(tmp_path: Path, video: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.ERROR, "octvideo.video")  # pytest-xdist can't send a warning with this name
    path = tmp_path / "caf\udce9.mp4"  # Latin-1 on the disk
    try:
        path.write_bytes(video.read_bytes())
    except OSError:
        pytest.skip("this file system takes names in UTF-8 only")
    assert torch.equal(read_frames(path, every).frames, plainly(video))
