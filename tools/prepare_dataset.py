#!/usr/bin/env python
"""Gets a data set ready to train on: `python tools/prepare_dataset.py list|verify|reencode|download DATASET ROOT`.

data/README.md shows it for each data set.
"""

import sys
from pathlib import Path

# So that it runs from a checkout that is not installed.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from octvideo.data.preparation.command import main
from octvideo.program import end_with

if __name__ == "__main__":
    end_with(main)
