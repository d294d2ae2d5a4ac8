"""The command `octvideo`: one table of its commands, and a file for each.

lightning.py      fit, validate, test and predict: Lightning's CLI, the only file that knows every package
config_files.py   configs by name, and what was typed becomes what the parser of Lightning's CLI reads
help_page.py      its help as a page; mistakes.py: its errors in one line
infer.py, timeline.py, features.py, export.py, ...   the other commands: `add_arguments(parser)` and `run(args)`
live.py           the part of timeline for streams and cameras
join.py           outputs of parts of a list become one
on_ray.py         what several commands need to work on a cluster
model_arguments.py, video_arguments.py   which network, which videos: options of several commands, and what they mean
arguments.py      how words are read: options that several commands have, types, one spelling
ending.py         how programs end: exit codes and errors in one place
tables.py         how commands print tables
allocator.py      memory that is kept between steps

A new command is a line in `GROUPS` and a file. Nothing imports this package but the programs in tools/.
"""

from __future__ import annotations

import importlib
import os
from collections.abc import Sequence
from typing import NamedTuple, NoReturn

from octvideo._version import __version__
from octvideo.cli.arguments import Parser
from octvideo.cli.ending import command, end_with
from octvideo.cli.mistakes import meant
from octvideo.errors import UserError


class Command(NamedTuple):
    """A command: the module of this package that has it, and what it does, in a line."""

    module: str
    help: str


GROUPS: dict[str, dict[str, Command]] = {
    "Train": {
        "fit": Command("lightning", "train a network; --resume goes on with an interrupted run"),
        "validate": Command("lightning", "metrics on the validation set, with the few views that training takes"),
        "test": Command("lightning", "metrics on the test set with all views; writes scores.npz and predictions.csv"),
        "predict": Command("lightning", "classes of videos without labels; writes them into predict/ of the run"),
        "configs": Command("configs", "list the configs, or copy one to change it"),
    },
    "Use": {
        "infer": Command("infer", "name the actions in videos"),
        "timeline": Command(
            "timeline", "say what happens when in long videos and streams; writes scores, tables, subtitles"
        ),
        "features": Command("features", "write feature vectors of videos, with their times"),
        "similar": Command("similar", "find videos that are like another one, among such features"),
        "join": Command("join", "put the outputs of parts of a list together"),
        "convert": Command("convert", "make a trained network octave, without labels or training"),
        "export": Command("export", "write a trained network for serving, with a program that needs no octvideo"),
        "serve": Command("serve", "answer uploads over HTTP: a page, and JSON"),
    },
    "Data": {
        "prepare": Command("prepare", "download a data set, write its lists, verify it, or make a smaller copy"),
        "browse": Command(
            "browse", "show what a network gets in training: augmented and mixed clips with their labels"
        ),
        "check": Command("check", "decode every video, and list those that can't be read"),
        "shards": Command("shards", "copy a data set into tar archives"),
        "demo-data": Command("demo_data", "write the demo data set: moving shapes in eight classes"),
    },
    "Measure": {
        "report": Command("report", "table and picture of a run"),
        "explain": Command("explain", "show what a network looks at in a video, by high and by low frequency"),
        "card": Command("card", "write a network's model card; --hub: its weights too, as a folder to share"),
        "score": Command("score", "metrics from saved scores; compare runs video by video"),
        "cost": Command("cost", "multiply-adds, parameters and memory of networks at several alphas"),
    },
}
COMMANDS = {name: command for group in GROUPS.values() for name, command in group.items()}
_PAGE = """usage: octvideo COMMAND ...

Trains, tests and uses networks that recognise actions in videos, with 3D octave convolution.

{commands}

Examples:
  octvideo demo-data && octvideo fit -c demo && octvideo test -c demo
  octvideo infer video.mp4 --ckpt demo
  octvideo configs copy i3d_oct my_i3d.yaml

octvideo COMMAND --help tells all of a command. Each takes --debug: show tracebacks of errors too.
What training and tests write lies in runs/NAME/; a run is found by its name."""


def program() -> NoReturn:
    """The command `octvideo`."""
    end_with(main)


@command()
def main(argv: Sequence[str]) -> int:
    """Runs the command line and returns the exit code; see `ending.command`.

    Args:
        argv: without the program's name.
    """
    # Before torch is imported. Threads of OpenMP that wait for work otherwise spin, which takes the cores from
    # processes that load videos, and from other programs.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    name, *words = argv or ["-"]
    if name in ("-h", "--help"):
        print(front_page())
        return 0
    if name == "--version":
        print(f"octvideo {__version__}")
        return 0
    if name.startswith("-"):
        raise UserError(f"no command given: octvideo {'|'.join(COMMANDS)} ... (octvideo --help)")
    if name not in COMMANDS:
        raise UserError(f"no command '{name}'{meant(name, COMMANDS)}: there are {', '.join(COMMANDS)}")
    module = importlib.import_module(f"octvideo.cli.{COMMANDS[name].module}")
    try:
        if COMMANDS[name].module == "lightning":  # whose parser is jsonargparse's
            return int(module.run([name, *words]))
        parser = Parser(prog=f"octvideo {name}", description=module.__doc__)
        module.add_arguments(parser)
        return int(module.run(parser.parse_args(words)))
    except KeyboardInterrupt as error:
        raise KeyboardInterrupt(str(error) or getattr(module, "STOPPED", "")) from None


def front_page() -> str:
    """What `octvideo --help` prints."""
    lines = []
    for title, group in GROUPS.items():
        lines += ["", f"{title}:", *(f"  {name:<11} {command.help}" for name, command in group.items())]
    return _PAGE.format(commands="\n".join(lines[1:]))
