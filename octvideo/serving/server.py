"""A socket for the application: patience with slow clients, and an end without losing what is being answered.

uvicorn waits for ever for a client that begins a request and does not go on, or that sends more after its answer.
`_Connection` looks at each connection once a second, and ends those that have kept it waiting too long.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
import socket
import time
from types import FrameType

import h11
import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from octvideo.errors import UserError
from octvideo.files import one_line
from octvideo.serving.app import make_app
from octvideo.serving.service import Service

log = logging.getLogger("octvideo.serving")

_LOOK_SEC = 1.0
_SPARE_CONNECTIONS = 256  # beside those of the queue: for /health, for refusals, for browsers that keep some open
_KEEP_ALIVE_SEC = 15


class _Connection(H11Protocol):
    """uvicorn's, with an end to patience."""

    patience_sec = 10.0

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._waits_since: float | None = time.monotonic()
        self._look_later = self.loop.call_later(_LOOK_SEC, self._look)

    def connection_lost(self, exc: Exception | None) -> None:
        self._look_later.cancel()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        try:
            super().data_received(data)
        except (h11.LocalProtocolError, UnicodeDecodeError):  # nonsense after an answer, or in a path
            self.transport.abort()

    def _look(self) -> None:
        """Ends the connection where the client has kept us waiting: for its head, for the rest of a refused body, or
        with an answer that it does not read. The body that a request waits for has limits of its own.
        """
        if not self._is_waiting():
            self._waits_since = None
        elif self._waits_since is None:
            self._waits_since = time.monotonic()
        elif time.monotonic() - self._waits_since > self.patience_sec:
            self.transport.abort()
            return
        self._look_later = self.loop.call_later(_LOOK_SEC, self._look)

    def _is_waiting(self) -> bool:
        if self.flow.write_paused:
            return True
        if self.cycle is None or self.cycle.response_complete:
            # Idle between two requests is uvicorn's keep-alive.
            is_idle = self.cycle is not None and self.timeout_keep_alive_task is not None
            return not is_idle
        return False


class _Server(uvicorn.Server):
    """uvicorn's, which at the first signal answers what it has and refuses the rest, and at the second ends at once."""

    def __init__(self, config: uvicorn.Config, service: Service) -> None:
        super().__init__(config)
        self._service = service
        self._stop_at = float("inf")
        self.is_forced = False

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        if self._service.is_stopping:
            self.is_forced = self.should_exit = self.force_exit = True
            _tell_no_more()
            return
        self._service.is_stopping = True
        self._stop_at = time.monotonic() + self._service.limits.stop_sec
        log.info("%s: answering what is there, taking nothing new; once more ends at once", signal.Signals(sig).name)

    async def on_tick(self, counter: int) -> bool:
        if self._service.is_stopping and not self.should_exit:
            is_late = time.monotonic() > self._stop_at
            if is_late:
                self._service.abandon()  # who waits is told so
                _tell_no_more()
            self.should_exit = is_late or not any(self._service.counts)
        return await super().on_tick(counter)


def _tell_no_more() -> None:
    """Requests that are cut off at the end are no faults, of which the log would have a traceback each."""
    logging.getLogger("uvicorn.error").disabled = True


def serve(service: Service, bound: socket.socket) -> bool:
    """Serves until SIGTERM or Ctrl-C.

    Args:
        service: that answers; it is left open.
        bound: see `bound_socket`; it is closed at the end.

    Returns:
        Whether it ended in peace: False after a second signal.
    """
    limits = service.limits
    connection = type("Connection", (_Connection,), {"patience_sec": limits.idle_sec})
    config = uvicorn.Config(
        make_app(service),
        http=connection,
        ws="none",
        lifespan="off",
        log_config=None,
        access_log=False,
        server_header=False,
        # Whoever stands in front may say anything of where a request came from; nothing here depends on it.
        proxy_headers=False,
        timeout_keep_alive=_KEEP_ALIVE_SEC,
        timeout_graceful_shutdown=5,
        limit_concurrency=limits.places + _SPARE_CONNECTIONS,
    )
    server = _Server(config, service)
    with contextlib.closing(bound):
        server.run(sockets=[bound])
    return not server.is_forced


def url_of(bound: socket.socket) -> str:
    """Where a browser finds it."""
    host, port = bound.getsockname()[:2]
    return f"http://[{host}]:{port}/" if ":" in host else f"http://{host}:{port}/"


def bound_socket(host: str, port: int) -> socket.socket:
    """A socket that listens to nobody yet, so that what can't be bound is told before a network is loaded.

    Args:
        host: address to bind to.
        port: 0 is any that is free.

    Raises:
        UserError: the address can't be bound.
    """
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        bound = socket.socket(family, socket.SOCK_STREAM)
    except OSError as error:
        raise UserError(f"--host {host}: {one_line(error)}") from error
    try:
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind((host, port))
    except (OSError, OverflowError) as error:
        bound.close()
        raise UserError(f"can't serve at {host}, port {port}: {one_line(error)}; name another with --port") from error
    return bound
