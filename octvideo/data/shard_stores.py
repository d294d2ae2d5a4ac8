"""Shards that are written into a store: each archive is made here, put there whole, and deleted here when the index has
its rows.

The index grows here and is kept in the store (`StoredCopy`), so a command that was killed goes on with all archives
that it names, and what others have written is not replaced.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from octvideo.data.shards import ABOUT, CLASSES, INDEX, LEFT_OUT
from octvideo.errors import UserError
from octvideo.stores import StoredCopy, StoredFolder


class StoredShards:
    """What `write_shards` has in a store; `here` it makes its files.

    Args:
        folder: of the archives.

    Raises:
        UserError: it holds other things, or can't be read, or another process writes there.
    """

    def __init__(self, folder: StoredFolder) -> None:
        self._folder, self._is_whole = folder, False  # whether the index has all rows of each archive in it
        self._index = StoredCopy(folder.address_of(INDEX))
        self.here = self._index.path.parent
        try:
            self._sizes = folder.sizes()
            about = folder.read(ABOUT) if ABOUT in self._sizes else None
            if about is not None:
                (self.here / ABOUT).write_bytes(about)
                return
            if self._sizes:
                raise UserError(f"{folder} is there and holds no shards: give a new folder")
            for name in (ABOUT, INDEX):  # of a folder that somebody has removed
                (self.here / name).unlink(missing_ok=True)
        except BaseException:
            self._index.release()
            raise

    def __enter__(self) -> StoredShards:
        return self

    def __exit__(self, *_: object) -> None:
        if (self.here / INDEX).exists() and self._is_whole:
            self._index.close()
        else:
            self._index.release()

    def begin(self, rows: Sequence[dict[str, Any]]) -> None:
        """Claims the folder.

        Args:
            rows: of the index.

        Raises:
            UserError: an archive is not there that the index names, or the folder can't be written to.
        """
        ends: dict[str, int] = {}
        for row in rows:
            ends[row["shard"]] = max(ends.get(row["shard"], 0), row["offset"] + row["size"])
        for shard, end in ends.items():
            if self._sizes.get(shard, 0) < end:
                raise UserError(
                    f"{self._folder / shard} is not there or not whole, and {self.here / INDEX} names it: put it back, "
                    "or give another -o"
                )
        for file in self.here.glob("*.tar"):
            file.unlink()
        self._is_whole = True
        self._folder.put(self.here / ABOUT, ABOUT)  # first: it says whose the folder is
        if CLASSES not in self._sizes:
            self._folder.put(self.here / CLASSES, CLASSES)

    def add(self, shard: Path) -> None:
        """Puts a whole archive there.

        Raises:
            UserError: it can't be put there, or others have put another one there.
        """
        self._folder.put_new(shard, shard.name)
        self._is_whole = False

    def added(self, shard: Path) -> None:
        """The index has its rows."""
        shard.unlink()
        self._is_whole = True
        self._index.grown()

    def end(self) -> None:
        """All archives are there: puts the small files beside them.

        Raises:
            UserError: they can't be put there.
        """
        if (self.here / INDEX).exists():
            self._index.upload()
        self._folder.put(self.here / LEFT_OUT, LEFT_OUT)
        self._folder.put(self.here / ABOUT, ABOUT)
