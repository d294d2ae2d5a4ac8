"""Shards that were written in parts (octvideo/data/shard_writer.py) become one folder: their indexes are joined.

No archive is copied: the joined index names them where they lie, in folders under its own. All may lie in a store.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from octvideo.data.shards import ABOUT, CLASSES, INDEX, LEFT_OUT, index_lines, read_text
from octvideo.errors import UserError
from octvideo.files import json_text, whole_text
from octvideo.stores import StoredFolder


@dataclass
class JoinedShards:
    """What was joined.

    Args:
        videos: in the joined index.
        expected: in the list that the parts were made of.
        left_out: lines of left_out.tsv, of videos whose files could not be read.
        missing: numbers in the list of videos that no part has.
    """

    videos: int
    expected: int
    left_out: list[str] = field(default_factory=list)
    missing: list[int] = field(default_factory=list)


def join_shards(
    parts: Sequence[Path | StoredFolder], out: Path | StoredFolder, *, overwrite: bool = False
) -> JoinedShards:
    """Writes index.jsonl, classes.txt and shards.json of all parts.

    Args:
        parts: folders in `out`.
        out: where the joined index goes.
        overwrite: in a store, what is of other videos or settings.

    Raises:
        UserError: a part is not complete, is of other videos or settings, lies elsewhere, or a video is in two.
    """
    first: dict[str, Any] = {}
    rows: dict[int, dict[str, Any]] = {}
    left_out: list[str] = []
    for part in parts:
        about = _about(part)
        if not about.pop("complete"):
            raise UserError(f"the shards in {part} are not complete: run the command that writes them once more")
        del about["part"]
        first = first or about
        for key, value in about.items():
            if value != first[key]:
                raise UserError(f"{part} holds shards of other videos or settings than {parts[0]} (their {key} differ)")
        place = _place(part, out)
        for line in (_text(part, INDEX, wanted=False) or "").splitlines():
            row = json.loads(line)
            if row["index"] in rows:
                raise UserError(f"{part}: {row['name']} is in {rows[row['index']]['shard']} too: leave one of them out")
            rows[row["index"]] = {**row, "shard": f"{place}/{row['shard']}"}
        left_out += (_text(part, LEFT_OUT) or "").splitlines()
    missing = sorted(set(range(first["videos"])) - rows.keys())
    complete = len(missing) == len(left_out)
    about = {**first, "part": None, "complete": complete}
    if isinstance(out, StoredFolder):
        if not overwrite:
            _check_own(out, about)
        with tempfile.TemporaryDirectory(prefix="octvideo-join-") as folder:
            _write(Path(folder), rows, left_out, about)
            for name in (LEFT_OUT, CLASSES, INDEX, ABOUT):
                out.put(Path(folder, name), name)
    else:
        _write(out, rows, left_out, about)
    return JoinedShards(len(rows), first["videos"], left_out, [] if complete else missing)


def _write(out: Path, rows: dict[int, dict[str, Any]], left_out: list[str], about: dict[str, Any]) -> None:
    for name, lines in ((LEFT_OUT, left_out), (CLASSES, about["classes"])):
        with whole_text(out / name) as file:
            file.writelines(f"{line}\n" for line in lines)
    with whole_text(out / INDEX, to_disk=True) as file:
        file.write(index_lines(rows[index] for index in sorted(rows)))
    with whole_text(out / ABOUT, to_disk=True) as file:
        file.write(json_text(about, indent=2) + "\n")


def _place(part: Path | StoredFolder, out: Path | StoredFolder) -> str:
    """The folder of a part, from `out`."""
    if isinstance(part, StoredFolder) or isinstance(out, StoredFolder):
        root, here = f"{getattr(out, 'address', '')}/", getattr(part, "address", "")
        if isinstance(out, StoredFolder) and here.startswith(root):
            return str(here.removeprefix(root))
        raise UserError(f"{part} lies outside of {out}: give the folder around the parts as -o, no archive is copied")
    try:
        return part.resolve().relative_to(out.resolve()).as_posix()
    except ValueError:
        raise UserError(f"{part} lies outside of {out}: move it there, since no archive is copied") from None


def _check_own(out: StoredFolder, about: dict[str, Any]) -> None:
    """Raises where the folder has shards of others."""
    there = out.read(ABOUT)
    if there is None:
        is_own = out.read(INDEX) is None
    else:
        try:
            is_own = {**json.loads(there), "complete": None} == {**about, "complete": None}
        except (ValueError, TypeError):
            is_own = False
    if not is_own:
        raise UserError(f"{out} holds shards of other videos or settings: give another -o, or --overwrite")


def _text(part: Path | StoredFolder, name: str, *, wanted: bool = True) -> str | None:
    if isinstance(part, StoredFolder):
        return read_text(part.address, name, wanted=wanted)
    return (part / name).read_text(encoding="utf-8") if wanted or (part / name).exists() else None


def _about(part: Path | StoredFolder) -> dict[str, Any]:
    try:
        about = json.loads(_text(part, ABOUT, wanted=not isinstance(part, StoredFolder)) or "")
        if about["part"] is None:
            raise UserError(f"{part} holds shards that are no part: written without --part")
        return dict(about)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{part} holds no shards of octvideo shards --part ({ABOUT} can't be read)") from error
