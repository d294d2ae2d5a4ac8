"""Files behind addresses, read: whole where they are small, else block by block."""

from __future__ import annotations

import functools
import io
import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import octvideo.files as files
from octvideo.errors import UserError
from octvideo.files import decode_text
from octvideo.stores.http import get
from octvideo.stores.names import is_http, is_remote, shown
from octvideo.stores.requests import StoreError, check_size, store_of, tried

WHOLE_BYTES = 64 * 2**20  # a file up to this size is read by one request, and kept in memory
BLOCK_BYTES, _BLOCKS = 8 * 2**20, 8  # of a larger one: a request, and how many are kept
_LARGEST_TEXT = 2**30


def read_range(name: str, start: int, stop: int, *, size: int | None = None) -> bytes:
    """The bytes of a file from `start` to `stop`; fewer where it ends before.

    Args:
        size: that the file had when the reading began; None where nobody knows.

    Raises:
        StoreError: they can't be had.
        UserError: see `store_of`.
    """

    def request() -> bytes:
        file_system, path = store_of(name)
        if is_http(name):
            answer = get(file_system, path, start, stop)
            if answer.content is None:
                raise StoreError("its server gives no ranges of bytes")
            if None not in (size, answer.size) and answer.size != size:
                raise StoreError(f"it changed while it was read: it had {size:,} bytes, and has {answer.size:,}")
            return answer.content
        return cast(bytes, file_system.cat_file(path, start=start, end=stop))

    return tried(name, request)


def read_file(name: str) -> bytes:
    """A small file, such as a list of names.

    Raises:
        StoreError: it can't be had, or is larger than 1 GB.
        UserError: see `store_of`.
    """
    content = open_file(name)
    if isinstance(content, bytes):
        return content
    if content.size > _LARGEST_TEXT:
        raise StoreError(f"got {content.size:,} bytes, expected at most {_LARGEST_TEXT:,}")
    return content.reader().read()


def read_text(name: str | Path, *, names: bool = False) -> str:
    """`octvideo.files.read_text`, of an address too.

    Raises:
        UserError: it can't be read, or is in another encoding.
    """
    if not is_remote(name):
        return files.read_text(name, names=names)
    try:
        content = read_file(str(name))
    except StoreError as error:
        raise UserError(f"can't read {shown(str(name))}: {error}") from None
    return decode_text(content, shown(str(name)), names=names)


def open_file(name: str) -> bytes | StoredFile:
    """A file for reading: its content up to `WHOLE_BYTES`, else something that reads it block by block.

    Raises:
        StoreError: it can't be had, or is larger than $OCTVIDEO_REMOTE_LIMIT_GB.
        UserError: see `store_of`.
    """
    return tried(name, functools.partial(_open_http if is_http(name) else _open, name))


def _open(name: str) -> bytes | StoredFile:
    file_system, path = store_of(name)
    about = file_system.info(path)
    if about.get("type") == "directory":
        raise StoreError("it is a folder")
    size = int(about["size"])
    check_size(size)
    if size <= WHOLE_BYTES:
        # With its size: s3fs would ask for that again.
        return cast(bytes, file_system.cat_file(path, start=0, end=size)) if size else b""
    return StoredFile(size, functools.partial(read_range, name, size=size))


def _open_http(name: str) -> bytes | StoredFile:
    file_system, url = store_of(name)
    size, content, whole = get(file_system, url, 0, WHOLE_BYTES, begins=True)
    if size is not None:
        check_size(size)
    if whole is not None:
        here = whole.seek(0, os.SEEK_END) or whole.tell()
        whole.seek(0)
        if here <= WHOLE_BYTES:
            with whole:
                return cast(bytes, whole.read())

        def read_saved(start: int, stop: int) -> bytes:
            return os.pread(whole.fileno(), stop - start, start)

        whole.flush()
        return StoredFile(here, read_saved)
    if content is not None:
        if size is None and len(content) == WHOLE_BYTES:
            raise StoreError("its server does not say how long it is")
        return content
    assert size is not None
    return StoredFile(size, functools.partial(read_range, name, size=size))


class StoredFile:
    """A file behind an address, in the memory of some blocks. Any number of readers share them.

    Args:
        size: in bytes.
        fetch: from (start, stop) to these bytes.
    """

    def __init__(self, size: int, fetch: Callable[[int, int], bytes]) -> None:
        from fsspec.caching import BlockCache

        self.size, self._fetch, self._one = size, fetch, threading.Lock()
        self._error: StoreError | None = None
        self._cache = BlockCache(BLOCK_BYTES, self._fetched, size, maxblocks=_BLOCKS)

    def reader(self) -> io.BufferedIOBase:
        """A file that reads it, with a place of its own."""
        return cast(io.BufferedIOBase, _Reader(self))

    def read(self, start: int, stop: int) -> bytes:
        """Bytes from `start` to `stop`.

        Raises:
            StoreError: they can't be had. From then on: a reader must not take a gap for an end.
        """
        with self._one:
            if self._error is not None:
                raise self._error
            try:
                return cast(bytes, self._cache._fetch(start, min(stop, self.size)))
            except StoreError as error:
                self._error = error
                raise

    def _fetched(self, start: int, stop: int) -> bytes:
        stop = min(stop, self.size)
        content = self._fetch(start, stop)
        if len(content) != stop - start:
            raise StoreError(f"it got shorter while it was read: {len(content)} of {stop - start} bytes at {start}")
        return content


class _Reader(io.RawIOBase):
    def __init__(self, file: StoredFile) -> None:
        self._file, self._place = file, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._place

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        start = {os.SEEK_SET: 0, os.SEEK_CUR: self._place, os.SEEK_END: self._file.size}[whence]
        if start + offset < 0:
            raise ValueError(f"seek to {start + offset}")
        self._place = start + offset
        return self._place

    def read(self, size: int | None = -1) -> bytes:
        stop = self._file.size if size is None or size < 0 else min(self._place + size, self._file.size)
        parts = []
        while self._place < stop:  # block by block: a long read must not hold all of them twice
            parts.append(self._file.read(self._place, min(stop, self._place + BLOCK_BYTES)))
            self._place += len(parts[-1])
        return b"".join(parts)

    def readinto(self, buffer: Any) -> int:
        content = self.read(len(buffer))
        buffer[: len(content)] = content
        return len(content)
