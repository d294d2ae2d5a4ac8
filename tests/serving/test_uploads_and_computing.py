"""What comes in bit by bit, and what is computed in turns."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from octvideo.serving.computing import Abandoned, Computing, Turn
from octvideo.serving.decoding import VideoEnd, WindowsWanted, decode_upload
from octvideo.serving.limits import Limits
from octvideo.serving.uploads import ClientGone, Refusal, Upload, receive_upload
from octvideo.video import FileFrames, ViewSettings, frame_windows


def received(tmp_path: Path, messages: list[Any], headers: dict[str, str], **limits: Any) -> bytes:
    """What is written of a body that comes so; then nothing more comes."""

    async def main() -> bytes:
        waiting = iter(messages)

        async def receive() -> Any:
            for message in waiting:
                return message
            return await asyncio.Event().wait()

        with Upload(tmp_path) as upload:
            await receive_upload(headers, receive, upload, Limits(**limits))
            return Path(upload.path).read_bytes()

    try:
        return asyncio.run(main())
    finally:
        assert list(tmp_path.iterdir()) == []


def body(data: bytes, more: bool) -> dict[str, Any]:
    return {"type": "http.request", "body": data, "more_body": more}


def test_a_form_cut_anywhere_gives_its_file(tmp_path: Path) -> None:
    content = bytes(range(256)) + b"\r\n--b\r\n--bound"
    form = b'--bound\r\nContent-Disposition: form-data; name="x"\r\n\r\nother\r\n'
    form += b'--bound\r\ncontent-DISPOSITION: form-data; name="file"; filename="x"\r\n\r\n'
    form += content + b"\r\n--bound--\r\n"
    headers = {"content-type": "multipart/form-data; boundary=bound"}
    content_without = content.removesuffix(b"\r\n--bound")
    form = form.replace(content, content_without)
    for size in (1, 7, 64, len(form)):
        pieces = [form[n : n + size] for n in range(0, len(form), size)]
        messages = [body(piece, n < len(pieces) - 1) for n, piece in enumerate(pieces)]
        assert received(tmp_path, messages, headers) == content_without


def test_a_client_that_waits_or_leaves_or_is_slow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    headers = {"content-type": "video/mp4"}
    with pytest.raises(Refusal, match=r"nothing came for 0\.01 s") as refusal:
        received(tmp_path, [body(b"x", True)], headers, idle_sec=0.01)
    assert refusal.value.status == 408
    with pytest.raises(ClientGone):
        received(tmp_path, [body(b"x", True), {"type": "http.disconnect"}], headers)
    clock = iter(range(0, 1000, 6))
    monkeypatch.setattr("octvideo.serving.uploads.time.monotonic", lambda: next(clock))
    drips = [body(b"x", True)] * 20 + [body(b"x", False)]
    with pytest.raises(Refusal, match="the upload is too slow: expected 16 KiB a second") as refusal:
        received(tmp_path, drips, headers)
    assert refusal.value.status == 408


def test_a_body_is_refused_by_its_header_before_it_comes(tmp_path: Path) -> None:
    headers = {"content-type": "video/mp4", "content-length": str(2**31)}
    with pytest.raises(Refusal, match="larger than 1 MiB") as refusal:
        received(tmp_path, [], headers, max_bytes=2**20)  # nothing ever comes, and nothing is waited for
    assert refusal.value.status == 413


@pytest.mark.parametrize("kind", ["video/mp4", "multipart/form-data; boundary=b"])
def test_a_body_of_no_stated_size_is_counted_while_it_comes(kind: str, tmp_path: Path) -> None:
    headers, asked = {"content-type": kind}, []

    def pieces() -> Any:
        # Of a form's other fields nothing is written, and they are counted all the same.
        if "form" in kind:
            yield body(b'--b\r\nContent-Disposition: form-data; name="other"\r\n\r\n', True)
        for n in range(100):
            asked.append(n)
            yield body(bytes(2**16), True)

    with pytest.raises(Refusal, match="larger than") as refusal:
        received(tmp_path, pieces(), headers, max_bytes=2**17)  # type: ignore[arg-type]
    assert refusal.value.status == 413 and len(asked) < 25
    data = bytes(2**16)
    assert received(tmp_path, [body(data, True), body(data, False)], {"content-type": "video/mp4"}, max_bytes=2**17)


def test_as_many_windows_as_the_limit_are_made(tmp_path: Path, clips: list[Path]) -> None:
    views = ViewSettings(clip_frames=4, frame_stride=2, num_clips=1, num_crops=1, short_side_px=32, crop_px=32)
    os.mkfifo(pipe := tmp_path / "pipe")
    reader = os.open(pipe, os.O_RDWR)

    def made(most: int) -> Any:
        return decode_upload(WindowsWanted(str(clips[0]), views, 10.0, 0.5, 0.25, most, str(pipe)), lambda: None)

    try:
        refused = [most for most in range(1, 8) if not isinstance(made(most), VideoEnd)]
    finally:
        os.close(reader)
    with FileFrames(clips[0], 32) as frames:
        count = sum(1 for _ in frame_windows(frames, views, window_sec=0.5, stride_sec=0.25))
    assert refused == list(range(1, count)) and 1 < count < 8


def test_a_full_disk_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("octvideo.serving.uploads.os.write", full)
    with pytest.raises(Refusal, match="no room") as refusal:
        received(tmp_path, [body(b"x", False)], {"content-type": "video/mp4"})
    assert refusal.value.status == 507


class Slow:
    """An engine that waits to be let go; it writes down how many clips came."""

    name, precision, views_per_call = "slow", "f32", None

    def __init__(self) -> None:
        self.sizes: list[int] = []
        self.entered, self.go_on = threading.Event(), threading.Event()

    def __call__(self, clips: Tensor) -> Tensor:
        self.sizes.append(len(clips))
        self.entered.set()
        assert self.go_on.wait(60)
        if (clips < 0).any():
            raise RuntimeError("a negative clip")
        return clips.sum((1, 2, 3, 4))[:, None]


def clips_of(value: float, number: int) -> Tensor:
    return torch.full((number, 1, 1, 1, 1), value)


def in_thread(work: Callable[[], Any]) -> tuple[threading.Thread, list[Any]]:
    found: list[Any] = []

    def run() -> None:
        try:
            found.append(work())
        except Exception as error:
            found.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    return thread, found


def wait_until(true: Callable[[], bool]) -> None:
    for _ in range(6000):
        if true():
            return
        threading.Event().wait(0.01)
    raise AssertionError("it never came")


def test_waiting_calls_are_joined_as_far_as_they_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    computing, engine, other = Computing(4), Slow(), Slow()
    other.go_on.set()
    asked = [(1.0, 1), (2.0, 2), (3.0, 3), (4.0, 1), (5.0, 2), (6.0, 1), (7.0, 9), (8.0, 1)]
    threads = []
    for n, (value, number) in enumerate(asked):
        clips, by = clips_of(value, number), other if value == 8 else engine
        threads.append(in_thread(lambda clips=clips, by=by: computing.run(by, clips, Turn())))  # type: ignore[misc]
        assert engine.entered.wait(60)
        wait_until(lambda n=n: computing.num_waiting == n)  # type: ignore[misc]
    engine.go_on.set()
    for (thread, found), (value, number) in zip(threads, asked, strict=True):
        thread.join(60)
        assert found[0].tolist() == [[value]] * number
    # 2, 1 and 1, since 3 does not fit beside 2, nor 2 beside 2 and 1; then 3; 2; 9 alone; and of another engine 1.
    assert engine.sizes == [1, 4, 3, 2, 9] and other.sizes == [1]
    computing.close()


def test_what_nobody_waits_for_is_not_computed_and_a_failure_is_of_its_call() -> None:
    computing, engine = Computing(1), Slow()
    first = in_thread(lambda: computing.run(engine, clips_of(-1, 1), Turn()))
    assert engine.entered.wait(60)
    left, stays = Turn(), Turn()
    second = in_thread(lambda: computing.run(engine, clips_of(2, 1), left))
    wait_until(lambda: computing.num_waiting == 1)
    third = in_thread(lambda: computing.run(engine, clips_of(3, 1), stays))
    wait_until(lambda: computing.num_waiting == 2)
    left.gone.set()
    engine.go_on.set()
    for thread, _ in (first, second, third):
        thread.join(60)
    assert str(first[1][0]) == "a negative clip" and isinstance(second[1][0], Abandoned)
    assert third[1][0].tolist() == [[3.0]] and stays.computing > 0 and left.computing == 0
    assert len(engine.sizes) == 2
    computing.close()
    with pytest.raises(Abandoned):
        computing.run(engine, clips_of(1, 1), Turn())
