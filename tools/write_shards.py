#!/usr/bin/env python
"""Copies a data set into tar archives: `python tools/write_shards.py train.txt --root data/mine -o shards/train`.

The archives (WebDataset's format) can lie on any disk, or in an object store; `--data.train` takes the folder, or its
address. Stopped at any moment, the same command goes on. With --index, archives that another program wrote get the
index that octvideo reads: `python tools/write_shards.py --index FOLDER`.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

# So that it runs from a checkout that is not installed.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from octvideo.data import VideoDataModule
from octvideo.data.shard_writer import ShardReport, index_shards, write_shards
from octvideo.errors import UserError
from octvideo.program import Parser, command, end_with
from octvideo.progress import Progress


def parse(argv: Sequence[str]) -> argparse.Namespace:
    parser = Parser(description=__doc__)
    parser.add_argument("source", nargs="?", help="list, csv of Kinetics or folder of class folders, as in data.train")
    parser.add_argument("-o", "--out", type=Path, help="folder for the archives")
    parser.add_argument("--root", type=Path, default=Path(), help="where the source and the paths in it start (.)")
    parser.add_argument("--classes", help="kinetics400, -600, -700, or a file with a name a line (ROOT/classes.txt)")
    parser.add_argument("--shard-mb", type=int, default=512, help="size at which an archive is closed (512)")
    parser.add_argument("--shuffle", type=int, metavar="SEED", help="mix the videos, for programs that read streams")
    parser.add_argument("--unlabelled", action="store_true", help="the videos need no labels")
    parser.add_argument("--index", type=Path, metavar="FOLDER", help="only index the archives in a folder")
    return parser.parse_args(argv)


def write(args: argparse.Namespace) -> ShardReport:
    if args.source is None or args.out is None:
        raise UserError("give a source and a folder for the archives: tools/write_shards.py SOURCE -o FOLDER")
    if args.shard_mb < 1:
        raise UserError(f"--shard-mb: got {args.shard_mb}, expected 1 or more")
    role = "predict" if args.unlabelled else "train"
    data = VideoDataModule(str(args.root), **{role: args.source}, classes=args.classes)
    videos = data.videos(role)
    with Progress("writing videos", len(videos)) as progress:
        return write_shards(
            videos,
            args.out,
            root=args.root,
            class_names=data.class_names,
            shard_bytes=args.shard_mb * 2**20,
            shuffle=args.shuffle,
            advance=progress.advance,
        )


@command(stopped="\nstopped: whole archives are kept, the same command goes on")
def main(argv: Sequence[str]) -> int:
    """Returns 0; 1 where videos were left out."""
    args = parse(argv)
    if args.index is not None:
        print(f"{args.index}: {index_shards(args.index)} videos indexed")
        return 0
    try:
        report = write(args)
    except OSError as error:
        where = error.filename or args.out
        raise UserError(f"can't write {where}: {error.strerror}; run it again to go on") from error
    kept = f" ({report.kept} of them before)" if report.kept else ""
    print(f"{args.out}: {report.written + report.kept} videos{kept} in {report.num_shards} archives")
    if report.left_out:
        name, reason = report.left_out[0]
        print(f"{len(report.left_out)} left out, the first {name}: {reason}; all in {args.out / 'left_out.tsv'}")
    print(f"train with --data.train {args.out.resolve()}, or its address in an object store")
    return 1 if report.left_out else 0


if __name__ == "__main__":
    end_with(main)
