"""Which files browsers play as they are, what becomes of others, and thumbnails."""

from __future__ import annotations

import errno
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import av
import pytest

from octvideo.video import FileFrames, VideoReadError
from octvideo.video.browser import beside_name, played_suffix, write_for_browser
from octvideo.video.thumbnail import thumbnail_name, write_thumbnail

Encode = Callable[..., Path]
Moving = Callable[..., Any]


@pytest.mark.parametrize(
    ("name", "codec", "options", "suffix"),
    [
        ("a.mp4", "libx264", {}, ".mp4"),
        ("a.m4v", "libx264", {}, ".mp4"),
        ("a.mov", "libx264", {}, None),
        ("a.mkv", "libx264", {}, None),
        ("a.mp4", "libx264", {"pix_fmt": "yuv444p"}, None),
        ("a.mp4", "mpeg4", {}, None),
        ("a.webm", "libvpx-vp9", {"deadline": "realtime"}, ".webm"),
        ("a.mkv", "libvpx-vp9", {"deadline": "realtime"}, None),
        ("a.avi", "mpeg4", {}, None),
    ],
)
def test_what_browsers_play(
    name: str, codec: str, options: dict[str, Any], suffix: str | None, tmp_path: Path, encode: Encode, moving: Moving
) -> None:
    assert played_suffix(encode(tmp_path / name, moving(5), codec, **options)) == suffix


def test_what_browsers_do_not_play_is_written_anew_with_all_its_frames(
    tmp_path: Path, encode: Encode, moving: Moving
) -> None:
    source = encode(tmp_path / "my clip.avi", moving(21), "mpeg4")
    times: list[float] = []
    made = write_for_browser(source, tmp_path, on_frame=times.append)
    assert not made.is_copy and made.path.name.startswith("my-clip-") and len(times) == 21
    assert played_suffix(made.path) == ".mp4"
    with FileFrames(made.path, None) as frames:
        assert len(list(frames)) == 21
    assert write_for_browser(source, tmp_path, on_frame=times.append).path == made.path and len(times) == 21


def test_a_video_whose_clock_starts_late_is_written_anew_from_0(tmp_path: Path, encode: Encode, moving: Moving) -> None:
    source = tmp_path / "late.mp4"
    with av.open(str(encode(tmp_path / "a.mp4", moving(5)))) as early, av.open(str(source), "w") as late:
        copy = late.add_stream_from_template(early.streams.video[0])
        for packet in early.demux(video=0):
            if packet.size:
                packet.pts, packet.dts = (int(time + 2 / packet.time_base) for time in (packet.pts, packet.dts))
                packet.stream = copy
                late.mux(packet)
    with av.open(str(source)) as container:
        assert container.start_time == 2_000_000
    assert played_suffix(source) is None
    made = write_for_browser(source, tmp_path)
    with av.open(str(made.path)) as container:
        assert not made.is_copy and container.start_time == 0


def test_a_damaged_video_is_written_anew(tmp_path: Path, encode: Encode, moving: Moving) -> None:
    source = encode(tmp_path / "a.mp4", moving(5))
    assert write_for_browser(source, tmp_path).is_copy
    (tmp_path / "other").mkdir()
    assert not write_for_browser(source, tmp_path / "other", is_damaged=True).is_copy


def test_a_full_disk_is_told_by_the_name_of_what_was_written(
    tmp_path: Path, encode: Encode, moving: Moving, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = encode(tmp_path / "a.mp4", moving(5))

    def full(source: Path, part: Path) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", str(source), None, str(part))

    monkeypatch.setattr(shutil, "copyfile", full)
    (tmp_path / "out").mkdir()
    with pytest.raises(OSError, match="No space left on device") as caught:
        write_for_browser(source, tmp_path / "out")
    assert Path(caught.value.filename).parent == tmp_path / "out" and caught.value.filename2 is None
    assert list((tmp_path / "out").iterdir()) == []


def test_names_change_with_the_video_and_are_ascii(tmp_path: Path) -> None:
    source = tmp_path / "<b>打开 \udcff.mp4"
    source.write_bytes(b"1")
    first = beside_name(source, ".mp4")
    assert first.isascii() and first.startswith("b-") and beside_name(source, ".mp4", 160) != first
    source.write_bytes(b"12")
    assert beside_name(source, ".mp4") != first
    with pytest.raises(FileNotFoundError):
        thumbnail_name(tmp_path / "none.mp4")


@pytest.mark.parametrize(("num_frames", "made"), [(1, 1), (20, 12), (200, 36)])
def test_a_thumbnail_has_the_middle_of_a_video(
    num_frames: int, made: int, tmp_path: Path, encode: Encode, moving: Moving
) -> None:
    source = encode(tmp_path / "a.mp4", moving(num_frames, 96, 128), g=25)  # 20 frames a second
    write_thumbnail(source, tmp_path / "t.mp4")
    with av.open(str(tmp_path / "t.mp4")) as container:
        (stream,) = container.streams
        frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
        assert (stream.codec_context.name, stream.format.name) == ("h264", "yuv420p")
        assert (stream.width, stream.height) == (128, 96)  # never larger than the video
    assert len(frames) == pytest.approx(made, abs=1)
    # The middle of 200 frames begins at 3.5 s: the 70th, whose blue is 60 + 70 % 40 * 3.
    blue = float(frames[0][-8:, :, 2].mean())
    assert blue == pytest.approx(60 + (70 % 40 * 3 if num_frames == 200 else 0), abs=8)


def test_thumbnails_are_small_upright_and_of_even_size(tmp_path: Path, encode: Encode, moving: Moving) -> None:
    source = encode(tmp_path / "a.mp4", moving(4, 270, 482), rotation=90)
    write_thumbnail(source, tmp_path / "t.mp4")
    with av.open(str(tmp_path / "t.mp4")) as container:
        stream = container.streams.video[0]
        assert (stream.width, stream.height) == (160, 284)


def test_what_can_not_be_read_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "a.mp4").write_bytes(b"no video" * 100)
    for name, reason in (("a.mp4", "Invalid data"), ("none.mp4", "no such file")):
        with pytest.raises(VideoReadError, match=reason):
            write_thumbnail(tmp_path / name, tmp_path / "t.mp4")
        with pytest.raises(VideoReadError, match=reason):
            write_for_browser(tmp_path / name, tmp_path)
    assert [file.name for file in tmp_path.iterdir()] == ["a.mp4"]


def test_of_a_cut_file_a_thumbnail_shows_what_is_there(tmp_path: Path, encode: Encode, moving: Moving) -> None:
    whole = encode(tmp_path / "a.mp4", moving(200, 96, 128), g=10, movflags="faststart").read_bytes()
    (tmp_path / "b.mp4").write_bytes(whole[: len(whole) // 4])
    write_thumbnail(tmp_path / "b.mp4", tmp_path / "t.mp4")
    with av.open(str(tmp_path / "t.mp4")) as container:
        assert sum(1 for _ in container.decode(video=0)) > 5
