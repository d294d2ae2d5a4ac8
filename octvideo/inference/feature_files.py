"""A folder of features: a file for each video, what made them, and an index.

DIR/features.json               the settings that made all files, and the names of the classes
DIR/PATH.safetensors (or .npz)  of the video PATH: features (n, D), start_sec (n,), end_sec (n,); metadata
DIR/index.csv                   a row for each video, and the reason where one can't be read

A file has the path of its video, so that no two videos share one, and a video has the same whatever else is asked for.
"""

from __future__ import annotations

import csv
import hashlib
import importlib
import io
import json
import logging
import os
import re
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal

import numpy as np
from filelock import FileLock
from safetensors.numpy import save

from octvideo.errors import UserError
from octvideo.files import json_text, one_line, whole_file, whole_text
from octvideo.inference.engine import needs
from octvideo.stores import is_remote

log = logging.getLogger("octvideo.inference")

Format = Literal["safetensors", "npz"]
SETTINGS_FILE, KIND = "features.json", "octvideo features 1"
# Which may differ where features are equal: names, and where weights lay.
_FREE = ("weights", "class_names", "octvideo")
_LOCK = ".features.lock"
_DTYPES = {"F16": "<f2", "F32": "<f4", "F64": "<f8", "I64": "<i8"}
_LONGEST_HEADER = 2**24
_NAMED = re.compile(r"_+(up|root|store)")
_LONGEST_NAME = 200  # bytes of a part of an address, which may have a long query


@dataclass(frozen=True)
class VideoFeatures:
    """Features of a video.

    Args:
        features: float16 or float32 (n, D), in order of time.
        start_sec, end_sec: of each, float64 (n,).
        window: of each, int64 (n,): several time steps may be of one window.
        fps: of the video, as the file states it; None where it does not.
        trouble: why not all of the video could be read.
    """

    features: np.ndarray
    start_sec: np.ndarray
    end_sec: np.ndarray
    window: np.ndarray
    fps: float | None = None
    trouble: str = ""


@dataclass(frozen=True)
class Row:
    """A row of the index.

    Args:
        video: its path.
        file: of its features, in the folder; empty where there is none.
        vectors: how many there are.
        start_sec: of the first.
        end_sec: of the last.
        fps: see `VideoFeatures`.
        reason: why the video, or a part of it, can't be read.
    """

    video: str
    file: str = ""
    vectors: int = 0
    start_sec: float | None = None
    end_sec: float | None = None
    fps: float | None = None
    reason: str = ""


@dataclass(frozen=True)
class Entry:
    """A file of features, of which only the header has been read.

    Args:
        file: of it.
        metadata: "video", "fps", "trouble", and the settings that made it.
        shape: (n, D) of the features.
        arrays: name to (dtype, shape, first byte) of safetensors; none of npz.
    """

    file: Path
    metadata: dict[str, Any]
    shape: tuple[int, int]
    arrays: dict[str, tuple[str, tuple[int, ...], int]]

    @property
    def video(self) -> str:
        """The path of the video."""
        return str(self.metadata["video"])

    def array(self, name: str) -> np.ndarray:
        """ "features", "start_sec", "end_sec" or "window": mapped from a safetensors file, read of an npz file."""
        if not self.arrays:
            with np.load(self.file) as arrays:
                return arrays[name]
        dtype, shape, first = self.arrays[name]
        if 0 in shape:
            return np.zeros(shape, dtype)
        return np.memmap(self.file, dtype, mode="r", offset=first, shape=shape)

    def rows(self, start: int, stop: int) -> np.ndarray:
        """Features [start, stop). Of a safetensors file these alone are read; a map would hold all that it has seen."""
        if not self.arrays:
            return self.array("features")[start:stop]
        dtype, (_, width), first = self.arrays["features"]
        size = np.dtype(dtype).itemsize * width
        read = np.fromfile(self.file, dtype, count=(stop - start) * width, offset=first + start * size)
        return read.reshape(stop - start, width)


class FeatureFolder:
    """A folder of features of one network, layer and choice of windows.

    Args:
        folder: with `features.json`.

    Raises:
        UserError: it is no such folder.

    Example:
        >>> folder = FeatureFolder("features")  # doctest: +SKIP
        >>> for entry in folder.entries():  # doctest: +SKIP
        ...     print(entry.video, entry.array("features").shape, entry.array("start_sec"))
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        file = self.folder / SETTINGS_FILE
        self.settings = read_settings(folder, file, file.read_bytes)

    def __str__(self) -> str:
        return str(self.folder)

    @classmethod
    def made(cls, folder: str | Path, settings: dict[str, Any]) -> FeatureFolder:
        """The folder, begun with these settings, or continued where it has them already.

        Args:
            folder: made if it is not there.
            settings: "format" is a `Format`, the others are compared.

        Raises:
            UserError: it holds features of other settings, or other files.
        """
        path = Path(folder)
        path.mkdir(parents=True, exist_ok=True)
        with FileLock(path / _LOCK):  # parts of a list begin at the same time
            return cls._made(path, settings)

    @classmethod
    def _made(cls, path: Path, settings: dict[str, Any]) -> FeatureFolder:
        if (path / SETTINGS_FILE).exists():
            there = cls(path)
            there.check(settings)
            return there
        if any(file.name != _LOCK for file in path.iterdir()):
            raise UserError(f"{path} holds other files: give another -o")
        write_settings(path, settings)
        return cls(path)

    def check(self, settings: dict[str, Any]) -> None:
        """Raises where it is of other settings.

        Raises:
            UserError: it holds features of other settings.
        """
        content = json.loads(json_text({"features": KIND, **settings}))
        for key in {**content, **self.settings}:
            got, expected = self.settings.get(key), content.get(key)
            if key not in _FREE and got != expected:
                raise UserError(
                    f"{self} holds features of other settings ({key}: {got!r}, now {expected!r}): give another -o"
                )

    def file_of(self, video: str) -> Path:
        """Where the features of a video are."""
        return self.folder / self.name_of(video)

    def name_of(self, video: str) -> str:
        """The file of a video, in this folder: its path. `..`, the root and the store of an address have names of their
        own.
        """
        names = []
        scheme, mark, inside = video.partition("://") if is_remote(video) else ("", "", video)
        if mark:
            names = ["_store", scheme.lower()]
        for part in Path(os.path.normpath(inside)).parts:
            if part in ("..", "/"):
                names.append("_up" if part == ".." else "_root")
            else:
                names.append(f"_{part}" if _NAMED.fullmatch(part) else _short(part))
        return "/".join([*names[:-1], f"{names[-1]}.{self.settings['format']}"])

    def has(self, video: str) -> bool:
        """Whether there are features of a video."""
        return self.find(video) is not None

    def find(self, video: str) -> Entry | None:
        """The features of a video; None where there are none, or what is there is not whole or of other settings."""
        entry = read_entry(self.file_of(video))
        return entry if entry is not None and self._is_own(entry) else None

    def entries(self) -> Iterator[Entry]:
        """All files of features, by path; a warning names each that does not count."""
        for here, folders, files in os.walk(self.folder):
            folders.sort()
            for name in sorted(files):
                if name.endswith(f".{self.settings['format']}") and not name.startswith("."):
                    entry = read_entry(Path(here) / name)
                    if entry is not None and self._is_own(entry):
                        yield entry
                    else:
                        log.warning("%s is left out: it is not whole, or of other settings", Path(here) / name)

    def write(self, video: str, features: VideoFeatures) -> Path:
        """Writes the file of a video, whole or not at all; returns its path."""
        file = self.file_of(video)
        file.parent.mkdir(parents=True, exist_ok=True)
        with whole_file(file) as part:
            self.write_file(part, video, features)
        return file

    def write_file(self, part: Path, video: str, features: VideoFeatures) -> None:
        """Writes the features of a video under another name."""
        own = {"video": video, "fps": features.fps, "trouble": features.trouble}
        metadata = json_text({**own, **self._of_files()})
        arrays = {"features": features.features, "start_sec": features.start_sec, "end_sec": features.end_sec}
        arrays["window"] = features.window
        if self.settings["format"] == "npz":
            with part.open("wb") as content:
                np.savez(content, **arrays, metadata=np.array(metadata))  # type: ignore[arg-type]
        else:
            contiguous = {name: np.ascontiguousarray(array) for name, array in arrays.items()}
            part.write_bytes(save(contiguous, metadata={"octvideo": metadata}))

    def row_of(self, entry: Entry, file: str | None = None) -> Row:
        """The row of the index for a file.

        Args:
            file: its name in the folder, where it lies elsewhere now.
        """
        starts, ends = entry.array("start_sec"), entry.array("end_sec")
        start, end = (float(starts[0]), float(ends[-1])) if len(starts) else (None, None)
        end = None if end != end else end  # NaN, of a whole video whose length is not stated
        file = file or entry.file.relative_to(self.folder).as_posix()
        return Row(entry.video, file, entry.shape[0], start, end, entry.metadata["fps"], entry.metadata["trouble"])

    def write_index(self, unreadable: Sequence[Row], *, parquet: bool = False) -> Path:
        """Writes the index of all files that are here, and of videos that can't be read.

        Args:
            unreadable: of this run; those of the index before stay, unless there are features of them now.
            parquet: as index.parquet too.

        Returns:
            index.csv.

        Raises:
            UserError: pyarrow is not installed.
        """
        with FileLock(self.folder / _LOCK):  # the last of several parts lists the files of all
            return self._write_index(unreadable, parquet=parquet)

    def _write_index(self, unreadable: Sequence[Row], *, parquet: bool) -> Path:
        text = _index_text(self.folder / "index.csv")
        rows = {row.video: row for row in rows_of_index(text) if not row.file}
        rows |= {row.video: row for row in unreadable}
        rows |= {entry.video: self.row_of(entry) for entry in self.entries()}
        return self.write_rows(rows, parquet=parquet)

    def write_rows(self, rows: dict[str, Row], *, parquet: bool) -> Path:
        """Writes an index of these."""
        ordered = [rows[video] for video in sorted(rows)]
        names = [field.name for field in fields(Row)]
        file = self.folder / "index.csv"
        with whole_text(file) as content:
            lines = csv.writer(content, lineterminator="\n")
            lines.writerow(names)
            lines.writerows([["" if (v := getattr(row, name)) is None else v for name in names] for row in ordered])
        if parquet:
            arrow, tables = parquet_library()
            columns = {name: [_of_text(getattr(row, name)) for row in ordered] for name in names}
            types = {"vectors": arrow.int64(), **dict.fromkeys(("start_sec", "end_sec", "fps"), arrow.float64())}
            schema = arrow.schema([(name, types.get(name, arrow.string())) for name in names])
            with whole_file(file.with_suffix(".parquet")) as part:
                tables.write_table(arrow.table(columns, schema=schema), part)
        return file

    def _of_files(self) -> dict[str, Any]:
        """What each file says of itself; the names of the classes are in `features.json` alone."""
        return {key: value for key, value in self.settings.items() if key != "class_names"}

    def _is_own(self, entry: Entry) -> bool:
        own = self._of_files()
        return all(entry.metadata.get(key) == value for key, value in own.items() if key not in _FREE)


def write_settings(folder: Path, settings: dict[str, Any]) -> None:
    """Begins a folder."""
    with whole_text(folder / SETTINGS_FILE) as file:
        file.write(json_text({"features": KIND, **settings}, indent=2) + "\n")


def read_settings(folder: object, file: object, read: Callable[[], bytes]) -> dict[str, Any]:
    """The settings of a folder, of their file as `read` gives it.

    Raises:
        UserError: there are none, or they are something else.
    """
    try:
        content: dict[str, Any] = json.loads(read().decode("utf-8"))
        if content["features"] != KIND:
            raise UserError(f"{file}: got {content['features']!r}, expected {KIND!r}")
        return content
    except (OSError, ValueError, KeyError, TypeError) as error:
        said = one_line(error) if isinstance(error, OSError) else "it is something else"
        raise UserError(f"no features in {folder} ({SETTINGS_FILE}: {said}): octvideo features writes them") from error


def _index_text(file: Path) -> str:
    return file.read_text(encoding="utf-8", errors="surrogateescape") if file.is_file() else ""


def rows_of_index(text: str) -> Iterator[Row]:
    """The rows of an index.csv."""
    for line in csv.DictReader(io.StringIO(text, newline="")):
        start, end, fps = (float(line[name]) if line[name] else None for name in ("start_sec", "end_sec", "fps"))
        yield Row(line["video"], line["file"], int(line["vectors"] or 0), start, end, fps, line["reason"])


def _short(name: str) -> str:
    content = name.encode("utf-8", "surrogateescape")
    if len(content) <= _LONGEST_NAME:
        return name
    return f"{content[:100].decode('utf-8', 'ignore')}-{hashlib.sha256(content).hexdigest()[:24]}"


def parquet_library() -> tuple[Any, Any]:
    """pyarrow and its pyarrow.parquet.

    Raises:
        UserError: it is not installed.
    """
    return needs("pyarrow", "parquet"), importlib.import_module("pyarrow.parquet")


def read_entry(file: Path) -> Entry | None:
    """The header of a file of features; None where there is no such file, or it is something else or not whole."""
    try:
        return _npz_entry(file) if file.suffix == ".npz" else _safetensors_entry(file)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, EOFError, zipfile.BadZipFile, zlib.error):
        return None


def _npz_entry(file: Path) -> Entry | None:
    if not file.is_file():
        return None
    with np.load(file) as arrays:
        metadata = json.loads(str(arrays["metadata"]))
        count, width = arrays["features"].shape
    return Entry(file, metadata, (count, width), {})


def _safetensors_entry(file: Path) -> Entry | None:
    """By hand, since the library reads a tensor whole: a long video's need not fit into memory."""
    with file.open("rb") as content:
        size = int.from_bytes(content.read(8), "little")
        if not 0 < size <= _LONGEST_HEADER:
            return None
        header = json.loads(content.read(size))
        whole = content.seek(0, os.SEEK_END)
    metadata = json.loads(header.pop("__metadata__")["octvideo"])
    arrays = {
        name: (_DTYPES[of["dtype"]], tuple(of["shape"]), 8 + size + of["data_offsets"][0])
        for name, of in header.items()
    }
    if whole != 8 + size + max(of["data_offsets"][1] for of in header.values()):
        return None
    count, width = arrays["features"][1]
    return Entry(file, metadata, (count, width), arrays)


def _of_text(value: Any) -> Any:
    """Names of files that are no text, as text."""
    return value.encode("utf-8", "surrogateescape").decode("utf-8", "replace") if isinstance(value, str) else value
