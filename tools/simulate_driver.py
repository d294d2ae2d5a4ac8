#!/usr/bin/env python
"""Time and memory of the driver of `octvideo infer --on ray` on long lists, without a cluster:
`python tools/simulate_driver.py --names 1000000`; all options: `--help`.
"""

from lab.driver import main
from octvideo.cli.ending import end_with

if __name__ == "__main__":
    end_with(main)
