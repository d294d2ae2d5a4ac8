#!/usr/bin/env python
"""Predicts a network's time on a GPU, without one: `python tools/roofline.py i3d_r50 --alphas 0 .25`; all options:
`--help`.
"""

from lab.roofline.command import main
from octvideo.cli.ending import end_with

if __name__ == "__main__":
    end_with(main)
