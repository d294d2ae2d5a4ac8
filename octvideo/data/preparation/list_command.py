"""`prepare_dataset.py list` and `verify`: which videos are there, and lists for octvideo."""

from __future__ import annotations

import argparse
import collections
import contextlib
import shlex
import sys
from pathlib import Path

from rich import box
from rich.console import Console
from rich.table import Table

from octvideo.data.preparation.folders import folder_lists
from octvideo.data.preparation.listing import Report, compare
from octvideo.data.preparation.official import (
    PUBLISHED,
    Official,
    Published,
    hmdb_lists,
    kinetics_lists,
    something_lists,
    ucf101_lists,
)
from octvideo.errors import UserError

DATA_SETS = (*PUBLISHED, "folder")

# What trains on it: config, and what else to say beside root and lists. A flip turns left into right in ssv2.
_CONFIGS = {
    "kinetics600": "i3d_oct_k600",
    "jhmdb": "jhmdb_i3d_oct",
}
_EXTRA = {"ssv2": " --data.augment.flip 0"}
# Lists that one training needs, of those that are there.
_ROLES = {"train": ("train", "train1"), "val": ("val",), "test": ("test1",)}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of both commands."""
    parser.add_argument("dataset", choices=DATA_SETS, metavar="DATASET", help=", ".join(DATA_SETS))
    parser.add_argument(
        "root", type=Path, metavar="ROOT", help="folder of the data set: videos, and its official lists"
    )
    parser.add_argument(
        "--annotations", type=Path, metavar="DIR", help="folder of the official lists (usual ones in ROOT)"
    )
    parser.add_argument("-o", "--out", type=Path, metavar="DIR", help="folder to write (ROOT)")
    own = parser.add_argument_group("own videos in class folders (folder)")
    own.add_argument("--test", type=float, default=0.2, metavar="SHARE", help="of each class, for test (0.2)")
    own.add_argument("--val", type=float, default=0.0, metavar="SHARE", help="and for validation (0)")
    own.add_argument("--group", metavar="REGEX", help="what in a path names its source; no source is on two sides")
    own.add_argument("--seed", type=int, default=0, help="another seed, another split (0)")


def run(args: argparse.Namespace, *, lists: bool) -> int:
    """Compares and prints.

    Returns:
        0; 1 where `lists` is off and a video is missing.

    Raises:
        UserError: see `compare`.
    """
    root: Path = args.root
    if not root.is_dir():
        raise UserError(f"no folder {root}")
    if args.annotations is not None and not args.annotations.is_dir():
        raise UserError(f"no folder {args.annotations}, given as --annotations")
    out = args.out or root
    official = _official(args)
    report = compare(official, root, out, lists=lists)
    console = Console()
    _print(report, PUBLISHED.get(args.dataset), console)
    for note in official.notes:
        print(f"warning: {note}", file=sys.stderr)
    if not lists:
        return 1 if report.missing else 0
    print("\nLook for files that can't be read, and train:")
    print(f"  python tools/check_videos.py {shlex.quote(str(root))}")
    print(f"  {train_command(args.dataset, root, report)}")
    if args.dataset == "folder":
        print("On a CPU, or with few videos, -c demo (a small network, 64 pixels) in place of -c i3d_oct.")
    return 0


def next_command(source: Path, copy: Path) -> str:
    """The line that writes the lists of a copy of a data set, by the official lists in `source`."""
    found: dict[str, Official] = {}
    for name in PUBLISHED:
        with contextlib.suppress(UserError):  # it is another
            official = lists_of(name, source, None)
            # Kinetics-600 has classes that 400 has not: read to the end, and fail there.
            collections.deque(official.splits.get("val", next(iter(official.splits.values())))(), maxlen=0)
            found[name] = official
    words = ["python", "tools/prepare_dataset.py", "list"]
    if found:  # the files of HMDB51 and J-HMDB are alike
        name = min(found, key=lambda name: abs(len(found[name].classes) - PUBLISHED[name].classes))
        return shlex.join([*words, name, str(copy), "--annotations", str(found[name].sources[0].parent)])
    try:
        folder_lists(source, {})
    except UserError:
        return shlex.join([*words, "DATASET", str(copy), "--annotations", "FOLDER_OF_THE_LISTS"])
    return shlex.join([*words, "folder", str(copy)])


def _official(args: argparse.Namespace) -> Official:
    if args.dataset != "folder":
        return lists_of(args.dataset, args.root, args.annotations)
    leave_out = frozenset([args.out]) if args.out else frozenset()
    return folder_lists(
        args.root, {"val": args.val, "test": args.test}, group=args.group, seed=args.seed, leave_out=leave_out
    )


def lists_of(name: str, root: Path, annotations: Path | None) -> Official:
    """The official lists of a published data set.

    Raises:
        UserError: they are not there.
    """
    if name.startswith("kinetics"):
        return kinetics_lists(root, name, annotations)
    readers = {"ucf101": ucf101_lists, "ssv2": something_lists, "hmdb51": hmdb_lists, "jhmdb": hmdb_lists}
    return readers[name](root, annotations)


def _print(report: Report, published: Published | None, console: Console) -> None:
    table = Table("list", box=box.SIMPLE_HEAD)
    columns = ["listed", "found", "missing"]
    if published is not None:
        columns = ["listed", "published", "found", "published", "missing"]
    for column in columns:
        table.add_column(column, justify="right")
    for split in report.splits:
        cells = [f"{split.listed:,}", f"{split.found:,}", f"{split.missing:,}"]
        if published is not None:
            counts = [
                published.listed.get(split.name),
                published.files.get(split.name, published.listed.get(split.name)),
            ]
            said = ["-" if count is None else f"{count:,}" for count in counts]
            cells = [cells[0], said[0], cells[1], said[1], cells[2]]
        table.add_row(split.name, *cells)
    console.print(table)
    if published is not None:
        print(f"published: {published.source}")
        if report.num_classes != published.classes:
            print(f"warning: {report.num_classes} classes, published {published.classes}", file=sys.stderr)
        if published.total is not None:
            print(f"{report.files:,} videos on the disk, published {published.total:,}")
    if report.replaced:
        print(f"{report.replaced:,} broken videos of the archive are taken from its replacements")
    if report.missing:
        print(f"{report.missing:,} listed videos are not there: {report.folder / 'missing.txt'}")
    if report.extra:
        print(f"{report.extra:,} videos are in no list: {report.folder / 'extra.txt'}")


def train_command(dataset: str, root: Path, report: Report) -> str:
    """The line that trains on the lists just written."""
    given = {split.name for split in report.splits if split.found}
    # In another folder than the data they are named by their whole path.
    place = "" if report.folder.resolve() == root.resolve() else f"{report.folder.resolve()}/"
    config = _CONFIGS.get(dataset, "i3d_oct")
    words = ["octvideo", "fit", "-c", config]
    if dataset not in ("kinetics400", "kinetics600"):
        words += ["--name", root.resolve().name if dataset == "folder" else dataset]
    words += ["--data.root", str(root)]
    if config == "i3d_oct" and not dataset.startswith("kinetics"):
        words += ["--data.decoder", "auto"]  # Kinetics' is decord, which refuses most AVI
    for role, names in _ROLES.items():
        name = next((name for name in names if name in given), None)
        if role == "test" and dataset == "folder" and "test" in given:
            name = "test"
        if name is not None:
            words += [f"--data.{role}", f"{place}{name}.txt"]
        elif role == "val":
            words += ["--data.val", "null"]
    if not dataset.startswith("kinetics"):
        words += ["--data.classes", f"{place}classes.txt"]
    elif dataset == "kinetics700":
        words += ["--data.classes", dataset]
    return shlex.join(words) + _EXTRA.get(dataset, "")
