"""Copies a data set into tar archives: `octvideo shards train.txt --root data/mine -o shards/train`.

The archives (WebDataset's format) can lie on any disk, or in an object store; `--data.train` takes the folder, or its
address. Stopped at any moment, the same command goes on. With --index, archives that another program wrote get the
index that octvideo reads: `octvideo shards --index FOLDER`.
"""

from __future__ import annotations

from argparse import Namespace
from pathlib import Path

from octvideo.cli.arguments import Parser, positive
from octvideo.data.datamodule import VideoDataModule
from octvideo.data.shard_writer import index_shards, write_shards
from octvideo.errors import UserError
from octvideo.parts import indices_of_part
from octvideo.progress import Progress

STOPPED = "\nstopped: whole archives are kept, the same command goes on"


def add_arguments(parser: Parser) -> None:
    add = parser.add_argument
    add("source", nargs="?", metavar="SOURCE", help="list, csv of Kinetics, folder of class folders: as data.train")
    parser.shared("output", metavar="DIR", help="folder for the archives")
    add("--root", type=Path, default=Path(), metavar="DIR", help="where the source and the paths in it start (.)")
    add(
        "--classes",
        metavar="NAME|FILE",
        help="kinetics400, -600, -700, or a file of names (ROOT/classes.txt)",
    )
    add("--shard_mb", type=positive, default=512, metavar="MB", help="size at which an archive is closed (512)")
    add("--shuffle", type=int, metavar="SEED", help="mix the videos, for programs that read streams")
    add("--unlabelled", action="store_true", help="the videos need no labels")
    parser.shared("part", help="only part I of N, into OUTPUT/part-I-of-N; octvideo join puts the parts together")
    add("--index", type=Path, metavar="FOLDER", help="only index the archives in a folder")


def run(args: Namespace) -> int:
    """Returns 0; 1 where videos were left out."""
    if args.index is not None:
        print(f"{args.index}: {index_shards(args.index)} videos indexed")
        return 0
    out: Path | None = args.output
    if args.source is None or out is None:
        raise UserError("give a source and a folder for the archives: octvideo shards SOURCE -o FOLDER")
    role = "predict" if args.unlabelled else "train"
    data = VideoDataModule(str(args.root), **{role: args.source}, classes=args.classes)
    videos = data.videos(role)
    total = len(videos)
    if args.part is not None:
        out = out / f"part-{args.part.number}-of-{args.part.count}"
        total = len(indices_of_part([video.path for video in videos], args.part))
    with Progress("writing videos", total) as progress:
        report = write_shards(
            videos,
            out,
            root=args.root,
            class_names=data.class_names,
            shard_bytes=args.shard_mb * 2**20,
            shuffle=args.shuffle,
            part=args.part,
            advance=progress.advance,
        )
    kept = f" ({report.kept} of them before)" if report.kept else ""
    print(f"{out}: {report.written + report.kept} videos{kept} in {report.num_shards} archives")
    if report.left_out:
        name, reason = report.left_out[0]
        print(f"{len(report.left_out)} left out, the first {name}: {reason}; all in {out / 'left_out.tsv'}")
    if args.part is not None:
        print(f"when all parts are there: octvideo join {args.output}/part-*-of-{args.part.count} -o {args.output}")
        return 1 if report.left_out else 0
    print(f"train with --data.train {out.resolve()}, or its address in an object store")
    return 1 if report.left_out else 0
