#!/usr/bin/env python
"""What loading videos costs, and whether a GPU would wait: `python tools/benchmark_loading.py VIDEO|FOLDER ...`;
all options: `--help`.
"""

from lab.loading.command import main
from octvideo.cli.ending import end_with

if __name__ == "__main__":
    end_with(main)
