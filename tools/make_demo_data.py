#!/usr/bin/env python
"""Writes the demo data set: `python tools/make_demo_data.py [--out data/demo] [--videos-per-class 60]`.

Small H.264 videos of moving shapes in eight classes of motion. Run again, it writes only what is missing.
"""

import sys
import time
from collections.abc import Sequence
from pathlib import Path

# So that it runs from a checkout that is not installed.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from octvideo.data.synthetic import CLASS_NAMES, DemoSettings, write_demo
from octvideo.program import Parser, command, end_with


@command(stopped="stopped; given again, the command writes what is missing")
def main(argv: Sequence[str]) -> int:
    """Returns 0."""
    parser = Parser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("data/demo"), help="folder to write (data/demo)")
    parser.add_argument("--videos-per-class", type=int, default=60, help="training videos of each class (60)")
    parser.add_argument("--test-videos-per-class", type=int, default=10, help="and test videos (10)")
    parser.add_argument("--seed", type=int, default=0, help="another seed, other videos (0)")
    parser.add_argument("--workers", type=int, help="videos made at once (one per CPU)")
    parser.add_argument("--overwrite", action="store_true", help="replace demo data of other settings")
    args = parser.parse_args(argv)
    start = time.monotonic()
    settings = DemoSettings(args.videos_per_class, args.test_videos_per_class, args.seed)
    written = write_demo(args.out, settings, workers=args.workers, overwrite=args.overwrite)
    total = len(CLASS_NAMES) * (settings.videos_per_class + settings.test_videos_per_class)
    print(f"{args.out}: {total} videos of {len(CLASS_NAMES)} classes, {written} of them written now", end=" ")
    print(f"({time.monotonic() - start:.0f} s)")
    return 0


if __name__ == "__main__":
    end_with(main)
