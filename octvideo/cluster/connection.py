"""Which cluster: one that is named, one that runs here already, or a new one of this machine alone."""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Iterator
from types import ModuleType

from octvideo.errors import UserError

_OBJECT_STORE_BYTES = 128 * 2**20  # results are lines of text; Ray's default is 30 % of the memory


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
def connected(address: str, *, cpus: int) -> Iterator[None]:
    """Is connected to a cluster.

    Args:
        address: "ray" for the cluster that runs on this machine (or that RAY_ADDRESS names), and where there is none
            for a new one that ends with the block; "ray://HOST:PORT" for the cluster whose head has that address.
        cpus: of a new one.

    Raises:
        UserError: Ray is not installed, or there is no such cluster.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # Ray would report to its makers
    ray = ray_library()
    _, _, place = address.partition("://")
    how = {"logging_level": logging.ERROR, "log_to_driver": False}
    try:
        ray.init(address=place or "auto", **how)
    except (ConnectionError, RuntimeError, ValueError, OSError) as error:
        if place:
            raise UserError(
                f"no cluster at {address} for this machine ({str(error).strip().splitlines()[0]}): expected what "
                "'ray start --head' prints, with the port 6379 of the head (not 10001), on a machine of the cluster"
            ) from error
        ray.init(
            address="local",
            num_cpus=cpus,
            object_store_memory=_OBJECT_STORE_BYTES,
            include_dashboard=False,
            **how,
        )
    try:
        yield
    finally:
        ray.shutdown()
