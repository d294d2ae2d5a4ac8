"""Files, in one way each: folders searched for videos, files written whole or not at all, text read and printed."""

from __future__ import annotations

import codecs
import errno
import fcntl
import hashlib
import io
import json
import os
import re
import sys
from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TextIO

from octvideo.errors import UserError

# What counts as a video when a folder is searched; a file that is named may be called anything.
VIDEO_SUFFIXES = frozenset(
    {".mp4", ".mkv", ".avi", ".webm", ".mov", ".m4v", ".mpg", ".mpeg", ".3gp", ".ts", ".mts", ".flv", ".wmv"}
)
# Of macOS's zip archives, Synology, QNAP, Windows and ext4; hidden names (.ipynb_checkpoints, ._a.mp4) have a dot.
_SYSTEM_FOLDERS = frozenset(
    {"__MACOSX", "@eaDir", "#recycle", "@Recycle", "$RECYCLE.BIN", "System Volume Information", "lost+found"}
)
_NUMBERS = re.compile(r"(\d+)")
_BLOCK = 1 << 20


# ── folders ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def is_video(name: str) -> bool:
    """Whether a file is called like a video."""
    return os.path.splitext(name)[1].lower() in VIDEO_SUFFIXES  # noqa: PTH122 (a Path for each of 240,000 names is slow)


def is_hidden(name: str) -> bool:
    """Whether a name in a folder is the system's own, not the user's."""
    return name.startswith(".") or name in _SYSTEM_FOLDERS


def natural_key(name: str) -> tuple[list[str | int], str]:
    """Sorts `clip2` before `clip10`."""
    parts: list[str | int] = [*_NUMBERS.split(name)]
    parts[1::2] = map(int, parts[1::2])
    return parts, name


def walk_videos(
    folder: str | Path,
    *,
    leave_out: Collection[str | Path] = (),
    on_other: Callable[[str], None] | None = None,
    on_closed: Callable[[str, str], None] | None = None,
) -> Iterator[str]:
    """Paths of the videos under a folder, relative to it: in natural order, those of a folder before its subfolders'.

    Hidden and system files are left out. Links are followed, but no folder is listed twice: a link to one that lies
    under `folder` too, or back to it, adds nothing.

    Args:
        folder: to search.
        leave_out: folders under it that are not searched.
        on_other: called with the path of each file that is not called like a video.
        on_closed: called with the path of each folder that can't be listed, and the reason.

    Raises:
        UserError: a folder can't be listed, and there is no `on_closed`.
    """
    excluded = set(map(str, leave_out))
    listed: dict[str, tuple[list[str], list[str]]] = {}  # folder → names of its videos, paths of its folders
    seen: set[tuple[int, int]] = set()
    folders, links = deque([str(folder)]), deque[str]()
    while folders or links:
        here = (folders or links).popleft()  # links last: what they lead to may lie under `folder` itself
        try:
            status = os.stat(here)  # noqa: PTH116
            if here in excluded or (status.st_dev, status.st_ino) in seen:
                continue
            seen.add((status.st_dev, status.st_ino))
            videos, inner = list[str](), list[str]()
            with os.scandir(here) as entries:
                for entry in sorted(entries, key=lambda entry: natural_key(entry.name)):
                    if is_hidden(entry.name):
                        continue
                    named = is_video(entry.name)
                    # Where a link called like a video leads is not looked up: 240,000 of them would take a minute.
                    if entry.is_dir(follow_symlinks=not named):
                        inner.append(entry.path)
                        (links if entry.is_symlink() else folders).append(entry.path)
                    elif named:
                        videos.append(entry.name)
                    elif on_other is not None:
                        on_other(entry.path)
            listed[here] = videos, inner
        except OSError as error:
            reason = error.strerror or str(error)
            if on_closed is None:
                raise UserError(f"can't read the folder {error.filename or here}: {reason}") from error
            on_closed(str(error.filename or here), reason)
    yield from _in_order(str(folder), "", listed)


def _in_order(here: str, inside: str, listed: dict[str, tuple[list[str], list[str]]]) -> Iterator[str]:
    if here in listed:
        videos, folders = listed[here]
        yield from (inside + name for name in videos)
        for path in folders:
            yield from _in_order(path, f"{inside}{os.path.basename(path)}{os.sep}", listed)  # noqa: PTH119


def cache_folder() -> Path:
    """What can be made again is kept here: $OCTVIDEO_CACHE, else $XDG_CACHE_HOME/octvideo, else ~/.cache/octvideo.

    It may not exist, and may be closed to writing.

    Raises:
        OSError: none of these is set, and there is no home.
    """
    if own := os.environ.get("OCTVIDEO_CACHE"):
        return Path(own)
    try:
        return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "octvideo"
    except RuntimeError as error:  # of Path.home
        raise OSError(str(error)) from error


# ── files that are whole or not there ───────────────────────────────────────────────────────────────────────────────


def is_full_disk(error: BaseException) -> bool:
    """Whether an error says that a disk, or a user's share of it, has no room left."""
    return isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)


def full_disk_in_words(error: OSError) -> str:
    """Which disk is full, in one line, as far as the error says it: `No space left on device: /data/a.mp4`."""
    return f"{one_line(error)}: {error.filename}" if error.filename else one_line(error)


def part_of(path: Path) -> Path:
    """The name that a file has until it is whole."""
    return path.with_name(f".{path.name}.part")


@contextmanager
def whole_file(path: Path, *, to_disk: bool = False, keep: bool = False) -> Iterator[Path]:
    """Gives the name to write a file under; it takes its own when the block has ended, unless by an error.

    Args:
        path: of the file; an older one is replaced at once.
        to_disk: waits until the disk has it, so that not even a power cut leaves half a file.
        keep: leaves a part that an error interrupts, for a later run to resume.
    """
    part = part_of(path)
    try:
        yield part
        if to_disk:
            with part.open("rb+") as file:
                os.fsync(file.fileno())
        part.replace(path)
    except OSError as error:
        if is_full_disk(error) and not error.filename:  # a full disk says no name
            error.filename = str(path)
        raise
    finally:
        if not keep:
            part.unlink(missing_ok=True)


@contextmanager
def writing_in(folder: Path, suffix: str) -> Iterator[None]:
    """Says that this process fills a folder with `whole_file`, maybe beside others. Where it is alone, it first takes
    away the parts that killed ones have left.

    Args:
        folder: that is there, and its folders.
        suffix: of the files.
    """
    descriptor, ending = os.open(folder, os.O_RDONLY), part_of(Path(f"x{suffix}")).name.removeprefix(".x")
    try:
        with suppress(OSError):  # others write there, or the file system has no locks
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            for here, _, names in os.walk(folder):
                for name in names:
                    if name.startswith(".") and name.endswith(ending):
                        Path(here, name).unlink(missing_ok=True)
        with suppress(OSError):
            fcntl.flock(descriptor, fcntl.LOCK_SH)
        yield
    finally:
        os.close(descriptor)


@contextmanager
def whole_text(path: Path, *, to_disk: bool = False) -> Iterator[TextIO]:
    """`whole_file`, opened for text: UTF-8 with \\n; names that are no text are written as they are on the disk."""
    with (
        whole_file(path, to_disk=to_disk) as part,
        part.open("w", encoding="utf-8", errors="surrogateescape", newline="\n") as file,
    ):
        yield file


def digest(path: Path, kind: str = "sha256") -> str:
    """Hexadecimal checksum of a file, or of the files in a folder, by name: "sha256", "md5" or another of hashlib's."""
    total = hashlib.new(kind)
    for file in sorted(path.iterdir()) if path.is_dir() else [path]:
        if file.is_file():
            with file.open("rb") as content:
                while block := content.read(_BLOCK):
                    total.update(block)
    return total.hexdigest()


# ── text ────────────────────────────────────────────────────────────────────────────────────────────────────────────


def read_text(file: str | Path, *, names: bool = False) -> str:
    """Text that a user wrote: UTF-8, or UTF-16 that begins with its mark; line breaks are \\n.

    Args:
        file: to read.
        names: it holds names of files, which may be any bytes: bytes that are not text come as surrogates
            (`os.fsdecode`).

    Raises:
        UserError: it can't be read, or is in another encoding.
    """
    try:
        content = Path(file).read_bytes()
    except OSError as error:
        raise UserError(f"can't read {file}: {one_line(error)}") from error
    return decode_text(content, file, names=names)


def decode_text(content: bytes, source: object, *, names: bool = False) -> str:
    """`read_text` for bytes that are here already; `source` is for errors."""
    is_utf16 = content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    try:
        text = content.decode(*(("utf-16",) if is_utf16 else ("utf-8-sig", "surrogateescape" if names else "strict")))
        found = text.find("\0")
        if found >= 0:
            raise UserError(f"{source}: a NUL at character {found}: not text, or UTF-16 without its mark; {_SAVE}")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        got = f"byte 0x{content[error.start]:02x} at {error.start}"
        raise UserError(f"{source}:{line}: {got} is not {error.encoding.upper()} ({error.reason}); {_SAVE}") from error
    return text.replace("\r\n", "\n")


_SAVE = "save the file as UTF-8"


def json_text(content: Any, *, indent: int | None = None, default: Callable[[Any], Any] | None = None) -> str:
    """JSON, in ASCII, as its standard has it: numbers that are not finite are null. See json.dumps."""
    try:
        return json.dumps(content, indent=indent, default=default, allow_nan=False)
    except ValueError:
        plain = json.loads(json.dumps(content, default=default), parse_constant=lambda constant: None)
        return json.dumps(plain, indent=indent, allow_nan=False)


def markdown(header: Sequence[str], rows: Iterable[Sequence[str]], *, left: int = 1) -> str:
    """A table for a README; its first columns are aligned to the left, the others, which are numbers, to the right."""
    marks = ["---" if column < left else "---:" for column in range(len(header))]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in (header, marks, *rows))


def text_lines(text: str) -> list[str]:
    """Lines without their ends. Not splitlines: names of files may hold what else it takes for a line break."""
    lines = text.split("\n")
    if not lines[-1]:
        lines.pop()
    return lines


def one_line(error: BaseException) -> str:
    """What an error says first, in one line: for messages around it."""
    said = getattr(error, "strerror", None) or getattr(error, "reason", None) or str(error)
    line = next((line.strip() for line in str(said).splitlines() if line.strip()), type(error).__name__)
    code = getattr(error, "code", None)  # of urllib's HTTPError
    if isinstance(code, int) and isinstance(error, OSError):
        return f"{code} {line}"
    # decord and torchcodec put the time, their own source lines, the path or the failed check before their message.
    return re.sub(r"^(.*\.(?:cc|cpp):\d+[:,] (\[.*?\] ?)?)?(Check failed: .*? \(\S+ vs\. \S+\) )?", "", line)


def print_any_text() -> None:
    """Lets any text be printed, now and later: what the terminal's encoding lacks is replaced, not an error.

    Names of files that are no text are printed as they are on the disk.
    """
    codecs.register_error("octvideo", _replaced)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="octvideo")


_LIKE = str.maketrans("─━–—−│┃×·•…→α", "-----||x...>a")  # what our own tables and messages hold beside ASCII


def _replaced(error: UnicodeError) -> tuple[str | bytes, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    char = error.object[error.start]
    if "\udc80" <= char <= "\udcff":  # a byte that `os.fsdecode` could not decode
        return bytes([ord(char) - 0xDC00]), error.start + 1
    like = char.translate(_LIKE)
    return like if like.isascii() else "?", error.start + 1
