"""Gets a data set ready to train on: `octvideo prepare list|verify|reencode|download ...`.

download   the public archives of a data set, checked and unpacked
list       writes train.txt, val.txt ... and classes.txt by the official lists, and names what is missing and extra
verify     the same without lists; exit code 1 where a video is missing
reencode   a copy with a short side of 256 or 320 pixels, short GOPs and no sound, which loads faster
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import shlex
import sys
from collections import Counter
from pathlib import Path

from octvideo.cli.arguments import Parser, output_folder, positive
from octvideo.cli.on_ray import isolated_on_ray, ray_arguments
from octvideo.cli.tables import print_table
from octvideo.data.preparation.archives import ALL, PUBLICATIONS, Archive, publication_of
from octvideo.data.preparation.encoding import EncodingSettings
from octvideo.data.preparation.fetching import ARCHIVES, Arrived, Downloads, read_checksums
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
from octvideo.data.preparation.official_more import JESTER_FPS, charades_lists, diving48_lists, jester_lists
from octvideo.data.preparation.reencode import DAMAGED_FILE, FAILED_FILE, Summary, name_for_part, reencode
from octvideo.data.workers import available_cpus
from octvideo.errors import UserError
from octvideo.progress import Progress
from octvideo.stores import StoredFolder, is_remote

_READERS = {
    "ucf101": ucf101_lists,
    "ssv2": something_lists,
    "hmdb51": hmdb_lists,
    "jhmdb": hmdb_lists,
    "diving48": diving48_lists,
    "jester": jester_lists,
    "charades": charades_lists,
}

STOPPED = "stopped; the same command goes on where it was"

DATA_SETS = (*PUBLISHED, "folder")

# What trains on it.
_CONFIGS = {"kinetics600": "i3d_oct_k600", "jhmdb": "jhmdb_i3d_oct"}
# Data sets whose list `test` has labels.
_TESTED = ("folder", "diving48", "charades")
# Lists that one training needs, of those that are there.
_ROLES = {"train": ("train", "train1"), "val": ("val",), "test": ("test1",)}
_PRESETS = ("ultrafast", "superfast", "veryfast", "faster", "fast", "medium", "slow", "slower", "veryslow")


def add_arguments(parser: Parser) -> None:
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    download = commands.add_parser("download", help="the public archives of a data set")
    download.set_defaults(run=_download)
    add = download.add_argument
    add("dataset", metavar="DATASET", help=", ".join(PUBLICATIONS))
    add("root", type=Path, metavar="ROOT", help="folder of the data set; made if it is not there")
    add("--splits", nargs="+", choices=ALL, metavar="PART", help=f"{' '.join(ALL)} (all there are but test)")
    add("--checksums", type=Path, metavar="FILE", help="lines 'checksum  name', as of md5sum")
    download.shared("num_workers", default=4, help="downloads at once (4)")
    add("--attempts", type=positive, default=8, metavar="N", help="tries in a row that bring nothing (8)")
    add("--mirror", metavar="URL", help="in place of https://s3.amazonaws.com/kinetics")
    add("--remove_archives", action="store_true", help="delete each archive once it is unpacked")
    add("--dry_run", action="store_true", help="say what would be downloaded")

    for name, text in (("list", "lists for octvideo"), ("verify", "what is missing and extra")):
        listing = commands.add_parser(name, help=text)
        listing.set_defaults(run=_list, lists=name == "list")
        add = listing.add_argument
        add("dataset", choices=DATA_SETS, metavar="DATASET", help=", ".join(DATA_SETS))
        add("root", type=Path, metavar="ROOT", help="folder of the data set: videos, and its official lists")
        add("--annotations", type=Path, metavar="DIR", help="folder of the official lists (usual ones in ROOT)")
        listing.shared("output", metavar="DIR", help="folder to write (ROOT)")
        own = listing.add_argument_group("own videos in class folders (folder)")
        own.add_argument("--test", type=float, default=0.2, metavar="SHARE", help="of each class, for test (0.2)")
        own.add_argument("--val", type=float, default=0.0, metavar="SHARE", help="and for validation (0)")
        own.add_argument("--group", metavar="REGEX", help="what in a path names its source; no source is on two sides")
        listing.shared("seed", group=own, help="another seed, another split (0)")

    smaller, default = commands.add_parser("reencode", help="a smaller copy that loads faster"), EncodingSettings()
    smaller.set_defaults(run=_reencode)
    add = smaller.add_argument
    add("source", metavar="SOURCE", help="folder of videos, or its address; nothing in it is touched")
    add("output", type=output_folder, metavar="OUTPUT", help="folder to write, here or in a store: the names, as .mp4")
    add("--short_side", type=positive, default=default.short_side_px, metavar="PX", help="(256); 320 is usual too")
    add("--gop", type=positive, default=default.gop_frames, metavar="FRAMES", help="between keyframes (12)")
    add("--crf", type=int, default=default.crf, metavar="Q", help="quality of x264, 0 (best) to 51 (23)")
    speeds = f"speed of x264 for size: {', '.join(_PRESETS)} (fast)"
    add("--preset", choices=_PRESETS, default=default.preset, metavar="NAME", help=speeds)
    smaller.shared("part")
    smaller.shared("num_workers", help="videos at once (one per CPU)")
    smaller.shared("timeout", help="without a new frame of a video (60)")
    ray_arguments(smaller, gpus=False)


def run(args: argparse.Namespace) -> int:
    """Returns 0; 1 where something is missing or failed."""
    return int(args.run(args))


# ── download ────────────────────────────────────────────────────────────────────────────────────────────────────────


def _download(args: argparse.Namespace) -> int:
    """Returns 0, or 1 where an archive failed.

    Raises:
        UserError: no such part, no list of archives, a wrong argument.
    """
    publication = publication_of(args.dataset)
    known = [name for name in ALL if name in publication.lists or name in publication.files]
    parts = args.splits or [name for name in known if name != "test"]
    downloads = Downloads(
        args.root,
        checksums=read_checksums(args.checksums) if args.checksums else None,
        mirror=args.mirror,
        attempts=1 if args.dry_run else args.attempts,
        remove_archives=args.remove_archives,
    )
    archives = downloads.archives(publication, parts, print)
    left = [archive for archive in archives if not downloads.is_done(archive)]
    print(f"{len(archives)} files of {args.dataset} ({', '.join(parts)}), {len(archives) - len(left)} are here")
    if args.dry_run:
        for archive in left:
            print(f"{archive.url} -> {downloads.place(archive)}")
        return 0
    problems = _get(downloads, left, args.num_workers)
    for archive, problem in problems:
        print(f"failed: {archive.url}: {problem}")
    if problems:
        print(
            f"{len(problems)} of {len(left)} failed; the same command tries them again, and goes on where they stopped"
        )
        return 1
    if publication.by_hand:
        print(f"\nNext, in {args.root}, {publication.by_hand}\nThen:")
    else:
        print("\nNext:")
    print(f"  octvideo prepare list {args.dataset} {shlex.quote(str(args.root))}")
    return 0


def _get(downloads: Downloads, archives: list[Archive], workers: int) -> list[tuple[Archive, str]]:
    arrived: list[Arrived] = []
    with Progress("downloading", in_bytes=True) as shown:
        sizes: dict[Archive, tuple[int, int]] = {}

        def progress(archive: Archive, here: int, total: int) -> None:
            sizes[archive] = here, max(here, total)
            all_here, all_total = map(sum, zip(*sizes.copy().values(), strict=True))
            shown.update(all_here, total=all_total, said=f"{len(arrived)} of {len(archives)} files")

        arrived.extend(downloads.run(archives, workers=workers, progress=progress, said=shown.print))
    problems = [(one.archive, one.problem) for one in arrived if one.problem]
    counts = sum((Counter(one.unpacked or {}) for one in arrived), Counter[str]())
    written, kept, differing = counts["written"], counts["kept"], counts["differing"]
    print(f"{len(archives) - len(problems)} files downloaded; {written:,} videos and lists unpacked", end="")
    print(f", {kept:,} were there" if kept else "", end="")
    print(f" ({differing:,} of these of another size: they stay as they are)" if differing else "")
    if written and not downloads.remove_archives:
        print(f"the archives are no longer needed: {downloads.root / ARCHIVES}")
    return problems


# ── list, verify ────────────────────────────────────────────────────────────────────────────────────────────────────


def _list(args: argparse.Namespace) -> int:
    """Compares and prints.

    Returns:
        0; 1 of verify, where a video is missing.

    Raises:
        UserError: see `compare`.
    """
    root: Path = args.root
    if not root.is_dir():
        raise UserError(f"no folder {root}")
    if args.annotations is not None and not args.annotations.is_dir():
        raise UserError(f"no folder {args.annotations}, given as --annotations")
    out = args.output or root
    official = _official(args)
    report = compare(official, root, out, lists=args.lists)
    _print(report, PUBLISHED.get(args.dataset))
    for note in official.notes:
        print(f"warning: {note}", file=sys.stderr)
    if not args.lists:
        return 1 if report.missing else 0
    print("\nLook for files that can't be read, and train:")
    if official.frames is None:
        print(f"  octvideo check {shlex.quote(str(root))}")
    else:
        listed = [str(out / f"{split.name}.txt") for split in report.splits if split.found]
        words = ["octvideo", "check", *listed, "--root", str(root), "--frame_names", official.frames.template]
        print(f"  {shlex.join(words)}")
    print(f"  {train_command(args.dataset, root, report)}")
    if args.dataset == "folder":
        print("-c i3d_oct needs a GPU and many videos; else take -c demo (a small network, 64 pixels).")
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
    words = ["octvideo", "prepare", "list"]
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
    leave_out = frozenset([args.output]) if args.output else frozenset()
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
    return _READERS[name](root, annotations)


def _print(report: Report, published: Published | None) -> None:
    header = ["list", "listed", "found", "missing"]
    rows: list[tuple[str, ...]] = []
    for split in report.splits:
        counts: tuple[int | None, ...] = (split.listed, split.found, split.missing)
        if published is not None:
            header = ["list", "listed", "published", "found", "published", "missing"]
            listed = published.listed.get(split.name)
            counts = (split.listed, listed, split.found, published.files.get(split.name, listed), split.missing)
        rows.append((split.name, *("-" if count is None else f"{count:,}" for count in counts)))
    print_table(header, rows)
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
        if role == "test" and dataset in _TESTED and "test" in given:
            name = "test"
        if name is not None:
            words += [f"--data.{role}", f"{place}{name}.txt"]
        elif role == "val":
            words += ["--data.val", "null"]
    if not dataset.startswith("kinetics"):
        words += ["--data.classes", f"{place}classes.txt"]
    elif dataset == "kinetics700":
        words += ["--data.classes", dataset]
    if report.num_swapped:
        words += ["--data.flip_labels", f"{place}flip_labels.yaml"]
    if report.frames is not None:
        words += ["--data.frame_names", report.frames.template, "--data.frame_fps", f"{JESTER_FPS:g}"]
    return shlex.join(words)


# ── reencode ────────────────────────────────────────────────────────────────────────────────────────────────────────


def _reencode(args: argparse.Namespace) -> int:
    """Returns 0, or 1 where a video failed.

    Raises:
        UserError: see `reencode`.
    """
    if args.short_side < 16 or not 0 <= args.crf <= 51:
        raise UserError(f"got --short_side {args.short_side} --crf {args.crf}: expected 16 or more, and 0 to 51")
    settings = EncodingSettings(args.short_side, args.gop, args.crf, args.preset)
    with Progress("re-encoding") as shown:
        summary = reencode(
            args.source,
            args.output,
            settings,
            workers=args.num_workers or available_cpus(),
            timeout_sec=args.timeout,
            part=args.part,
            make_pool=isolated_on_ray(args, sys.maxsize, shown.print),
            progress=lambda done, total, summary: shown.update(done, total=total, said=f"{summary.failed} failed"),
        )
    _print_copied(args, summary)
    return 1 if summary.failed else 0


def _print_copied(args: argparse.Namespace, summary: Summary) -> None:
    print(f"{args.output}: {summary.done:,} videos encoded, {summary.there:,} were there, {summary.failed:,} failed")
    if summary.bytes:
        ratio = summary.bytes / max(summary.source_bytes, 1)
        print(f"{summary.source_bytes / 1e6:,.1f} MB are now {summary.bytes / 1e6:,.1f} MB ({ratio:.0%})")
        if ratio > 1:
            print(f"keyframes every {args.gop} frames cost bytes; --crf {args.crf + 5} in another folder takes fewer")
    if summary.same:
        print(f"{summary.same:,} were all that is asked for, and smaller: copied as they are")
    if summary.damaged:
        damaged = args.output / name_for_part(DAMAGED_FILE, args.part)
        print(f"{summary.damaged:,} were damaged, what could be decoded is kept: {damaged}")
    if summary.failed:
        print(f"failed (run again, these are tried again): {args.output / name_for_part(FAILED_FILE, args.part)}")
    if args.part is None and not isinstance(args.output, StoredFolder):
        source = args.output if is_remote(args.source) else Path(args.source)
        print(f"\nNext:\n  {next_command(source, args.output)}")
    elif args.part is not None:
        print(f"\nThis was part {args.part}. When all are done, the same command without --part does what is missing.")
