"""Ranges of files over HTTP, with fsspec's session.

fsspec's own reading asks for the size first, and takes all that a server sends which gives no ranges. Here one request
does both, and takes no more than it may.
"""

from __future__ import annotations

import re
import tempfile
from collections.abc import Callable
from typing import Any, NamedTuple, cast

from octvideo.stores.requests import LIMIT, StoreError, check_size, limit_bytes

_PIECE = 1 << 20
_RANGE = re.compile(r"bytes (\d+)-(\d+)/(\d+|\*)")


class Answer(NamedTuple):
    """Of a request for a range.

    Args:
        size: of the file; None where the server does not say.
        content: of the range; None where the server gives no ranges, or the file goes on after it.
        whole: all of the file, from a server that gives no ranges.
    """

    size: int | None
    content: bytes | None
    whole: Any = None


def get(file_system: Any, url: str, start: int, stop: int, *, begins: bool = False) -> Answer:
    """A range of a file.

    Args:
        begins: the first request for a file: of one larger than the range no content is taken, and where there are
            no ranges the whole file is.
    """
    return cast(Answer, _done(file_system, _asked, url, start, stop, begins))


def measure(file_system: Any, url: str) -> int | None:
    """The size of a file; None where its server does not say. Not by HEAD, which some servers refuse."""
    return cast(int | None, _done(file_system, _measured, url))


def _done(file_system: Any, work: Callable[..., Any], *args: Any) -> Any:
    from fsspec.asyn import sync

    return sync(file_system.loop, work, file_system, *args)


async def _measured(file_system: Any, url: str) -> int | None:
    session = await file_system.set_session()
    async with session.get(file_system.encode_url(url), **_headers(file_system, 0, 1)) as answer:
        if answer.status == 416:
            return _size_of_range(answer)
        answer.raise_for_status()
        if answer.status == 206:
            return _size_of_range(answer)
        answer.close()  # all of it would come
        return cast(int | None, answer.content_length)


def _headers(file_system: Any, start: int, stop: int) -> dict[str, Any]:
    given = dict(file_system.kwargs)
    own = {"Range": f"bytes={start}-{stop - 1}", "Accept-Encoding": "identity"}
    return {**given, "headers": {**given.get("headers", {}), **own}}


async def _asked(file_system: Any, url: str, start: int, stop: int, begins: bool) -> Answer:
    session = await file_system.set_session()
    async with session.get(file_system.encode_url(url), **_headers(file_system, start, stop)) as answer:
        size = _size_of_range(answer)
        if answer.status == 416 and size is not None and size <= start:
            return Answer(size, b"")
        answer.raise_for_status()
        if answer.status == 206:
            found = _RANGE.match(answer.headers.get("Content-Range", ""))
            if found is None or int(found[1]) != start:
                raise StoreError("its server sends other bytes than it was asked for, or does not say which")
            if begins and size is not None and size > stop:
                answer.close()
                return Answer(size, None)
            content = await _at_most(answer, stop - start)
            expected = int(found[2]) + 1 - start if size is None else min(stop, size) - start
            # What is compressed has other lengths.
            if len(content) != expected and "Content-Encoding" not in answer.headers:
                raise StoreError(f"its server sends {len(content):,} of the {expected:,} bytes that it was asked for")
            return Answer(size, content)
        if not begins:
            return Answer(None, None)
        if answer.content_length is not None:
            check_size(answer.content_length)
        return Answer(answer.content_length, None, await _saved(answer, stop - start))


def _size_of_range(answer: Any) -> int | None:
    size = answer.headers.get("Content-Range", "").rpartition("/")[2]
    return int(size) if size.isdigit() else None


async def _at_most(answer: Any, size: int) -> bytes:
    content = bytearray()
    async for piece in answer.content.iter_chunked(_PIECE):
        content += piece
        if len(content) > size:
            raise StoreError(f"its server sends more than the {size:,} bytes that it was asked for")
    return bytes(content)


async def _saved(answer: Any, memory_bytes: int) -> Any:
    """An answer in a file of the system's folder for such, which is in memory while it is small, and has no name."""
    limit, size = limit_bytes(), 0
    file = tempfile.SpooledTemporaryFile(max_size=memory_bytes)  # noqa: SIM115 (its reader has it)
    async for piece in answer.content.iter_chunked(_PIECE):
        size += len(piece)
        if size > limit:
            file.close()
            raise StoreError(f"got a file of more than {limit:,} bytes, which is the most that is read ({LIMIT})")
        file.write(piece)
    return file
