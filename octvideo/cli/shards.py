"""Copies a data set into tar archives: `octvideo shards train.txt --root data/mine -o shards/train`.

The archives (WebDataset's format) can lie on any disk, or in an object store; `--data.train` takes the folder, or its
address. Stopped at any moment, the same command goes on. With --index, archives that another program wrote get the
index that octvideo reads: `octvideo shards --index FOLDER`.
"""

from __future__ import annotations

import math
from argparse import Namespace
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from octvideo.cli.arguments import Parser, output_folder, positive
from octvideo.cli.on_ray import ray_arguments, ray_pool
from octvideo.cli.video_arguments import list_name
from octvideo.cluster.pool import Lost
from octvideo.data.datamodule import VideoDataModule
from octvideo.data.records import VideoRecord
from octvideo.data.shard_joining import join_shards
from octvideo.data.shard_writer import ShardReport, index_shards, write_shards
from octvideo.errors import UserError
from octvideo.parts import Part, indices_of_part, sizes_of_files
from octvideo.progress import Progress
from octvideo.stores import StoredFolder

STOPPED = "\nstopped: whole archives are kept, the same command goes on"
_SHARDS_OF_PART, _MOST_PARTS = 4, 10_000


def add_arguments(parser: Parser) -> None:
    add = parser.add_argument
    add("source", nargs="?", metavar="SOURCE", help="list, csv of Kinetics, folder of class folders: as data.train")
    parser.shared("output", type=output_folder, metavar="DIR", help="folder for the archives, here or in a store")
    add("--root", default=".", metavar="DIR", help="where the source and the paths in it start, or its address (.)")
    add(
        "--classes",
        metavar="NAME|FILE",
        help="kinetics400, -600, -700, or a file of names (ROOT/classes.txt)",
    )
    parser.shared("frame_names", "first_frame", "frame_fps")
    add("--shard_mb", type=positive, default=512, metavar="MB", help="size at which an archive is closed (512)")
    add("--shuffle", type=int, metavar="SEED", help="mix the videos, for programs that read streams")
    add("--several_labels", action="store_true", help="videos may have several labels, 'path a;b'")
    add("--unlabelled", action="store_true", help="the videos need no labels")
    parser.shared("part", help="only part I of N, into OUTPUT/part-I-of-N; octvideo join puts the parts together")
    ray_arguments(parser, gpus=False)
    add("--index", type=Path, metavar="FOLDER", help="only index the archives in a folder")


def run(args: Namespace) -> int:
    """Returns 0; 1 where videos were left out."""
    if args.index is not None:
        print(f"{args.index}: {index_shards(args.index)} videos indexed")
        return 0
    out: Path | StoredFolder | None = args.output
    args.source = args.source and list_name(args.source)
    if args.source is None or out is None:
        raise UserError("give a source and a folder for the archives: octvideo shards SOURCE -o FOLDER")
    if args.on is not None:
        return _run_on_cluster(args, out)
    writer = ShardWriter(args)
    writer.begin()
    total = len(writer.videos)
    if args.part is not None:
        out = folder_of_part(out, args.part)
        total = len(indices_of_part([video.path for video in writer.videos], args.part))
    with Progress("writing videos", total) as progress:
        report = writer.write(out, args.part, progress.advance)
    kept = f" ({report.kept} of them before)" if report.kept else ""
    print(f"{out}: {report.written + report.kept} videos{kept} in {report.num_shards} archives")
    if report.left_out:
        name, reason = report.left_out[0]
        print(f"{len(report.left_out)} left out, the first {name}: {reason}; all in {out / 'left_out.tsv'}")
    if args.part is not None:
        print(f"when all parts are there: octvideo join {args.output}/part-*-of-{args.part.count} -o {args.output}")
        return 1 if report.left_out else 0
    print(train_with(out))
    return 1 if report.left_out else 0


def train_with(out: Path | StoredFolder) -> str:
    """What is said of a folder of shards that is whole."""
    if isinstance(out, StoredFolder):
        return f"train with --data.train {out}"
    return f"train with --data.train {out.resolve()}, or its address in an object store"


def folder_of_part(out: Path | StoredFolder, part: Part) -> Path | StoredFolder:
    """Where a part is."""
    name = f"part-{part.number}-of-{part.count}"
    return out.inside(name) if isinstance(out, StoredFolder) else out / name


class ShardWriter:
    """Writes the archives of all videos or of parts; what a process of a cluster does for `octvideo shards`.

    Args:
        args: of the command.
    """

    def __init__(self, args: Namespace) -> None:
        self._args = args
        self.videos: Sequence[VideoRecord] = ()
        self._class_names: Sequence[str] = ()

    def begin(self) -> int:
        """Reads the list; returns how many parts it is worth."""
        role = "predict" if self._args.unlabelled else "train"
        args = self._args
        images = {"frame_names": args.frame_names, "first_frame": args.first_frame, "frame_fps": args.frame_fps}
        several = {"several_labels": args.several_labels}
        data = VideoDataModule(args.root, **{role: args.source}, classes=args.classes, **images, **several)
        self.videos, self._class_names = data.videos(role), data.class_names
        if self._args.on is None:
            return 1
        total = sum(size or 0 for size in sizes_of_files([video.path for video in self.videos]))
        return max(1, min(-(-total // (_SHARDS_OF_PART * self._args.shard_mb * 2**20)), _MOST_PARTS))

    def write(self, out: Path | StoredFolder, part: Part | None, advance: Callable[[], object]) -> ShardReport:
        """See `write_shards`."""
        args = self._args
        how = {"shard_bytes": args.shard_mb * 2**20, "shuffle": args.shuffle, "part": part, "advance": advance}
        return write_shards(self.videos, out, root=args.root, class_names=self._class_names, **how)

    def work(self, parts: Sequence[Part]) -> Iterator[ShardReport]:
        """Reports."""
        for part in parts:
            yield self.write(folder_of_part(self._args.output, part), part, lambda: None)


def _run_on_cluster(args: Namespace, out: Path | StoredFolder) -> int:
    """Parts of a few archives each, written by a cluster and joined here."""
    if args.part is not None:
        raise UserError(
            f"--part {args.part} with --on {args.on}: the cluster has parts of its own; leave one of them out"
        )
    with ray_pool(args, ShardWriter(args), timeout_s=math.inf, batch=1) as pool:
        count = pool.begin()
        parts = [Part(number, count) for number in range(1, count + 1)]
        with Progress("writing parts", count) as progress:
            pool.tell = progress.print
            for part, report in pool.run(parts, count):
                if isinstance(report, Lost):
                    raise UserError(f"part {part} is not written ({report.reason}): the same command goes on")
                progress.update(said=pool.state)
                progress.advance()
    joined = join_shards([folder_of_part(out, part) for part in parts], out)
    print(f"{out}: {joined.videos} videos in {count} folders")
    if joined.left_out:
        name, _, reason = joined.left_out[0].partition("\t")
        print(f"{len(joined.left_out)} left out, the first {name}: {reason}; all in {out / 'left_out.tsv'}")
    print(train_with(out))
    return 1 if joined.left_out else 0
