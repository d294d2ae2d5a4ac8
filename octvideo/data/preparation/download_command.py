"""`prepare_dataset.py download`."""

from __future__ import annotations

import argparse
import shlex
from pathlib import Path

from octvideo.data.preparation.archives import ALL, PUBLICATIONS, Archive, publication_of
from octvideo.data.preparation.fetching import ARCHIVES, Downloads, read_checksums
from octvideo.errors import UserError
from octvideo.progress import Progress


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("dataset", metavar="DATASET", help=", ".join(PUBLICATIONS))
    parser.add_argument("root", type=Path, metavar="ROOT", help="folder of the data set; made if it is not there")
    parser.add_argument(
        "--splits", nargs="+", choices=ALL, metavar="PART", help=f"{' '.join(ALL)} (all there are but test)"
    )
    parser.add_argument("--checksums", type=Path, metavar="FILE", help="lines 'checksum  name', as md5sum writes them")
    parser.add_argument("--workers", type=int, default=4, help="downloads at once (4)")
    parser.add_argument("--attempts", type=int, default=8, help="tries in a row that bring nothing (8)")
    parser.add_argument("--mirror", metavar="URL", help="in place of https://s3.amazonaws.com/kinetics")
    parser.add_argument("--remove-archives", action="store_true", help="delete each archive once it is unpacked")
    parser.add_argument("--dry-run", action="store_true", help="say what would be downloaded")


def run(args: argparse.Namespace) -> int:
    """Returns 0, or 1 where an archive failed.

    Raises:
        UserError: no such part, no list of archives, a wrong argument.
    """
    publication = publication_of(args.dataset)
    if args.workers < 1 or args.attempts < 1:
        raise UserError(f"got --workers {args.workers} --attempts {args.attempts}, expected 1 or more")
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
    problems = _get(downloads, left, args.workers)
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
    print(f"  python tools/prepare_dataset.py list {args.dataset} {shlex.quote(str(args.root))}")
    return 0


def _get(downloads: Downloads, archives: list[Archive], workers: int) -> list[tuple[Archive, str]]:
    problems, done, written, kept, differing = [], 0, 0, 0, 0
    with Progress("downloading", in_bytes=True) as shown:
        sizes: dict[Archive, tuple[int, int]] = {}

        def progress(archive: Archive, here: int, total: int) -> None:
            sizes[archive] = here, max(here, total)
            all_here, all_total = map(sum, zip(*sizes.copy().values(), strict=True))
            shown.update(all_here, total=all_total, said=f"{done} of {len(archives)} files")

        for arrived in downloads.run(archives, workers=workers, progress=progress, said=shown.print):
            done += 1
            if arrived.problem:
                problems.append((arrived.archive, arrived.problem))
            if arrived.unpacked is not None:
                written += arrived.unpacked.written
                kept += arrived.unpacked.kept
                differing += arrived.unpacked.differing
    print(f"{len(archives) - len(problems)} files downloaded; {written:,} videos and lists unpacked", end="")
    print(f", {kept:,} were there" if kept else "", end="")
    print(f" ({differing:,} of these of another size: they stay as they are)" if differing else "")
    if written and not downloads.remove_archives:
        print(f"the archives are no longer needed: {downloads.root / ARCHIVES}")
    return problems
