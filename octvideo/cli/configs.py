"""Lists the configs that are found by name, each with what it trains; `octvideo configs copy NAME` gives you your own.

A config is looked for by name in the current folder, in its configs/, and then among those that octvideo brings.
"""

from __future__ import annotations

import argparse
import itertools
from pathlib import Path

from octvideo.cli.arguments import Parser
from octvideo.cli.config_files import FOLDERS, SHIPPED, config_name, find_config, with_bases
from octvideo.errors import UserError
from octvideo.files import read_text, whole_text


def add_arguments(parser: Parser) -> None:
    parser.set_defaults(run=_list)
    commands = parser.add_subparsers(metavar="list|copy")
    commands.add_parser("list", help="list them, as octvideo configs alone does")
    copy = commands.add_parser("copy", help="write a config of your own: copy NAME [DEST]")
    copy.set_defaults(run=_copy)
    copy.add_argument("name", metavar="NAME", help="of a config (octvideo configs)")
    copy.add_argument("dest", nargs="?", type=Path, metavar="DEST", help="file or folder to write (NAME.yaml)")
    copy.shared("overwrite", help="replace DEST")


def run(args: argparse.Namespace) -> int:
    """Returns 0."""
    args.run(args)
    return 0


def _list(args: argparse.Namespace) -> None:
    for number, folder in enumerate(dict.fromkeys(folder.resolve() for folder in FOLDERS if folder.is_dir())):
        files = sorted(folder.glob("*.yaml"))
        width = max((len(config_name(file)) for file in files), default=0)
        print("\n" * (number > 0) + ("Brought by octvideo:" if folder == SHIPPED else f"In {folder}:"))
        for file in files:
            print(f"  {config_name(file):<{width}}  {first_sentence(read_text(file))}")
    print("\nTrain with one: octvideo fit -c NAME    Change one: octvideo configs copy NAME my_name.yaml")


def first_sentence(text: str) -> str:
    """Of the comment that a config starts with."""
    comment = itertools.takewhile(lambda line: line.startswith("#"), text.splitlines())
    return " ".join(line.strip("# ") for line in comment).partition(". ")[0].rstrip(".:")


def _copy(args: argparse.Namespace) -> None:
    source = find_config(args.name)
    dest = args.dest or Path(source.name)
    dest = dest / source.name if dest.is_dir() else dest
    if dest.suffix not in (".yaml", ".yml"):
        dest = dest.with_name(f"{dest.name}.yaml")
    if dest.exists() and not args.overwrite:
        raise UserError(f"{dest} is there already: give another name, octvideo configs copy {args.name} DEST, "
                        "or replace it with --overwrite")  # fmt: skip
    lines = read_text(source).splitlines(keepends=True)
    start = next((n for n, line in enumerate(lines) if not line.startswith("#")), len(lines))
    bases = " ← ".join(file.name for file in reversed(with_bases(source)[:-1]))
    note = f"# Copied from octvideo's {source.name}"
    note += f", which starts from {bases}: found by name, beside this file first.\n" if bases else ".\n"
    dest.parent.mkdir(parents=True, exist_ok=True)
    with whole_text(dest) as text:
        text.writelines([*lines[:start], note, *lines[start:]])
    print(f"{dest}: a copy of {source}; train with octvideo fit -c {dest}")
