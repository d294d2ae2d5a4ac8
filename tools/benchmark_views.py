#!/usr/bin/env python
"""How many clips a second one core classifies: `python tools/benchmark_views.py VIDEO [ARM ...] --views 1 3 10 30`;
all options: `--help`.
"""

from lab.views import main
from octvideo.cli.allocator import keep_freed_memory
from octvideo.cli.ending import end_with

if __name__ == "__main__":
    keep_freed_memory()
    end_with(main)
