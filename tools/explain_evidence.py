#!/usr/bin/env python
"""Whether saliency finds the moving object of the demo, and what channels of networks hold:
`python tools/explain_evidence.py --runs demo demo_i3d --demo data/demo -o runs/explained`; all options: `--help`.
"""

from lab.explain.command import main
from octvideo.cli.ending import end_with

if __name__ == "__main__":
    end_with(main)
