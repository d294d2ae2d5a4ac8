"""The folder that a page lies in: made, held against another writer, and nobody else's page is written over."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterable
from pathlib import Path

from octvideo.errors import UserError
from octvideo.files import whole_text

_HEAD_BYTES = 4096  # of a page; they hold its generator, and no text of others
_OURS = b'<meta name="generator" content="octvideo '


class PageFolder:
    """A folder for pages, and in it one for the videos that they show. To be closed, by `with`.

    Args:
        path: of the folder, made here.
        inner: name of the folder for videos.
        names: of the pages that will be written.

    Raises:
        UserError: it can't be made or written; a page of these names is not ours; another process writes there.
    """

    def __init__(self, path: Path, inner: str, names: Iterable[str] = ("index.html",)) -> None:
        self.path, self.inner = path, path / inner
        try:
            self.inner.mkdir(parents=True, exist_ok=True)
            self._descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            raise UserError(f"--page {path}: can't make {self.inner} ({error.strerror})") from error
        try:
            for folder in (path, self.inner):
                if not os.access(folder, os.W_OK | os.X_OK):
                    raise UserError(f"--page {path}: can't write to {folder}: name another folder")
            for name in names:
                if not _may_replace(path / name):
                    raise UserError(
                        f"--page {path}: its {name} was not written by octvideo, and is kept: name another folder"
                    )
            self._lock()
        except BaseException:
            self.close()
            raise

    def _lock(self) -> None:
        """Keeps others out, who would write to the same unfinished videos; gone with this process, too."""
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(
                f"--page {self.path}: another command writes there now: wait for it, or name another folder"
            ) from None

    def write(self, name: str, html: str) -> Path:
        """Writes a page, whole or not at all."""
        with whole_text(self.path / name) as file:
            file.write(html)
        return self.path / name

    def close(self) -> None:
        """Lets others write there; once more does nothing."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def __enter__(self) -> PageFolder:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _may_replace(page: Path) -> bool:
    """Whether there is no such file, or a page that we wrote."""
    try:
        with page.open("rb") as file:
            return _OURS in file.read(_HEAD_BYTES)
    except FileNotFoundError:
        return True
    except OSError:
        return False
