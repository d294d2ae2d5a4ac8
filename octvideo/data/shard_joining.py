"""Shards that were written in parts (octvideo/data/shard_writer.py) become one folder: their indexes are joined.

No archive is copied: the joined index names them where they lie, in folders under its own.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from octvideo.data.shards import ABOUT, INDEX, index_lines
from octvideo.errors import UserError
from octvideo.files import json_text, whole_text


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


def join_shards(parts: Sequence[Path], out: Path) -> JoinedShards:
    """Writes index.jsonl, classes.txt and shards.json of all parts.

    Args:
        parts: folders in `out`.
        out: where the joined index goes.

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
        try:
            place = part.resolve().relative_to(out.resolve()).as_posix()
        except ValueError:
            raise UserError(f"{part} lies outside of {out}: move it there, since no archive is copied") from None
        for line in (part / INDEX).read_text(encoding="utf-8").splitlines() if (part / INDEX).exists() else []:
            row = json.loads(line)
            if row["index"] in rows:
                raise UserError(f"{part}: {row['name']} is in {rows[row['index']]['shard']} too: leave one of them out")
            rows[row["index"]] = {**row, "shard": f"{place}/{row['shard']}"}
        left_out += (part / "left_out.tsv").read_text(encoding="utf-8").splitlines()
    missing = sorted(set(range(first["videos"])) - rows.keys())
    complete = len(missing) == len(left_out)
    for name, lines in (("left_out.tsv", left_out), ("classes.txt", first["classes"])):
        with whole_text(out / name) as file:
            file.writelines(f"{line}\n" for line in lines)
    with whole_text(out / INDEX, to_disk=True) as file:
        file.write(index_lines(rows[index] for index in sorted(rows)))
    with whole_text(out / ABOUT, to_disk=True) as file:
        file.write(json_text({**first, "part": None, "complete": complete}, indent=2) + "\n")
    return JoinedShards(len(rows), first["videos"], left_out, [] if complete else missing)


def _about(part: Path) -> dict[str, Any]:
    try:
        about = json.loads((part / ABOUT).read_text(encoding="utf-8"))
        if about["part"] is None:
            raise UserError(f"{part} holds shards that are no part: written without --part")
        return dict(about)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{part} holds no shards of octvideo shards --part ({ABOUT} can't be read)") from error
