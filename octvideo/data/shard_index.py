"""An index for archives of videos that another program wrote, so that octvideo can read them."""

from __future__ import annotations

import json
import re
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from octvideo.class_names import ClassIndex, read_class_names
from octvideo.data.shards import INDEX, index_lines
from octvideo.errors import UserError
from octvideo.files import VIDEO_SUFFIXES, natural_key, whole_text

_NUMBER = re.compile(r"-?\d+")
_UNLABELLED = {"label": ("", "-1", False)}


def index_shards(folder: Path) -> int:
    """Writes index.jsonl for the WebDataset archives (*.tar) in a folder.

    A sample is what shares a name up to the first dot of the file's name. Its label is in a `.json` as "label", "cls"
    or "class" (a number is an id, text a name of classes.txt), or in a `.cls` (a number is an id, unless classes are
    called by numbers: then all of them decide); else it has none.

    Args:
        folder: with the archives, and classes.txt where labels are names.

    Returns:
        The number of videos.

    Raises:
        UserError: there is an index, there are no archives or videos, or one can't be read.
    """
    if (folder / INDEX).exists():
        raise UserError(f"{folder / INDEX} is there: move it away to index the archives anew")
    shards = sorted(folder.glob("[!.]*.tar"), key=lambda shard: natural_key(shard.name))
    if not shards:
        raise UserError(f"no archives in {folder}: expected *.tar")
    classes = None
    if (folder / "classes.txt").is_file():
        classes = ClassIndex(read_class_names(folder / "classes.txt"))
    rows: list[dict[str, Any]] = []
    for shard in shards:
        try:
            rows += [{"index": len(rows) + n, **row} for n, row in enumerate(_samples(shard))]
        except (tarfile.TarError, OSError) as error:
            raise UserError(f"can't read the archive {shard}: {error}") from error
    if not rows:
        raise UserError(f"no videos in the {len(shards)} archives of {folder}: looked for {', '.join(VIDEO_SUFFIXES)}")
    bare = ((where, text) for where, text, is_name in (row["label"] for row in rows) if is_name is None)
    are_names = classes is not None and classes.numbers_are_names(bare)
    for row in rows:
        where, text, is_name = row["label"]
        if classes is not None:
            row["label"] = classes.id_of(text, where, is_name=are_names if is_name is None else is_name)
        elif _NUMBER.fullmatch(text):
            row["label"] = int(text)
        else:
            raise UserError(f"{where}: the label is a name, {text!r}: {folder / 'classes.txt'} is missing")
    with whole_text(folder / INDEX) as file:
        file.write(index_lines(rows))
    return len(rows)


def _samples(shard: Path) -> Iterator[dict[str, Any]]:
    """Rows without their number, labels as `_described` gives them; the members of a sample stand behind each other."""
    sample: dict[str, Any] = {}
    current = None
    with tarfile.open(shard, "r:") as archive:
        for member in archive:
            if not member.isfile():
                continue
            folder, slash, file = member.name.rpartition("/")
            stem, _, ending = file.partition(".")
            key = folder + slash + stem
            if key != current:
                if "size" in sample:
                    yield _UNLABELLED | sample
                current, sample = key, {"name": member.name}
            if f".{ending.lower()}" in VIDEO_SUFFIXES:
                sample |= {"shard": shard.name, "offset": member.offset_data, "size": member.size}
            elif ending in ("cls", "json"):
                stream = archive.extractfile(member)
                assert stream is not None
                described = _described(stream.read(), ending, f"{shard}:{member.name}")
                sample = described | sample if ending == "cls" else sample | described  # JSON says more than text
        if "size" in sample:
            yield _UNLABELLED | sample


def _described(content: bytes, ending: str, where: str) -> dict[str, Any]:
    """The name that our own archives give, and the label: where it stands, its text, and whether a number in it is a
    name (None: nothing says so).
    """
    try:
        text = content.decode("utf-8").strip()
        given: Any = json.loads(text) if ending == "json" else text
    except ValueError as error:
        raise UserError(f"{where}: neither text nor JSON ({error})") from error
    if ending == "cls":
        return {"label": (where, text, None if _NUMBER.fullmatch(text) else True)}
    if not isinstance(given, dict):
        return {}
    found = {"name": given["name"]} if isinstance(given.get("name"), str) else {}
    label = next((given[key] for key in ("label", "cls", "class") if given.get(key) is not None), None)
    return found if label is None else found | {"label": (where, str(label), isinstance(label, str))}
