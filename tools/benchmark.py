#!/usr/bin/env python
"""Times networks beside each other: `python tools/benchmark.py i3d_r50 i3d_r50:alpha=.25 --rounds 10`, or
`--preset cpu-eager`; all options: `--help`.
"""

import sys
from pathlib import Path

# So that it runs from a checkout that is not installed.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from lab.benchmark.command import main
from octvideo.cli.allocator import keep_freed_memory
from octvideo.cli.ending import end_with

if __name__ == "__main__":
    keep_freed_memory()
    end_with(main)
