#!/usr/bin/env python
"""Lets torchcodec use the FFmpeg in PyAV's wheel: `eval "$(python tools/link_ffmpeg.py FOLDER)"`, then any command.

For Linux machines without FFmpeg's shared libraries, or where nobody may install them. It fills FOLDER with links
and prints the line that has the system's loader look there.
"""

import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

# So that it runs from a checkout that is not installed.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from octvideo.cli.arguments import Parser
from octvideo.cli.ending import command, end_with
from octvideo.video.ffmpeg_libraries import link_ffmpeg


@command()
def main(argv: Sequence[str]) -> int:
    """Returns 0."""
    parser = Parser(description=__doc__)
    parser.add_argument("folder", type=Path, metavar="FOLDER", help="for the links; made if it is not there")
    folder = parser.parse_args(argv).folder.absolute()
    links = link_ffmpeg(folder)
    print(f"{', '.join(link.name for link in links)} in {folder}", file=sys.stderr)
    print(f"export LD_LIBRARY_PATH={shlex.quote(str(folder))}${{LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}}")
    return 0


if __name__ == "__main__":
    end_with(main)
