"""Writing shards (octvideo/data/shards.py): one archive after another, each with its name only when it is whole.

Archives that another program wrote need an index alone (`index_shards`).
"""

from __future__ import annotations

import io
import json
import os
import tarfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from octvideo.class_names import ClassIndex, is_number, read_class_names
from octvideo.data.records import VideoRecord
from octvideo.data.shard_stores import StoredShards
from octvideo.data.shards import ABOUT, CLASSES, INDEX, LEFT_OUT, index_lines, source_of
from octvideo.errors import UserError
from octvideo.files import VIDEO_SUFFIXES, is_full_disk, is_video, natural_key, part_of, whole_text
from octvideo.parts import Part, indices_of_part
from octvideo.stores import StoredFolder, file_name, is_remote, shown
from octvideo.video import FrameFolder, VideoBytes, VideoReadError
from octvideo.video.frames import RemoteVideo, fetched

_FORMAT = 1


@dataclass
class ShardReport:
    """What a run of `write_shards` did.

    Args:
        written: videos put into archives by this run.
        kept: videos that earlier runs had put there.
        num_shards: archives now.
        left_out: name and reason of videos whose files could not be read.
    """

    written: int = 0
    kept: int = 0
    num_shards: int = 0
    left_out: list[tuple[str, str]] = field(default_factory=list)


def write_shards(
    records: Sequence[VideoRecord],
    out: Path | StoredFolder,
    *,
    root: str | Path,
    class_names: Sequence[str],
    shard_bytes: int = 512 * 2**20,
    shuffle: int | None = None,
    part: Part | None = None,
    advance: Callable[[], object] = lambda: None,
) -> ShardReport:
    """Copies videos into archives, with their index and class names beside them.

    Stopped at any moment, it resumes after the last whole archive when it is called again. It then tries again what
    could not be read.

    Args:
        records: the videos; their files are only read.
        out: folder of the archives; is made. In a store it gets each archive when it is whole, which then is deleted
            here.
        root: where the names of videos start; those outside keep their whole path.
        class_names: K names, in the order of their ids.
        shard_bytes: an archive ends with the video that reaches it.
        shuffle: seed of the order in the archives, for programs that take them as streams; ours needs none. None
            keeps the order of the list.
        part: of the videos, that alone is written; their numbers stay those of the whole list. See
            `octvideo.data.shard_joining`.
        advance: called after each video.

    Raises:
        UserError: `out` holds shards of other videos or settings, or other things; or it can't be written.
    """
    settings: dict[str, Any] = {
        "format": _FORMAT,
        "videos": len(records),
        "shard_bytes": shard_bytes,
        "shuffle": shuffle,
    }
    settings |= {"part": None if part is None else str(part), "classes": list(class_names)}
    if records and (frames := records[0].frames) is not None:
        settings["fps"] = frames.fps
    if any(record.others for record in records):
        settings["several_labels"] = True
    names = [_name(record.path, root) for record in records]
    if isinstance(out, StoredFolder):
        with StoredShards(out) as stored:
            return _write(records, names, settings, out, stored=stored, here=stored.here, advance=advance, part=part)
    return _write(records, names, settings, out, stored=None, here=out, advance=advance, part=part)


def _write(
    records: Sequence[VideoRecord],
    names: Sequence[str],
    settings: dict[str, Any],
    out: Path | StoredFolder,
    *,
    here: Path,
    stored: StoredShards | None,
    part: Part | None,
    advance: Callable[[], object],
) -> ShardReport:
    """`write_shards`, with its files `here`, from where they may go into a store."""
    shuffle = settings["shuffle"]
    rows = _begin(here, out, settings)
    for row in rows:
        if row["index"] >= len(names) or row["name"] != names[row["index"]]:
            raise _other_shards(out, f"video {row['index']} there is {row['name']}")
        there, now = [row["label"], *row.get("others", [])], _labels(records[row["index"]])
        if there != now:
            raise _other_shards(out, f"labels of {row['name']} were {there}, now {now}")
    _write_settings(here, settings, complete=False)  # only now: a command with a mistake leaves whole shards whole
    if stored is not None:
        stored.begin(rows)
    report = ShardReport(kept=len(rows), num_shards=len({row["shard"] for row in rows}))
    done = {row["index"] for row in rows}
    own = set(indices_of_part([record.path for record in records], part))
    order = np.arange(len(records)) if shuffle is None else np.random.default_rng(shuffle).permutation(len(records))
    own -= done
    queue = iter([index for index in order.tolist() if index in own])
    for _ in done:
        advance()
    what = records, names, settings["shard_bytes"], report, advance
    while True:
        shard = here / f"shard-{report.num_shards:06d}.tar"
        try:
            rows = _write_shard(shard, queue, *what, has_several=settings.get("several_labels", False))
        except OSError as error:
            part_of(shard).unlink(missing_ok=True)
            if is_full_disk(error) and not error.filename:  # a full disk says no name
                error.filename = str(shard)
            raise
        if not rows:
            break
        if stored is not None:
            stored.add(shard)
        with (here / INDEX).open("a", encoding="utf-8") as file:
            file.write(index_lines(rows))
            _to_disk(file)
        if stored is not None:
            stored.added(shard)
        report.num_shards += 1
        report.written += len(rows)
    with whole_text(here / LEFT_OUT) as file:
        file.writelines(f"{name}\t{reason}\n" for name, reason in report.left_out)
    _write_settings(here, settings, complete=True)
    if stored is not None:
        stored.end()
    return report


def _write_shard(
    shard: Path,
    queue: Iterator[int],
    records: Sequence[VideoRecord],
    names: Sequence[str],
    shard_bytes: int,
    report: ShardReport,
    advance: Callable[[], object],
    *,
    has_several: bool,
) -> list[dict[str, Any]]:
    """Fills one archive from the queue; its rows of the index, none where the queue has no video left."""
    part = part_of(shard)
    rows: list[dict[str, Any]] = []
    with part.open("wb") as file, tarfile.open(fileobj=file, mode="w", format=tarfile.USTAR_FORMAT) as archive:
        while archive.offset < shard_bytes and (index := next(queue, None)) is not None:
            record = records[index]
            try:
                files = _files_of(record, f"{index:09d}")
            except VideoReadError as error:
                report.left_out.append((names[index], error.reason))
                advance()
                continue
            except OSError as error:
                said = error.strerror or str(error)
                image = "" if record.frames is None else f"its frame {Path(error.filename).name}: "
                report.left_out.append((names[index], image + said))
                advance()
                continue
            offset, more = archive.offset, dict[str, Any]()
            for name, content in files:
                _add(archive, name, content)
            size = archive.offset - offset
            if record.frames is None:  # the bytes of the file itself
                offset, size = offset + tarfile.BLOCKSIZE, len(files[0][1])
            else:
                more = {"frames": record.frames.count, "fps": record.frames.fps}
            described: dict[str, Any] = {"name": names[index], "label": record.label}
            if has_several and record.label >= 0:
                described["labels"] = _labels(record)
            _add(archive, f"{index:09d}.json", json.dumps(described).encode())
            if record.label >= 0 and not has_several:
                _add(archive, f"{index:09d}.cls", str(record.label).encode())
            if record.others:
                more["others"] = list(record.others)
            place = {"shard": shard.name, "offset": offset, "size": size, **more}
            rows.append({"index": index, "name": names[index], "label": record.label, **place})
            advance()
        archive.close()
        _to_disk(file)
    if rows:
        part.replace(shard)
    else:
        part.unlink()
    return rows


def _labels(record: VideoRecord) -> list[int]:
    return [record.label, *record.others]


def _files_of(record: VideoRecord, key: str) -> list[tuple[str, bytes]]:
    """What goes into an archive for a video, by the name there: its file, or its images in order.

    Raises:
        OSError, VideoReadError: one can't be read.
    """
    video = source_of(record)
    if isinstance(video, FrameFolder):
        suffixes = [Path(video.image_name(n)).suffix.lower() for n in range(video.num_frames)]
        return [(f"{key}.{n:06d}{suffix}", video.content(n)) for n, suffix in enumerate(suffixes)]
    name, source = Path(file_name(record.path)), fetched(record.path)
    if isinstance(source, VideoBytes):
        content = source.content
    else:
        content = source.file.reader().read() if isinstance(source, RemoteVideo) else Path(source).read_bytes()
    return [(f"{key}{name.suffix.lower() if is_video(name.name) else '.mp4'}", content)]


def _add(archive: tarfile.TarFile, name: str, content: bytes) -> None:
    info = tarfile.TarInfo(name)  # no times, no owners: the same videos give the same bytes
    info.size = len(content)
    archive.addfile(info, io.BytesIO(content))


def _begin(here: Path, out: Path | StoredFolder, settings: dict[str, Any]) -> list[dict[str, Any]]:
    """Makes the folder, or resumes: returns the rows of its whole archives."""
    about = here / ABOUT
    if not about.exists():
        if not isinstance(out, StoredFolder) and out.exists() and (not out.is_dir() or any(out.iterdir())):
            raise UserError(f"{out} is there and holds no shards: give a new folder")
        try:
            here.mkdir(parents=True, exist_ok=True)
            with whole_text(here / CLASSES) as file:
                file.writelines(f"{name}\n" for name in settings["classes"])
            _write_settings(here, settings, complete=False)
        except OSError as error:
            raise UserError(f"can't write to {here}: {error.strerror}") from error
        return []
    there = json.loads(about.read_text(encoding="utf-8"))
    for key, value in settings.items():
        if there.get(key) != value:
            raise _other_shards(out, f"{key} was {_short(there.get(key))}, now {_short(value)}")
    if not (here / INDEX).exists():
        return []
    text = (here / INDEX).read_text(encoding="utf-8")
    lines = text[: text.rfind("\n") + 1].splitlines()  # a kill may have cut the last one
    rows: list[dict[str, Any]] = [json.loads(line) for line in lines]
    last = rows[-1]["shard"] if rows else ""
    # One that goes into a store is here until the index has its rows.
    if rows and (not isinstance(out, StoredFolder) or (here / last).exists()):
        # It may also have lost lines of the last archive, which is written again then.
        with tarfile.open(here / last) as archive:
            there_are = sum(name.endswith(".json") for name in archive.getnames())
        if there_are != sum(row["shard"] == last for row in rows):
            rows = [row for row in rows if row["shard"] != last]
    if len(index_lines(rows)) != len(text):
        with whole_text(here / INDEX, to_disk=True) as file:
            file.write(index_lines(rows))
    return rows


def _other_shards(out: Path | StoredFolder, difference: str) -> UserError:
    return UserError(f"{out} holds shards of other videos or settings ({difference}): give a new folder")


def _short(value: object) -> str:
    text = str(value)
    return text if len(text) < 60 else text[:57] + "..."


def _name(path: str, root: str | Path) -> str:
    """Relative to the root, if it lies there; as text with / on every system."""
    if is_remote(path):
        return shown(path).removeprefix(f"{shown(str(root)).rstrip('/')}/")  # shown first: a rest is no address
    file = Path(path)
    return file.relative_to(root).as_posix() if file.is_relative_to(root) else file.as_posix()


def _write_settings(here: Path, settings: dict[str, Any], *, complete: bool) -> None:
    with whole_text(here / ABOUT, to_disk=True) as file:
        file.write(json.dumps({**settings, "complete": complete}, indent=2) + "\n")


def _to_disk(file: Any) -> None:
    file.flush()
    os.fsync(file.fileno())


# ── archives of other programs ──────────────────────────────────────────────────────────────────────────────────────

_UNLABELLED = {"labels": [("", "-1", False)]}


def index_shards(folder: Path) -> int:
    """Writes index.jsonl for the WebDataset archives (*.tar) in a folder.

    A sample is what shares a name up to the first dot of the file's name. Its label is in a `.json` as "label", "cls"
    or "class" (a number is an id, text a name of classes.txt), or as a list of them, "labels"; or in a `.cls`
    (a number is an id, unless classes are called by numbers: then all of them decide); else it has none.

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
    bare = ((where, text) for row in rows for where, text, is_name in row["labels"] if is_name is None)
    are_names = classes is not None and classes.numbers_are_names(bare)
    for row in rows:
        found = []
        for where, text, is_name in row["labels"]:
            if classes is not None:
                found.append(classes.id_of(text, where, is_name=are_names if is_name is None else is_name))
            elif is_number(text):
                found.append(int(text))
            else:
                raise UserError(f"{where}: the label is a name, {text!r}: {folder / 'classes.txt'} is missing")
        row["label"], *others = dict.fromkeys(found)
        if others:
            row["others"] = others
    with whole_text(folder / INDEX) as file:
        file.write(index_lines(rows))
    return len(rows)


def _samples(shard: Path) -> Iterator[dict[str, Any]]:
    """Rows without their number, labels as `_described` gives them; the members of a sample follow each other."""
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
    """The name that our own archives give, and the labels: where each stands, its text, and whether a number in it is
    a name (None: nothing says so).
    """
    try:
        text = content.decode("utf-8").strip()
        given: Any = json.loads(text) if ending == "json" else text
    except ValueError as error:
        raise UserError(f"{where}: neither text nor JSON ({error})") from error
    if ending == "cls":
        return {"labels": [(where, text, None if is_number(text) else True)]}
    if not isinstance(given, dict):
        return {}
    found = {"name": given["name"]} if isinstance(given.get("name"), str) else {}
    labels = given.get("labels")
    if not isinstance(labels, list) or not labels:
        labels = [given[key] for key in ("label", "cls", "class") if given.get(key) is not None][:1]
    return found | {"labels": [(where, str(one), isinstance(one, str)) for one in labels]} if labels else found
