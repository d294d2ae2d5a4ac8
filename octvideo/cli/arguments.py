"""How words are read: one spelling of flags, types of values, and the options that several commands have."""

from __future__ import annotations

import argparse
import functools
import math
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn, TypeVar

from octvideo.cli.mistakes import meant
from octvideo.errors import UserError
from octvideo.parts import Part
from octvideo.stores import StoredCopy, StoredFolder, is_remote, shown

Number = TypeVar("Number", int, float)
DEBUG_HELP = "show tracebacks of errors too"


def positive(text: str) -> int:
    """A whole number of 1 or more, for argparse."""
    return _number(int, text, lambda value: value >= 1, "1 or more")


def above_zero(text: str) -> float:
    """A number above 0, for argparse."""
    return _number(float, text, lambda value: 0 < value < math.inf, "more than 0")


def zero_or_more(text: str) -> float:
    """A number of 0 or more, for argparse."""
    return _number(float, text, lambda value: 0 <= value < math.inf, "0 or more")


def share(text: str) -> float:
    """A number from 0 to 1, for argparse."""
    return _number(float, text, lambda value: 0 <= value <= 1, "0 to 1")


def _number(kind: Callable[[str], Number], text: str, fits: Callable[[Number], bool], expected: str) -> Number:
    try:
        value = kind(text)
    except ValueError:
        value = None
    if value is None or not fits(value):
        raise argparse.ArgumentTypeError(f"got {text}, expected {expected}")
    return value


def duration(text: str) -> float:
    """Seconds, of a time with its unit such as 200ms, 0.2s or 2 s, for argparse."""
    found = re.fullmatch(r"\s*(\d+\.?\d*|\.\d+)\s*(ms|s)\s*", text)
    seconds = float(found[1]) / (1000 if found[2] == "ms" else 1) if found else 0.0
    if not 0 < seconds < math.inf:
        raise argparse.ArgumentTypeError(f"got {text}, expected a time with its unit, such as 200ms or 0.2s")
    return seconds


def views(text: str) -> tuple[int, int]:
    """(clips, crops), of a name such as 10x3, for argparse."""
    found = re.fullmatch(r"([1-9]\d*)x([13])", text)
    if found is None:
        raise argparse.ArgumentTypeError(
            f"got {text}, expected clips x crops, of which there are 1 or 3: 1x1, 3x1, 10x3, ..."
        )
    return int(found[1]), int(found[2])


def part(text: str) -> Part:
    """A part of a list, such as 3/16, for argparse."""
    found = re.fullmatch(r"(\d+)/(\d+)", text)
    if found is None or not 1 <= int(found[1]) <= int(found[2]):
        raise argparse.ArgumentTypeError(f"got {text}, expected a part and the number of parts: 1/16 to 16/16")
    return Part(int(found[1]), int(found[2]))


def cluster_address(text: str) -> str:
    """A cluster of Ray, "ray" or "ray://HOST:PORT", for argparse."""
    if not re.fullmatch(r"ray(://[^/\s]+:\d+)?", text):
        raise argparse.ArgumentTypeError(
            f"got {text}, expected ray, or ray://HOST:PORT, the address of a cluster's head"
        )
    return text


def output_path(text: str) -> Path | StoredCopy:
    """A file or folder that is written whole or gone on with, which the standard output can't be, for argparse.

    An address is one of a file in an object store, which `Parser.stores_output` allows.
    """
    if text == "-":
        raise argparse.ArgumentTypeError("got -, expected the path of a file or folder")
    if not is_remote(text):
        if found := _LIKE_AN_ADDRESS.match(text):
            raise argparse.ArgumentTypeError(f"got {text}, which is no path: an address begins with {found[0]}/")
        return Path(text)
    try:
        return StoredCopy(text)
    except UserError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def output_folder(text: str) -> Path | StoredFolder:
    """A folder that is filled with whole files, here or in an object store, for argparse."""
    if not is_remote(text):
        path = output_path(text)
        assert isinstance(path, Path)
        return path
    try:
        return StoredFolder(text)
    except UserError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def local_name(text: str) -> str:
    """A name of something on this machine, for argparse."""
    if is_remote(text):
        raise argparse.ArgumentTypeError(f"got {shown(text)}, expected a path on this machine")
    return text


def asked_views(views: tuple[int, int] | None, num_clips: Any, num_crops: Any, prefix: str = "") -> dict[str, Any]:
    """The fields of `ViewSettings` that options ask for: --views, or --num_clips and --num_crops.

    Args:
        views: (clips, crops).
        num_clips, num_crops: as given; None is not given.
        prefix: of their names, "data." where they are keys of a config.

    Raises:
        UserError: both ways at once.
    """
    given = {name: value for name, value in (("num_clips", num_clips), ("num_crops", num_crops)) if value is not None}
    if views is None:
        return given
    if given:
        name, value = next(iter(given.items()))
        both = f"--views {views[0]}x{views[1]} with --{prefix}{name} {value}"
        raise UserError(f"{both}: both say how many views; leave one of them out")
    return {"num_clips": views[0], "num_crops": views[1]}


# Options of one meaning: wherever they are, they are spelt so.
_SHARED: dict[str, dict[str, Any]] = {
    "ckpt": {
        "metavar": "RUN|FILE",
        "help": "a run's name or folder, 'last' for the newest, a checkpoint, or hf:USER/NAME; "
        "default: pytorchvideo's Kinetics-400 I3D",
    },
    "decoder": {"default": "auto", "help": "(auto)"},
    "device": {"default": "auto", "help": "auto, cpu, cuda, cuda:1, ... (auto)"},
    "frame_names": {
        "metavar": "NAMES",
        "help": "names of images, such as img_{:05d}.jpg: lists are of folders of frames, 'folder num_frames label'",
    },
    "first_frame": {"type": int, "default": 1, "metavar": "N", "help": "number of a folder's first image (1)"},
    "frame_fps": {"type": above_zero, "metavar": "FPS", "help": "frames per second of folders of frames"},
    "markdown": {"action": "store_true", "help": "print Markdown for a README"},
    "num_clips": {"type": positive, "metavar": "N", "help": "clips of a video (the model's own)"},
    "num_crops": {"type": positive, "metavar": "1|3", "help": "crops of a clip (the model's own)"},
    "num_workers": {"type": positive, "metavar": "N"},
    "on": {
        "type": cluster_address,
        "metavar": "ray[://HOST:PORT]",
        "help": "by Ray: a cluster that runs here, or the one with this address; else the CPUs of this machine",
    },
    "output": {"type": output_path},
    "overwrite": {"action": "store_true"},
    "pairs": {"nargs": "+", "metavar": "A,B", "help": "opposite classes (known for the demo)"},
    "part": {
        "type": part,
        "metavar": "I/N",
        "help": "only part I of N of the videos, 1/16 to 16/16: equal in bytes, the same on every machine",
    },
    "ray_cpus": {"type": above_zero, "default": 1.0, "metavar": "N", "help": "CPUs of a process on a cluster (1)"},
    "ray_gpus": {"type": zero_or_more, "default": 0.0, "metavar": "N", "help": "GPUs of a process on a cluster (0)"},
    "ray_timeout": {
        "type": above_zero,
        "default": 600.0,
        "metavar": "S",
        "help": "a video is given up that shows no progress for so long on a cluster (600)",
    },
    "retry": {"action": "store_true", "help": "try videos again that could not be read"},
    "runs_dir": {"type": local_name, "default": "runs", "metavar": "DIR", "help": "where runs are (runs)"},
    "seed": {"type": int, "default": 0},
    "threads": {"type": positive, "metavar": "N", "help": "CPU threads of the engine (all)"},
    "timeout": {"type": above_zero, "default": 60.0, "metavar": "S"},
    "views": {
        "type": views,
        "metavar": "CLIPSxCROPS",
        "help": "clips x crops by name, such as 1x1 or 10x3 (the model's own)",
    },
}
_SHORT = {"output": ["-o"]}
_LIKE_AN_ADDRESS = re.compile(r"[a-z][a-z0-9+.-]+:/", re.IGNORECASE)  # as Path leaves it of ://


class Parser(argparse.ArgumentParser):
    """argparse's, with --debug, descriptions as they are written, and a UserError for a mistake."""

    stores_output = False  # whether --output may be an address
    takes_keys = False  # of a config, --data.KEY VALUE and the like, which become `keys` of what is parsed

    def __init__(self, **settings: Any) -> None:
        page = functools.partial(argparse.RawDescriptionHelpFormatter, max_help_position=30)
        super().__init__(formatter_class=page, allow_abbrev=False, **settings)
        self.add_argument("--debug", action="store_true", help=DEBUG_HELP)

    def shared(self, *names: str, group: Any = None, **changes: Any) -> None:
        """Adds options that other commands have too.

        Args:
            names: "output" for -o, --output.
            group: of argparse, to add them to.
            changes: in place of what they share, for all that are named.
        """
        for name in names:
            settings = {**_SHARED[name], **changes}
            (group or self).add_argument(*_SHORT.get(name, []), f"--{name}", **settings)

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """Refuses what it does not know: here, where a subcommand's parser knows its own options."""
        parsed, unknown = super().parse_known_args(args, namespace)
        if self.takes_keys:
            parsed.keys, unknown = unknown, [] if unknown[:1] and unknown[0].startswith("--") else unknown
        if unknown:
            word = unknown[0].partition("=")[0]
            known = [option for action in self._actions for option in action.option_strings]
            kind = "option" if word.startswith("-") else "argument"
            raise UserError(f"no {kind} {word}{meant(word, known)}; all options: {self.prog} --help")
        self._refuse_addresses(parsed)
        return parsed, unknown

    def _refuse_addresses(self, parsed: argparse.Namespace) -> None:
        """A path that was written as an address would be a folder called `s3:`."""
        for action in self._actions:
            value = getattr(parsed, action.dest, None)
            for one in value if isinstance(value, list) else [value]:
                if isinstance(one, StoredCopy) and not self.stores_output:
                    raise UserError(f"--output: got {one}, expected a path on this machine; copy it there afterwards")
                if isinstance(one, Path) and (found := _LIKE_AN_ADDRESS.match(str(one))):
                    name = action.option_strings[-1] if action.option_strings else action.metavar or action.dest
                    address = shown(str(one).replace(found[0], f"{found[0]}/", 1))
                    raise UserError(f"{name}: got {address}, expected a path on this machine")

    def error(self, message: str) -> NoReturn:
        missing = message.removeprefix("the following arguments are required: ")
        if missing != message:
            raise UserError(f"{missing} not given; all options: {self.prog} --help")
        raise UserError(message.removeprefix("argument "))


def with_underscores(words: Sequence[str]) -> list[str]:
    """Words whose flags are spelt as ours are, `--num_workers`, where the habit of others wrote `--num-workers`."""
    parts = [word.partition("=") if word.startswith("--") else (word, "", "") for word in words]
    return [
        "--" + name[2:].replace("-", "_") + equals + value if name.startswith("--") else name
        for name, equals, value in parts
    ]
