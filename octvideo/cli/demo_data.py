"""Writes the demo data set: small H.264 videos of moving shapes in eight classes of motion.

Run again, it writes only what is missing.
"""

from __future__ import annotations

import time
from argparse import Namespace
from pathlib import Path

from octvideo.cli.arguments import Parser
from octvideo.data.synthetic import CLASS_NAMES, DemoSettings, write_demo

STOPPED = "stopped; given again, the command writes what is missing"


def add_arguments(parser: Parser) -> None:
    parser.shared("output", default=Path("data/demo"), metavar="DIR", help="folder to write (data/demo)")
    parser.add_argument("--videos_per_class", type=int, default=60, metavar="N", help="for training (60)")
    parser.add_argument("--test_videos_per_class", type=int, default=10, metavar="N", help="and for tests (10)")
    parser.shared("seed", help="another seed, other videos (0)")
    parser.shared("num_workers", help="videos made at once (one per CPU)")
    parser.shared("overwrite", help="replace demo data of other settings")


def run(args: Namespace) -> int:
    """Returns 0."""
    start = time.monotonic()
    settings = DemoSettings(args.videos_per_class, args.test_videos_per_class, args.seed)
    written = write_demo(args.output, settings, workers=args.num_workers, overwrite=args.overwrite)
    total = len(CLASS_NAMES) * (settings.videos_per_class + settings.test_videos_per_class)
    seconds = time.monotonic() - start
    print(
        f"{args.output}: {total} videos of {len(CLASS_NAMES)} classes, {written} of them written now ({seconds:.0f} s)"
    )
    return 0
