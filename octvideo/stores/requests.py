"""Requests to stores: the file system behind an address, tries, and errors in one line that name no address."""

from __future__ import annotations

import errno
import itertools
import logging
import os
import re
import time
from collections.abc import Callable
from typing import Any, TypeVar
from urllib.parse import quote

from octvideo.errors import UserError
from octvideo.files import is_full_disk, one_line
from octvideo.stores.names import shown

Value = TypeVar("Value")

FIRST_WAIT_SEC, _LONGEST_WAIT_SEC = 1.0, 30.0  # before the second try of a request; doubled for each later one
LIMIT, TIMEOUT, _TRIES = "OCTVIDEO_REMOTE_LIMIT_GB", "OCTVIDEO_REMOTE_TIMEOUT", "OCTVIDEO_REMOTE_TRIES"

_ANY_ADDRESS = re.compile(r"[a-z][a-z0-9+.-]*://[^\s'\"<>]+", re.IGNORECASE)
# Answers that another try may change: too many requests, and a server in trouble.
PASSING_STATUS = frozenset({408, 425, 429, 500, 502, 503, 504})
_PASSING_ERRNO = frozenset({errno.EBUSY, errno.EIO, getattr(errno, "EREMOTEIO", errno.EIO)})  # s3fs's for 5xx
_EXTRAS = {"s3": "s3", "s3a": "s3", "gs": "gcs", "gcs": "gcs"}

log = logging.getLogger("octvideo.stores")


class StoreError(OSError):
    """What became of a request, in one line that names no address.

    Args:
        reason: the line.
        may_pass: another try, later, may have another answer.
        is_missing: there is no such file.
    """

    def __init__(self, reason: str, *, may_pass: bool = False, is_missing: bool = False) -> None:
        super().__init__(reason)
        self.may_pass, self.is_missing = may_pass, is_missing


class StoreSetupError(UserError):
    """No address of a kind can be read here, whichever it is."""


def store_of(name: str) -> tuple[Any, str]:
    """The fsspec file system behind an address, and the path there.

    fsspec keeps one for each process, so no connection crosses a fork.

    Raises:
        UserError: there is no such store.
        StoreSetupError: its library is missing.
    """
    import fsspec  # comes with the first address, as do its parts elsewhere: 0.1 s of every command

    scheme = name.partition("://")[0].lower()
    try:
        file_system = fsspec.filesystem(scheme, **_options(scheme))
    except ImportError as error:
        extra = _EXTRAS.get(scheme)
        install = f"pip install 'octvideo[{extra}]'" if extra else one_line(error)
        raise StoreSetupError(f"{scheme}:// needs a library that is not installed: {install}") from error
    except (ValueError, TypeError) as error:  # TypeError of zip://, which lies in another file
        raise UserError(
            f"{shown(name)}: got {scheme}://, expected https://, s3:// or gs:// ({one_line(error)})"
        ) from error
    if scheme.startswith("s3"):
        file_system.retries = 1  # the tries are ours
    if scheme in ("http", "https"):
        # As it is where it is encoded already: the server may have signed it so.
        return file_system, scheme + quote(name[len(scheme) :], safe="%/:=&?~#+!$,;'@()*[]", errors="surrogateescape")
    return file_system, file_system._strip_protocol(name)


def _options(scheme: str) -> dict[str, Any]:
    seconds = _timeout_sec()
    if scheme in ("http", "https"):
        return {"client_kwargs": {"timeout": _client_timeout(seconds), "trust_env": True}, "encoded": True}
    if scheme.startswith("s3"):
        how = {"connect_timeout": seconds, "read_timeout": seconds, "retries": {"total_max_attempts": 1}}
        return {"config_kwargs": how, "use_listings_cache": False}
    if scheme in ("gs", "gcs"):
        return {"session_kwargs": {"timeout": _client_timeout(seconds)}, "use_listings_cache": False}
    return {}


def _client_timeout(seconds: float) -> Any:
    from aiohttp import ClientTimeout  # comes with the first address: 0.2 s

    return ClientTimeout(total=None, connect=seconds, sock_connect=seconds, sock_read=seconds)


def _timeout_sec() -> float:
    """How long a server may be silent."""
    return _setting(TIMEOUT, 30.0)


def limit_bytes() -> int:
    """The largest file that is read."""
    return int(_setting(LIMIT, 64.0) * 2**30)


def check_size(size: int) -> None:
    """Raises where a file of so many bytes is too large.

    Raises:
        StoreError: it is.
    """
    if size > (limit := limit_bytes()):
        raise StoreError(f"got a file of {size:,} bytes, expected at most {limit:,} ({LIMIT})")


def _setting(name: str, default: float) -> float:
    text = os.environ.get(name) or str(default)
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < float("inf"):
        raise StoreSetupError(f"{name}: got {text}, expected a number above 0")
    return value


def tried(name: str, request: Callable[[], Value]) -> Value:
    """What a request gives, made again where its trouble may pass.

    Raises:
        StoreError: it does not.
    """
    tries = max(int(_setting(_TRIES, 4)), 1)
    for number in itertools.count(1):
        try:
            return request()
        except UserError:
            raise
        except Exception as error:  # each store has errors of its own
            failure = _failure(name, error)
        if number >= tries or not failure.may_pass:
            break
        wait_sec = min(FIRST_WAIT_SEC * 2 ** (number - 1), _LONGEST_WAIT_SEC)
        log.warning("%s: %s; try %d of %d in %g s", shown(name), failure, number + 1, tries, wait_sec)
        time.sleep(wait_sec)
    raise failure from None  # its cause repeats the address


def _failure(name: str, error: Exception) -> StoreError:
    """An error of a store as ours."""
    if isinstance(error, StoreError):
        return error
    status = next((n for n in (getattr(error, key, None) for key in ("status", "code")) if isinstance(n, int)), None)
    if isinstance(error, FileNotFoundError) or status in (404, 410):
        return StoreError("no such file", is_missing=True)
    if isinstance(error, PermissionError) or status in (401, 403):
        return StoreError(f"not allowed{f' ({status})' if status else ''}: are there credentials for it?")
    if isinstance(error, IsADirectoryError):
        return StoreError("it is a folder")
    kind = type(error).__name__
    if "Redirect" in kind:
        return StoreError("its server redirects without end, or to what is not HTTP")
    if status is not None:
        said = str(getattr(error, "message", "")).partition("\n")[0]
        return StoreError(f"the server answers {status} {said}".rstrip(), may_pass=status in PASSING_STATUS)
    if isinstance(error, TimeoutError) or "Timeout" in kind:
        return StoreError(f"no answer for {_timeout_sec():g} s", may_pass=True)
    if kind in ("ClientPayloadError", "IncompleteReadError", "ServerDisconnectedError", "ResponseStreamingError"):
        return StoreError("the connection was cut", may_pass=True)
    said = _ANY_ADDRESS.sub(lambda found: shown(found[0]), one_line(error)).replace(name, shown(name))
    if "Credentials" in kind:
        return StoreError(f"no credentials for it: {said}")
    if kind.startswith(("Client", "Server", "Endpoint", "Connection", "HTTPClient", "Proxy")) or (
        isinstance(error, OSError) and (error.errno is None or error.errno in _PASSING_ERRNO)
    ):
        return StoreError(said, may_pass=not kind.startswith("ClientError"))
    # A temporary file of another process may make room.
    return StoreError(said, may_pass=isinstance(error, ConnectionError) or is_full_disk(error))
