#!/usr/bin/env python
"""Compares a recipe's parts: `python tools/compare_recipes.py --cfg jhmdb_i3d --epochs 12`; options: `--help`."""

from lab.recipes import main
from octvideo.cli.ending import end_with

if __name__ == "__main__":
    end_with(main)
