"""The command line of tools/prepare_dataset.py: list, verify, reencode, download."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from octvideo.data.preparation import download_command, list_command, reencode_command
from octvideo.errors import UserError

_DESCRIPTION = """Gets a data set ready to train on.

  download   the public archives of a data set, checked and unpacked
  list       writes train.txt, val.txt ... and classes.txt by the official lists, and names what is missing and extra
  verify     the same without lists; exit code 1 where a video is missing
  reencode   a copy with a short side of 256 or 320 pixels, short GOPs and no sound, which loads faster"""


def main(argv: Sequence[str] | None = None) -> int:
    """Returns 0; 1 where something is missing or failed, 2 for a mistake of the user's, 130 after Ctrl-C."""
    parser = argparse.ArgumentParser(
        prog="prepare_dataset.py", description=_DESCRIPTION, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    download_command.add_arguments(commands.add_parser("download", help="the public archives of a data set"))
    list_command.add_arguments(commands.add_parser("list", help="lists for octvideo"))
    list_command.add_arguments(commands.add_parser("verify", help="what is missing and extra"))
    reencode_command.add_arguments(commands.add_parser("reencode", help="a smaller copy that loads faster"))
    args = parser.parse_args(argv)
    try:
        if args.command == "download":
            return download_command.run(args)
        if args.command == "reencode":
            return reencode_command.run(args)
        return list_command.run(args, lists=args.command == "list")
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except (PermissionError, FileExistsError, NotADirectoryError, IsADirectoryError) as error:
        print(f"error: {error.strerror}: {error.filename}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("stopped; the same command goes on where it was", file=sys.stderr)
        return 130
