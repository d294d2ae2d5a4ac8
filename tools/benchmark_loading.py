#!/usr/bin/env python
"""What loading videos costs, and whether a GPU would wait: `python tools/benchmark_loading.py VIDEO|FOLDER ...`;
all options: `--help`.
"""

import sys
from pathlib import Path

# So that it runs from a checkout that is not installed.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from lab.loading.command import main
from octvideo.cli.ending import end_with

if __name__ == "__main__":
    end_with(main)
