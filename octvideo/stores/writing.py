"""Files written to addresses."""

from __future__ import annotations

from pathlib import Path

from octvideo.errors import UserError
from octvideo.stores.names import is_http, shown
from octvideo.stores.requests import StoreError, store_of, tried


def check_writable(name: str) -> None:
    """Raises where files can't be written to an address.

    Raises:
        UserError: with what can.
    """
    if is_http(name):
        raise UserError(f"{shown(name)}: nothing can be written there; expected a path, s3:// or gs://")
    store_of(name)


def put_file(file: Path, name: str) -> None:
    """Writes a file to an address, whole: object stores show nothing of it before.

    Raises:
        StoreError: it can't be written.
        UserError: see `check_writable`.
    """
    check_writable(name)
    file_system, path = store_of(name)
    tried(name, lambda: file_system.put_file(str(file), path))


def remove_file(name: str) -> None:
    """Takes a file away, if it is there.

    Raises:
        StoreError: it can't be.
        UserError: see `check_writable`.
    """
    check_writable(name)
    file_system, path = store_of(name)
    try:
        tried(name, lambda: file_system.rm_file(path))
    except StoreError as error:
        if not error.is_missing:
            raise
