"""Re-encoding: what the copy is like, what becomes of damaged files, resuming, and that no source is touched."""

from __future__ import annotations

import resource
import subprocess
import sys
import time
from collections.abc import Callable
from fractions import Fraction
from itertools import pairwise
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import torch
from torch import Tensor

from octvideo.cli import main
from octvideo.cli.prepare import next_command
from octvideo.data.preparation import encoding, reencode
from octvideo.data.preparation.encoding import EncodingError, EncodingSettings
from octvideo.errors import UserError
from octvideo.video import read_frames
from tests.data.preparation.bad_encoding import badly

SETTINGS = EncodingSettings(short_side_px=32, gop_frames=4, crf=10)
KINETICS = "label,youtube_id,time_start,time_end,split\n{},0123456789a,0,10,val\n"


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


def test_keys_of_a_store_name_no_file_outside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Jobs(list[Any]):
        """In place of processes: what they would get."""

        def __enter__(self) -> Jobs:
            return self

        def __exit__(self, *_: object) -> None:
            """Nothing."""

        def run(self, jobs: Any) -> list[Any]:
            self.extend(jobs)
            return []

    keys = ["a.mp4", "/etc/b.mp4", "c//d.webm", "c/d.webm"]
    monkeypatch.setattr(reencode, "videos_at", lambda root: [root + key for key in keys])
    jobs = Jobs()
    reencode.reencode(
        "s3://bucket/v", tmp_path, SETTINGS, workers=1, timeout_sec=1.0, progress=print, make_pool=lambda *_: jobs
    )
    assert [(source, target) for _, source, target, _ in jobs] == [
        ("s3://bucket/v/a.mp4", str(tmp_path / "a.mp4")),
        ("s3://bucket/v//etc/b.mp4", str(tmp_path / "etc/b.mp4")),
        ("s3://bucket/v/c//d.webm", str(tmp_path / "c/d.mp4")),
    ]
    assert (tmp_path / "reencode_failed.txt").read_text() == "c/d.webm\td.webm has the same name without suffix\n"


def test_a_disk_without_room_for_the_settings(tmp_path: Path) -> None:
    source, out = tmp_path / "in", tmp_path / "out"
    source.mkdir()
    (source / "a.mp4").write_bytes(b"x")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10, limits[1]))  # as if there were so many bytes
    try:
        with pytest.raises(OSError, match="File too large"):
            reencode.reencode(source, out, SETTINGS, workers=1, timeout_sec=1.0, progress=print)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert [file.name for file in out.iterdir()] == [".reencode.lock"]  # a later run begins as the first did


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
    words = ["reencode", str(source), str(out), "--short_side", "32", "--num_workers", "2", "--preset", "ultrafast"]
    assert main(["prepare", *words]) == 1
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
    (out / "wave/.gone.mp4.part").touch()  # of a run that was killed, of a video that is no more
    assert (
        main(["prepare", *words]) == 1 and not (out / "wave/.gone.mp4.part").exists()
    )  # only what failed is tried again
    assert "0 videos encoded, 4 were there, 2 failed" in capsys.readouterr().out
    assert {file: s for file, s in state(out).items() if file.endswith(".mp4")} == {
        file: s for file, s in done.items() if file.endswith(".mp4")
    }
    assert main(["prepare", *words[:4], "64"]) == 2
    assert (
        "holds videos of other settings (short_side_px 32, not 64, preset ultrafast, not fast)"
        in capsys.readouterr().err
    )


def test_folders_that_would_harm_the_source(source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = state(source)
    (tmp_path / "link").symlink_to(source)
    for out in (source, source / "small", tmp_path, tmp_path / "link"):
        assert main(["prepare", "reencode", str(source), str(out)]) == 2
        assert "the folders overlap" in capsys.readouterr().err
    (tmp_path / "out").mkdir()
    (tmp_path / "out/wave").symlink_to(source / "wave")
    assert main(["prepare", "reencode", str(source), str(tmp_path / "out")]) == 2
    assert "holds videos that this tool did not write" in capsys.readouterr().err
    (tmp_path / "out2").mkdir()
    (source / "empty").mkdir()
    (tmp_path / "out2/wave").symlink_to(source / "empty")  # nothing in it yet, but it is the source's
    assert main(["prepare", "reencode", str(source), str(tmp_path / "out2")]) == 2
    assert "is a link into" in capsys.readouterr().err
    (source / "empty").rmdir()
    assert {k: v for k, v in state(source).items() if Path(k).is_file()} == {
        k: v for k, v in before.items() if Path(k).is_file()
    }


def test_a_process_that_crashes_or_hangs_takes_one_video_with_it(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Named by what they do."""
    monkeypatch.setattr(reencode, "encode_job", badly)
    (source / "wave/crash.mp4").touch()
    hangs = tmp_path / "hangs"
    hangs.mkdir()
    (hangs / "hang.mp4").touch()
    said: list[tuple[int, int, int]] = []
    summary = reencode.reencode(
        source,
        tmp_path / "out",
        SETTINGS,
        workers=1,
        timeout_sec=600,
        progress=lambda done, total, summary: said.append((done, total, summary.failed)),
    )
    assert (summary.done, summary.failed) == (4, 3) and said[-1] == (7, 7, 3)
    assert sorted((tmp_path / "out/reencode_failed.txt").read_text(errors="surrogateescape").splitlines()) == [
        "clap/d.mp4\td.mkv has the same name without suffix",
        "wave/broken.mp4\tInvalid data found when processing input",
        "wave/crash.mp4\tcrashed (signal 11, SIGSEGV)",
    ]
    # By itself: a short limit would end others where the machine is busy.
    summary = reencode.reencode(hangs, tmp_path / "none", SETTINGS, workers=1, timeout_sec=1, progress=lambda *_: None)
    failed = (tmp_path / "none/reencode_failed.txt").read_text()
    assert (summary.done, failed) == (0, "hang.mp4\ttimeout: no sign of life for 1 s\n")
    assert not list((tmp_path / "out").rglob("*.part")) and len(list((tmp_path / "out").rglob("*.mp4"))) == 4


def test_a_full_disk_ends_the_run_and_is_no_fault_of_a_video(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    how: dict[str, Any] = {"workers": 1, "timeout_sec": 600, "progress": lambda *_: None}
    (source / "clap/full.mp4").write_bytes((source / "wave/c.mp4").read_bytes())
    out = tmp_path / "out"
    with monkeypatch.context() as patched:
        patched.setattr(reencode, "encode_job", badly)
        with pytest.raises(UserError, match=r"^No space left on device: .*full.mp4: make room, and the same command"):
            reencode.reencode(source, out, SETTINGS, **how)
    assert "full" not in (out / "reencode_failed.txt").read_text(errors="surrogateescape")
    reencode.reencode(source, out, SETTINGS, **how)
    assert (out / "clap/full.mp4").exists()


def test_what_is_as_asked_for_and_smaller_is_copied(
    tmp_path: Path, encode: Callable[..., Path], moving: Callable[..., Tensor]
) -> None:
    """Each other source lacks one thing, and is encoded though that makes it larger."""
    source = tmp_path / "source"
    small = {"crf": 40, "g": 4, "flags": "+cgop"}
    encode(source / "same.mp4", moving(12, 32, 48), **small)
    with_sound(source / "same.mp4", source / "sound.mp4")
    encode(source / "large.mp4", moving(12, 64, 96), **{**small, "crf": 51})
    encode(source / "gop.mp4", moving(12, 32, 48), **{**small, "g": 12})
    encode(source / "other.mkv", moving(12, 32, 48), **small)
    encode(source / "turned.mp4", moving(12, 32, 48), **small, rotation=90)
    encode(source / "wide.mp4", moving(12, 32, 48), **small, pix_fmt="yuvj420p")
    encode(source / "mpeg4.mp4", moving(12, 32, 48), "mpeg4", g=4, qmin=31, qmax=31)
    out, settings = tmp_path / "out", EncodingSettings(short_side_px=32, gop_frames=4, crf=1)
    results = {}
    out.mkdir()
    for file in sorted(source.iterdir()):
        result = results[file.stem] = encoding.encode(file, out / f"{file.stem}.mp4", settings)
        frames, stream = decoded(out / f"{file.stem}.mp4")
        assert (result.frames, len(frames), result.bytes) == (12, 12, (out / f"{file.stem}.mp4").stat().st_size)
        assert (stream.codec_context.name, stream.pix_fmt, min(frames[0].width, frames[0].height)) == (
            "h264", "yuv420p", 32,
        )  # fmt: skip
        keys = [n for n, frame in enumerate(frames) if frame.key_frame]
        assert keys[0] == 0 and max(b - a for a, b in pairwise([*keys, 12])) <= 4
        assert result.is_source == ((out / f"{file.stem}.mp4").read_bytes() == file.read_bytes())
    assert [name for name, result in results.items() if result.is_source] == ["same"]
    assert results["gop"].bytes > results["gop"].source_bytes
    # A source that could be smaller is made smaller.
    assert not encoding.encode(source / "same.mp4", out / "smaller.mp4", EncodingSettings(32, 4, crf=51)).is_source


def with_sound(source: Path, target: Path) -> None:
    with av.open(str(source)) as video, av.open(str(target), "w") as container:
        pictures, sound = container.add_stream_from_template(video.streams.video[0]), container.add_stream("aac", 44100)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        frame.sample_rate = 44100
        container.mux(sound.encode(frame))
        for packet in video.demux(video=0):
            if packet.size:
                packet.stream = pictures
                container.mux(packet)
        container.mux(sound.encode(None))


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({"lists/train.csv": KINETICS, "a.mp4": ""}, "DATASET OUT --annotations FOLDER_OF_THE_LISTS"),
        ({"annotations/val.csv": KINETICS.format("abseiling")}, "kinetics400 OUT --annotations SOURCE/annotations"),
        ({"val.csv": KINETICS.format("acting in play")}, "kinetics600 OUT --annotations SOURCE"),
        ({"classInd.txt": "1 Archery", "testlist01.txt": "Archery/v.avi"}, "ucf101 OUT --annotations SOURCE"),
        ({"splits/wave_test_split1.txt": "a.avi 1"}, "jhmdb OUT --annotations SOURCE/splits"),
        ({f"splits/{n}_test_split1.txt": "a.avi 1" for n in range(51)}, "hmdb51 OUT --annotations SOURCE/splits"),
        ({"labels.json": '{"a": "0"}', "test.json": '[{"id": "1"}]'}, "ssv2 OUT --annotations SOURCE"),
        ({"wave/a.mp4": "", "clap/b.mp4": ""}, "folder OUT"),
        ({"train/wave/a.mp4": "", "test/wave/b.mp4": ""}, "DATASET OUT --annotations FOLDER_OF_THE_LISTS"),
    ],
)  # fmt: skip
def test_the_next_command_is_for_the_data_set_at_hand(tmp_path: Path, files: dict[str, str], expected: str) -> None:
    for name, content in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(content)
    expected = expected.replace("SOURCE", str(tmp_path)).replace("OUT", "small")
    assert next_command(tmp_path, Path("small")) == f"octvideo prepare list {expected}"


@pytest.mark.slow
def test_a_killed_run_goes_on_where_it_was(
    tmp_path: Path, encode: Callable[..., Path], moving: Callable[..., Tensor], repo: Path
) -> None:
    source, out = tmp_path / "source", tmp_path / "out"
    first = encode(source / "00.mp4", moving(60, 96, 128))
    for number in range(1, 20):
        (source / f"{number:02d}.mp4").write_bytes(first.read_bytes())
    command = [
        *(sys.executable, "-m", "octvideo", "prepare", "reencode"),
        *(str(source), str(out), "--num_workers", "1", "--preset", "veryslow"),
    ]
    running = subprocess.Popen(command, cwd=repo, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while len(list(out.glob("*.mp4"))) < 3:
        assert running.poll() is None and time.monotonic() < deadline
        time.sleep(0.02)
    running.kill()
    running.wait()
    there = state(out)
    ended = subprocess.run(command, cwd=repo, capture_output=True, text=True, timeout=120, check=True)
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
