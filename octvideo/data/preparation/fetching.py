"""Archives of a data set downloaded many at once, checked and unpacked; a later run resumes where this one stopped.

Unpacking writes nothing outside the folder, and nothing in it is overwritten.
"""

from __future__ import annotations

import re
import shutil
import tarfile
import threading
import zipfile
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from contextlib import closing
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path, PurePosixPath
from typing import IO
from urllib.parse import urlsplit

from filelock import FileLock, Timeout

from octvideo.data.preparation.archives import KINETICS, Archive, Publication, listed_archives
from octvideo.download import fetch
from octvideo.errors import UserError
from octvideo.files import digest, one_line, read_text, text_lines, whole_file

ARCHIVES = "archives"
_CHECKSUMS = {32: "md5", 40: "sha1", 64: "sha256", 128: "sha512"}  # by length
_ATTEMPTS = 8
_FIRST_WAIT_SEC = 1.0
_LIST_ATTEMPTS = 3  # of a list nothing is here yet: more likely there is no connection at all

Said = Callable[[str], None]
# Is told the archive, bytes here, and in all.
Progress = Callable[[Archive, int, int], None]


@dataclass(frozen=True)
class Arrived:
    """What became of one archive.

    Args:
        archive: which.
        problem: "" where all is well.
        unpacked: see `unpack`; None where there was nothing to unpack, or it was unpacked before.
    """

    archive: Archive
    problem: str = ""
    unpacked: Counter[str] | None = None


class Downloads:
    """The archives of one data set on their way into its folder.

    root/archives/{train,...}/part_0.tar.gz, and beside each: .NAME.part while it is on its way,
    NAME.unpacked when it is done.

    Args:
        root: of the data set.
        checksums: by file name, or split/name.
        mirror: in place of the address of Kinetics' archive.
        attempts: tries in a row that bring nothing.
        remove_archives: deletes an archive that this tool downloaded, once it is unpacked.
    """

    def __init__(
        self,
        root: Path,
        *,
        checksums: dict[str, str] | None = None,
        mirror: str | None = None,
        attempts: int = _ATTEMPTS,
        remove_archives: bool = False,
    ) -> None:
        self.root, self.checksums, self.mirror = root, checksums or {}, mirror
        self.attempts, self.remove_archives = attempts, remove_archives
        self._stop = threading.Event()

    def archives(self, publication: Publication, parts: list[str], said: Said) -> list[Archive]:
        """The archives of these parts of a data set; lists of addresses are downloaded for it.

        Raises:
            UserError: there is no such part, or its list can't be had.
        """
        known = [*publication.lists, *publication.files]
        if unknown := [part for part in parts if part not in known]:
            raise UserError(f"no part {unknown[0]!r}: there are {', '.join(known)}")
        found: list[Archive] = []
        for part in parts:
            found += publication.files.get(part, [])
            if part in publication.lists:
                found += listed_archives(self._list(publication.lists[part], part, said), part)
        found = [Archive(self._mirrored(archive.url), archive.folder, archive.unpack) for archive in found]
        places = [self.place(archive) for archive in found]
        if twice := [str(place) for place in places if places.count(place) > 1]:
            raise UserError(f"two archives are called {twice[0]}")
        return found

    def _list(self, url: str, part: str, said: Said) -> str:
        url = self._mirrored(url)
        place = self.root / ARCHIVES / part / Path(urlsplit(url).path).name
        place.parent.mkdir(parents=True, exist_ok=True)
        try:
            with whole_file(place) as fresh:
                attempts = min(self.attempts, _LIST_ATTEMPTS)
                fetch(url, fresh, attempts=attempts, first_wait_sec=_FIRST_WAIT_SEC, retrying=said)
        except (OSError, HTTPException) as error:
            raise UserError(
                f"the list of archives {url} can't be downloaded ({one_line(error)}): check the connection"
            ) from error
        return read_text(place)

    def _mirrored(self, url: str) -> str:
        mirrored = self.mirror is not None and url.startswith(KINETICS + "/")
        return f"{str(self.mirror).rstrip('/')}{url.removeprefix(KINETICS)}" if mirrored else url

    def place(self, archive: Archive) -> Path:
        """Where an archive is kept; a file that is used as it is, where it belongs."""
        if archive.unpack:
            return self.root / ARCHIVES / (archive.folder or ".") / archive.name
        return self.root / archive.folder / archive.name

    def is_done(self, archive: Archive) -> bool:
        """Whether nothing is left to do."""
        return self._mark(archive).exists() if archive.unpack else self.place(archive).is_file()

    def _mark(self, archive: Archive) -> Path:
        place = self.place(archive)
        return place.with_name(f"{place.name}.unpacked")

    def run(self, archives: list[Archive], *, workers: int, progress: Progress, said: Said) -> Iterator[Arrived]:
        """Downloads, checks and unpacks all that is not done, and gives each as it ends.

        Raises:
            UserError: another run is at it.
        """
        (self.root / ARCHIVES).mkdir(parents=True, exist_ok=True)
        lock = FileLock(self.root / ARCHIVES / ".download.lock")
        try:
            lock.acquire(timeout=0)
        except Timeout:
            raise UserError(f"another download into {self.root} is running") from None
        self._stop.clear()
        pool = ThreadPoolExecutor(workers)
        try:
            jobs: list[Future[Arrived]] = [pool.submit(self.get, archive, progress, said) for archive in archives]
            for job in as_completed(jobs):
                yield job.result()
        finally:
            # After Ctrl-C the threads end at their next block, and what came stays for the next run.
            self._stop.set()
            pool.shutdown(cancel_futures=True)
            lock.release()

    def get(self, archive: Archive, progress: Progress, said: Said) -> Arrived:
        """Downloads, checks and unpacks one archive, as far as that is not done."""
        if self.is_done(archive):
            return Arrived(archive)
        place = self.place(archive)
        try:
            if not place.is_file():
                self._download(archive, place, progress, said)
            if not archive.unpack or not can_unpack(archive.name):
                return Arrived(archive)
            unpacked = unpack(place, self.root / archive.folder)
        except UnpackingError as error:
            return Arrived(archive, f"{error}; delete it to download it again")
        except (OSError, HTTPException) as error:
            return Arrived(archive, one_line(error))
        self._mark(archive).touch()
        if self.remove_archives:
            place.unlink()
        return Arrived(archive, unpacked=unpacked)

    def _download(self, archive: Archive, place: Path, progress: Progress, said: Said) -> None:
        place.parent.mkdir(parents=True, exist_ok=True)

        def go_on(here: int, total: int) -> None:
            if self._stop.is_set():
                raise _Stopped
            progress(archive, here, total)

        with whole_file(place, keep=True) as part:
            published_md5 = fetch(
                archive.url,
                part,
                attempts=self.attempts,
                first_wait_sec=_FIRST_WAIT_SEC,
                keep=True,
                progress=go_on,
                retrying=said,
                sleep=self._stop.wait,
            )
            self._check(archive, part, published_md5)

    def _check(self, archive: Archive, part: Path, published_md5: str) -> None:
        """Compares with the user's checksum, else with the server's.

        Raises:
            OSError: it is another; nothing is kept.
        """
        names = (f"{archive.folder}/{archive.name}", archive.name)
        wanted = next(filter(None, map(self.checksums.get, names)), published_md5)
        if wanted and (found := digest(part, kind := _CHECKSUMS[len(wanted)])) != wanted.lower():
            part.unlink()
            raise OSError(f"damaged: its {kind} is {found}, expected {wanted}. Nothing was kept; run again")


class _Stopped(Exception):  # noqa: N818 (no error)
    """The run is being ended."""


def read_checksums(file: Path) -> dict[str, str]:
    """Checksums by file name, as md5sum and sha256sum write them.

    Raises:
        UserError: with file and line.
    """
    found = {}
    for number, line in enumerate(text_lines(read_text(file)), 1):
        if not line.strip() or line.startswith("#"):
            continue
        match = re.fullmatch(r"([0-9a-fA-F]+)\s+\*?(?:\./)?(\S.*?)\s*", line)
        if match is None or len(match[1]) not in _CHECKSUMS:
            raise UserError(
                f"{file}:{number}: got {line!r}, expected 'checksum  name' (MD5, SHA-1, SHA-256 or SHA-512)"
            )
        found[match[2]] = match[1]
    return found


# ── unpacking ───────────────────────────────────────────────────────────────────────────────────────────────────────


class UnpackingError(Exception):
    """An archive that can't be unpacked; the message is one line."""


def can_unpack(name: str) -> bool:
    """Whether the name is that of an archive that `unpack` knows."""
    return name.endswith((".tar.gz", ".tgz", ".tar", ".zip"))


def unpack(archive: Path, folder: Path) -> Counter[str]:
    """Unpacks the files of a tar or zip; each appears under its name when it is whole.

    Links and devices in an archive are refused: no data set needs them, and they lead elsewhere.

    Args:
        archive: .tar.gz, .tgz, .tar or .zip.
        folder: to write into; made if it is not there.

    Returns:
        How many files were "written"; how many of that name were there and are "kept" as they are; and how many of
        these are "differing" in size.

    Raises:
        UnpackingError: it is damaged, or would write outside `folder`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    inside = folder.resolve()
    counts = Counter[str]()
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
        raise UnpackingError(f"{archive} can't be unpacked: {one_line(error)}") from error
    return counts


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
