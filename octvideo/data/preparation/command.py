"""The command line of tools/prepare_dataset.py: list, verify, reencode, download."""

from __future__ import annotations

from collections.abc import Sequence

from octvideo.data.preparation import download_command, list_command, reencode_command
from octvideo.program import Parser, command

_DESCRIPTION = """Gets a data set ready to train on.

  download   the public archives of a data set, checked and unpacked
  list       writes train.txt, val.txt ... and classes.txt by the official lists, and names what is missing and extra
  verify     the same without lists; exit code 1 where a video is missing
  reencode   a copy with a short side of 256 or 320 pixels, short GOPs and no sound, which loads faster"""


@command(stopped="stopped; the same command goes on where it was")
def main(argv: Sequence[str]) -> int:
    """Returns 0; 1 where something is missing or failed."""
    parser = Parser(prog="prepare_dataset.py", description=_DESCRIPTION)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    download_command.add_arguments(commands.add_parser("download", help="the public archives of a data set"))
    list_command.add_arguments(commands.add_parser("list", help="lists for octvideo"))
    list_command.add_arguments(commands.add_parser("verify", help="what is missing and extra"))
    reencode_command.add_arguments(commands.add_parser("reencode", help="a smaller copy that loads faster"))
    args = parser.parse_args(argv)
    if args.command == "download":
        return download_command.run(args)
    if args.command == "reencode":
        return reencode_command.run(args)
    return list_command.run(args, lists=args.command == "list")
