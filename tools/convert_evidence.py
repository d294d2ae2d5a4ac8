#!/usr/bin/env python
"""What conversion without training keeps of image networks with ImageNet weights: `python tools/convert_evidence.py
--weights efficientnet_lite0=FILE --data DIR -o runs/evidence`; all options: `--help`.
"""

from lab.probes.command import main
from octvideo.cli.ending import end_with

if __name__ == "__main__":
    end_with(main)
