#!/usr/bin/env python
"""Videos of two labels out of clips of one: `python tools/pair_clips.py DIR -o data/pairs`; options: `--help`."""

from lab.pairs import main
from octvideo.cli.ending import end_with

if __name__ == "__main__":
    end_with(main)
