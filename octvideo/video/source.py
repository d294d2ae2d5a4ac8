"""What a reader reads: a file, or a file's content held in memory (out of an archive, or from an object store)."""

from __future__ import annotations

import io
from dataclasses import dataclass, field
from pathlib import Path


@dataclass(frozen=True)
class VideoBytes:
    """A video file in memory.

    Args:
        name: that messages call it by.
        content: of the file.
    """

    name: str
    content: bytes = field(repr=False)

    def __str__(self) -> str:
        return self.name


Source = str | Path | VideoBytes


def for_ffmpeg(source: Source) -> str | io.BytesIO:
    """What a reader opens.

    A path is absolute: FFmpeg takes a name such as `concat:...` or `a:b.mp4` for something else; after a slash it
    does not.
    """
    return io.BytesIO(source.content) if isinstance(source, VideoBytes) else str(Path(source).absolute())


def missing_reason(source: Source) -> str | None:
    """Why there is nothing to read, found without a reader; None where there is something."""
    if isinstance(source, VideoBytes):
        return None if source.content else "the file is empty"
    file = Path(source)
    if not file.is_file():
        return "it is a folder" if file.is_dir() else "no such file"
    return None if file.stat().st_size else "the file is empty"
