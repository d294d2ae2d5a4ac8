#!/usr/bin/env python
"""Damages videos and reads them: `python tools/fuzz_readers.py VIDEO|FOLDER ... [--count 1000] [--seed 0]`.

Each copy must give frames or one VideoReadError, within --timeout and --memory, with every decoder. Whatever else
comes of it is a failure: its copy is kept, and the line that makes it again is printed. Videos are damaged in turn;
seed, number and the order of the videos tell a copy.
"""

import argparse
import shlex
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import get_args

from lab.fuzzing import Finding, fuzz
from octvideo.cli.arguments import Parser
from octvideo.cli.ending import command, end_with
from octvideo.cli.tables import print_table
from octvideo.cli.video_arguments import find_videos
from octvideo.progress import track
from octvideo.video import Decoder
from octvideo.video.reader import check_decoder


@command()
def main(argv: Sequence[str]) -> int:
    """Returns 0, or 1 if something failed."""
    parser = Parser(description=__doc__)
    parser.add_argument("videos", nargs="+", metavar="VIDEO|FOLDER", help="intact videos")
    parser.add_argument("--count", type=int, default=1000, metavar="N", help="of damaged copies (1000)")
    parser.add_argument("--first", type=int, default=0, metavar="N", help="number of the first (0)")
    parser.shared("seed", help="of the damage (0)")
    parser.shared("decoder", nargs="+", choices=get_args(Decoder), default=["auto", "decord"], help="(auto decord)")
    parser.shared("timeout", default=10.0, help="for a copy and a reader (10)")
    parser.add_argument("--memory", type=float, default=1, metavar="GB", help="likewise (1)")
    parser.shared("num_workers", default=1, help="copies read at once (1)")
    parser.add_argument("--keep", type=Path, default=Path("runs/fuzz"), metavar="DIR", help="of copies (runs/fuzz)")
    return 1 if run(parser.parse_args(argv)) else 0


def run(args: argparse.Namespace) -> int:
    """Prints failures as they come and a table at the end; returns the number of failures."""
    videos = [Path(video) for video in find_videos(args.videos)]
    for decoder in args.decoder:
        check_decoder(decoder)
    counts: dict[str, Counter[str]] = {decoder: Counter() for decoder in args.decoder}
    findings = fuzz(
        videos,
        range(args.first, args.first + args.count),
        decoders=args.decoder,
        seed=args.seed,
        timeout_s=args.timeout,
        memory_bytes=int(args.memory * 2**30),
        keep=args.keep,
        num_processes=args.num_workers,
    )
    for finding in track(findings, "fuzzing", args.count * len(args.decoder)):
        counts[finding.case.decoder][finding.kind] += 1
        if finding.failed:
            tell(finding, args)
    kinds = sorted({kind for count in counts.values() for kind in count}, key=lambda kind: (kind != "frames", kind))
    rows = [(decoder, *(str(count[kind]) for kind in kinds)) for decoder, count in counts.items()]
    print_table(["decoder", *kinds], rows)
    return sum(number for count in counts.values() for kind, number in count.items() if kind not in ("frames", "error"))


def tell(finding: Finding, args: argparse.Namespace) -> None:
    """One failure, and how to see it again."""
    case = finding.case
    again = ["python", "tools/fuzz_readers.py", *args.videos, "--seed", str(args.seed)]
    again += ["--first", str(case.number), "--count", "1", "--decoder", case.decoder]
    print(f"{case.decoder}: {finding.what}\n  {case.video.name}, {case.done}\n  {shlex.join(again)}")
    if finding.details:
        print(finding.details)


if __name__ == "__main__":
    end_with(main)
