#!/usr/bin/env python
"""What a whole video takes on one core, beside published accuracy: `python tools/benchmark_views.py --rows FILE`;
all options: `--help`.
"""

from lab.views import main
from octvideo.cli.allocator import keep_freed_memory
from octvideo.cli.ending import end_with

if __name__ == "__main__":
    keep_freed_memory()
    end_with(main)
