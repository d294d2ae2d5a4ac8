#!/usr/bin/env python
"""Tests a trained network with all its views: `python tools/test.py --cfg i3d_oct.yaml [--ckpt best|last|PATH]`.

Without --cfg, the config saved with the checkpoint is used. Prints the table, and writes scores.npz and
predictions.csv into the run's folder. The same as `octvideo test`.
"""

import sys
from pathlib import Path

# So that it runs from a checkout that is not installed.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from octvideo.cli import end_with, main

if __name__ == "__main__":
    end_with(lambda: main(["test", *sys.argv[1:]]))
