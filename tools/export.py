#!/usr/bin/env python
"""Writes a trained network for serving: `python tools/export.py --ckpt PATH|last --engine openvino -o FOLDER`.

The folder holds the model, its classes and settings, and a program that needs no octvideo (docs/serving.md).
"""

import sys
from pathlib import Path

# So that it runs from a checkout that is not installed.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from octvideo.inference.export_command import main
from octvideo.program import end_with

if __name__ == "__main__":
    end_with(main)
