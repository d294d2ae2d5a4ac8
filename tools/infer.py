#!/usr/bin/env python
"""Names the actions in videos: `python tools/infer.py VIDEO|FOLDER ... [--ckpt RUN|FILE] [--topk 5] [--json]`.

Without --ckpt it takes pytorchvideo's Kinetics-400 I3D weights, downloaded once. The same as `octvideo infer`.
"""

import sys
from pathlib import Path

# So that it runs from a checkout that is not installed.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from octvideo.cli import end_with, main

if __name__ == "__main__":
    end_with(lambda: main(["infer", *sys.argv[1:]]))
