"""Every odd file under each reader: its frames, or one error with a reason; in time, in memory, in worker processes.

The files come from test collections of other projects; MANIFEST.tsv beside them names each one's source.
"""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

import av
import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from octvideo.video import Decoder, VideoReadError, read_frames, resize_short_side, uniform_clips
from tests.video.reference import every, torchcodec_reason

NO_STREAM = "no video stream that FFmpeg can decode"
SHOWS_NONE = "packets that show no frame"
DECODERS: tuple[Decoder, ...] = get_args(Decoder)


@dataclass(frozen=True)
class Row:
    """What comes of a file.

    Args:
        pyav: number of frames, or the reason why there are none.
        decord: why decord does not, where it gives no frames (or another reason); None is as `pyav`.
        torchcodec: likewise.
    """

    pyav: int | str
    decord: str | None = None
    torchcodec: str | None = None

    def of(self, decoder: Decoder) -> int | str:
        reason = {"decord": self.decord, "torchcodec": self.torchcodec}.get(decoder)
        return self.pyav if reason is None else f"{reason} (with decoder '{decoder}'; 'auto' takes PyAV)"


ODD = {
    "audio_only__count-english-audio.mp4": Row(f"{NO_STREAM} (streams: audio)"),
    "audio_only__encrypted-sintel-audio-init.mp4": Row(f"{NO_STREAM} (streams: audio)"),
    "audio_only__nasa_13013.mp4.audio.mp3": Row(f"{NO_STREAM} (streams: audio)"),
    "bad_metadata_utf8__hmdb51_Turnk_r_Pippi_Michel_cartwheel_f_cm_np2_le_med_6.avi": Row(
        83, decord="container avi", torchcodec="times that are not those of display"
    ),
    "bad_timescale__no_timescale.mp4": Row(
        142,
        decord="decord fails: Thread worker: Error sending packet.",
        torchcodec="torchcodec fails: Could not push packet to decoder: Invalid data found when processing input",
    ),
    "bframes_pyramid__bbb_800x640_768kbps_30fps_avc_pyramid_3b.mp4": Row(120),
    "codec__100_0306.AVI": Row(41, decord="container avi", torchcodec="times that are not those of display"),
    "codec__bbb_176x144_128kbps_15fps_h263.3gp": Row(
        15, decord="codec h263", torchcodec="keyframes that are none, or unknown ones"
    ),
    "codec__ffv1_test_pixfmt-yuv410p_coder-1_level-3.mkv": Row(
        25, decord="codec ffv1", torchcodec="pixel format yuv410p"
    ),
    "codec__sample_av1.mp4": Row(30, decord="codec libdav1d"),
    "codec__test.webm": Row(72, decord=SHOWS_NONE, torchcodec=SHOWS_NONE),
    "codec__v_biking_01_01.mpg": Row(151, decord="codec mpeg1video", torchcodec="times that are not those of display"),
    "corrupt_all__invalid-bitstream.webm": Row(
        "no frame can be decoded", decord="pixel format None", torchcodec="pixel format None"
    ),
    "corrupt_all__test_case_1185230.mp4": Row(
        "no frame can be decoded", decord="pixel format None", torchcodec="pixel format None"
    ),
    "corrupt_middle__corrupted.mp4": Row(
        48,
        decord="decord fails: Thread worker: Error sending packet.",
        torchcodec="torchcodec fails: Could not push packet to decoder: Invalid data found when processing input",
    ),
    "corrupt_middle__sample_fragmented_sgpd_v2.mp4": Row(
        14, decord="encrypted packets", torchcodec="encrypted packets"
    ),
    "corrupt_open__EBML-ELEM-START.mkv": Row("Invalid data found when processing input"),
    "corrupt_open__chunk_out_of_range.mp4": Row("Invalid data found when processing input"),
    "edit_list__iibbibb_editlist_videoonly.mp4": Row(12, decord=SHOWS_NONE, torchcodec=SHOWS_NONE),
    "edit_list__sample_edit_list_only_preroll_sync_sample.mp4": Row(16, decord=SHOWS_NONE, torchcodec=SHOWS_NONE),
    "empty__result.webm": Row("the file is empty"),
    "few_frames__unordered.mov": Row(4),
    "filename__-video-with-dash-.mp4": Row(5, decord="odd frame size", torchcodec="odd frame size"),
    "fps_lies__sample.flv": Row(30, decord="container flv"),
    "frame_count_lies__sample_partially_fragmented.mp4": Row(30),
    "frame_count_lies__test_video_66x50.mov": Row(82, decord=SHOWS_NONE, torchcodec=SHOWS_NONE),
    "huge__long_4k_av1.mp4": Row(21766, decord="codec libdav1d"),
    "interlaced__Sony_ILCE-7M3_(A7M3).mts": Row(
        13,
        decord="container mpegts",
        torchcodec="torchcodec fails: Requested next frame while there are no more frames left to decode.",
    ),
    "long__long_1080p_lowbitrate.mp4": Row(10883),
    "low_fps__example1.mp4": Row(40),
    "no_decoder__video_dovi_3840x2160_30fps_dav1_10.mp4": Row(f"{NO_STREAM} (streams: video)"),
    "no_duration__no_duration.webm": Row(
        74, decord="decord fails: Failed to measure duration/frame-count due to broken metadata."
    ),
    "no_keyframe_table__sample_without_stss.mp4": Row(30),
    "no_timestamps__cfr.mpeg": Row(180, decord="container mpeg", torchcodec="frames without a time of their own"),
    "no_timestamps__count.h264": Row(245, decord="container h264", torchcodec="frames without a time of their own"),
    "nonmonotonic_pts__KOREAN_TEA_CEREMONY_-_Simple_Demo_pour_u_nm_np1_fr_med_0.avi": Row(
        430, decord="container avi", torchcodec="times that are not those of display"
    ),
    "nonmonotonic_pts__v_ApplyEyeMakeup_g01_c01.avi": Row(
        164, decord="container avi", torchcodec="times that are not those of display"
    ),
    "not_video__LICENSE.MP4": Row("Invalid data found when processing input"),
    "odd_size__bear-vp9-odd-dimensions.webm": Row(30, decord="odd frame size", torchcodec="odd frame size"),
    "odd_size__bitmap.mp4": Row(5, decord="odd frame size", torchcodec="odd frame size"),
    "odd_size__video_colr_nclx_and_icc.mp4": Row(
        3, decord="decord fails: DECORDArrayCopyFromTo: The size must exactly match"
    ),
    "one_frame__minimal.mp4": Row(1, torchcodec="times that are not those of display"),
    "one_frame__tiny_av1.mp4": Row(1, decord="codec libdav1d"),
    "one_frame__video_rotation_90.mp4": Row(1, torchcodec="times that are not those of display"),
    "pixfmt__bt709_full_range.mp4": Row(30),
    "pixfmt__h264_10bits.mp4": Row(30, decord="pixel format yuv420p10le", torchcodec="pixel format yuv420p10le"),
    "pixfmt__roadtrip-vp92-10bit.webm": Row(
        72, decord="pixel format yuv420p10le", torchcodec="pixel format yuv420p10le"
    ),
    "pixfmt__video_colr_nclx_rgb.mp4": Row(3, decord="pixel format gbrp", torchcodec="pixel format gbrp"),
    "res_change__test_res_change.h264": Row(
        96, decord="container h264", torchcodec="frames without a time of their own"
    ),
    "rotation__sample_rotate_and_reflect.mp4": Row(30),
    "rotation__video_0.mov": Row(3),
    "rotation__video_180.mov": Row(3),
    "rotation__with-gps.mov": Row(120),
    "sar__sample_mpeg4.mp4": Row(149),
    "short_nal__sample_2_byte_NAL_length.mp4": Row(30),
    "start_offset__bbb_800x640_768kbps_30fps_avc_2b_firstpts_10_sec.mp4": Row(120),
    "subtitle_only__stpp_prog.mp4": Row(f"{NO_STREAM} (streams: subtitle)"),
    "truncated__chapters_truncated_chapter_string.mkv": Row("End of file"),
    "truncated__sample_qt.mp4": Row("it holds no frames"),
    "truncated__zero_empty_stsc.mp4": Row(
        "no frame can be decoded", decord="pixel format None", torchcodec="pixel format None"
    ),
    "two_video__sample_empty_track.mp4": Row(30),
    "vfr__count-video.mp4": Row(245),
    "vfr__video_big_buck_bunny.mp4": Row(240),
    "wrong_ext__2_ExtensionTextMKV.mkv": Row(f"{NO_STREAM} (streams: none)"),
    "zero_frames__bipbop_nonfragment_header.mp4": Row("it holds no frames"),
    "zero_frames__init.mp4": Row("it holds no frames"),
}
# Too many frames to ask for all of them.
LONG = {name for name in ODD if name.startswith(("huge", "long"))}
# Small files of each kind: those that are read in the fast tests.
SMALL = [
    "bad_metadata_utf8__hmdb51_Turnk_r_Pippi_Michel_cartwheel_f_cm_np2_le_med_6.avi",
    "codec__bbb_176x144_128kbps_15fps_h263.3gp",
    "corrupt_all__test_case_1185230.mp4",
    "corrupt_middle__sample_fragmented_sgpd_v2.mp4",
    "edit_list__iibbibb_editlist_videoonly.mp4",
    "empty__result.webm",
    "few_frames__unordered.mov",
    "frame_count_lies__test_video_66x50.mov",
    "no_decoder__video_dovi_3840x2160_30fps_dav1_10.mp4",
    "odd_size__bear-vp9-odd-dimensions.webm",
    "one_frame__tiny_av1.mp4",
    "one_frame__video_rotation_90.mp4",
    "pixfmt__h264_10bits.mp4",
    "pixfmt__video_colr_nclx_rgb.mp4",
    "rotation__video_180.mov",
    "sar__sample_mpeg4.mp4",
    "truncated__chapters_truncated_chapter_string.mkv",
    "truncated__zero_empty_stsc.mp4",
    "wrong_ext__2_ExtensionTextMKV.mkv",
    "zero_frames__init.mp4",
]


def three(num_frames: int) -> Tensor:
    return torch.tensor([0, num_frames // 2, num_frames - 1])


def plainly(path: Path) -> list[np.ndarray]:
    """The reference: every frame that PyAV gives, one after the other, upright, each (H, W, C)."""
    images = []
    options = {"metadata_errors": "replace"} if int(av.__version__.split(".")[0]) < 19 else {}
    with av.open(str(path), **options) as container:
        stream = container.streams.best("video")
        stream.thread_count, stream.thread_type = 1, "NONE"
        packets = container.demux(stream)
        while True:
            try:
                packet = next(packets)
            except (StopIteration, av.FFmpegError):
                return images
            try:
                frames = packet.decode()
            except (av.FFmpegError, ValueError):
                continue
            for frame in (frame for frame in frames if not frame.is_corrupt):
                size = images[0].shape if images and frame.rotation == 0 else None  # after a change of resolution
                scale = {} if size is None else {"width": size[1], "height": size[0]}
                quarters = frame.rotation // 90 if frame.rotation % 90 == 0 and abs(frame.rotation) <= 360 else 0
                images.append(np.rot90(frame.to_ndarray(format="rgb24", **scale), quarters))


def outcome(path: str, decoder: Decoder, *, choose: object = three) -> tuple[int | str, int]:
    """Number of frames or reason, and a sum over the frames."""
    try:
        read = read_frames(path, choose, decoder=decoder)  # type: ignore[arg-type]
    except VideoReadError as error:
        assert str(error) == f"cannot read video '{path}': {error.reason}"
        return error.reason, 0
    return read.num_frames, int(read.frames.sum())


def check(path: Path, decoder: Decoder) -> None:
    """Holds a file against its row, and its frames against plain decoding."""
    if not path.exists():
        pytest.skip(f"no {path}")
    if decoder == "torchcodec" and (why := torchcodec_reason()):
        pytest.skip(why)
    expected = ODD[path.name].of(decoder)
    if isinstance(expected, str):
        with pytest.raises(VideoReadError) as error:
            read_frames(path, every, decoder=decoder)
        assert error.value.reason == expected
        return
    read = read_frames(path, every, decoder=decoder)
    assert read.num_frames == expected
    assert read.decoder == ("pyav" if decoder == "auto" else decoder)
    images = plainly(path)
    assert len(images) == expected
    for image, frame in zip(images, read.frames.numpy(), strict=True):
        assert np.array_equal(image, frame)


@pytest.mark.parametrize("decoder", DECODERS)
@pytest.mark.parametrize("name", SMALL)
def test_small_odd_files(real_videos: Path, name: str, decoder: Decoder) -> None:
    check(real_videos / "odd" / name, decoder)


@pytest.mark.slow
@pytest.mark.parametrize("decoder", DECODERS)
@pytest.mark.parametrize("name", sorted(set(ODD) - set(SMALL) - LONG))
def test_all_other_odd_files(real_videos: Path, name: str, decoder: Decoder) -> None:
    check(real_videos / "odd" / name, decoder)


def test_the_table_is_complete(real_videos: Path) -> None:
    there = {path.name for path in (real_videos / "odd").iterdir() if path.suffix != ".tsv"}
    assert there <= set(ODD), "files that no row describes"


# ── in worker processes ─────────────────────────────────────────────────────────────────────────────────────


# decord sees the damage of these, or not, as its threads happen to run.
ROTTEN = {"bad_timescale__no_timescale.mp4", "corrupt_middle__corrupted.mp4"}


class Outcomes(Dataset[tuple[int | str, int]]):
    def __init__(self, asked: Sequence[tuple[str, Decoder]]) -> None:
        self.asked = asked

    def __len__(self) -> int:
        return len(self.asked)

    def __getitem__(self, index: int) -> tuple[int | str, int]:
        return outcome(*self.asked[index])


def in_workers_as_here(folder: Path, names: Sequence[str]) -> None:
    readers = [decoder for decoder in DECODERS if decoder != "torchcodec" or not torchcodec_reason()]
    asked = [(str(folder / name), decoder) for name in names if (folder / name).exists() for decoder in readers]
    asked = [(path, decoder) for path, decoder in asked if decoder != "decord" or Path(path).name not in ROTTEN]
    here = [outcome(*one) for one in asked]  # before the fork: every reader has been used
    loader = DataLoader(Outcomes(asked), batch_size=None, num_workers=2, multiprocessing_context="fork")
    assert [tuple(one) for one in loader] == here


@pytest.mark.timeout(120)  # a reader that is open in the parent would hang a child
def test_workers_get_what_the_parent_gets(real_videos: Path) -> None:
    in_workers_as_here(real_videos / "odd", SMALL)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_workers_get_what_the_parent_gets_of_all_files(real_videos: Path) -> None:
    in_workers_as_here(real_videos / "odd", sorted(set(ODD) - LONG))


# ── time and memory ─────────────────────────────────────────────────────────────────────────────────────────

# All views of each file; the peak of memory above what was there before.
MEASURE = """
import json, sys, time
from pathlib import Path
import octvideo.video.decord_reader, octvideo.video.torchcodec_reader
from tests.video.test_odd_files import small_views

def kilobytes(field):
    return int(next(line for line in open("/proc/self/status") if line.startswith(field)).split()[1])

for path in sys.argv[2:]:
    Path("/proc/self/clear_refs").write_text("5")
    before, start = kilobytes("VmRSS"), time.process_time()
    small_views(path, sys.argv[1])
    print(json.dumps([Path(path).name, time.process_time() - start, (kilobytes("VmHWM") - before) / 1024]), flush=True)
"""


def small_views(path: str, decoder: Decoder) -> None:
    """Ten clips, as a test of a network reads them."""
    with contextlib.suppress(VideoReadError):
        read_frames(
            path,
            lambda num_frames: uniform_clips(num_frames, num_clips=10, clip_frames=8, frame_stride=8),
            decoder=decoder,
            resize=lambda frames: resize_short_side(frames, 256),
        )


@pytest.mark.slow
@pytest.mark.parametrize("decoder", DECODERS)
def test_no_file_takes_more_than_ten_seconds_or_a_gigabyte(real_videos: Path, repo: Path, decoder: Decoder) -> None:
    """Seconds of CPU, so that other processes do not count."""
    if not Path("/proc/self/clear_refs").exists():
        pytest.skip("only Linux tells the peak of memory of a part of a run")
    if decoder == "torchcodec" and (why := torchcodec_reason()):
        pytest.skip(why)
    paths = [str(real_videos / "odd" / name) for name in ODD if (real_videos / "odd" / name).exists()]
    command = [sys.executable, "-c", MEASURE, decoder, *paths]
    run = subprocess.run(command, cwd=repo, capture_output=True, text=True, timeout=280, check=False)
    assert run.returncode == 0, run.stderr[-2000:]
    measured = [json.loads(line) for line in run.stdout.splitlines() if line.startswith("[")]
    assert len(measured) == len(paths)
    # torchcodec decodes every frame from the keyframe on, and takes 12 s for this one.
    slow = {"huge__long_4k_av1.mp4": 25} if decoder == "torchcodec" else {}
    assert [m for m in measured if m[1] > slow.get(m[0], 10) or m[2] > 1024] == []


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
