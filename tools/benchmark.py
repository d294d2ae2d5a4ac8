#!/usr/bin/env python
"""Times networks beside each other: `python tools/benchmark.py i3d_r50 i3d_r50:alpha=.25 --rounds 10`, or
`--preset cpu-eager`; all options: `--help`.
"""

from lab.benchmark.command import main
from octvideo.cli.allocator import keep_freed_memory
from octvideo.cli.ending import end_with

if __name__ == "__main__":
    keep_freed_memory()
    end_with(main)
