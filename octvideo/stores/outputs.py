"""A folder at an address that a command fills with whole files: what it holds, files put there, small ones read."""

from __future__ import annotations

import contextlib
import functools
import io
import shutil
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from pathlib import Path

from filelock import FileLock, Timeout

from octvideo.errors import UserError
from octvideo.stores.copies import outputs_folder, place_of
from octvideo.stores.folders import check_stores, exists, list_sizes, size_of
from octvideo.stores.names import file_name, shown
from octvideo.stores.reading import open_file, read_file
from octvideo.stores.requests import StoreError
from octvideo.stores.writing import check_writable, put_file

_PIECE, _STAGED, _LOCK = 1 << 20, "staged-", ".lock"
_SIGN_SEC = 1.0


class StoredFolder:
    """A folder at an address; `str` of it, and of `folder / name`, may be shown.

    Args:
        address: of the folder.

    Raises:
        UserError: nothing can be written there.
    """

    def __init__(self, address: str) -> None:
        check_writable(address)
        self.address = address.rstrip("/")

    def __str__(self) -> str:
        return shown(self.address)

    def __truediv__(self, name: str) -> str:
        return f"{self}/{name}"

    @property
    def here(self) -> Path:
        """A folder of the cache for what is on its way there."""
        path = place_of(self.address)
        path.mkdir(parents=True, exist_ok=True)
        return path

    def address_of(self, name: str) -> str:
        """Where a file of it is."""
        return f"{self.address}/{name}"

    def inside(self, name: str) -> StoredFolder:
        """A folder in it."""
        return StoredFolder(self.address_of(name))

    def sizes(self) -> dict[str, int]:
        """The names of all files below it, and their bytes, by one listing.

        Raises:
            UserError: it can't be listed.
        """
        try:
            return list_sizes(self.address)
        except StoreError as error:
            if error.is_missing:  # a folder of no files is none to a store, which says nothing of it
                check_stores([self.address])
            raise UserError(f"can't list {self}: {error}") from None

    def exists(self, name: str) -> bool:
        """Whether it has a file.

        Raises:
            UserError: the store can't be reached.
        """
        try:
            return exists(self.address_of(name))
        except StoreError as error:
            raise UserError(f"can't read {self / name}: {error}") from None

    def read(self, name: str) -> bytes | None:
        """A small file; None where there is none.

        Raises:
            UserError: it can't be read.
        """
        try:
            return read_file(self.address_of(name))
        except StoreError as error:
            if error.is_missing:
                return None
            raise UserError(f"can't read {self / name}: {error}") from None

    def put(self, file: Path, name: str) -> None:
        """Puts a file there, whole, in place of one of this name.

        Raises:
            UserError: it can't be written.
        """
        try:
            put_file(file, self.address_of(name))
        except StoreError as error:
            raise UserError(f"can't write {self / name}: {error}; the same command goes on") from None

    def put_new(self, file: Path, name: str) -> None:
        """Puts a file there, whole, unless it is there already.

        Raises:
            UserError: another one of this name is there, or it can't be written.
        """
        address = self.address_of(name)
        try:
            size = size_of(address)
        except StoreError as error:
            if not error.is_missing:
                raise UserError(f"can't read {self / name}: {error}; the same command goes on") from None
            self.put(file, name)
            return
        if size != file.stat().st_size or not self._is(file, name):
            raise UserError(
                f"{self / name} is there and was not written by this command: remove it, or give another -o"
            )

    def _is(self, file: Path, name: str) -> bool:
        """Whether a file there has the bytes of one here."""
        try:
            there = open_file(self.address_of(name))
            reader = io.BytesIO(there) if isinstance(there, bytes) else there.reader()
            with file.open("rb") as here:
                while piece := here.read(_PIECE):
                    if reader.read(len(piece)) != piece:
                        return False
            return not reader.read(1)
        except StoreError as error:
            raise UserError(f"can't read {self / name}: {error}; the same command goes on") from None


@contextlib.contextmanager
def staged(address: str, alive: Callable[[], object] = lambda: None) -> Iterator[Path]:
    """Gives a name here to write a file under. When the block has ended, unless by an error, the file is put at the
    address, whole. It does not stay here, not even of a process that was killed: the next one takes it away.

    Args:
        address: of the file.
        alive: called now and then while it is put there.

    Raises:
        StoreError: it can't be put there.
    """
    outputs = outputs_folder()
    outputs.mkdir(parents=True, exist_ok=True)
    _clear(outputs)
    folder, lock = _claimed(outputs)
    try:
        path = folder / f"whole{Path(file_name(address)).suffix}"
        yield path
        with ThreadPoolExecutor(1) as thread:
            put = thread.submit(put_file, path, address)
            while not wait([put], timeout=_SIGN_SEC).done:
                alive()
            put.result()
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        lock.release()


def _claimed(outputs: Path) -> tuple[Path, FileLock]:
    while True:
        folder = Path(tempfile.mkdtemp(prefix=_STAGED, dir=outputs))
        lock = FileLock(folder / _LOCK)
        # Until it is locked, another process takes it for one of a process that is gone.
        with contextlib.suppress(Timeout, FileNotFoundError):
            lock.acquire(timeout=0)
            return folder, lock


@functools.cache
def _clear(outputs: Path) -> None:
    """Takes away what processes that are gone have left; once a process."""
    for folder in outputs.glob(f"{_STAGED}*"):
        try:
            with FileLock(folder / _LOCK).acquire(timeout=0):
                shutil.rmtree(folder, ignore_errors=True)
        except (Timeout, OSError):
            continue
