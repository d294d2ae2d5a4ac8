"""A server of files on 127.0.0.1, by HTTP with ranges, which fails as it is told to; and a bucket of S3."""

from __future__ import annotations

import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, NamedTuple
from urllib.parse import unquote
from urllib.request import Request, urlopen

import pytest


class Asked(NamedTuple):
    """A request: its method, the file, the range."""

    method: str
    name: str
    range: str


class FileServer(ThreadingHTTPServer):
    """Serves contents by their names.

    `faults` has for a name what becomes of the next requests for it, one each: a status such as "503", "cut" (half of
    the answer), "silent" (none at all). `ways` has how a name is always served: "no ranges", "no length", "403",
    "endless", "redirects" to itself; or ranges that are "capped" at 1,000 bytes, begin a byte "later", are "nameless".
    """

    daemon_threads = True
    request_queue_size = 64

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Answer)
        self.contents: dict[str, bytes] = {}
        self.faults: dict[str, list[str]] = {}
        self.ways: dict[str, str] = {}
        self.asked: list[Asked] = []
        self.num_sent = 0
        self.released = threading.Event()  # silence ends

    def url(self, name: str, user: str = "") -> str:
        return f"http://{user}127.0.0.1:{self.server_address[1]}/{name}"

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Those that stop reading are no news."""


class _Answer(BaseHTTPRequestHandler):
    server: FileServer

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        name = unquote(self.path.lstrip("/").partition("?")[0])
        asked, server = self.headers.get("Range", ""), self.server
        server.asked.append(Asked(self.command, name, asked))
        content, way = server.contents.get(name), server.ways.get(name, "")
        faults = server.faults.get(name)
        fault = faults.pop(0) if faults else ""
        if content is None or way.isdigit() or fault.isdigit():
            self.send_error(404 if content is None else int(way if way.isdigit() else fault))
            return
        if fault == "silent":
            server.released.wait(60)
            return
        if way == "redirects":
            self.send_response(302)
            self.send_header("Location", self.path)
            self.end_headers()
            return
        found = None if way in ("no ranges", "no length", "endless") else re.match(r"bytes=(\d+)-(\d*)", asked)
        size, start, stop = len(content), 0, len(content)
        if found:
            start, stop = int(found[1]), min(int(found[2]) + 1 if found[2] else size, size)
            start += way == "later"
            stop = min(stop, start + 1000) if way == "capped" else stop
            if start >= size:
                self.send_response(416)
                self.send_header("Content-Range", f"bytes */{size}")
                self.send_header("Content-Length", "0")
                self.end_headers()
                return
        self.send_response(206 if found else 200)
        self.send_header("Accept-Ranges", "none" if way == "no ranges" else "bytes")
        if way not in ("no length", "endless"):
            self.send_header("Content-Length", str(stop - start))
        if found and way != "nameless":
            self.send_header("Content-Range", f"bytes {start}-{stop - 1}/{size}")
        self.end_headers()
        self.close_connection = True
        if self.command == "HEAD":
            return
        body = content[start : (start + stop) // 2 if fault == "cut" else stop]
        while True:
            self.wfile.write(body)
            server.num_sent += len(body)
            if way != "endless":
                break
        self.wfile.flush()

    def log_message(self, *_: Any) -> None:
        """Nothing."""


@contextmanager
def file_server() -> Iterator[FileServer]:
    server = FileServer()
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.released.set()
        server.shutdown()
        server.server_close()


@contextmanager
def s3_bucket(monkeypatch: pytest.MonkeyPatch, name: str = "bucket") -> Iterator[Any]:
    """An empty bucket of a server of S3 on this machine, as fsspec's file system; the environment leads to it."""
    pytest.importorskip("s3fs", reason="s3fs is in the extra bucket")
    server_of = pytest.importorskip("moto.server", reason="moto is in the extra bucket")
    import fsspec

    server = server_of.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "nobody")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "nothing")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    kind = fsspec.get_filesystem_class("s3")
    kind.clear_instance_cache()  # of another test's server
    store = fsspec.filesystem("s3", use_listings_cache=False)
    urlopen(Request(f"http://{host}:{port}/moto-api/reset", method="POST")).close()  # all its servers share one state
    store.mkdir(name)
    try:
        yield store
    finally:
        server.stop()
        kind.clear_instance_cache()
