"""Videos of two labels, made of clips of one: each clip of a list, and then another one of another class.

Few small data sets have several labels a video. In these the truth is known for sure, and nothing but the two clips is
in them. A clip is paired with clips of its own list alone, so that test stays apart from training.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

import torch
from torch import Generator, Tensor

from octvideo.class_names import ClassIndex, read_class_names
from octvideo.cli.arguments import Parser
from octvideo.cli.ending import command
from octvideo.data.manifest import read_records
from octvideo.data.records import VideoList
from octvideo.data.synthetic import write_video
from octvideo.errors import UserError
from octvideo.files import whole_text
from octvideo.progress import track
from octvideo.seeds import seed_of
from octvideo.video import FileFrames


def partners(labels: Tensor, *, seed: int, name: str) -> list[int]:
    """For each clip the place of another of another class, drawn by itself.

    Args:
        labels: of the clips, int64 (N,).
        seed: of all draws.
        name: of the list.

    Raises:
        UserError: all clips are of one class.

    Example:
        >>> partners(torch.tensor([0, 1]), seed=0, name="train")
        [1, 0]
    """
    found = []
    for place, label in enumerate(labels.tolist()):
        others = (labels != label).nonzero()[:, 0]
        if not len(others):
            raise UserError(f"{name}: all {len(labels)} clips are of one class, and a pair needs two")
        draw = Generator().manual_seed(seed_of(seed, name, place))
        found.append(int(others[torch.randint(len(others), (), generator=draw)]))
    return found


def write_pair(first: str, second: str, target: Path, *, short_side_px: int | None) -> None:
    """Writes two clips, one after the other, at the rate of the first.

    Args:
        first, second: paths of the clips.
        target: an .mp4.
        short_side_px: of the result; None leaves the size.

    Raises:
        UserError: the clips have different sizes, or one can't be read.
    """
    parts: list[Tensor] = []
    rates: list[Fraction | None] = []
    for path in (first, second):
        with FileFrames(path, short_side_px) as frames:
            parts.append(torch.stack([frame.image for frame in frames]))  # (T,h,w,3)
            rates.append(frames.rate)
    sizes = [tuple(part.shape[1:3]) for part in parts]
    if sizes[0] != sizes[1]:
        raise UserError(f"got {first} of {sizes[0]} and {second} of {sizes[1]} pixels, expected clips of one size")
    height, width = (side // 2 * 2 for side in sizes[0])  # H.264's are even
    write_video(torch.cat(parts)[:, :height, :width], target, fps=round(float(rates[0] or 25)))


def write_pairs(clips: VideoList, out: Path, *, name: str, seed: int, short_side_px: int | None) -> None:
    """Writes the pairs of a list, those that are missing, and `name`.txt with two ids a line.

    Args:
        clips: of one label each.
        out: folder of the set.
        name: of the list.
        seed: of all draws.
        short_side_px: of the videos; None leaves the size.

    Raises:
        UserError: see `partners` and `write_pair`.
    """
    lines = []
    chosen = partners(clips.labels, seed=seed, name=name)
    for place, other in enumerate(track(chosen, f"writing {name}", len(chosen))):
        path = f"{name}/{place:05d}.mp4"
        if not (out / path).exists():
            write_pair(clips[place].path, clips[other].path, out / path, short_side_px=short_side_px)
        lines.append(f"{path} {clips[place].label};{clips[other].label}\n")
    with whole_text(out / f"{name}.txt") as file:
        file.writelines(lines)


@command(stopped="stopped; given again, the command goes on from here")
def main(argv: Sequence[str]) -> int:
    """Returns 0."""
    parser = Parser(description=_DESCRIPTION)
    parser.add_argument("root", type=Path, metavar="DIR", help="of the clips, with their lists and classes.txt")
    parser.add_argument("--lists", nargs="+", default=["train.txt", "test.txt"], metavar="FILE",
                        help="in DIR, 'path label' (train.txt test.txt)")  # fmt: skip
    parser.shared("output", required=True, metavar="DIR", help="of the set of pairs")
    parser.add_argument("--short_side_px", type=int, metavar="PX", help="of the videos (that of the clips)")
    parser.shared("seed", help="of the pairs (0)")
    args = parser.parse_args(argv)
    classes = ClassIndex(read_class_names(args.root / "classes.txt"))
    settings = args.output / "pairs.txt"
    said = f"{args.root.resolve()} seed {args.seed} short side {args.short_side_px}\n"
    if settings.exists() and settings.read_text(encoding="utf-8") != said:
        raise UserError(f"{args.output} holds pairs of other settings: remove it, or name another folder")
    args.output.mkdir(parents=True, exist_ok=True)
    settings.write_text(said, encoding="utf-8")
    for name in args.lists:
        clips = read_records(args.root / name, root=args.root, classes=classes)
        how = {"name": Path(name).stem, "seed": args.seed, "short_side_px": args.short_side_px}
        write_pairs(VideoList(clips), args.output, **how)
    shutil.copyfile(args.root / "classes.txt", args.output / "classes.txt")
    return 0


_DESCRIPTION = """Videos of two labels out of clips of one.

  tools/pair_clips.py data/jhmdb -o data/pairs --short_side_px 96

Each clip of a list is followed by another one of the same list and of another class. Given again, the command goes on.
Equal settings give equal pairs."""
