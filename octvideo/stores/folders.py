"""What lies below an address, and how large files are."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

from octvideo.errors import UserError
from octvideo.files import VIDEO_SUFFIXES, is_hidden, is_video, natural_key
from octvideo.stores.http import measure
from octvideo.stores.names import file_name, is_http, is_remote, shown
from octvideo.stores.requests import StoreError, StoreSetupError, store_of, tried

_THREADS = 16  # that ask for sizes
_BUCKETS = ("s3://", "s3a://", "gs://", "gcs://")
_DEEPEST = 12  # folders in folders that are walked; a server's links may lead around for ever
_LISTED_FROM = 50  # names of one folder whose sizes a listing tells sooner than requests for each


def videos_at(name: str) -> list[str]:
    """An address, or the videos below it where it is a folder.

    Raises:
        UserError: it can't be listed, or holds no video.
        StoreSetupError: no address of its kind can be read here.
    """
    check_stores([name])
    try:
        store_of(name)  # whatever kind it is
        if not is_folder(name):
            return [name]
        found = list(walk_store(name))
    except StoreError as error:
        raise UserError(f"can't list {shown(name)}: {error}") from None
    if not found:
        listing = " (its server must give pages of links)" if is_http(name) else ""
        raise UserError(f"no video below {shown(name)}{listing}: looked for {', '.join(sorted(VIDEO_SUFFIXES))}")
    return found


def check_stores(names: Iterable[str]) -> None:
    """Raises where no address of a kind that is among the names can be read here, or there is no such bucket.

    Raises:
        StoreSetupError: with what to install.
        UserError: there is no bucket of this name.
    """
    # An address of each bucket, or of each kind where there are no buckets.
    kinds = {"/".join(name.split("/", 3)[: 1 if is_http(name) else 3]): name for name in names if is_remote(name)}
    for name in kinds.values():
        try:
            file_system, path = store_of(name)
        except StoreSetupError:
            raise
        except UserError:  # a kind that there is not: each such name has a line of its own
            continue
        if not name.lower().startswith(_BUCKETS):
            continue
        try:
            tried(name, lambda: file_system.info(path.partition("/")[0]))  # noqa: B023 (it is called now)
        except StoreError as error:
            if error.is_missing:
                raise UserError(f"{shown(name)}: there is no bucket called {path.partition('/')[0]}") from None
            # Who may read its files need not be allowed to look at the bucket.


def is_folder(name: str) -> bool:
    """Whether an address names all that is below it: it ends with a slash, or its store says so of a name that is not
    called like a video.

    Raises:
        StoreError, UserError: see `read_range`.
    """
    if name.endswith("/"):
        return True
    if is_http(name) or is_video(name):
        return False
    file_system, path = store_of(name)
    return bool(tried(name, lambda: file_system.isdir(path)))


def walk_store(name: str) -> Iterator[str]:
    """Addresses of the videos under one, in the order of `octvideo.files.walk_videos`.

    Raises:
        StoreError: it can't be listed.
        UserError: see `store_of`.
    """
    file_system, path = store_of(name)

    def request() -> list[str]:
        if is_http(name):
            measure(file_system, path)  # its find takes any trouble for an empty page
            return list(file_system.find(path, maxdepth=_DEEPEST + 2))  # with what is too deep
        return list(file_system.find(path))

    scheme, root = name.partition("://")[0], path.rstrip("/") + "/"
    found = []
    for full in tried(name, request):
        inside = full.removeprefix(root)
        *folders, last = inside.split("/")
        if is_http(name) and len(folders) > _DEEPEST:
            raise StoreError(f"its folders are more than {_DEEPEST} deep, or its links lead around, as to {full}")
        if full.startswith(root) and is_video(last) and not any(map(is_hidden, (*folders, last))):
            key = [(1, natural_key(folder)) for folder in folders]
            found.append(([*key, (0, natural_key(last))], full))
    prefix = "" if is_http(name) else f"{scheme}://"
    for _, full in sorted(found):
        yield f"{prefix}{full.lstrip('/')}"


def glob(pattern: str) -> list[str]:
    """Addresses of the files that a pattern with * names, in natural order.

    Raises:
        UserError: they can't be listed, or there are none.
    """
    if is_http(pattern):
        raise UserError(f"{shown(pattern)}: http has no patterns; name the files")
    file_system, path = store_of(pattern)
    try:
        found = tried(pattern, lambda: file_system.glob(path))
    except StoreError as error:
        raise UserError(f"can't list {shown(pattern)}: {error}") from None
    if not found:
        raise UserError(f"nothing at {shown(pattern)}")
    return [f"{pattern.partition('://')[0]}://{full.lstrip('/')}" for full in sorted(found, key=natural_key)]


def exists(name: str) -> bool:
    """Whether there is a file.

    Raises:
        StoreError, UserError: see `read_range`.
    """
    try:
        size_of(name)
    except StoreError as error:
        if error.is_missing:
            return False
        raise
    return True


def size_of(name: str) -> int | None:
    """Bytes of a file; None where its server does not say.

    Raises:
        StoreError, UserError: see `read_range`.
    """

    def request() -> int | None:
        file_system, path = store_of(name)
        size = measure(file_system, path) if is_http(name) else file_system.info(path)["size"]
        return None if size is None else int(size)

    return tried(name, request)


def sizes_of(names: Sequence[str]) -> list[int | None]:
    """Bytes of many files, by listings of their folders where a store has such, and by several requests at a time; None
    of one that is not there, or that its server says nothing of.

    Raises:
        UserError: a store can't be reached; without an answer nobody knows whether the size is None.
    """
    folders = Counter(name.rpartition("/")[0] for name in names if not is_http(name))
    listed: dict[str, int | None] = {}
    for folder, count in folders.items():
        if count >= _LISTED_FROM:
            listed |= _sizes_in(folder)

    def one(name: str) -> int | None:
        if name in listed:
            return listed[name]
        try:
            return size_of(name)
        except StoreError as error:
            if error.may_pass:
                raise UserError(f"no size of {shown(name)}: {error}") from None
            return None

    with ThreadPoolExecutor(_THREADS) as threads:
        return list(threads.map(one, names))


def list_sizes(folder: str) -> dict[str, int]:
    """Names of all files below an address, from there, and their bytes; none where there is no such folder.

    Raises:
        StoreError: it can't be listed.
        UserError: see `store_of`.
    """
    file_system, path = store_of(folder)
    root = f"{path.rstrip('/')}/"
    entries = tried(folder, lambda: file_system.find(path, detail=True))
    return {
        full.removeprefix(root): int(entry["size"] or 0)
        for full, entry in entries.items()
        if entry["type"] == "file" and full.startswith(root)
    }


def _sizes_in(folder: str) -> dict[str, int | None]:
    file_system, path = store_of(folder)
    try:
        entries = tried(folder, lambda: file_system.ls(path, detail=True))
    except StoreError:  # each name is asked for then
        return {}
    return {f"{folder}/{file_name(entry['name'])}": entry.get("size") for entry in entries if entry["type"] == "file"}
