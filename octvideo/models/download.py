"""Weights from the web, once: whole or not at all."""

from __future__ import annotations

import hashlib
import re
from http.client import HTTPException
from pathlib import Path
from urllib.parse import urlsplit

import torch
from filelock import FileLock

from octvideo.download import fetch, version_of
from octvideo.errors import UserError
from octvideo.files import digest, one_line, part_of, whole_file
from octvideo.progress import Progress


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
            try:
                with whole_file(target) as part:
                    _fetch(url, part)
                    _check_hash(url, part)
            except (OSError, HTTPException) as error:
                raise UserError(
                    f"{url} can't be downloaded ({one_line(error)}): check the address and the connection, or put "
                    f"the file at {target} by hand"
                ) from error
            finally:
                version_of(part_of(target)).unlink(missing_ok=True)
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
    with Progress(part.stem, in_bytes=True) as shown:
        fetch(url, part, progress=lambda here, total: shown.update(here, total=total or None))


def _check_hash(url: str, part: Path) -> None:
    """Compares with the hash in the name, which torch's published files have.

    Raises:
        UserError: it is another.
    """
    named = re.search(r"-([0-9a-f]{8,64})\.\w+$", urlsplit(url).path)
    if named is None:
        return
    found = digest(part)
    if not found.startswith(named[1]):
        raise UserError(
            f"{url} is damaged: its SHA-256 is {found[: len(named[1])]}..., expected {named[1]} as in its name. "
            "Nothing was kept; try again"
        )
