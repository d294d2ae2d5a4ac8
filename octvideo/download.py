"""A file from the web, in as many tries as it takes: what a connection has brought is not asked for again."""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Callable
from email.message import Message
from http.client import HTTPException, HTTPResponse
from pathlib import Path
from urllib.error import HTTPError
from urllib.request import Request, urlopen

from octvideo.files import one_line
from octvideo.stores.requests import PASSING_STATUS

log = logging.getLogger("octvideo.download")

_BLOCK = 1 << 20
_TIMEOUT_SEC = 30
_LONGEST_WAIT_SEC = 60.0

# Is told bytes here so far, and in all (0 where the server does not say).
Progress = Callable[[int, int], None]


def fetch(
    url: str,
    part: Path,
    *,
    attempts: int = 4,
    first_wait_sec: float = 0.0,
    keep: bool = False,
    progress: Progress = lambda here, total: None,
    retrying: Callable[[str], None] = log.info,
    sleep: Callable[[float], object] | None = None,
) -> str:
    """Downloads into `part`; a broken connection is resumed.

    Args:
        url: https or http.
        part: file to write.
        attempts: tries in a row that bring less than a MiB, before it gives up.
        first_wait_sec: before the second of them; doubled for each later one, at most a minute.
        keep: resumes a `part` that an earlier process left, if the server still has that version, and leaves it for a
            later one when it gives up.
        progress: see `Progress`.
        retrying: is told, in one line, what broke and what comes next.
        sleep: waits so many seconds; None is time.sleep.

    Returns:
        The MD5 that the server publishes of the file, or "".

    Raises:
        OSError: it stayed broken, or the server has refused.
        HTTPException: the same, in http's words.
    """
    versions = version_of(part)
    if not keep:
        part.unlink(missing_ok=True)
        versions.unlink(missing_ok=True)
    elif not versions.is_file():
        part.unlink(missing_ok=True)
    failed = 0
    while True:
        begun = part.stat().st_size if part.exists() else 0
        try:
            result = _once(url, part, versions, begun, progress)
        except (OSError, HTTPException) as error:
            if isinstance(error, HTTPError) and error.code not in PASSING_STATUS:
                raise  # an answer: asking again won't change it
            brought = (part.stat().st_size if part.exists() else 0) - begun
            failed = 1 if brought >= _BLOCK else failed + 1
            if failed >= attempts:
                raise
            wait_sec = min(first_wait_sec * 2 ** (failed - 1), _LONGEST_WAIT_SEC)
            retrying(
                f"{url}: {one_line(error)}; try {failed + 1} of {attempts}" + (f" in {wait_sec:g} s" * (wait_sec > 0))
            )
            (sleep or time.sleep)(wait_sec)
        else:
            versions.unlink(missing_ok=True)
            return result


def version_of(part: Path) -> Path:
    """Where `fetch` notes, in the server's words, which version of the file `part` begins with."""
    return part.with_name(part.name + ".version")


def _once(url: str, part: Path, versions: Path, begun: int, progress: Progress) -> str:
    version = versions.read_text(encoding="latin-1") if begun and versions.exists() else ""
    begun = begun if version else 0
    try:
        with urlopen(_request(url, begun, version), timeout=_TIMEOUT_SEC) as response:
            version = response.headers.get("ETag") or response.headers.get("Last-Modified") or ""
            if version:
                versions.write_text(version, encoding="latin-1")
            else:
                versions.unlink(missing_ok=True)
            _save(response, part, begun, progress)
            return _published_md5(response.headers)
    except HTTPError as error:
        if error.code != 416 or not begun:
            raise
        # Nothing follows what is here: the file is whole, or it is another file.
        size = (error.headers.get("Content-Range") or "").rpartition("/")[2]
        if size == str(begun):
            return _published_md5(error.headers)
        part.unlink()
        raise OSError(f"the server has {size or 'another number of'} bytes, {begun} were here") from error


def _published_md5(headers: Message) -> str:
    """S3's ETag is the file's MD5, unless it was sent in pieces (then it has a dash) or encrypted with a key."""
    etag = (headers.get("ETag") or "").strip('"')
    plain = headers.get("Server") == "AmazonS3" and "kms" not in (headers.get("x-amz-server-side-encryption") or "")
    return etag if plain and re.fullmatch(r"[0-9a-f]{32}", etag) else ""


def _request(url: str, begun: int, version: str) -> Request:
    headers = {"User-Agent": "octvideo", "Accept-Encoding": "identity"}
    if begun:
        headers |= {"Range": f"bytes={begun}-", "If-Range": version}  # another version is sent whole
    return Request(url, headers=headers)


def _save(response: HTTPResponse, part: Path, begun: int, progress: Progress) -> None:
    """Writes a response to its end, or appends it where it is the rest that was asked for.

    Raises:
        OSError: it has ended early, which urllib says nothing about; or it is another rest.
    """
    length = int(response.headers.get("Content-Length") or 0)
    rest = response.status == 206
    start = re.match(r"bytes (\d+)-", response.headers.get("Content-Range") or "")
    if rest and start and int(start[1]) != begun:
        raise OSError(f"asked for the bytes from {begun}, got those from {start[1]}")
    here = begun if rest else 0
    total = length + here if length else 0
    with part.open("ab" if rest else "wb") as file:
        progress(here, total)
        while block := response.read(_BLOCK):
            file.write(block)
            here += len(block)
            progress(here, total)
    if total and here != total:
        raise OSError(f"the connection broke after {here} of {total} bytes")
