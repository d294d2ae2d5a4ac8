"""Files from the web, once: whole or not at all."""

from __future__ import annotations

import hashlib
import logging
import re
import shutil
from http.client import HTTPException, HTTPResponse
from pathlib import Path
from urllib.error import HTTPError
from urllib.parse import urlsplit
from urllib.request import Request, urlopen

import torch
from filelock import FileLock
from rich.console import Console
from rich.progress import wrap_file

from octvideo.errors import UserError

log = logging.getLogger("octvideo.models")

_ATTEMPTS = 4
_TIMEOUT_SEC = 30


def download(url: str) -> Path:
    """The file behind a URL, from the cache where it has been downloaded before.

    A connection that breaks is taken up where it stopped; what then has another length than the server said,
    or another SHA-256 than the name says (`resnet50-11ad3fa6.pth`), is not kept. Processes that want the same
    file wait for the first.

    Args:
        url: https or http.

    Returns:
        Its path under torch's hub folder: see `cache_path`.

    Raises:
        UserError: no connection, no such file, or a damaged one.
    """
    target = cache_path(url)
    if target.is_file():
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{target}.lock"):
        if not target.is_file():
            part = target.with_name(target.name + ".part")
            try:
                _fetch(url, part)
                _check_hash(url, part)
                part.replace(target)
            except (OSError, HTTPException) as error:
                raise UserError(
                    f"{url} can't be downloaded ({_reason(error)}): check the address and the connection, or put "
                    f"the file at {target} by hand"
                ) from error
            finally:
                part.unlink(missing_ok=True)
    return target


def cache_path(url: str) -> Path:
    """Where a URL's file is kept: by host and path, since different files share names (`model.safetensors`)."""
    parts = urlsplit(url)
    folders = [part for part in parts.path.split("/") if part not in ("", ".", "..")]
    place = Path(torch.hub.get_dir(), "checkpoints", parts.netloc.replace(":", "_"), *folders)
    if parts.query:
        place = place.with_name(f"{hashlib.sha256(parts.query.encode()).hexdigest()[:8]}-{place.name}")
    return place


def _fetch(url: str, part: Path) -> None:
    """Downloads into `part`, going on where a broken connection stopped.

    Raises:
        OSError: it stayed broken, or the server has refused.
        HTTPException: likewise.
    """
    part.unlink(missing_ok=True)
    version = ""  # of the file that `part` begins with, in the server's words
    for attempt in range(1, _ATTEMPTS + 1):
        begun = part.stat().st_size if version and part.exists() else 0
        try:
            with urlopen(_request(url, begun, version), timeout=_TIMEOUT_SEC) as response:
                version = response.headers.get("ETag") or response.headers.get("Last-Modified") or ""
                _save(response, part, begun)
            return
        except HTTPError:
            raise  # an answer: asking again won't change it
        except (OSError, HTTPException) as error:
            if attempt == _ATTEMPTS:
                raise
            log.info("download of %s, attempt %d: %s", url, attempt, error)


def _request(url: str, begun: int, version: str) -> Request:
    headers = {"User-Agent": "octvideo", "Accept-Encoding": "identity"}
    if begun:
        headers |= {"Range": f"bytes={begun}-", "If-Range": version}  # another version is sent whole
    return Request(url, headers=headers)


def _save(response: HTTPResponse, part: Path, begun: int) -> None:
    """Writes a response to its end, or appends it where it is the rest that was asked for.

    Raises:
        OSError: it has ended early, which urllib says nothing about.
    """
    length = int(response.headers.get("Content-Length", 0))
    rest = response.status == 206
    console = Console(stderr=True)
    with (
        wrap_file(response, length, description=part.stem, console=console, transient=True) as reader,
        part.open("ab" if rest else "wb") as file,
    ):
        shutil.copyfileobj(reader, file, 1 << 20)
    expected = length + (begun if rest else 0)
    if length and part.stat().st_size != expected:
        raise OSError(f"the connection broke after {part.stat().st_size} of {expected} bytes")


def _check_hash(url: str, part: Path) -> None:
    """Compares with the hash in the name, which torch's published files have.

    Raises:
        UserError: it is another.
    """
    named = re.search(r"-([0-9a-f]{8,64})\.\w+$", urlsplit(url).path)
    if named is None:
        return
    sha256 = hashlib.sha256()
    with part.open("rb") as file:
        while block := file.read(1 << 20):
            sha256.update(block)
    digest = sha256.hexdigest()
    if not digest.startswith(named[1]):
        raise UserError(
            f"{url} is damaged: its SHA-256 is {digest[: len(named[1])]}..., expected {named[1]} as in its name. "
            "Nothing was kept; try again"
        )


def _reason(error: Exception) -> str:
    reason = getattr(error, "reason", error)
    return f"{error.code} {reason}" if isinstance(error, HTTPError) else str(reason) or type(error).__name__
