"""Puts the outputs of parts together: `octvideo join PART ... -o OUT [--list VIDEO|FOLDER|@FILE ...]`.

Parts are files that octvideo infer, timeline or check (journal.jsonl) wrote, with --part or for lists of your own, or
folders of octvideo shards --part. What is missing or double is told; missing videos are listed in OUT.missing.txt.
Outputs of other models or settings are refused.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from octvideo.cli.arguments import Parser
from octvideo.cli.shards import train_with
from octvideo.cli.video_arguments import find_videos
from octvideo.data.shard_joining import join_shards
from octvideo.data.shards import ABOUT
from octvideo.errors import UserError
from octvideo.files import whole_text
from octvideo.json_joining import join_lines
from octvideo.stores import (
    StoredCopy,
    StoredFolder,
    StoreError,
    by_shown,
    check_stores,
    exists,
    file_name,
    glob,
    is_remote,
    open_file,
    put_file,
    remove_file,
    shown,
)

_SHOWN = 5  # names of each kind


def add_arguments(parser: Parser) -> None:
    parser.stores_output = True
    parser.add_argument(
        "parts",
        nargs="+",
        metavar="PART",
        help="files of results, here or in a store; folders of shards",
    )
    parser.shared(
        "output",
        required=True,
        metavar="OUT",
        help="the joined file; of shards their folder",
    )
    parser.add_argument(
        "--list",
        nargs="+",
        metavar="VIDEO|FOLDER|@FILE",
        help="the whole list, as the parts got it: the order of the lines, and what may be missing",
    )
    parser.shared("overwrite", help="replace OUT")


def run(args: argparse.Namespace) -> int:
    """Returns 0; 1 where something is missing.

    Raises:
        UserError: parts that can't be joined, or OUT is there.
    """
    given = [name for part in args.parts for name in (glob(part) if is_remote(part) and "*" in part else [part])]
    if _is_stored_shards(given[0]):
        out = args.output
        folder_out = StoredFolder(out.address) if isinstance(out, StoredCopy) else out
        folders = [StoredFolder(part) if is_remote(part) else Path(part) for part in dict.fromkeys(given)]
        return _join_shards(folders, folder_out, overwrite=args.overwrite)
    with tempfile.TemporaryDirectory(prefix="octvideo-join-") as folder:
        parts = [_brought(part, Path(folder, str(number))) for number, part in enumerate(dict.fromkeys(given))]
        if not isinstance(args.output, StoredCopy):
            return _join(args, list(dict.fromkeys(parts)), args.output)
        if parts[0].is_dir():
            raise UserError(
                f"{parts[0]} is on this machine, and {args.output} is not: join it here and copy the folder, or write "
                f"the parts there (octvideo shards --part -o {args.output})"
            )
        return _join_into_store(args, parts, given, Path(folder, file_name(args.output.address)))


def _is_stored_shards(part: str) -> bool:
    try:
        return is_remote(part) and exists(f"{part.rstrip('/')}/{ABOUT}")
    except StoreError as error:
        raise UserError(f"can't read {shown(part)}: {error}") from None


def _brought(part: str, folder: Path) -> Path:
    """A part on this machine."""
    if not is_remote(part):
        if not Path(part).exists():
            raise UserError(f"nothing at {part}: expected a file of results, or a folder of shards")
        return Path(part)
    folder.mkdir()
    try:
        content = open_file(part)
        path = folder / file_name(part)
        with path.open("wb") as file:
            if isinstance(content, bytes):
                file.write(content)
            else:
                shutil.copyfileobj(content.reader(), file, 2**20)
    except StoreError as error:
        raise UserError(f"can't read {shown(part)}: {error}") from None
    return path


def _join_into_store(args: argparse.Namespace, parts: list[Path], given: list[str], out: Path) -> int:
    address, missing = args.output.address, f"{args.output.address}.missing.txt"
    check_stores([address])
    try:
        if exists(address) and (not args.overwrite or address in given):
            raise UserError(
                f"{args.output} is there: name another file, or give --overwrite (not for one of the parts)"
            )
        code = _join(args, parts, out)
        put_file(out, address)
        if (listed := out.with_name(f"{out.name}.missing.txt")).exists():
            put_file(listed, missing)
        else:
            _remove_missing(missing)
    except StoreError as error:
        raise UserError(f"can't write {args.output}: {error}") from None
    return code


def _remove_missing(address: str) -> None:
    """Of an earlier join. Where the store forbids it, all else is written."""
    try:
        remove_file(address)
    except StoreError as error:
        print(f"warning: nothing is missing, but {shown(address)} can't be removed: {error}", file=sys.stderr)


def _join(args: argparse.Namespace, parts: list[Path], out: Path) -> int:
    if parts[0].is_dir():
        return _join_shards(parts, out)
    out.parent.mkdir(parents=True, exist_ok=True)
    if out.exists() and (not args.overwrite or out in parts or not out.is_file()):
        raise UserError(f"{out} is there: name another file, or give --overwrite (not for one of the parts)")
    names = None if args.list is None else list(by_shown(find_videos(args.list, images=True, are_here=False)))
    joined = join_lines(parts, out, names)
    broken = f", {joined.unreadable:,} of them can't be read, or not to their end" if joined.unreadable else ""
    print(f"{args.output}: {joined.videos:,} videos of {len(parts)} files{broken}")
    for file in joined.cut_off:
        print(f"the last line of {file} was cut off, and is left out", file=sys.stderr)
    if joined.double:
        _tell("were in several files; the best known of each is taken", joined.double)
    if joined.not_listed:
        print(f"{joined.not_listed:,} videos are not in the list; they come last", file=sys.stderr)
    if joined.missing_parts:
        print(f"parts that were not given: {', '.join(joined.missing_parts)}", file=sys.stderr)
    if joined.unfinished:
        _tell(
            "are not finished: the timeline goes on with them where it gets this file as its output", joined.unfinished
        )
    missing_file = out.with_name(f"{out.name}.missing.txt")
    missing_file.unlink(missing_ok=True)
    if joined.missing:
        with whole_text(missing_file) as text:
            text.writelines(f"{name}\n" for name in joined.missing)
        _tell(f"are missing, listed in {args.output}.missing.txt", joined.missing)
    if joined.spelt_otherwise:
        name, other = joined.spelt_otherwise
        print(f"is {name} of the list {other} of the files? Give the list as the parts got it", file=sys.stderr)
    return 1 if joined.missing or joined.missing_parts or joined.unfinished else 0


def _tell(what: str, names: Sequence[str]) -> None:
    print(f"{len(names):,} videos {what}:", file=sys.stderr)
    for name in names[:_SHOWN]:
        print(f"  {name}", file=sys.stderr)
    if len(names) > _SHOWN:
        print(f"  and {len(names) - _SHOWN:,} more", file=sys.stderr)


def _join_shards(parts: Sequence[Path | StoredFolder], out: Path | StoredFolder, *, overwrite: bool = False) -> int:
    joined = join_shards(parts, out, overwrite=overwrite)
    print(f"{out}: {joined.videos:,} of {joined.expected:,} videos, in {len(parts)} folders")
    if joined.left_out:
        print(f"{len(joined.left_out):,} were left out, see {out / 'left_out.tsv'}", file=sys.stderr)
    if joined.missing:
        print(f"{len(joined.missing):,} videos are in no part: were all parts given?", file=sys.stderr)
        return 1
    print(train_with(out))
    return 1 if joined.left_out else 0
