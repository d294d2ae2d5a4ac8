#!/usr/bin/env python
"""What `octvideo infer --on ray` costs beside the plain command: `python tools/benchmark_cluster.py VIDEO|FOLDER ...`;
all options: `--help`.
"""

from lab.cluster import main
from octvideo.cli.ending import end_with

if __name__ == "__main__":
    end_with(main)
