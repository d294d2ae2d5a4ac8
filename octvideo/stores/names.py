"""Names that are addresses, and how they are shown and joined."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path
from urllib.parse import urlsplit

from octvideo.errors import UserError

_ADDRESS = re.compile(r"[a-z][a-z0-9+.-]*://", re.IGNORECASE)
# Also of passwords with signs that have no place in an address: rather too much is hidden than too little.
_USER = re.compile(r"(?<=://)(?:[^/?#]*@|[^/?#:]*:(?!\d*[/?#]).*@)")
# With the dates of signatures: an address that is signed anew names the same file.
_SECRETS = "pass|pwd|user|token|auth|key|secret|sig|cred|policy|expires|accessid|x-amz-|x-goog-"
_SECRET = re.compile(rf"(?<=[?&])([^=&#]*(?:{_SECRETS})[^=&#]*)=[^&#]*", re.IGNORECASE)


def is_remote(name: object) -> bool:
    """Whether a name is an address rather than a path. A `Path` never is."""
    return isinstance(name, str) and "://" in name and bool(_ADDRESS.match(name))


def is_http(name: str) -> bool:
    """Whether an address is of a web server."""
    return name.lower().startswith(("http://", "https://"))


def shown(name: str) -> str:
    """An address as it may be read by others: without user, password, and keys and signatures in its query.

    Example:
        >>> shown("rtsp://me:pa@ss@cam/1?channel=2&token=abc")
        'rtsp://***@cam/1?channel=2&token=***'
        >>> shown("folder/a?token=b.mp4")  # a path stays as it is
        'folder/a?token=b.mp4'
    """
    return _SECRET.sub(r"\1=***", _USER.sub("***@", name)) if is_remote(name) else name


def joined(root: str | Path, name: str) -> str:
    """A name that starts from a folder or an address, unless it is an address or an absolute path itself.

    Example:
        >>> joined("s3://bucket/k400", "train/a.mp4"), joined("data", "https://host/a.mp4")
        ('s3://bucket/k400/train/a.mp4', 'https://host/a.mp4')
    """
    if is_remote(name):
        return name
    if is_remote(root) and not name.startswith("/"):
        return f"{str(root).rstrip('/')}/{name.removeprefix('./')}"
    return str(Path(root) / name)


def by_shown(names: Iterable[str]) -> dict[str, str]:
    """What each is shown as, which is its name in everything that is written, with the name that it is opened by.

    Raises:
        UserError: two addresses differ in what is hidden alone, and may be two videos.
    """
    found: dict[str, str] = {}
    for name in names:
        add_shown(found, name)
    return found


def add_shown(found: dict[str, str], name: str) -> bool:
    """Adds a name to what `by_shown` gives; whether it was new.

    Raises:
        UserError: see `by_shown`.
    """
    key, before = shown(name), len(found)
    if found.setdefault(key, name) != name:
        raise UserError(
            f"{key} is given twice, with other secrets (***): results could not tell which is which; "
            "give it once, or addresses that differ elsewhere"
        )
    return len(found) > before


def file_name(name: str) -> str:
    """The last part of a path or an address, without a query.

    Example:
        >>> file_name("https://host/a/b.mp4?token=c")
        'b.mp4'
    """
    path = urlsplit(name).path if is_http(name) else name
    return path.rstrip("/").rpartition("/")[2]
