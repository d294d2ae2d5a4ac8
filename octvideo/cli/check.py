"""Decodes every video and says which can't be read: `octvideo check FOLDER|VIDEO|LIST|CSV ... [-o DIR]`.

DIR gets journal.jsonl, a line for each file as it is done, and quarantine.txt, the list of unreadable ones that
data sets leave out (--data.quarantine DIR/quarantine.txt). Stopped at any moment and given again, the command goes
on; it looks again at files that have changed. Each file is decoded in a process that may hang, crash or grow.
"""

from __future__ import annotations

import time
from argparse import Namespace
from pathlib import Path
from typing import get_args

from octvideo.cli.arguments import Parser, above_zero, output_folder, share
from octvideo.cli.on_ray import isolated_on_ray, ray_arguments
from octvideo.cli.tables import print_table
from octvideo.cli.video_arguments import list_name
from octvideo.data.checking import Journal, Selection, Summary, check_all, part_of_selection, select
from octvideo.data.quarantine import QUARANTINE, printable, put_quarantine, write_quarantine
from octvideo.data.workers import available_cpus
from octvideo.errors import UserError
from octvideo.progress import Progress
from octvideo.stores import StoredFolder, file_name
from octvideo.video import Decoder, FrameNames
from octvideo.video.reader import check_decoder

STOPPED = "stopped; given again, the command goes on from here"
VERDICTS = ("ok", "partly", "unreadable")


def add_arguments(parser: Parser) -> None:
    parser.add_argument(
        "sources", nargs="+", metavar="FOLDER|VIDEO|LIST|CSV", help="what to check, here or at an address"
    )
    parser.shared("output", type=output_folder, metavar="DIR", help="(runs/check_videos/NAME OF THE ROOT)")
    parser.add_argument("--root", metavar="DIR", help="where paths start: data.root (what sources share)")
    parser.shared("frame_names", "first_frame", "part")
    parser.shared("decoder", choices=get_args(Decoder))
    parser.shared("num_workers", help="files decoded at once (one per CPU)")
    parser.shared("timeout", help="without a new piece of a video (60)")
    parser.add_argument("--memory", type=above_zero, default=2.0, metavar="GB", help="for decoding one file (2)")
    parser.shared("retry", help="look again at what was not ok")
    parser.add_argument(
        "--min_readable",
        type=share,
        default=0.0,
        metavar="SHARE",
        help="files of whose frames less than this share can be read are quarantined too, 0 to 1 (0)",
    )
    ray_arguments(parser, gpus=False)


def run(args: Namespace) -> int:
    """Checks, writes the quarantine list and prints a summary; returns 0 if all is well, 1 if something is not."""
    check_decoder(args.decoder)
    frames = None if args.frame_names is None else FrameNames(args.frame_names, args.first_frame)
    selection = select([list_name(source) for source in args.sources], root=args.root, frames=frames)
    out = args.output or Path("runs/check_videos", file_name(selection.root) or "root")
    if args.part is not None:
        if args.output is None:
            raise UserError(f"--part {args.part} without -o/--output: each part needs a folder of its own")
        selection = part_of_selection(selection, args.part)
    with Journal(out, root=selection.root, decoder=args.decoder, part=args.part) as journal:
        with Progress("checking", len(selection.names)) as progress:
            shown = Shown(progress)
            summary = check_all(
                selection,
                journal,
                decoder=args.decoder,
                num_processes=args.num_workers or available_cpus(),
                timeout_s=args.timeout,
                memory_bytes=int(args.memory * 2**30),
                again=args.retry,
                tell=shown.files,
                tell_within=shown.within,
                make_pool=isolated_on_ray(args, len(selection.names), progress.print),
            )
        bad = (
            (entry["path"], entry["reason"])
            for entry in journal.not_ok().values()
            if not entry.get("again")
            and (entry["verdict"] == "unreadable" or entry["frames"] < args.min_readable * entry["announced"])
        )
        if isinstance(out, StoredFolder):
            number = put_quarantine(out, selection.root, bad)
        else:
            number = write_quarantine(out / QUARANTINE, selection.root, bad)
        say(selection, summary, journal, out / QUARANTINE, number)
    return 1 if summary.verdicts["partly"] or summary.verdicts["unreadable"] or selection.closed else 0


class Shown:
    """Counts so far, files a second, and how far the files are that are being read."""

    def __init__(self, progress: Progress) -> None:
        self._progress, self._started = progress, time.monotonic()
        self._counts, self._within = "", dict[str, str]()

    def files(self, summary: Summary, name: str) -> None:
        """One more is done."""
        self._within.pop(name, None)
        rate = (summary.verdicts.total() - summary.num_known) / max(time.monotonic() - self._started, 0.001)
        said = ", ".join(f"{summary.verdicts[verdict]} {verdict}" for verdict in VERDICTS)
        self._counts = f"{said}; {rate:.{0 if rate >= 100 else 1}f} files/s"
        self._update(summary.verdicts.total())

    def within(self, name: str, done: int, total: int) -> None:
        """Frames of one file are read, of so many."""
        if total:
            self._within[name] = f"{printable(Path(name).name)} {min(done / total, 1):.0%}"
            self._update()

    def _update(self, done: int | None = None) -> None:
        self._progress.update(done, said="; ".join(filter(None, [self._counts, *self._within.values()])))


def say(selection: Selection, summary: Summary, journal: Journal, quarantine: Path | str, number: int) -> None:
    """The summary."""
    counts = [(verdict, summary.verdicts[verdict]) for verdict in VERDICTS]
    rows = [(verdict, f"{count:,}", f"{count / max(len(selection.names), 1):.2%}") for verdict, count in counts]
    print_table(["", "files", "share"], rows)
    if summary.num_known:
        print(f"{summary.num_known:,} of them were known from before and have not changed")
    if selection.num_twice:
        print(f"{selection.num_twice:,} files were named more than once")
    if selection.num_passed_over:
        print(f"{selection.num_passed_over:,} files of the folders are not called like videos and were passed over")
    for folder, reason in selection.closed:
        print(printable(f"can't list the folder {folder}: {reason}"))
    for reason, count in summary.reasons.most_common(10):
        print(printable(f"{count:,} x {reason}, such as {summary.examples[reason]}"))
    if len(summary.reasons) > 10:
        print(f"and {len(summary.reasons) - 10} other reasons")
    if hidden := sum(bool(entry.get("again")) for entry in journal.not_ok().values()):
        print(f"{hidden:,} could not be reached for now; they are in no list, and the same command tries them again")
    print(printable(f"all results: {journal.name}"))
    place = quarantine.absolute() if isinstance(quarantine, Path) else quarantine
    print(printable(f"{number:,} in the quarantine list; to leave them out: --data.quarantine {place}"))
