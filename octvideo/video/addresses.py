"""Streams and cameras, and what http:// gives that may be a stream, opened by FFmpeg.

Addresses hold passwords. What is said, written and raised names them by `shown`, and errors of FFmpeg, which repeat the
address, are never passed on.
"""

from __future__ import annotations

import contextlib
import errno
import re
import socket
import sys
from typing import Any, Literal
from urllib.parse import urlsplit

import av

from octvideo.errors import UserError
from octvideo.files import one_line
from octvideo.stores import shown
from octvideo.video.frames import VideoReadError
from octvideo.video.pyav_file import OPEN_OPTIONS

Transport = Literal["tcp", "udp"]

_ADDRESS = re.compile(r"(https?|rtsps?|rtmps?|srt|tcp|udp)://", re.IGNORECASE)
_CAMERA = re.compile(r"camera(?::(?P<which>.+))?|(?P<device>/dev/video\d+)")
# The system's cameras in FFmpeg: input format, and the name of the first one.
_SYSTEMS = {"linux": ("v4l2", "/dev/video0"), "darwin": ("avfoundation", "0"), "win32": ("dshow", "")}
# Formats in which the size of an answer says nothing: of a playlist, or made up by a camera that has to state one.
_SIZE_SAYS_NOTHING = frozenset({"hls", "mpjpeg"})


def is_address(name: str) -> bool:
    """Whether a name is an address or a camera, and no file."""
    return bool(_ADDRESS.match(name)) or is_camera(name)


def is_camera(name: str) -> bool:
    """`camera`, `camera:1`, or a device of Linux, `/dev/video0`."""
    return bool(_CAMERA.fullmatch(name))


def has_no_end(name: str) -> bool:
    """Whether a name is a stream or a camera, whatever comes; behind http:// there may be a file."""
    return is_address(name) and not name.lower().startswith("http")


def open_address(name: str, *, timeout_sec: float, transport: Transport = "tcp", as_file_sec: float = 0.0) -> Any:
    """FFmpeg's container of an address or a camera.

    Args:
        name: of it.
        timeout_sec: for the opening, and for each read.
        transport: of RTSP.
        as_file_sec: above 0 for a file on the net: a connection that breaks is made again where it broke, by range
            requests, for so many seconds.

    Raises:
        VideoReadError: it can't be opened.
        UserError: FFmpeg has no cameras on this system.
    """
    if is_camera(name):
        file, kind = _camera(name)
        return _opened(name, file, timeout_sec, timeout_sec, format=kind)
    in_us = str(round(timeout_sec * 1e6))
    scheme, _, rest = name.partition(":")
    name = f"{scheme.lower()}:{rest}"  # FFmpeg knows no other
    if name.startswith("rtsp"):
        return _opened(name, name, timeout_sec, timeout_sec, options={"rtsp_transport": transport, "timeout": in_us})
    if not as_file_sec:
        return _opened(name, name, timeout_sec, timeout_sec)
    longest = str(max(round(as_file_sec), 1))
    options = {"reconnect": "1", "reconnect_on_network_error": "1", "reconnect_delay_max": longest, "timeout": in_us}
    return _opened(name, name, timeout_sec, as_file_sec + timeout_sec, options=options)


def is_live(name: str, container: Any) -> bool:
    """Whether a container has no end that it knows of: neither a duration nor a size."""
    if has_no_end(name):
        return True
    if container.duration is not None:
        return False
    return container.format.name in _SIZE_SAYS_NOTHING or (container.size or 0) <= 0  # none, PyAV 19


def reason_of(name: str, error: Exception, timeout_sec: float) -> str:
    """Why an address can't be read, in one line that does not repeat it."""
    if isinstance(error, av.error.ExitError | TimeoutError):
        return f"no answer for {timeout_sec:g} s"
    if isinstance(error, av.error.InvalidDataError):
        return "what comes is no video that FFmpeg knows (a web page?)"
    if is_camera(name):
        return f"{one_line(error)} ({_camera(name)[0]})"
    if getattr(error, "errno", None) == errno.EIO:  # all that FFmpeg says of a host that is not there, and of a cut
        with contextlib.suppress(ValueError):
            host = urlsplit(name).hostname
            try:
                socket.getaddrinfo(host, None)
            except OSError as of_host:
                return f"no host {host}: {one_line(of_host)}"
        return "the connection was cut"
    return re.sub(re.escape(name), lambda _: shown(name), one_line(error), flags=re.IGNORECASE)


def _camera(name: str) -> tuple[str, str]:
    found = _CAMERA.fullmatch(name)
    assert found is not None
    if sys.platform not in _SYSTEMS:
        raise UserError(f"{name}: no cameras on {sys.platform}")
    kind, first = _SYSTEMS[sys.platform]
    which = found["device"] or found["which"] or first
    if kind == "v4l2" and which.isdigit():
        which = f"/dev/video{which}"
    if kind == "dshow":
        if not which:
            raise UserError(f"{name}: Windows has cameras by name: camera:NAME")
        which = f"video={which}"
    if kind not in {one for names in av.formats_available for one in names.split(",")}:
        raise UserError(f"{name}: this PyAV has no {kind}, FFmpeg's cameras")
    return which, kind


def _opened(name: str, file: str, open_sec: float, read_sec: float, **how: Any) -> Any:
    try:
        return av.open(file, timeout=(open_sec, read_sec), **how, **OPEN_OPTIONS)
    except (av.FFmpegError, ValueError, OSError) as error:
        reason = reason_of(name, error, open_sec)
    raise VideoReadError(shown(name), reason)  # not from the error, which holds the address
