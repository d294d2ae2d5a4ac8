#!/usr/bin/env python
"""What a timeline costs over its parts: `python tools/benchmark_timeline.py VIDEO --builder c2d_small`; all options:
`--help`.
"""

from lab.timeline import main
from octvideo.cli.allocator import keep_freed_memory
from octvideo.cli.ending import end_with

if __name__ == "__main__":
    keep_freed_memory()
    end_with(main)
