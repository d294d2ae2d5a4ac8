"""Which videos a command works on: names, folders, addresses and lists, and of these a part."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from octvideo.errors import UserError
from octvideo.files import VIDEO_SUFFIXES, text_lines, walk_videos
from octvideo.parts import names_of_part
from octvideo.stores import check_stores, file_name, is_remote, read_text, shown, videos_at
from octvideo.video.image_frames import IMAGE_SUFFIXES, folders_of_images


def find_videos(names: Sequence[str], *, images: bool = False, are_here: bool = True) -> Iterator[str]:
    """Files and addresses as given, the videos under folders in natural order, and for @FILE the names in its lines.

    With `images` a folder that holds no video, but images, is one, and so are those under it.

    Of many names in a file one that is not there is left to the reader, whose error stops nothing.

    Args:
        names: of them.
        images: see above.
        are_here: of the names in a file one at least must be there.

    Raises:
        UserError: something is none of these, or a folder holds no video.
    """
    for name in names:
        path = Path(name)
        if is_remote(name):
            _check_is_video(file_name(name), shown(name))
            yield from videos_at(name)
        elif name.startswith("@") and (is_remote(name[1:]) or not path.exists()):
            listed = [line for line in text_lines(read_text(name[1:], names=True)) if line.strip()]
            check_stores(listed)
            if are_here and listed and not any(is_remote(line) or os.path.exists(line) for line in listed):  # noqa: PTH110
                raise UserError(
                    f"{shown(name[1:])}: none of its {len(listed):,} names is there, such as {listed[0]}; they count "
                    f"from the folder where the command runs, {Path.cwd()}"
                )
            yield from listed
        elif path.is_dir():
            inside = [os.path.join(path, video) for video in walk_videos(path)]  # noqa: PTH118
            inside = inside or list(folders_of_images(path) if images else ())
            if not inside:
                wanted = sorted(VIDEO_SUFFIXES | (IMAGE_SUFFIXES if images else frozenset()))
                raise UserError(f"no video in folder {path} (looked for {', '.join(wanted)})")
            yield from inside
        else:
            _check_is_video(path.name, name)
            if not path.exists():
                raise UserError(f"no file or folder {path}")
            yield name


def list_name(source: str) -> str:
    """A source of a command whose lists go without the @ that others want: it may have one."""
    return source[1:] if source.startswith("@") and not Path(source).exists() else source


def _check_is_video(name: str, given: str) -> None:
    if name.lower().endswith(".txt"):  # which FFmpeg takes for a film of letters
        raise UserError(f"{given} is no video: give @{given} for the names in it")


def videos_of_part(args: argparse.Namespace, videos: list[str]) -> list[str]:
    """The videos of `--part`, or all; says how many these are."""
    if args.part is None:
        return videos
    found = names_of_part(videos, args.part)
    print(f"part {args.part}: {len(found):,} of {len(videos):,} videos", file=sys.stderr)
    return found
