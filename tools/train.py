#!/usr/bin/env python
"""Trains a network: `python tools/train.py --cfg i3d_oct.yaml [--KEY VALUE ...]`.

--resume goes on with an interrupted run, --init CKPT starts from other weights (a new head where classes
differ), --name NAME names the run (its folder is runs/NAME), --help lists every key. The same as
`octvideo fit`.
"""

import sys
from pathlib import Path

# So that it runs from a checkout that is not installed.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from octvideo.cli import end_with, main

if __name__ == "__main__":
    end_with(lambda: main(["fit", *sys.argv[1:]]))
