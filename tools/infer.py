#!/usr/bin/env python
"""Names the actions in videos: `python tools/infer.py VIDEO|FOLDER ... [--ckpt PATH|last] [--topk 5]
[--json]`.

Without --ckpt it takes pytorchvideo's Kinetics-400 I3D weights, downloaded once.
"""

import sys
from pathlib import Path

# So that it runs from a checkout that is not installed.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from octvideo.allocator import keep_freed_memory
from octvideo.inference.command import main
from octvideo.program import end_with

if __name__ == "__main__":
    keep_freed_memory()
    end_with(main)
