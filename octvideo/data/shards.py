"""Videos in tar archives ("shards"), on disks or in an object store, read one by one from any place.

The archives are those of WebDataset: a video is one sample, `00000012.mp4` with `00000012.cls` (its class id) and
`00000012.json` after it, so that WebDataset's own tools read them too. Beside them lies what this reader uses,
`index.jsonl`, with a line for each video::

    {"index": 12, "name": "wave/a b.mp4", "label": 3, "shard": "shard-000000.tar", "offset": 1536, "size": 81920}

Where a video has several labels, its line has the ids beside the first, "others"; in an archive of such videos their
`.json` has all of them, "labels", and there is no `.cls`.

A video whose frames are images is the images of its sample, `00000012.000000.jpg` and so on; its line has their number,
"frames", and their rate, "fps", too. Its bytes are those of all its images with their headers.

So a shard is not a stream here: any process reads any video with one request for its bytes. Orders, resuming and
counts are those of single files, on any number of nodes, and training from shards gives the same weights.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from octvideo.data.manifest import LIST_SUFFIXES
from octvideo.data.records import ArchiveMember, FrameRange, VideoList, VideoRecord
from octvideo.errors import UserError
from octvideo.files import decode_text, one_line
from octvideo.stores import StoreError, file_name, is_remote, read_file, read_range, shown, size_of
from octvideo.video import FrameArchive, FrameFolder, ImageFrames, Source, VideoBytes, VideoReadError

INDEX, ABOUT, CLASSES, LEFT_OUT = "index.jsonl", "shards.json", "classes.txt", "left_out.tsv"
_KEYS = ("index", "name", "label", "shard", "offset", "size")


def check_archives(videos: VideoList) -> None:
    """Looks whether the archives are there and long enough: all of a disk, the first and the last of a store.

    Raises:
        UserError: with the first that is not.
    """
    ends: dict[str, int] = {}
    for record in videos:
        if (member := record.archive) is not None:
            ends[member.url] = max(ends.get(member.url, 0), member.offset + member.size)
    urls = list(ends)
    for url in [urls[0], urls[-1]] if is_remote(urls[0]) else urls:
        try:
            size = size_of(url) if is_remote(url) else Path(url).stat().st_size
        except OSError as error:
            raise UserError(f"no shard at {shown(url)} ({one_line(error)}), which the index names") from error
        if size is not None and size < ends[url]:
            raise UserError(f"the shard {shown(url)} has {size} bytes, its index says {ends[url]}: copy it again")


def holds_shards(source: str) -> bool:
    """Whether a folder has an index of shards, or an address is no list of videos; one without an index is an error of
    `read_shards`.
    """
    if is_remote(source):
        return Path(file_name(source)).suffix.lower() not in LIST_SUFFIXES
    return Path(source, INDEX).is_file()


def read_shards(source: str, *, labelled: bool = True) -> VideoList:
    """The videos of the shards in a folder or at an address, in the order of the list that they were written from.

    Args:
        source: what holds index.jsonl; addresses are those of fsspec, which may ask for its extras (s3fs, gcsfs).
        labelled: every video must have a label.

    Raises:
        UserError: the index can't be read, is not complete, or lacks a label.
    """
    about = read_text(source, ABOUT, wanted=False)
    if about is not None and not json.loads(about).get("complete", True):
        raise UserError(f"the shards in {source} are not complete: run the command that writes them once more")
    rows = sorted(_rows(source), key=lambda row: row[0])
    if not rows:
        raise UserError(f"{source}/{INDEX} lists no video")
    if labelled and (bare := [name for _, name, label, *_ in rows if label < 0]):
        raise UserError(f"{source}: {len(bare)} of its {len(rows)} videos have no label, the first {bare[0]}")
    folder = source.rstrip("/")
    return VideoList(
        VideoRecord(name, label, ArchiveMember(f"{folder}/{shard}", offset, size), frames=frames, others=others)
        for _, name, label, shard, offset, size, frames, others in rows
    )


def _rows(source: str) -> Iterator[tuple[Any, ...]]:
    text = read_text(source, INDEX)
    assert text is not None
    for number, line in enumerate(text.splitlines(), 1):
        try:
            row = json.loads(line)
            yield (*(row[key] for key in _KEYS), _frames_of(row), tuple(map(int, row.get("others", ()))))
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(
                f"{source}/{INDEX}:{number}: got {line[:80]!r}, expected JSON with {', '.join(_KEYS)}"
            ) from error


def _frames_of(row: dict[str, Any]) -> FrameRange | None:
    return FrameRange(0, row["frames"], None, row.get("fps")) if "frames" in row else None


def index_lines(rows: Iterable[dict[str, Any]]) -> str:
    """Lines of an index. JSON escapes what is not ASCII, so names that are no text survive."""
    return "".join(
        json.dumps({key: row[key] for key in (*_KEYS, "others", "frames", "fps") if key in row}) + "\n" for row in rows
    )


def read_text(source: str, name: str, *, wanted: bool = True) -> str | None:
    """A small file beside the shards; None where it is not there and not `wanted`.

    Raises:
        UserError: it can't be read.
    """
    url = f"{source.rstrip('/')}/{name}"
    try:
        content = read_file(url) if is_remote(url) else Path(url).read_bytes()
    except OSError as error:
        is_missing = isinstance(error, FileNotFoundError) or (isinstance(error, StoreError) and error.is_missing)
        if is_missing and not wanted:
            return None
        if is_missing:
            expected = "expected a folder of shards, as octvideo shards writes, or a list of videos (.txt, .csv, ...)"
            raise UserError(f"no {name} at {shown(source)}: {expected}") from error
        raise UserError(f"can't read {shown(url)}: {one_line(error)}") from error
    return decode_text(content, shown(url))


def source_of(record: VideoRecord) -> Source | ImageFrames:
    """What a reader reads for a record: its file or folder of images, or its bytes out of an archive.

    Raises:
        VideoReadError: the archive can't be read.
    """
    frames = record.frames
    if record.archive is None:
        if frames is None:
            return record.path
        assert frames.names is not None
        return FrameFolder(record.path, frames.count, frames.names, frames.start, frames.fps)
    url, offset, size = record.archive.url, record.archive.offset, record.archive.size
    try:
        content = _range(url, offset, size)
    except OSError as error:
        may_pass = isinstance(error, StoreError) and error.may_pass
        raise VideoReadError(record.path, f"no access to {shown(url)}: {one_line(error)}", may_pass=may_pass) from error
    if len(content) != size:
        raise VideoReadError(record.path, f"{shown(url)} holds only {len(content)} of its {size} bytes")
    if frames is not None:
        return FrameArchive(record.path, frames.count, content, frames.fps)
    return VideoBytes(record.path, content)


def _range(url: str, offset: int, size: int) -> bytes:
    if is_remote(url):
        return read_range(url, offset, offset + size)
    with open(url, "rb") as file:  # noqa: PTH123  (a Path costs more than the read)
        return os.pread(file.fileno(), size, offset)
