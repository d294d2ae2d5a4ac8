"""Live sources: runs of frames, times that only increase, cuts, and what is said of them."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable, Iterator, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import octvideo.video.addresses as addresses
from octvideo.errors import UserError
from octvideo.stores import shown
from octvideo.video import FileFrames, LiveFrames, VideoReadError
from octvideo.video.addresses import is_address, is_live, open_address
from octvideo.video.live import TIME_BASE, Arrival, AvConnection, LiveFrame, Moments, NewestFrames, Watch, wait_before
from tests.video.servers import HttpServer, closed_port, http_server, rtsp_server

Encode = Callable[..., Path]
Moving = Callable[..., Tensor]
# Of a picture: time by the stream's clock, when it comes, and its height and width if they are others.
Picture = tuple[Any, ...]


class FakeWatch(Watch):
    """A clock that goes on when somebody waits, or a picture comes."""

    def __init__(self) -> None:
        self.now = 100.0
        self.waits: list[float] = []

    def seconds(self) -> float:
        return self.now

    def wall(self) -> float:
        return 1_800_000_000 + self.now

    def wait(self, seconds: float, unless: threading.Event) -> None:
        self.waits.append(seconds)
        self.now += seconds


class FakeConnection:
    """Pictures that come when they are said to; an error where there is one."""

    rate = Fraction(10)

    def __init__(self, watch: FakeWatch, pictures: Sequence[Any], *, has_end: bool) -> None:
        self._watch, self._pictures, self.has_end, self.is_closed = watch, pictures, has_end, False

    def __iter__(self) -> Iterator[Arrival | None]:
        for picture in self._pictures:
            if isinstance(picture, Exception):
                raise picture
            if picture is None:
                self._watch.now += 1
                yield None
                continue
            time_sec, came, *size = picture
            self._watch.now = max(self._watch.now, 100 + came)
            image = np.zeros((*(size or (8, 12)), 3), np.uint8)
            yield Arrival(time_sec, self._watch.now, self._watch.wall(), lambda image=image: image)  # type: ignore[misc]

    def close(self) -> None:
        self.is_closed = True


def live_of(*connections: Sequence[Any], **settings: Any) -> tuple[LiveFrames, FakeWatch, list[str]]:
    """Frames of one connection after the other; an error is of the attempt to connect. The last one has an end."""
    watch, said, left = FakeWatch(), list[str](), list(connections)

    def connect() -> FakeConnection:
        pictures = left.pop(0)
        if len(pictures) == 1 and isinstance(pictures[0], OSError):
            raise VideoReadError("cam", str(pictures[0]))
        return FakeConnection(watch, pictures, has_end=not left)

    live = LiveFrames("rtsp://me:pw@cam", 8, connect=connect, watch=watch, say=said.append, beside=False, **settings)
    return live, watch, said


def times(live: LiveFrames) -> list[list[float]]:
    with live:
        return [[round(float(frame.time * TIME_BASE), 3) for frame in run] for run in live.runs()]


def test_times_go_on_over_a_cut_by_when_frames_came() -> None:
    cut = VideoReadError("cam", "no answer for 10 s")
    live, watch, said = live_of([(7, 0), (7.1, 0.3), cut], [OSError("refused")], [(50, 0), (50.1, 0)])
    first, second = times(live)
    waited = sum(watch.waits)
    assert first == [0, 0.1] and second == pytest.approx([0.3 + waited, 0.4 + waited], abs=0.002)
    assert 0.25 <= watch.waits[0] <= 0.5 <= watch.waits[1] <= 1.0
    assert said == [
        f"rtsp://***@cam: no answer for 10 s; connecting again in {watch.waits[0]:.1f} s",
        f"rtsp://***@cam: refused; connecting again in {watch.waits[1]:.1f} s",
        f"rtsp://***@cam: connected again after {waited:.1f} s",
    ]
    assert (live.num_frames, live.num_disconnects, live.error) == (4, 1, None)


@pytest.mark.parametrize(
    ("pictures", "expected"),
    [
        ([(5, 0), (5.1, 0.1), (5.2, 7.2), (5.3, 7.2)], [[0, 0.1, 0.2, 0.3]]),  # a network that stalled
        ([(5, 0), (5.1, 0.1), (0, 0.2), (0.1, 0.3)], [[0, 0.1], [0.2, 0.3]]),  # a clock that began again
        ([(5, 0), (5.1, 0.1), (9e4, 0.2), (9e4 + 0.1, 0.3)], [[0, 0.1], [0.2, 0.3]]),  # one that jumped
        ([(5, 0), (5.1, 0.1), (15.1, 10.1), (15.2, 10.2)], [[0, 0.1], [10.1, 10.2]]),  # frames that were lost
        ([(5, 0), (5, 0.1), (4.9, 0.2), (5.1, 0.3)], [[0, 0.001, 0.002, 0.1]]),  # frames of one time
        ([(None, 0), (None, 0.1), (None, 0.1), (None, 0.4)], [[0, 0.1, 0.101, 0.4]]),  # no times
        ([(5, 0), (5.1, 0.1), (None, 0.2), (5.3, 0.3)], [[0, 0.1, 0.2, 0.3]]),  # one that is missing
        ([(0, 0), (10, 10), (20, 20), (20.1, 20.1)], [[0, 10, 20, 20.1]]),  # as slow as a camera for plants
    ],
)
def test_times_increase_whatever_the_clock_of_a_stream_does(
    pictures: list[Picture], expected: list[list[float]]
) -> None:
    assert times(live_of(pictures)[0]) == expected


def test_times_of_a_slower_rate_are_one_gap_only() -> None:
    moments = Moments()
    follows = [moments.of(time, time)[1] for time in (0, 0.1, 0.2, 10.2, 20.2, 30.2, 30.3, 30.4)]
    assert follows == [False, True, True, False, True, True, True, True]


def test_frames_of_another_shape_begin_a_new_run_and_of_another_size_do_not() -> None:
    pictures = [(0, 0), (0.1, 0.1, 16, 24), (0.2, 0.2, 12, 12), (0.3, 0.3)]
    live, _, said = live_of(pictures)
    with live:
        shapes = [[tuple(frame.image.shape) for frame in run] for run in live.runs()]
    assert shapes == [[(8, 12, 3)] * 2, [(8, 8, 3)], [(8, 12, 3)]]
    assert said[0] == "rtsp://***@cam: frames have another shape, 8x8 in place of 12x8: windows begin anew"


def test_it_is_given_up_after_a_while_and_at_once_before_the_first_frame() -> None:
    live, watch, said = live_of([(0, 0)], *[[OSError("refused")]] * 20, give_up_sec=20, longest_wait_sec=4)
    assert times(live) == [[0]]
    assert str(live.error) == "cannot read video 'rtsp://***@cam': no frame for 20 s, given up: refused"
    assert sum(watch.waits) == pytest.approx(20) and max(watch.waits) <= 4 and len(said) == len(watch.waits)
    for connection in ([OSError("refused")], []):
        live, watch, said = live_of(connection, [(0, 0)])
        with pytest.raises(VideoReadError, match=r"refused|the connection has ended"):
            times(live)
        assert not said and not watch.waits


def test_attempts_wait_longer_each_time_up_to_a_bound() -> None:
    for attempt, longest in enumerate([0.5, 1, 2, 4, 8, 10, 10]):
        waits = [wait_before(attempt, 10) for _ in range(50)]
        assert longest / 2 <= min(waits) < max(waits) <= longest
    assert wait_before(10**6, 10) <= 10


def test_it_is_over_when_its_time_is_and_when_data_bring_no_picture() -> None:
    assert times(live_of([(n, n) for n in range(9)], for_sec=3)[0]) == [[0, 1, 2]]
    assert times(live_of([(n, n) for n in range(9)], until_wall=1_800_000_105)[0]) == [[0, 1, 2, 3, 4]]
    live, _, said = live_of([(0, 0), *[None] * 9], [(0, 0)], timeout_sec=2)
    assert len(times(live)) == 2 and "no picture for 6 s; connecting again" in said[0]


def test_a_mistake_of_ours_is_raised_where_frames_are_taken() -> None:
    live, _, _ = live_of([(0, 0), ZeroDivisionError("ours")])
    with pytest.raises(ZeroDivisionError, match="ours"):
        times(live)


def frame(time: int, num_bytes: int = 30) -> LiveFrame:
    return LiveFrame(time, torch.zeros(1, num_bytes // 3, 3, dtype=torch.uint8), 0.0, 0.0)


def test_the_oldest_frames_make_room_and_leave_a_gap() -> None:
    queue = NewestFrames(most_sec=4 * TIME_BASE, most_bytes=100)
    for time in range(4):
        queue.put(frame(time))
    assert queue.num_dropped == 1 and len(queue) == 3  # 120 bytes are too many
    found = [queue.get(0) for _ in range(3)]
    assert found[0] == "gap" and [f.time for f in found[1:] if isinstance(f, LiveFrame)] == [1, 2]
    queue.put("gap")
    queue.put(frame(90))  # 3 was far longer ago
    queue.put("end")
    assert queue.num_dropped == 2
    rest = [queue.get(0) for _ in range(5)]
    assert [f.time if isinstance(f, LiveFrame) else f for f in rest] == ["gap", "gap", 90, "end", None]
    queue.put(frame(91, 300))  # one stays whatever its size
    queue.put(frame(92, 300))
    assert len(queue) == 1 and queue.newest == 92


def test_addresses_are_shown_without_secrets() -> None:
    for name, expected in {
        "rtsp://me:pw@cam:554/1": "rtsp://***@cam:554/1",
        "RTSP://me@cam/1": "RTSP://***@cam/1",
        "http://me:p@w@cam/1": "http://***@cam/1",
        "http://me:p/w?@cam/1": "http://***@cam/1",
        "http://cam:80/a@b?x=1&Password=pw&token=t#a": "http://cam:80/a@b?x=1&Password=***&token=***#a",
        "https://cam/a.m3u8?channel=2": "https://cam/a.m3u8?channel=2",
        "me:pw@file.mp4": "me:pw@file.mp4",
        "rtmp://me:pw@host/live": "rtmp://***@host/live",
    }.items():
        assert shown(name) == expected
    assert [
        n for n in ("camera", "camera:1", "/dev/video0", "rtsp://a", "camera.mp4", "http", "a.mp4") if is_address(n)
    ] == [
        "camera",
        "camera:1",
        "/dev/video0",
        "rtsp://a",
    ]


# ── servers ─────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory, encode: Encode, moving: Moving) -> dict[str, Path]:
    folder, frames = tmp_path_factory.mktemp("served"), moving(40, 48, 64)
    return {kind: encode(folder / f"a.{kind}", frames, g=10, bf=0) for kind in ("mp4", "ts")}


@pytest.fixture
def server() -> Iterator[HttpServer]:
    with http_server() as server:
        yield server


def images(live: LiveFrames, num_frames: int) -> tuple[list[Tensor], list[float]]:
    """The first frames of the first run, and their times."""
    with live:
        run = next(live.runs())
        found = list(itertools.islice(run, num_frames))
    return [f.image for f in found], [float(f.time * TIME_BASE) for f in found]


def of_file(path: Path) -> list[Tensor]:
    with FileFrames(path, 32) as frames:
        return [f.image for f in frames]


def test_frames_of_rtsp_are_those_of_the_file(files: dict[str, Path]) -> None:
    with rtsp_server(files["mp4"], close=False) as camera:
        found, when = images(LiveFrames(camera.url("me:pw@"), 32, say=print), 30)
    assert when == pytest.approx([n / 20 for n in range(30)], abs=0.06) and len(found) == 30
    assert all(map(torch.equal, found, of_file(files["mp4"])))


def test_frames_of_an_http_stream_are_those_of_the_file_and_a_cut_is_said(
    server: HttpServer, files: dict[str, Path]
) -> None:
    content, said = files["ts"].read_bytes(), list[str]()
    pieces = [content, content[: len(content) // 2]]
    server.contents["live"] = lambda write: write(pieces.pop())
    with LiveFrames(server.url("live", "me:pw@"), 32, say=said.append, longest_wait_sec=0.01) as live:
        runs = [[f.image for f in run] for run in itertools.islice(live.runs(), 2)]
    expected = of_file(files["ts"])
    assert 10 < len(runs[0]) < 40 == len(runs[1])
    assert all(map(torch.equal, runs[0], expected)) and all(map(torch.equal, runs[1], expected))
    assert said[0] == f"{server.url('live', '***@')}: the connection was cut; connecting again in 0.0 s"


def test_a_stall_ends_a_connection(server: HttpServer, files: dict[str, Path]) -> None:
    content, said = files["ts"].read_bytes(), list[str]()

    def stall(write: Callable[[bytes], object]) -> None:
        del server.contents["stall"]
        write(content)
        server.released.wait(60)

    server.contents["stall"] = stall
    with LiveFrames(server.url("stall"), 32, say=said.append, timeout_sec=0.5, give_up_sec=0.2) as live:
        assert [len(list(run)) for run in live.runs()] == [40]
    assert ": no answer for 0.5 s; connecting again" in said[0]
    assert "given up: Server returned 404 Not Found" in str(live.error)


def test_pictures_without_times_have_none(server: HttpServer, moving: Moving, encode: Encode, tmp_path: Path) -> None:
    one = encode(tmp_path / "one.jpg", moving(1, 48, 64), "mjpeg", pix_fmt="yuvj420p").read_bytes()
    part = b"--next\r\nContent-Type: image/jpeg\r\nContent-Length: %d\r\n\r\n%s\r\n" % (len(one), one)
    server.contents["jpegs"] = lambda write: write(part * 5)
    server.kinds["jpegs"] = "multipart/x-mixed-replace; boundary=next"
    connection = AvConnection(server.url("jpegs"), 10, "tcp", Watch())
    found = [arrival for arrival in itertools.islice(connection, 3) if arrival is not None]
    connection.close()
    assert connection.rate is None and [arrival.time_sec for arrival in found] == [None] * 3
    assert found[0].rgb().shape == (48, 64, 3)


def test_a_file_on_the_net_is_read_whole_over_cuts(server: HttpServer, files: dict[str, Path]) -> None:
    content = files["mp4"].read_bytes()
    server.contents["a.mp4"] = content
    server.contents["live"] = lambda write: write(files["ts"].read_bytes())
    for name, expected in (("a.mp4", False), ("live", True)):
        container = open_address(server.url(name), timeout_sec=10)
        assert is_live(server.url(name), container) is expected
        container.close()
    server.cuts["a.mp4"] = [len(content) // 2]
    url = server.url("a.mp4")
    with FileFrames(shown(url), 32, container=open_address(url, timeout_sec=10, as_file_sec=10)) as frames:
        found = [f.image for f in frames]
    assert frames.trouble == "" and all(map(torch.equal, found, of_file(files["mp4"]))) and len(found) == 40
    assert f"bytes={len(content) // 2}-" in server.ranges


def test_the_end_of_an_answer_without_a_length_is_no_trouble(
    server: HttpServer, encode: Encode, moving: Moving, tmp_path: Path
) -> None:
    large = encode(tmp_path / "large.mp4", torch.randint(256, (40, 64, 96, 3), dtype=torch.uint8), qp=0)
    header_first = encode(tmp_path / "a.mp4", moving(40, 48, 64), movflags="faststart").read_bytes()

    def read(content: bytes) -> tuple[int, str]:
        server.contents["a.mp4"] = lambda write: write(content)
        url = server.url("a.mp4")
        with FileFrames(url, 32, container=open_address(url, timeout_sec=10, as_file_sec=1)) as frames:
            return len(list(frames)), frames.trouble

    assert read(header_first) == (40, "")
    num_frames, trouble = read(header_first[: len(header_first) * 2 // 3])
    assert num_frames < 40 and "Input/output error" in trouble
    with pytest.raises(VideoReadError, match="does its server give ranges"):
        read(large.read_bytes())  # its header comes last, and FFmpeg holds less of what came before


def test_what_can_not_be_read_is_one_line(server: HttpServer) -> None:
    server.contents["page"] = b"<html><body>hello</body></html>" * 99
    port = closed_port()
    for url, message in {
        server.url(
            "none", "me:pw@"
        ): f"cannot read video '{server.url('none', '***@')}': Server returned 404 Not Found",
        server.url("page"): f"cannot read video '{server.url('page')}': what comes is no video that FFmpeg knows",
        f"rtsp://me:pw@127.0.0.1:{port}/1": f"cannot read video 'rtsp://***@127.0.0.1:{port}/1': Connection refused",
        # FFmpeg knows small letters only.
        f"HTTP://127.0.0.1:{port}/1": f"cannot read video 'HTTP://127.0.0.1:{port}/1': Connection refused",
        f"udp://127.0.0.1:{port}": f"cannot read video 'udp://127.0.0.1:{port}': no answer for 0.3 s",
    }.items():
        timeout_sec = 0.3 if url.startswith("udp") else 10
        with LiveFrames(url, 32, timeout_sec=timeout_sec) as live, pytest.raises(VideoReadError) as caught:
            next(live.runs())
        assert str(caught.value).startswith(message) and "\n" not in str(caught.value)
        assert caught.value.__cause__ is None and "pw" not in repr(caught.value.__context__)


def test_cameras_are_opened_by_the_systems_input(monkeypatch: pytest.MonkeyPatch) -> None:
    made = {"linux": [("v4l2", "/dev/video0"), ("v4l2", "/dev/video2")]}
    monkeypatch.setattr(addresses.sys, "platform", "linux")
    monkeypatch.setattr(addresses.av, "formats_available", {"video4linux2,v4l2", "lavfi"})
    opened: list[tuple[str, str]] = []
    monkeypatch.setattr(addresses.av, "open", lambda file, format, **_: opened.append((format, file)))
    for name in ("camera", "camera:2"):
        open_address(name, timeout_sec=1)
    assert opened == made["linux"]
    monkeypatch.setattr(addresses.av, "formats_available", {"lavfi"})
    with pytest.raises(UserError, match="camera: this PyAV has no v4l2, FFmpeg's cameras"):
        open_address("camera", timeout_sec=1)
    monkeypatch.setattr(addresses.sys, "platform", "win32")
    with pytest.raises(UserError, match="Windows has cameras by name: camera:NAME"):
        open_address("camera", timeout_sec=1)


def test_a_camera_gives_frames(monkeypatch: pytest.MonkeyPatch) -> None:
    if "lavfi" not in addresses.av.formats_available:
        pytest.skip("this PyAV has no lavfi, which poses as a camera")
    monkeypatch.setattr(addresses, "_camera", lambda name: ("testsrc=size=64x48:rate=10", "lavfi"))
    found, when = images(LiveFrames("camera", 32), 5)
    assert [image.shape for image in found] == [(32, 42, 3)] * 5
    assert (np.diff(when) > 0).all()
