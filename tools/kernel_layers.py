#!/usr/bin/env python
"""Times each layer of a network in the kernel: `python tools/kernel_layers.py x3d_s:alpha=0/.5`; options: `--help`."""

from lab.kernel_layers import main
from octvideo.cli.ending import end_with

if __name__ == "__main__":
    end_with(main)
