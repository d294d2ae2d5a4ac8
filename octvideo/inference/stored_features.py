"""A folder of features in a store: each file is made here, put there whole, and deleted here.

The index is written at the end, of the rows that it had, those of this run, and those that a killed run has left here.
Only of files that none of these knows, such as another machine's, is the content read.
"""

from __future__ import annotations

import hashlib
import json
import logging
import tempfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from functools import cached_property
from pathlib import Path
from typing import Any

from filelock import FileLock

from octvideo.errors import UserError
from octvideo.files import json_text
from octvideo.inference.feature_files import (
    SETTINGS_FILE,
    FeatureFolder,
    Row,
    VideoFeatures,
    read_entry,
    read_settings,
    rows_of_index,
    write_settings,
)
from octvideo.stores import StoredFolder, StoreError, staged
from octvideo.video import VideoReadError

log = logging.getLogger("octvideo.inference")

_THREADS = 16  # that read files
_LOCK = ".index.lock"


class StoredFeatures(FeatureFolder):
    """`FeatureFolder` in a store, for writing.

    Args:
        stored: with `features.json`.

    Raises:
        UserError: it is no such folder, or can't be read.
    """

    def __init__(self, stored: StoredFolder) -> None:
        def content() -> bytes:
            if (found := stored.read(SETTINGS_FILE)) is None:
                raise FileNotFoundError("no such file")
            return found

        self.stored, self.folder = stored, stored.here  # the index is made in this
        self.settings = read_settings(stored, stored / SETTINGS_FILE, content)
        # Of these settings alone: somebody may remove the folder, and begin it anew.
        own = hashlib.sha256(json_text(self.settings).encode()).hexdigest()[:16]
        self.noted_file = self.folder / f"rows-{own}.jsonl"

    def __str__(self) -> str:
        return str(self.stored)

    @classmethod
    def begun(cls, stored: StoredFolder, settings: dict[str, Any]) -> StoredFeatures:
        """See `FeatureFolder.made`.

        Raises:
            UserError: it holds features of other settings, or other files, or can't be read or written.
        """
        sizes = stored.sizes()
        if SETTINGS_FILE not in sizes:
            if sizes:
                raise UserError(f"{stored} holds other files: give another -o")
            write_settings(stored.here, settings)
            stored.put(stored.here / SETTINGS_FILE, SETTINGS_FILE)
        folder = cls(stored)  # of several parts, the one that was last has begun it
        folder.check(settings)
        return folder

    @cached_property
    def _sizes(self) -> dict[str, int]:
        return self.stored.sizes()

    def has(self, video: str) -> bool:
        """Whether there were features of a video at the beginning: files there are whole."""
        return self._sizes.get(self.name_of(video), 0) > 0

    def write(self, video: str, features: VideoFeatures) -> Path:
        """Puts the file of a video there, whole; returns where its row is noted for the index.

        Raises:
            UserError: it can't be written.
            VideoReadError: nothing there can have its name.
        """
        name = self.name_of(video)
        try:
            name.encode()
        except UnicodeEncodeError as error:
            raise VideoReadError(video, "its name is no text, and a store's names are") from error
        try:
            with staged(self.stored.address_of(name)) as file:
                self.write_file(file, video, features)
                entry = read_entry(file)
                assert entry is not None
                row = self.row_of(entry, name)
        except StoreError as error:
            raise UserError(f"can't write {self.stored / name}: {error}; the same command goes on") from None
        with self.noted_file.open("a", encoding="utf-8") as noted:
            noted.write(f"\n{json_text(asdict(row))}\n")  # a line that a kill has cut off spoils no other
        return self.noted_file

    def write_index(self, unreadable: Sequence[Row], *, parquet: bool = False) -> Path:
        """See `FeatureFolder.write_index`.

        Raises:
            UserError: pyarrow is not installed, or the store can't be read or written.
        """
        with FileLock(self.folder / _LOCK):  # parts on one machine: none puts an older list in place of another's
            return self._write_index(unreadable, parquet=parquet)

    def _write_index(self, unreadable: Sequence[Row], *, parquet: bool) -> Path:
        noted = list(self._noted())
        there = {name for name, size in self.stored.sizes().items() if size and name.endswith(self.settings["format"])}
        before = list(rows_of_index((self.stored.read("index.csv") or b"").decode("utf-8", "surrogateescape")))
        rows = {row.video: row for row in (*(row for row in before if not row.file), *unreadable)}
        known = {row.file: row for row in (*before, *noted) if row.file in there}
        with ThreadPoolExecutor(_THREADS) as threads:
            read = threads.map(self._row_there, sorted(there - known.keys()))
            rows |= {row.video: row for row in (*known.values(), *filter(None, read))}
        file = self.write_rows(rows, parquet=parquet)
        for name in (file.name, *(["index.parquet"] if parquet else [])):
            self.stored.put(file.with_name(name), name)
        self.noted_file.unlink(missing_ok=True)
        return file

    def _noted(self) -> Iterator[Row]:
        """Rows of this run, and of one that was killed."""
        file = self.noted_file
        for line in file.read_text(encoding="utf-8").splitlines() if file.exists() else []:
            try:
                yield Row(**json.loads(line))
            except (ValueError, TypeError):
                continue

    def _row_there(self, name: str) -> Row | None:
        """The row of a file of which nothing is known here."""
        with tempfile.NamedTemporaryFile(suffix=Path(name).suffix) as file:
            file.write(self.stored.read(name) or b"")
            file.flush()
            if (entry := read_entry(Path(file.name))) is not None:
                return self.row_of(entry, name)
        log.warning("%s is left out: it is not whole", self.stored / name)
        return None
