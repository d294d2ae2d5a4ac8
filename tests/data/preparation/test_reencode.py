"""Re-encoding: what the copy is like, what becomes of damaged files, resuming, and that no source is touched."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import av
import pytest
import torch
from torch import Tensor

from octvideo.data.preparation import encoding
from octvideo.data.preparation.command import main
from octvideo.data.preparation.encoding import EncodingError, EncodingSettings
from octvideo.data.preparation.reencode import Encoder
from octvideo.video import read_frames

SETTINGS = EncodingSettings(short_side_px=32, gop_frames=4, crf=10)


def decoded(path: Path) -> tuple[list[av.VideoFrame], av.VideoStream]:
    """All frames in plain PyAV, and the stream."""
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        return list(container.decode(stream)), stream


def pixels(path: Path) -> Tensor:
    return read_frames(path, torch.arange, decoder="pyav").frames.float()  # (T,H,W,C)


def test_the_copy(tmp_path: Path, encode: Callable[..., Path], moving: Callable[..., Tensor]) -> None:
    source = encode(tmp_path / "a.mkv", moving(11, 96, 130), g=250, crf=10)
    result = encoding.encode(source, tmp_path / "b.mp4", SETTINGS)
    frames, stream = decoded(tmp_path / "b.mp4")
    assert (result.frames, result.damage, len(frames)) == (11, "", 11)
    assert (stream.codec_context.name, stream.pix_fmt) == ("h264", "yuv420p")
    assert (frames[0].width, frames[0].height) == (44, 32)
    assert [n for n, frame in enumerate(frames) if frame.key_frame] == [0, 4, 8]
    assert result.bytes == (tmp_path / "b.mp4").stat().st_size and result.source_bytes == source.stat().st_size
    content = (tmp_path / "b.mp4").read_bytes()
    assert 0 < content.index(b"moov") < content.index(b"mdat")  # faststart
    assert sorted(file.name for file in tmp_path.iterdir()) == ["a.mkv", "b.mp4"]


@pytest.mark.parametrize("rotation", [0, 90, 180, 270])
@pytest.mark.parametrize("full_range", [False, True])
def test_pixels_and_rotation(
    tmp_path: Path, encode: Callable[..., Path], moving: Callable[..., Tensor], rotation: int, full_range: bool
) -> None:
    """Our reader, tested elsewhere against FFmpeg, sees the same upright pictures in both."""
    options = {"pix_fmt": "yuvj420p"} if full_range else {}
    source = encode(tmp_path / "a.mp4", moving(5, 48, 64), rotation=rotation, crf=1, **options)
    encoding.encode(source, tmp_path / "b.mp4", EncodingSettings(short_side_px=48, crf=1))
    a, b = pixels(source), pixels(tmp_path / "b.mp4")
    assert a.shape == b.shape and (a - b).abs().mean() < 3
    assert decoded(tmp_path / "b.mp4")[0][0].rotation == 0


def test_small_and_odd_sizes_stay(tmp_path: Path, encode: Callable[..., Path], moving: Callable[..., Tensor]) -> None:
    for height, width, expected in ((21, 29, (20, 28)), (30, 40, (30, 40)), (1, 9, (2, 8)), (33, 401, (32, 388))):
        source = encode(tmp_path / f"{height}.mkv", moving(2, height, width), "ffv1", pix_fmt="bgr0")
        encoding.encode(source, tmp_path / f"{height}.mp4", SETTINGS)
        assert pixels(tmp_path / f"{height}.mp4").shape[1:3] == expected


def test_every_frame_keeps_its_time(tmp_path: Path, moving: Callable[..., Tensor]) -> None:
    times = [0, 40, 45, 300, 301, 1700, 1733, 5000]  # ms
    with av.open(str(tmp_path / "a.mkv"), "w") as container:
        stream = container.add_stream("libx264", rate=30, width=64, height=48, pix_fmt="yuv420p")
        stream.codec_context.time_base = Fraction(1, 1000)
        for time_ms, image in zip(times, moving(8, 48, 64).numpy(), strict=True):
            frame = av.VideoFrame.from_ndarray(image, format="rgb24")
            frame.pts, frame.time_base = time_ms, stream.codec_context.time_base
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    encoding.encode(tmp_path / "a.mkv", tmp_path / "b.mp4", SETTINGS)
    for file in ("a.mkv", "b.mp4"):
        assert [round(1000 * float(frame.pts * frame.time_base)) for frame in decoded(tmp_path / file)[0]] == times


def test_sound_is_left_out_and_a_damaged_file_gives_what_can_be_decoded(tmp_path: Path, real_videos: Path) -> None:
    source = real_videos / "clips/k400_arm_wrestling_ehLnj7pXnYE_000027_000037.mp4"
    content = bytearray(source.read_bytes())
    content[200_000:260_000] = bytes(60_000)
    (tmp_path / "a.mp4").write_bytes(content)
    result = encoding.encode(
        tmp_path / "a.mp4", tmp_path / "b.mp4", EncodingSettings(short_side_px=64, preset="ultrafast")
    )
    with av.open(str(tmp_path / "b.mp4")) as container:
        assert [stream.type for stream in container.streams] == ["video"]
    assert 200 < result.frames <= 300 and len(decoded(tmp_path / "b.mp4")[0]) == result.frames


@pytest.mark.parametrize("content", [b"", b"no video", bytes(5000)])
def test_what_is_no_video(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.mp4").write_bytes(content)
    with pytest.raises(EncodingError, match=r"^Invalid data found when processing input$"):
        encoding.encode(tmp_path / "a.mp4", tmp_path / "b.mp4", SETTINGS)
    assert [file.name for file in tmp_path.iterdir()] == ["a.mp4"]


# ── many ────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def source(tmp_path: Path, encode: Callable[..., Path], moving: Callable[..., Tensor]) -> Path:
    """Five videos, one of a name that is no text, and a broken one."""
    folder = tmp_path / "source"
    first = encode(folder / "wave/a b.avi", moving(6, 48, 64), "mpeg4")
    for name in ("wave/c.mp4", "clap/d.mkv", "clap/d.mp4"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(first.read_bytes())
    try:
        (folder / "clap/caf\udce9.mp4").write_bytes(first.read_bytes())
    except OSError:  # macOS
        (folder / "clap/cafe.mp4").write_bytes(first.read_bytes())
    (folder / "wave/broken.mp4").write_bytes(b"no video")
    return folder


def state(folder: Path) -> dict[str, tuple[int, int]]:
    return {str(file): (file.stat().st_size, file.stat().st_mtime_ns) for file in folder.rglob("*")}


def test_a_folder(source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out, before = tmp_path / "out", state(source)
    words = ["reencode", str(source), str(out), "--short-side", "32", "--workers", "2", "--preset", "ultrafast"]
    assert main(words) == 1
    said = capsys.readouterr().out
    assert "4 videos encoded, 0 were there, 2 failed" in said
    names = sorted(str(file.relative_to(out)) for file in out.rglob("*.mp4"))
    expected = {str(file.relative_to(source).with_suffix(".mp4")) for file in source.rglob("*.*")}
    assert names == sorted(expected - {"wave/broken.mp4"}) and len(names) == 4
    failed = sorted((out / "reencode_failed.txt").read_text(errors="surrogateescape").splitlines())
    assert failed == [
        "clap/d.mp4\td.mkv has the same name without suffix",
        "wave/broken.mp4\tInvalid data found when processing input",
    ]
    assert state(source) == before
    done = state(out)
    assert main(words) == 1  # only what failed is tried again
    assert "0 videos encoded, 4 were there, 2 failed" in capsys.readouterr().out
    assert {file: s for file, s in state(out).items() if file.endswith(".mp4")} == {
        file: s for file, s in done.items() if file.endswith(".mp4")
    }
    assert main([*words[:4], "64"]) == 2
    assert (
        "holds videos of other settings (short_side_px 32, not 64, preset ultrafast, not fast)"
        in capsys.readouterr().err
    )


def test_folders_that_would_harm_the_source(source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = state(source)
    (tmp_path / "link").symlink_to(source)
    for out in (source, source / "small", tmp_path, tmp_path / "link"):
        assert main(["reencode", str(source), str(out)]) == 2
        assert "the folders overlap" in capsys.readouterr().err
    (tmp_path / "out").mkdir()
    (tmp_path / "out/wave").symlink_to(source / "wave")
    assert main(["reencode", str(source), str(tmp_path / "out")]) == 2
    assert "holds videos that this tool did not write" in capsys.readouterr().err
    (tmp_path / "out2").mkdir()
    (source / "empty").mkdir()
    (tmp_path / "out2/wave").symlink_to(source / "empty")  # nothing in it yet, but it is the source's
    assert main(["reencode", str(source), str(tmp_path / "out2")]) == 2
    assert "is a link into" in capsys.readouterr().err
    (source / "empty").rmdir()
    assert {k: v for k, v in state(source).items() if Path(k).is_file()} == {
        k: v for k, v in before.items() if Path(k).is_file()
    }


def test_a_process_that_crashes_or_hangs_takes_one_video_with_it(source: Path, tmp_path: Path) -> None:
    with Encoder(timeout_sec=60) as encoder:
        assert encoder.run(source, "wave/c.mp4", tmp_path / "c.mp4", SETTINGS).encoded is not None
        process = encoder._process
        os.kill(process.pid, signal.SIGSEGV)  # type: ignore[union-attr]
        process.wait()  # type: ignore[union-attr]
        outcome = encoder.run(source, "wave/c.mp4", tmp_path / "d.mp4", SETTINGS)
        assert outcome.encoded is None and outcome.reason == "the encoding process crashed (signal 11)"
        assert encoder.run(source, "wave/c.mp4", tmp_path / "d.mp4", SETTINGS).encoded is not None
    os.mkfifo(source / "pipe.mp4")  # nobody writes to it
    with Encoder(timeout_sec=1.5) as encoder:
        outcome = encoder.run(source, "pipe.mp4", tmp_path / "e.mp4", SETTINGS)
        assert outcome.reason == "not done after 1.5 s"


@pytest.mark.slow
def test_a_killed_run_goes_on_where_it_was(
    tmp_path: Path, encode: Callable[..., Path], moving: Callable[..., Tensor], repo: Path
) -> None:
    source, out = tmp_path / "source", tmp_path / "out"
    first = encode(source / "00.mp4", moving(60, 96, 128))
    for number in range(1, 20):
        (source / f"{number:02d}.mp4").write_bytes(first.read_bytes())
    command = [
        sys.executable,
        str(repo / "tools/prepare_dataset.py"),
        "reencode",
        str(source),
        str(out),
        "--workers",
        "1",
    ]
    running = subprocess.Popen([*command, "--preset", "veryslow"], stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while len(list(out.glob("*.mp4"))) < 3:
        assert running.poll() is None and time.monotonic() < deadline
        time.sleep(0.02)
    running.kill()
    running.wait()
    there = state(out)
    ended = subprocess.run([*command, "--preset", "veryslow"], capture_output=True, text=True, timeout=120, check=True)
    assert "0 failed" in ended.stdout and " 0 were there" not in ended.stdout
    assert {file: s for file, s in state(out).items() if file in there and file.endswith(".mp4")} == {
        file: s for file, s in there.items() if file.endswith(".mp4")
    }
    assert len(list(out.glob("*.mp4"))) == 20 and not list(out.glob(".*.part"))
    assert all(len(decoded(file)[0]) == 60 for file in out.glob("*.mp4"))


@pytest.mark.slow
def test_real_clips_decode_cheaper(real_videos: Path, tmp_path: Path) -> None:
    clips = sorted((real_videos / "clips").glob("k400_*"))
    spent = dict.fromkeys(("source", "copy"), 0.0)
    for clip in clips:
        copy = tmp_path / f"{clip.stem}.mp4"
        result = encoding.encode(clip, copy, EncodingSettings())
        assert result.damage == "" and result.frames == len(decoded(clip)[0])

        def late_clip(num_frames: int) -> Tensor:
            return (torch.arange(8) * 8 + num_frames // 2).clamp(max=num_frames - 1)

        for name, file in (("source", clip), ("copy", copy)) * 2:
            started = time.process_time()
            read_frames(file, late_clip)
            spent[name] += time.process_time() - started
    assert spent["copy"] < 0.8 * spent["source"]
