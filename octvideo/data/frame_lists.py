"""Lines of lists of extracted frames, as TSN and mmaction2 write them.

    folder 120 12           folder, number of frames, label
    folder 30 120 12        folder, place of the first frame, number of frames, label (mmaction2's with_offset)
    my folder 120,wave      a name after a comma or a tab
    folder 120              no label, for prediction

A folder may end with a number: `my 3 120 12` is of the folder `my 3` where there is one.
"""

from __future__ import annotations

import re
from pathlib import Path

from octvideo.data.records import FrameRange
from octvideo.errors import UserError
from octvideo.video import FrameNames

_NAMED = re.compile(r"(.*\S)([\s,]+)(\d+)(\s*[,\t]\s*)(\S.*)")
_SPACED = re.compile(r"(.*\S)([\s,]+)(\d+)([\s,]+)(\S+)")
_UNLABELLED = re.compile(r"(.*\S)([\s,]+)(\d+)")


def split_frames(
    text: str, where: str, *, root: Path, names: FrameNames, fps: float | None
) -> tuple[str, FrameRange, str, str]:
    """Folder, its frames, what stands before the label, and the label, "" where there is none.

    Args:
        text: of the line.
        where: of it, for errors.
        root: that folders start from.
        names: of images.
        fps: of all videos.

    Raises:
        UserError: with file and line.
    """
    match = _NAMED.fullmatch(text) or _SPACED.fullmatch(text)
    if match is None and (unlabelled := _UNLABELLED.fullmatch(text)) is not None:
        folder, count, between, label = unlabelled[1], unlabelled[3], "", ""
    elif match is not None:
        folder, _, count, between, label = match.groups()
    else:
        raise UserError(f"{where}: got {text!r}, expected 'folder num_frames label', as data.frame_names is given")
    start = 0
    with_offset = _UNLABELLED.fullmatch(folder)
    if with_offset is not None and label and not (root / folder).is_dir():
        folder, start = with_offset[1], int(with_offset[3])
    if int(count) < 1:
        raise UserError(f"{where}: got {count} frames of {folder}, expected 1 or more")
    return folder, FrameRange(start, int(count), names, fps), between, label
