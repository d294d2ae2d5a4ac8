"""A file that grows here and is kept at an address: what a long command writes, put there whole from time to time.

The file here is what counts. It lies in a folder of the cache, by its address: a command that was killed between two
uploads goes on with all that it had.
"""

from __future__ import annotations

import hashlib
import io
import json
import logging
import os
import time
from functools import cached_property
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from octvideo.errors import UserError
from octvideo.files import cache_folder, digest, json_text, whole_file, whole_text
from octvideo.stores.folders import check_stores, size_of
from octvideo.stores.names import file_name, shown
from octvideo.stores.reading import open_file
from octvideo.stores.requests import StoreError
from octvideo.stores.writing import check_writable, put_file

EVERY_SEC = 60.0  # an upload, at most
_SHARE = 50  # of the time between uploads to that of one
_PIECE = 1 << 20
_SCHEMES = {"s3a": "s3", "gcs": "gs"}  # two names of one kind of store

log = logging.getLogger("octvideo.stores")


class StoredCopy:
    """A file here that is kept at an address; `str` of it is the address as it may be shown.

    Args:
        address: of the file.

    Raises:
        UserError: nothing can be written there.
    """

    def __init__(self, address: str) -> None:
        check_writable(address)
        self.address = address
        self._lock: FileLock | None = None
        self._uploaded_at, self._took_sec = time.monotonic(), 0.0

    def __str__(self) -> str:
        return shown(self.address)

    @cached_property
    def path(self) -> Path:
        """The file here, which may not be there yet; what is at the address has been brought. One process has it until
        `close`.

        Raises:
            UserError: the store can't be reached, or what is there is neither an earlier nor a later state of what is
                here, or another process has the file.
        """
        path = place_of(self.address) / file_name(self.address)
        path.parent.mkdir(parents=True, exist_ok=True)
        self._lock = FileLock(path.with_name(f"{path.name}.lock"))
        try:
            self._lock.acquire(timeout=0)  # before anything here is moved or replaced
        except Timeout:
            raise UserError(f"another process writes {self}: wait for it, or name another file") from None
        try:
            self._bring(path)
        except BaseException:
            self._lock.release()
            raise
        return path

    def _bring(self, path: Path) -> None:
        """What is at the address comes here, where it has more."""
        try:
            there = open_file(self.address)
        except StoreError as error:
            if not error.is_missing:
                raise UserError(f"can't read {self}: {error}") from None
            check_stores([self.address])  # no bucket is said now, not at the first upload
            was_there = (self._state(path) or {}).get("size") is not None
            if path.exists() and was_there:  # and somebody has removed it
                path.replace(path.with_name(f"{path.name}.before"))
                self._note(path, None)
            return
        size = len(there) if isinstance(there, bytes) else there.size
        reader = io.BytesIO(there) if isinstance(there, bytes) else there.reader()

        def piece(start: int) -> bytes:
            reader.seek(start)
            return reader.read(_PIECE)

        try:
            here = path.stat().st_size if path.exists() else 0
            with path.open("rb") if here else open(os.devnull, "rb") as file:  # noqa: PTH123
                for start in range(0, min(here, size), _PIECE):
                    known = min(_PIECE, here - start, size - start)
                    if file.read(known) != piece(start)[:known]:
                        raise UserError(
                            f"{self} is not what an earlier run here had written, which is in {path}: name another "
                            "output, or remove one of both"
                        )
            if here < size:
                with whole_file(path, to_disk=True) as part, part.open("wb") as brought:
                    for start in range(0, size, _PIECE):
                        brought.write(piece(start))
        except StoreError as error:
            raise UserError(f"can't read {self}: {error}") from None
        self._note(path, size)

    def grown(self) -> None:
        """The file has grown: puts it into the store if the last time is long enough ago. Trouble is a warning."""
        if time.monotonic() - self._uploaded_at < max(EVERY_SEC, _SHARE * self._took_sec):
            return
        try:
            self.upload()
        except UserError as error:
            log.warning("%s", error)
        self._uploaded_at = time.monotonic()

    def upload(self) -> None:
        """Puts the file into the store, whole.

        Raises:
            UserError: it can't be written, or another process has written it.
        """
        started, path = time.monotonic(), self.path
        state = self._state(path)
        if state == {"size": path.stat().st_size, "sha256": digest(path)}:
            return
        try:
            # Of an upload that was stopped nobody knows whether it is there.
            known = [None] if state is None else [state["size"], state.get("begun", state["size"])]
            if (there := self._size_there()) not in known:
                got = "is gone" if there is None else f"has {there:,} bytes that others have written"
                raise UserError(f"{self} {got}: nothing is put there; all of this run is in {path}")
            self._write_state(path, {**(state or {"size": None, "sha256": ""}), "begun": path.stat().st_size})
            put_file(path, self.address)
        except StoreError as error:
            raise UserError(f"can't write {self}: {error}; all is in {path}, and the same command goes on") from None
        self._note(path, path.stat().st_size)
        self._uploaded_at = time.monotonic()
        self._took_sec = self._uploaded_at - started

    def close(self) -> None:
        """Puts the file into the store, and lets others have it.

        Raises:
            UserError: see `upload`.
        """
        try:
            self.upload()
        finally:
            self.release()

    def release(self) -> None:
        """Lets others have it, as it is in the store now."""
        if self._lock is not None:
            self._lock.release()

    def _size_there(self) -> int | None:
        try:
            return size_of(self.address)
        except StoreError as error:
            if error.is_missing:
                return None
            raise

    @staticmethod
    def _state(path: Path) -> dict[str, Any] | None:
        """What is at the address, as far as is known here; None where nothing is."""
        try:
            state: dict[str, Any] | None = json.loads(_state_file(path).read_text(encoding="utf-8"))
            return state
        except (OSError, ValueError):
            return None

    def _note(self, path: Path, size: int | None) -> None:
        whole = size is not None and size == path.stat().st_size
        self._write_state(path, None if size is None else {"size": size, "sha256": digest(path) if whole else ""})

    @staticmethod
    def _write_state(path: Path, state: dict[str, Any] | None) -> None:
        with whole_text(_state_file(path)) as file:
            file.write(json_text(state))


def outputs_folder() -> Path:
    """Where files lie that are kept at addresses, or on their way there."""
    return cache_folder() / "outputs"


def place_of(address: str) -> Path:
    """The folder here of what is kept at an address, by whatever spelling of it."""
    scheme, mark, rest = shown(address).partition("://")
    name = f"{_SCHEMES.get(scheme.lower(), scheme.lower())}{mark}{rest.rstrip('/')}"
    return outputs_folder() / hashlib.sha256(name.encode("utf-8", "surrogateescape")).hexdigest()[:24]


def _state_file(path: Path) -> Path:
    return path.with_name(f"{path.name}.uploaded")
