"""Servers of video on 127.0.0.1: HTTP with ranges, cuts and stalls, and RTSP with H.264 over TCP."""

from __future__ import annotations

import re
import socket
import socketserver
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from fractions import Fraction
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import av


class HttpServer(ThreadingHTTPServer):
    """Serves contents by their names.

    A content of bytes is a file: with its length, and by ranges. A function writes a stream, without a length.
    """

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Answer)
        self.contents: dict[str, bytes | Callable[[Callable[[bytes], object]], None]] = {}
        self.kinds: dict[str, str] = {}
        self.cuts: dict[str, list[int]] = {}  # positions in a file at which connections end, one each
        self.ranges: list[str] = []  # that were asked for
        self.released = threading.Event()  # stalls end

    def url(self, name: str, user: str = "") -> str:
        return f"http://{user}127.0.0.1:{self.server_address[1]}/{name}"

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Those that stop reading are no news."""


class _Answer(BaseHTTPRequestHandler):
    server: HttpServer

    def do_GET(self) -> None:
        name = self.path.lstrip("/").partition("?")[0]
        content = self.server.contents.get(name)
        if content is None:
            self.send_error(404)
            return
        if callable(content):
            self.send_response(200)
            self.send_header("Content-Type", self.server.kinds.get(name, "video/mp2t"))
            self.end_headers()
            content(self.wfile.write)
            return
        asked = self.headers.get("Range", "")
        self.server.ranges.append(asked)
        found = re.match(r"bytes=(\d+)-", asked)
        start = int(found.group(1)) if found else 0
        self.send_response(206 if found else 200)
        self.send_header("Accept-Ranges", "bytes")
        self.send_header("Content-Type", self.server.kinds.get(name, "video/mp4"))
        self.send_header("Content-Length", str(len(content) - start))
        if found:
            self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        self.end_headers()
        stop = len(content)
        cuts = self.server.cuts.get(name, [])
        if cuts and start < cuts[0]:
            stop = cuts.pop(0)
        self.wfile.write(content[start:stop])
        self.wfile.flush()
        self.close_connection = True

    def log_message(self, *_: Any) -> None:
        """Nothing."""


@contextmanager
def http_server() -> Iterator[HttpServer]:
    with _serving(HttpServer()) as server:
        yield server
        server.released.set()


class RtspServer(socketserver.ThreadingTCPServer):
    """A camera: H.264 in RTP, interleaved with RTSP in one TCP connection.

    Args:
        video: whose packets are sent, one after the other and at once.
        close: ends the connection after the last; else it stalls until `released`.
    """

    daemon_threads, allow_reuse_address = True, True

    def __init__(self, video: Path, *, close: bool = True) -> None:
        super().__init__(("127.0.0.1", 0), _Camera)
        self.close, self.released, self.num_plays = close, threading.Event(), 0
        self.packets: list[tuple[int, list[bytes]]] = []  # times of 90 kHz, and units of H.264
        with av.open(str(video)) as container:
            (stream,) = container.streams.video
            to_annexb = av.BitStreamFilterContext("h264_mp4toannexb", stream)
            for packet in container.demux(stream):
                for filtered in to_annexb.filter(packet if packet.size else None):
                    units = [unit for unit in re.split(rb"\x00?\x00\x00\x01", bytes(filtered)) if unit]
                    pts = Fraction(filtered.pts or 0) * stream.time_base
                    self.packets.append((round(pts * 90_000), units))

    def url(self, user: str = "") -> str:
        return f"rtsp://{user}127.0.0.1:{self.server_address[1]}/live"

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Those that stop reading are no news."""


class _Camera(socketserver.StreamRequestHandler):
    server: RtspServer

    def handle(self) -> None:
        sdp = (
            "v=0\r\no=- 0 0 IN IP4 127.0.0.1\r\ns=camera\r\nt=0 0\r\nm=video 0 RTP/AVP 96\r\n"
            "a=rtpmap:96 H264/90000\r\na=fmtp:96 packetization-mode=1\r\na=control:track1\r\n"
        )
        headers = {
            "OPTIONS": "Public: OPTIONS, DESCRIBE, SETUP, PLAY, TEARDOWN\r\n",
            "DESCRIBE": f"Content-Type: application/sdp\r\nContent-Length: {len(sdp)}\r\n",
            "SETUP": "Transport: RTP/AVP/TCP;unicast;interleaved=0-1\r\n",
        }
        while line := self.rfile.readline():
            method, given = line.decode().split(" ")[0], {}
            while (header := self.rfile.readline().decode().strip()) != "":
                key, _, value = header.partition(":")
                given[key.lower()] = value.strip()
            text = f"RTSP/1.0 200 OK\r\nCSeq: {given.get('cseq', '0')}\r\nSession: 1\r\n{headers.get(method, '')}\r\n"
            self.wfile.write((text + (sdp if method == "DESCRIBE" else "")).encode())
            if method == "PLAY":
                self.server.num_plays += 1
                self._play()
                return

    def _play(self) -> None:
        number = 0
        for time, units in self.server.packets:
            for n, unit in enumerate(units):
                marker = 0x80 if n == len(units) - 1 else 0
                head = bytes([0x80, marker | 96]) + number.to_bytes(2, "big") + time.to_bytes(4, "big") + b"\0\0\0\1"
                self.wfile.write(b"$\0" + (len(head) + len(unit)).to_bytes(2, "big") + head + unit)
                number += 1
        self.wfile.flush()
        if not self.server.close:
            self.server.released.wait(60)


@contextmanager
def rtsp_server(video: Path, *, close: bool = True) -> Iterator[RtspServer]:
    with _serving(RtspServer(video, close=close)) as server:
        yield server
        server.released.set()


@contextmanager
def _serving(server: Any) -> Iterator[Any]:
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()


def closed_port() -> int:
    """One that nothing listens to."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])
