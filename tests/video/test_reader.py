"""Both decoders give the frames that plain decoding gives, whatever is asked for; what can't be read says why."""

from __future__ import annotations

import logging
import pickle
from collections.abc import Callable
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

import octvideo.video.reader as reader
from octvideo.errors import UserError
from octvideo.video import Decoder, VideoBytes, VideoReadError, read_frames

Encode = Callable[..., Path]
Moving = Callable[..., Tensor]

# name: encoder, its options, what auto takes, why PyAV
FILES: dict[str, tuple[str, dict[str, object], str, str]] = {
    "h264 with B-frames.mp4": ("libx264", {"g": 8, "bf": 3, "movflags": "faststart"}, "decord", ""),
    "h264 with B-frames.mkv": ("libx264", {"g": 8, "bf": 3}, "decord", ""),
    "h264 4:4:4.mp4": ("libx264", {"g": 8, "pix_fmt": "yuv444p"}, "decord", ""),
    "h264 10 bit.mp4": ("libx264", {"pix_fmt": "yuv420p10le"}, "pyav", "pixel format yuv420p10le"),
    "h264 open groups.mp4": (
        "libx264",
        {"x264_params": "open-gop=1:keyint=10:bframes=3:scenecut=0"},
        "pyav",
        "keyframes that refer to earlier frames",
    ),
    "h264 intra refresh.mp4": (
        "libx264",
        {"x264_params": "intra-refresh=1:keyint=10"},
        "pyav",
        "keyframes that refer to earlier frames",
    ),
    "h264.avi": ("libx264", {"g": 8, "bf": 0}, "pyav", "container avi"),
    "hevc as x265 writes it.mp4": (
        "libx265",
        {"preset": "ultrafast", "x265_params": "keyint=10:min-keyint=10:bframes=3:open-gop=1:log-level=none:pools=1"},
        "pyav",
        "frames that refer across keyframes",
    ),
    "hevc closed groups.mp4": (
        "libx265",
        {"preset": "ultrafast", "x265_params": "keyint=10:min-keyint=10:bframes=3:open-gop=0:log-level=none:pools=1"},
        "decord",
        "",
    ),
    "mpeg4.mp4": ("mpeg4", {"g": 8}, "decord", ""),
    "mpeg4 with B-frames.mp4": ("mpeg4", {"g": 8, "bf": 2}, "pyav", "frames that refer across keyframes"),
    "mpeg4 with B-frames.avi": ("mpeg4", {"g": 8, "bf": 2}, "pyav", "container avi"),
    "vp9.webm": ("libvpx-vp9", {"g": 8, "deadline": "realtime", "cpu_used": 8}, "decord", ""),
    "vp8.webm": ("libvpx", {"g": 8, "deadline": "realtime", "cpu_used": 8}, "decord", ""),
    "av1.mp4": ("libsvtav1", {"preset": 12, "g": 8}, "pyav", "codec libdav1d"),
}


def has_encoder(name: str) -> bool:
    try:
        av.Codec(name, "w")
    except (av.FFmpegError, ValueError):
        return False
    return True


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


@pytest.fixture(autouse=True)
def _nothing_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reader, "_told", set())


def plainly(path: Path) -> Tensor:
    """The reference: every frame, one after the other, (T, H, W, C)."""
    with av.open(str(path)) as container:
        return torch.from_numpy(np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]))


def every(num_frames: int) -> Tensor:
    return torch.arange(num_frames)


def wanted(*numbers: int) -> Callable[[int], Tensor]:
    return lambda num_frames: torch.tensor(numbers)


# ── the right frames ────────────────────────────────────────────────────────────────────────────────────────


def test_every_decoder_gives_the_frames_of_plain_decoding(file: Path, caplog: pytest.LogCaptureFixture) -> None:
    _, _, expected, reason = FILES[file.name]
    frames = plainly(file)
    assert len(frames) == 40
    decoders: list[Decoder] = ["auto", "pyav"] + (["decord"] if expected == "decord" else [])  # type: ignore[list-item]
    # Last, first of a group, in its middle, far apart over keyframes: where decord would seek.
    choices = [every, wanted(39), wanted(8, 9, 10), wanted(10, 11), wanted(3, 20, 21, 38), wanted(16, 24, 32)]
    for decoder in decoders:
        for choose in choices:
            read = read_frames(file, choose, decoder=decoder)
            assert read.num_frames == 40 and read.decoder == (expected if decoder == "auto" else decoder)
            assert read.frames.dtype == torch.uint8 and read.frames.shape[1:] == (64, 96, 3)
            assert torch.equal(read.frames[read.places], frames[choose(40)]), (decoder, choose(40))
    said = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert said == ([f"{file}: {reason}; read with PyAV"] if reason else [])


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
    with pytest.raises(ValueError, match=r"frame numbers: got .*, expected some in \[0, 40\)"):
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


# ── files that are not whole ────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("decoder", ["auto", "pyav"])
def test_a_truncated_file_gives_its_intact_frames_and_says_so(
    tmp_path: Path, video: Path, decoder: Decoder, caplog: pytest.LogCaptureFixture
) -> None:
    frames = plainly(video)
    path = tmp_path / "cut.mp4"
    path.write_bytes(video.read_bytes()[: video.stat().st_size * 2 // 3])
    asked: list[int] = []

    def ends(num_frames: int) -> Tensor:
        asked.append(num_frames)
        return torch.tensor([0, num_frames - 1])

    read = read_frames(path, ends, decoder=decoder)
    assert 5 < read.num_frames < 40 and read.decoder == "pyav"
    assert torch.equal(read.frames, frames[[0, read.num_frames - 1]])
    assert asked == sorted(asked, reverse=True) and asked[-1] == read.num_frames
    said = f"{path}: only {read.num_frames} of its 40 frames can be read"
    assert said in [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert torch.equal(read_frames(path, every, decoder=decoder).frames, frames[: read.num_frames])


def test_rotten_packets_leave_the_frames_around_them(
    tmp_path: Path, encode: Encode, moving: Moving, caplog: pytest.LogCaptureFixture
) -> None:
    """Intra-only, so that each packet is one frame: three of them are overwritten."""
    path = encode(tmp_path / "rotten.mkv", moving(20, 64, 96), "mjpeg", pix_fmt="yuvj420p")
    frames = plainly(path)
    content = bytearray(path.read_bytes())
    with av.open(str(path)) as container:
        packets = [bytes(packet) for packet in container.demux(video=0) if packet.size]
    for number in (4, 5, 11):
        place = content.index(packets[number])
        content[place : place + len(packets[number])] = bytes(len(packets[number]))
    path.write_bytes(content)
    read = read_frames(path, every)
    intact = [number for number in range(20) if number not in (4, 5, 11)]
    assert read.num_frames == 17 and torch.equal(read.frames, frames[intact])
    assert f"{path}: only 17 of its 20 frames can be read" in [record.getMessage() for record in caplog.records]


# ── what auto says ──────────────────────────────────────────────────────────────────────────────────────────


def test_the_same_reason_is_said_aloud_once(
    tmp_path: Path, encode: Encode, moving: Moving, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "octvideo.video")
    encoder, codec = ("libsvtav1", "libdav1d") if has_encoder("libsvtav1") else ("ffv1", "ffv1")
    files = [encode(tmp_path / f"{n}.mkv", moving(3, 64, 96), encoder) for n in range(3)]
    for path in files:
        assert read_frames(path, every).decoder == "pyav"
    said = [(record.levelname, record.getMessage()) for record in caplog.records]
    levels = ["WARNING", "INFO", "INFO"]
    assert said == [
        (level, f"{path}: codec {codec}; read with PyAV") for level, path in zip(levels, files, strict=True)
    ]
    read_frames(files[0], every, decoder="pyav")
    assert len(caplog.records) == 3  # nobody asked auto


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


# ── errors ──────────────────────────────────────────────────────────────────────────────────────────────────


def audio_only(path: Path) -> None:
    with av.open(str(path), "w") as container:
        stream = container.add_stream("aac", rate=44100)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        frame.sample_rate = 44100
        container.mux(stream.encode(frame))
        container.mux(stream.encode())


def header_only(path: Path, video: Path) -> None:
    """An mp4 whose header came first and whose frames never came."""
    content = video.read_bytes()
    path.write_bytes(content[: content.index(b"mdat") - 4])


@pytest.mark.parametrize(
    ("name", "make", "reason"),
    [
        ("missing.mp4", lambda path, video: None, "no such file"),
        ("folder.mp4", lambda path, video: path.mkdir(), "it is a folder"),
        ("empty.mp4", lambda path, video: path.touch(), "the file is empty"),
        ("text.mp4", lambda path, video: path.write_text("hello\n" * 100), "Invalid data found when processing input"),
        (
            "audio.mp4",
            lambda path, video: audio_only(path),
            "no video stream that FFmpeg can decode (streams: audio)",
        ),
        ("header.mp4", header_only, "it holds no frames"),
    ],
)
@pytest.mark.parametrize("decoder", ["auto", "decord", "pyav"])
def test_the_message_names_file_and_reason(
    tmp_path: Path, video: Path, name: str, make: Callable[[Path, Path], object], reason: str, decoder: Decoder
) -> None:
    path = tmp_path / name
    make(path, video)
    with pytest.raises(VideoReadError) as error:
        read_frames(path, every, decoder=decoder)
    assert str(error.value) == f"cannot read video '{path}': {reason}"
    assert isinstance(error.value, UserError)


def test_a_video_of_which_nothing_can_be_decoded(tmp_path: Path, encode: Encode, moving: Moving) -> None:
    path = encode(tmp_path / "noise.mkv", moving(5, 64, 96), "mjpeg", pix_fmt="yuvj420p")
    content = bytearray(path.read_bytes())
    with av.open(str(path)) as container:
        for packet in [bytes(packet) for packet in container.demux(video=0) if packet.size]:
            place = content.index(packet)
            content[place : place + len(packet)] = bytes(len(packet))
    path.write_bytes(content)
    with pytest.raises(VideoReadError, match="no frame can be decoded"):
        read_frames(path, every)


def test_an_unknown_decoder(video: Path) -> None:
    with pytest.raises(UserError, match="decoder: got 'ffmpeg', expected 'auto', 'decord', 'pyav' or 'torchcodec'"):
        read_frames(video, every, decoder="ffmpeg")  # type: ignore[arg-type]


def test_errors_travel_between_processes() -> None:
    error = pickle.loads(pickle.dumps(VideoReadError("a b.mp4", "it is a folder")))
    assert isinstance(error, VideoReadError)
    assert str(error) == "cannot read video 'a b.mp4': it is a folder"
    assert (error.path, error.reason) == ("a b.mp4", "it is a folder")


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
    with pytest.raises(ValueError, match="frame numbers"):
        read_frames(video, wanted(999), decoder=decoder)
    assert torch.equal(torch.cat(list(loader)), frames[:4])  # nor after a read that failed


def test_another_bridge_of_decord_does_not_matter(video: Path) -> None:
    import decord

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


NO_STREAM = "no video stream that FFmpeg can decode"
# Of each kind of odd file: the number of frames and who reads it, or the reason why nobody can.
ODD: dict[str, tuple[int, str] | str] = {
    "audio_only__count-english-audio.mp4": f"{NO_STREAM} (streams: audio)",
    "bad_metadata_utf8__hmdb51_Turnk_r_Pippi_Michel_cartwheel_f_cm_np2_le_med_6.avi": (83, "pyav"),
    "codec__100_0306.AVI": (41, "pyav"),
    "codec__bbb_176x144_128kbps_15fps_h263.3gp": (15, "pyav"),
    "codec__ffv1_test_pixfmt-yuv410p_coder-1_level-3.mkv": (25, "pyav"),
    "codec__sample_av1.mp4": (30, "pyav"),
    "codec__test.webm": (72, "pyav"),
    "codec__v_biking_01_01.mpg": (151, "pyav"),
    "corrupt_all__invalid-bitstream.webm": "no frame can be decoded",
    "corrupt_all__test_case_1185230.mp4": "no frame can be decoded",
    "corrupt_middle__corrupted.mp4": (48, "pyav"),
    "corrupt_middle__sample_fragmented_sgpd_v2.mp4": (14, "pyav"),
    "corrupt_open__EBML-ELEM-START.mkv": "Invalid data found when processing input",
    "corrupt_open__chunk_out_of_range.mp4": "Invalid data found when processing input",
    "edit_list__iibbibb_editlist_videoonly.mp4": (12, "pyav"),
    "edit_list__sample_edit_list_only_preroll_sync_sample.mp4": (16, "pyav"),
    "empty__result.webm": "the file is empty",
    "few_frames__unordered.mov": (4, "decord"),
    "filename__-video-with-dash-.mp4": (5, "pyav"),
    "fps_lies__sample.flv": (30, "pyav"),
    "frame_count_lies__sample_partially_fragmented.mp4": (30, "decord"),
    "frame_count_lies__test_video_66x50.mov": (82, "pyav"),
    "low_fps__example1.mp4": (40, "decord"),
    "no_decoder__video_dovi_3840x2160_30fps_dav1_10.mp4": f"{NO_STREAM} (streams: video)",
    "nonmonotonic_pts__v_ApplyEyeMakeup_g01_c01.avi": (164, "pyav"),
    "not_video__LICENSE.MP4": "Invalid data found when processing input",
    "odd_size__bear-vp9-odd-dimensions.webm": (30, "pyav"),
    "odd_size__video_colr_nclx_and_icc.mp4": (3, "pyav"),
    "one_frame__minimal.mp4": (1, "decord"),
    "one_frame__tiny_av1.mp4": (1, "pyav"),
    "one_frame__video_rotation_90.mp4": (1, "decord"),
    "pixfmt__h264_10bits.mp4": (30, "pyav"),
    "pixfmt__roadtrip-vp92-10bit.webm": (72, "pyav"),
    "pixfmt__video_colr_nclx_rgb.mp4": (3, "pyav"),
    "rotation__video_180.mov": (3, "decord"),
    "rotation__with-gps.mov": (120, "decord"),
    "sar__sample_mpeg4.mp4": (149, "decord"),
    "subtitle_only__stpp_prog.mp4": f"{NO_STREAM} (streams: subtitle)",
    "truncated__chapters_truncated_chapter_string.mkv": "End of file",
    "truncated__sample_qt.mp4": "it holds no frames",
    "truncated__zero_empty_stsc.mp4": "no frame can be decoded",
    "two_video__sample_empty_track.mp4": (30, "decord"),
    "wrong_ext__2_ExtensionTextMKV.mkv": f"{NO_STREAM} (streams: none)",
    "zero_frames__bipbop_nonfragment_header.mp4": "it holds no frames",
    "zero_frames__init.mp4": "it holds no frames",
}


@pytest.mark.parametrize("name", ODD)
def test_odd_files(real_videos: Path, name: str) -> None:
    """From collections of test files of other projects; MANIFEST.tsv beside them names each one's source."""
    path = real_videos / "odd" / name
    if not path.exists():
        pytest.skip(f"no {path}")
    expected = ODD[name]

    def three(num_frames: int) -> Tensor:
        return torch.tensor([0, num_frames // 2, num_frames - 1])

    if isinstance(expected, str):
        with pytest.raises(VideoReadError) as error:
            read_frames(path, three)
        assert str(error.value) == f"cannot read video '{path}': {expected}"
        return
    read = read_frames(path, three)
    assert (read.num_frames, read.decoder) == expected
    assert torch.equal(read.frames, read_frames(path, three, decoder="pyav").frames)


@pytest.mark.parametrize(("rotated", "quarters"), [("rotation__video_180.mov", 2)])
def test_a_rotated_real_file_shows_what_its_unrotated_sibling_shows(
    real_videos: Path, rotated: str, quarters: int
) -> None:
    paths = [real_videos / "odd" / name for name in (rotated, "rotation__video_0.mov")]
    if not all(path.exists() for path in paths):
        pytest.skip("no such files")
    turned, straight = (read_frames(path, every).frames.float() for path in paths)
    turned_back = torch.rot90(turned, quarters, dims=(1, 2))
    assert (turned - straight).abs().mean() < (turned_back - straight).abs().mean()
