"""Which cluster: one that is named, one that runs here already, or a new one of this machine alone."""

from __future__ import annotations

import contextlib
import logging
import os
import re
import socket
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any, cast

from octvideo.errors import UserError

_OBJECT_STORE_BYTES = 128 * 2**20  # results are lines of text; Ray's default is 30 % of the memory
_ASKS_FOR_TOKEN = "InvalidAuthToken"  # in what Ray prints
_ANSWER_S = 10.0  # that a head has to take a connection


def ray_library() -> ModuleType:
    """Ray.

    Raises:
        UserError: it is not installed.
    """
    try:
        import ray
    except ImportError as error:
        raise UserError("--on ray needs Ray, which is not installed: pip install 'octvideo[ray]'") from error
    return ray


@contextlib.contextmanager
def connected(address: str, *, cpus: int, tell: Callable[[str], None]) -> Iterator[str]:
    """Is connected to a cluster; gives it in words.

    Args:
        address: "ray" for the cluster that runs on this machine (or that RAY_ADDRESS names), and where there is none
            for a new one that ends with the block; "ray://HOST:PORT" for the cluster whose head has that address.
        cpus: of a new one.
        tell: is told of a cluster that is gone, in one line.

    Raises:
        UserError: Ray is not installed, or there is no such cluster.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # Ray would report to its makers
    _, _, named = address.partition("://")
    if not named and re.fullmatch(r"[^/\s]+:\d+", os.environ.get("RAY_ADDRESS", "")):
        named = os.environ["RAY_ADDRESS"]
    ray = ray_library()
    place = named or _place_here()
    if place and (trouble := _no_answer(place)):
        if named:
            raise UserError(f"nothing answers at {named} ({trouble}): is 'ray start --head' running there?")
        tell(f"Ray: the cluster that ran here, {place}, does not answer ({trouble})")
        place = None
    how: dict[str, Any] = {"logging_level": logging.CRITICAL, "log_to_driver": False}
    if place:
        tell(f"Ray: joining {place}")
        _join(ray, place, how)
    else:
        own = {"num_cpus": cpus, "object_store_memory": _OBJECT_STORE_BYTES, "include_dashboard": False}
        with _Unsaid():
            ray.init(address="local", **own, **how)
    try:
        nodes = sum(node["Alive"] for node in ray.nodes())
        what = f"{place}, {_counted(nodes, 'node')}" if place else "a new cluster of this machine alone"
        yield f"{what}, {_counted(int(ray.cluster_resources().get('CPU', 0)), 'CPU')}"
    finally:
        ray.shutdown()


def _join(ray: ModuleType, place: str, how: dict[str, Any]) -> None:
    """Connects to a cluster, with this machine's token where it asks for one.

    Raises:
        UserError: there is none, or it takes no token that is here.
    """
    from ray._private import ray_constants

    # Those that were found to answer answer soon; Ray would try for a quarter of an hour.
    tries, ray_constants.NUM_REDIS_GET_RETRIES = ray_constants.NUM_REDIS_GET_RETRIES, 1
    try:
        try:
            with _Unsaid() as unsaid:
                ray.init(address=place, **how)
        except ConnectionError:
            if not (_ASKS_FOR_TOKEN in unsaid.text() and _has_token() and "RAY_AUTH_MODE" not in os.environ):
                raise
            _use_token()  # not before: processes of a cluster that asks for none could not begin
            with _Unsaid() as unsaid:
                ray.init(address=place, **how)
    except (ConnectionError, RuntimeError, ValueError, OSError) as error:
        if _ASKS_FOR_TOKEN in unsaid.text():
            raise UserError(
                f"the cluster at {place} asks for a token: copy ~/.ray/auth_token of its head to this machine"
                + (", in place of the one that is here" if _has_token() else "")
            ) from error
        raise UserError(
            f"no cluster at {place} with a node on this machine ({str(error).strip().splitlines()[0]}): expected what "
            "'ray start --head' prints, with the port 6379 of the head (not 10001); a machine joins by 'ray start "
            f"--address {place}'"
        ) from error
    finally:
        ray_constants.NUM_REDIS_GET_RETRIES = tries


def _use_token() -> None:
    """As Ray's own commands do it."""
    from ray import _raylet

    os.environ["RAY_AUTH_MODE"] = "token"
    cast(Any, _raylet).Config.initialize("")  # which has read the variable already


def _has_token() -> bool:
    if {"RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"} & os.environ.keys():
        return True
    return Path("~/.ray/auth_token").expanduser().is_file()


def _place_here() -> str | None:
    """The address of the cluster that this machine is part of, or was until it was killed; None where there is none.

    Raises:
        UserError: RAY_ADDRESS is none.
    """
    try:
        from ray._private.services import canonicalize_bootstrap_address

        found: str | None = canonicalize_bootstrap_address("auto")
        return found
    except (ConnectionError, ImportError):
        return None
    except ValueError as error:  # which Ray raises with all of its calls in it
        raise UserError(
            f"RAY_ADDRESS: got {os.environ.get('RAY_ADDRESS', '')}, expected HOST:PORT, the address of a cluster's "
            "head, or auto, or local for a new cluster"
        ) from error


def _no_answer(place: str) -> str:
    """Why nothing takes a connection, which Ray would find out after minutes; nothing where something does."""
    host, _, port = place.rpartition(":")
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=_ANSWER_S).close()
    except (OSError, ValueError, OverflowError) as error:
        return (getattr(error, "strerror", None) or str(error)).lower()
    return ""


def _counted(count: int, what: str) -> str:
    return f"{count:,} {what}" + ("" if count == 1 else "s")


class _Unsaid:
    """What is written to the standard error while it is open, by libraries in C++ too, is kept back."""

    def __enter__(self) -> _Unsaid:
        self._file = tempfile.TemporaryFile()
        self._real = os.dup(2)
        os.dup2(self._file.fileno(), 2)
        return self

    def __exit__(self, *_: object) -> None:
        os.dup2(self._real, 2)
        os.close(self._real)

    def text(self) -> str:
        """All of it."""
        self._file.seek(0)
        return self._file.read().decode(errors="replace")
