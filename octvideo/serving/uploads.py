"""The body of a request becomes a file: counted while it comes, never held in memory, and gone with its request.

On Linux the file has no name from the start: readers open it through `/proc`. So it is gone when it is closed, even
where the server is killed. Elsewhere it has a name that is drawn at random. Nothing that the client calls it is used.
"""

from __future__ import annotations

import asyncio
import os
import re
import secrets
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header

from octvideo.files import is_full_disk
from octvideo.serving.limits import MIB, Limits

_FORM_BYTES = MIB  # of a form beside its file
_RAW_TYPE = re.compile(r"video/[\w.+-]+|application/octet-stream", re.IGNORECASE)
_FIELD = "file"
_EXPECTED = f"expected multipart/form-data with a field '{_FIELD}', or a video as the body with its type, as video/mp4"
Receive = Callable[[], Awaitable[Any]]


class Refusal(Exception):  # noqa: N818 (it is the answer, and no fault of ours)
    """A request that is not answered as it wants to be.

    Args:
        status: of HTTP.
        reason: in one line, for the client.
        retry_sec: after which it may be tried again, if it makes sense.
    """

    def __init__(self, status: int, reason: str, *, retry_sec: int | None = None) -> None:
        super().__init__(reason)
        self.status, self.reason, self.retry_sec = status, reason, retry_sec


class ClientGone(Exception):  # noqa: N818 (nobody is there to be told)
    """The client has closed its connection."""


class Upload:
    """A file for one request. To be closed, by `with`.

    Args:
        folder: of the server alone.

    `path` is what readers open, as long as it is not closed.
    """

    def __init__(self, folder: Path) -> None:
        self.num_bytes = 0
        name = folder / secrets.token_hex(16)
        self._file = os.open(name, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        self._name: Path | None = name
        self.path = str(name)
        by_process = f"/proc/{os.getpid()}/fd/{self._file}"
        if Path(by_process).is_file():
            name.unlink()
            self._name, self.path = None, by_process

    def __enter__(self) -> Upload:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def write(self, data: bytes | memoryview) -> None:
        """Adds bytes at the end."""
        view = memoryview(data)
        self.num_bytes += len(view)
        while view:
            view = view[os.write(self._file, view) :]

    def close(self) -> None:
        """Removes the file; once more does nothing."""
        if self._file >= 0:
            if self._name is not None:
                self._name.unlink(missing_ok=True)
            os.close(self._file)
            self._file = -1


async def receive_upload(headers: dict[str, str], receive: Receive, upload: Upload, limits: Limits) -> None:
    """Writes the video in a request's body into a file.

    Args:
        headers: of the request, their names in lower case.
        receive: ASGI's, of which nothing has been read.
        upload: that is written to.
        limits: of the server.

    Raises:
        Refusal: 400, 408, 411, 413, 415, 422, 507.
        ClientGone: the client went away.
    """
    kind, options = parse_options_header(headers.get("content-type", "").encode("latin-1"))
    write = _writer(kind, options, upload, limits)
    most = limits.max_bytes + (_FORM_BYTES if kind == b"multipart/form-data" else 0)
    stated = headers.get("content-length", "0")
    if stated.isdecimal() and int(stated) > most:
        raise _too_large(limits)
    began, num_bytes, more = time.monotonic(), 0, True
    while more:
        try:
            message = await asyncio.wait_for(receive(), limits.idle_sec)
        except asyncio.TimeoutError:
            raise Refusal(408, f"nothing came for {limits.idle_sec:g} s: upload again") from None
        if message["type"] == "http.disconnect":
            raise ClientGone
        data, more = message.get("body", b""), message.get("more_body", False)
        num_bytes += len(data)
        if num_bytes > most:
            raise _too_large(limits)
        took = time.monotonic() - began
        if more and took > limits.idle_sec and num_bytes < took * limits.least_bytes_per_sec:
            raise Refusal(408, f"the upload is too slow: expected {limits.least_bytes_per_sec / 1024:g} KiB a second")
        try:
            write(data)
        except OSError as error:
            if not is_full_disk(error):
                raise
            raise Refusal(507, "the server has no room for the upload; try later", retry_sec=30) from error
    write(None)
    if not upload.num_bytes:
        raise Refusal(422, "the video is empty: got 0 bytes")


def _writer(
    kind: bytes, options: dict[bytes, bytes], upload: Upload, limits: Limits
) -> Callable[[bytes | None], object]:
    """What takes the bytes of a body, and None at their end."""
    if kind == b"multipart/form-data":
        if not options.get(b"boundary"):
            raise Refusal(400, "multipart/form-data without its boundary")
        return _FormFile(options[b"boundary"], upload, limits).write
    named = kind.decode("latin-1")
    if not _RAW_TYPE.fullmatch(named):
        raise Refusal(415, f"got {'no content type' if not named else 'another content type'}; {_EXPECTED}")

    def write(data: bytes | None) -> None:
        if data:
            upload.write(data)

    return write


def _too_large(limits: Limits) -> Refusal:
    return Refusal(413, f"the video is larger than {limits.max_bytes / MIB:g} MiB")


class _FormFile:
    """Finds the file in a form while it comes."""

    def __init__(self, boundary: bytes, upload: Upload, limits: Limits) -> None:
        self._upload, self._limits = upload, limits
        self._header = self._value = b""
        self._is_file, self._num_files, self._has_ended = False, 0, False
        callbacks: Any = {
            "on_part_begin": self._begin,
            "on_header_field": self._add_name,
            "on_header_value": self._add_value,
            "on_header_end": self._end_header,
            "on_part_data": self._add_data,
            "on_end": self._end,
        }
        try:
            self._parser = MultipartParser(boundary, callbacks)
        except FormParserError as error:
            raise Refusal(400, "multipart/form-data whose boundary is too long") from error

    def write(self, data: bytes | None) -> None:
        try:
            if data is not None:
                self._parser.write(data)
                return
            self._parser.finalize()
        except FormParserError as error:
            raise Refusal(400, "the form is damaged: it is no multipart/form-data with this boundary") from error
        if not self._has_ended:
            raise Refusal(400, "the form is cut off: its last boundary is missing")
        if not self._num_files:
            raise Refusal(422, f"the form has no field '{_FIELD}' with a video")

    def _begin(self) -> None:
        self._is_file, self._header, self._value = False, b"", b""

    def _add_name(self, data: bytes, start: int, end: int) -> None:
        self._header += data[start:end]

    def _add_value(self, data: bytes, start: int, end: int) -> None:
        self._value += data[start:end]

    def _end_header(self) -> None:
        if self._header.lower() == b"content-disposition":
            _, options = parse_options_header(self._value)
            self._is_file = options.get(b"name") == _FIELD.encode()
            self._num_files += self._is_file
            if self._num_files > 1:
                raise Refusal(422, f"the form has several fields '{_FIELD}': send one video in a request")
        self._header = self._value = b""

    def _add_data(self, data: bytes, start: int, end: int) -> None:
        if self._is_file:
            self._upload.write(memoryview(data)[start:end])
            if self._upload.num_bytes > self._limits.max_bytes:
                raise _too_large(self._limits)

    def _end(self) -> None:
        self._has_ended = True
