"""Archives unpacked so that nothing outside the folder is written, and nothing in it written over."""

from __future__ import annotations

import shutil
import tarfile
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO

from octvideo.files import whole_file


class UnpackingError(Exception):
    """An archive that can't be unpacked; the message is one line."""


@dataclass(frozen=True)
class Unpacked:
    """What came of an archive.

    Args:
        written: files.
        kept: files of that name that were there and stay as they are.
        differing: of these, with another size.
    """

    written: int
    kept: int
    differing: int


def can_unpack(name: str) -> bool:
    """Whether the name is that of an archive that `unpack` knows."""
    return name.endswith((".tar.gz", ".tgz", ".tar", ".zip"))


def unpack(archive: Path, folder: Path) -> Unpacked:
    """Unpacks the files of a tar or zip; each appears under its name when it is whole.

    Links and devices in an archive are refused: no data set needs them, and they lead elsewhere.

    Args:
        archive: .tar.gz, .tgz, .tar or .zip.
        folder: to write into; made if it is not there.

    Raises:
        UnpackingError: it is damaged, or would write outside `folder`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    inside = folder.resolve()
    counts = {"written": 0, "kept": 0, "differing": 0}
    try:
        for name, size, content in _members(archive):
            target = folder / _safe(name, archive)
            if target.exists() or target.is_symlink():
                counts["kept"] += 1
                counts["differing"] += not target.is_file() or target.stat().st_size != size
                continue
            target.parent.mkdir(parents=True, exist_ok=True)
            if not target.parent.resolve().is_relative_to(inside):  # through a link that was there
                raise UnpackingError(f"{archive}: {name!r} leads out of {folder}")
            with whole_file(target) as part:
                with content, part.open("wb") as file:
                    shutil.copyfileobj(content, file, 1 << 20)
                if part.stat().st_size != size:
                    raise UnpackingError(f"{archive} is damaged: {name!r} is cut off")
            counts["written"] += 1
    except (tarfile.TarError, zipfile.BadZipFile, zlib.error, EOFError, OSError) as error:
        raise UnpackingError(f"{archive} can't be unpacked: {' '.join(str(error).split())}") from error
    return Unpacked(**counts)


def _members(archive: Path) -> Iterator[tuple[str, int, IO[bytes]]]:
    """Name, size and content of each file."""
    if archive.name.endswith(".zip"):
        with zipfile.ZipFile(archive) as opened:
            for info in opened.infolist():
                if (info.external_attr >> 28) == 0o12:
                    raise UnpackingError(f"{archive}: {info.filename!r} is a link")
                if not info.is_dir():
                    yield info.filename, info.file_size, opened.open(info)
        return
    # As a stream, member by member: an archive of gigabytes is read once.
    with tarfile.open(archive, "r|*") as tar:
        for member in tar:
            if member.isdir():
                continue
            content = tar.extractfile(member) if member.isfile() else None
            if content is None:
                raise UnpackingError(f"{archive}: {member.name!r} is a link or a device")
            with closing(content):
                yield member.name, member.size, content


def _safe(name: str, archive: Path) -> PurePosixPath:
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts or "\\" in name or ":" in path.parts[0] or not path.name:
        raise UnpackingError(f"{archive}: {name!r} leads out of the folder")
    return path
