#!/usr/bin/env python
"""What a GPU says of octvideo, in eight minutes: `python tools/gpu_report.py --out runs/gpu-report`; options: --help.

It writes report.md, which is whole after every result.
"""

from lab.gpu_report.command import main
from octvideo.cli.ending import end_with

if __name__ == "__main__":
    end_with(main)
