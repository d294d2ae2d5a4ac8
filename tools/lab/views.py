"""How many clips of some seconds one core classifies in a second, decoding included, by number of views.

A user's whole work is measured: `Predictor` reads the video once, cuts its views, and runs them. A row without an
engine has what decoding and cutting alone take.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from lab.benchmark.arms import Arm, common, labels, parse_arms
from lab.benchmark.machine import describe, machine_line
from lab.benchmark.networks import WeightStore
from lab.timing import rounds_of, torch_threads
from octvideo.cli.arguments import Parser, positive
from octvideo.cli.ending import command
from octvideo.errors import UserError
from octvideo.files import json_text, markdown, one_line
from octvideo.inference import Predictor
from octvideo.inference.engine import Engine
from octvideo.inference.engines import build_engine
from octvideo.progress import Progress
from octvideo.video import ViewSettings

_DESCRIPTION = """How many clips a second one core classifies, whole: decoded once, cut into views, run.

  tools/benchmark_views.py video.mp4
  tools/benchmark_views.py video.mp4 i3d_r50:alpha=0/.25,engine=eager/openvino,precision=f32/bf16 --views 1 30

Arms are those of tools/benchmark.py, of random weights, and take turns. Figures are CPU time of one thread."""
_ARMS = "i3d_r50:alpha=0/.25/.5,engine=eager/openvino,precision=f32/bf16"
ALONE = "decoding and cutting alone"
Way = tuple[str, int]  # the label of an arm, and its number of views


@command()
def main(argv: Sequence[str]) -> int:
    """Runs the tool.

    Args:
        argv: without the program's name.

    Returns:
        0; 130 after Ctrl-C.
    """
    args = _parser().parse_args(argv)
    arms = parse_arms(args.arms or [_ARMS], frames=args.frames, crop=args.crop)
    for arm in arms:
        if (arm.mode, arm.layout) != ("inference", "auto"):
            raise UserError(f"arms: got {arm.mode} with layout {arm.layout}, expected inference and its own layout")
    with torch_threads(1), Progress() as progress:
        engines = _started(dict(zip(labels(arms), arms, strict=True)), progress)
        progress.begin("measuring", (len(engines) + 1) * len(args.views) * args.rounds)
        sizes = {"frames": args.frames, "crop": args.crop, "rounds": args.rounds}
        found = seconds(args.video, engines, args.views, **sizes, done=progress.advance)
        machine = describe(torch.device("cpu"))
    if args.json:
        numbers = {label: {views: found[label, views] for views in args.views} for label in [*engines, ALONE]}
        print(json_text({"machine": machine, "seconds": numbers}, indent=2))
    else:
        print(f"clips a second of one core, `{Path(args.video).name}`, by number of views; {common(arms)}, ", end="")
        print(f"median of {args.rounds} rounds in turns\n")
        print(table(found, [*engines, ALONE], args.views))
        print(f"\n{machine_line(machine)}")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = Parser(description=_DESCRIPTION)
    parser.add_argument("video", metavar="VIDEO", help="of some seconds")
    parser.add_argument("arms", nargs="*", metavar="ARM", help=f"NETWORK:KEY=VALUE,... ({_ARMS})")
    parser.add_argument("--views", nargs="+", type=positive, default=[1, 3, 10, 30], metavar="V", help="(1 3 10 30)")
    parser.add_argument("--rounds", type=positive, default=3, metavar="R", help="in turns (3)")
    parser.add_argument("--frames", type=positive, default=8, metavar="T", help="of a view (8)")
    parser.add_argument("--crop", type=positive, default=256, metavar="S", help="pixels of a view's side (256)")
    parser.add_argument("--json", action="store_true", help="print every number as JSON, in seconds a clip")
    return parser


def _started(arms: dict[str, Arm], progress: Progress) -> dict[str, Engine]:
    """The engines that run here, each called once."""
    engines = {}
    weights = WeightStore(as_built=True)
    progress.begin("starting engines", len(arms))
    for label, arm in arms.items():
        progress.update(said=label)
        try:
            engine = build_engine(
                arm.engine,
                weights.network(arm),
                example_shape=arm.clip_shape,
                precision=arm.precision,
                num_threads=1,
            )
            engine(torch.zeros(arm.clip_shape))
            if engine.precision != arm.precision:
                raise UserError(f"it computes in {engine.precision} here")
            engines[label] = engine
        except (UserError, RuntimeError) as error:  # torch's, for want of memory
            print(f"left out: {label}: {one_line(error)}", file=sys.stderr)
        progress.advance()
    if not engines:
        raise UserError("no arm runs here")
    return engines


class _NoEngine:
    """Logits of no network: what is left is the work before one. See `Engine`."""

    name, precision = "none", "f32"
    views_per_call: int | None = None

    def __call__(self, clips: Tensor) -> Tensor:
        return torch.zeros(len(clips), 2)


def seconds(
    video: str | Path,
    engines: dict[str, Engine],
    views: Sequence[int],
    *,
    frames: int,
    crop: int,
    rounds: int,
    clock: Callable[[], float] = time.process_time,
    done: Callable[[], None] = lambda: None,
) -> dict[Way, list[float]]:
    """Seconds of a whole video, a number for each round.

    Args:
        video: to classify.
        engines: by label.
        views: of a video; those that three divides are three crops of a third as many clips.
        frames: of a view.
        crop: pixels of a view's side.
        rounds: 1 or more.
        clock: gives seconds; of the process by default.
        done: is told of each turn.

    Returns:
        By label and number of views; `ALONE` is without an engine.

    Raises:
        VideoReadError: the video can't be read.
    """
    turns = {}
    for number in views:
        crops = 3 if number % 3 == 0 else 1
        settings = ViewSettings(
            clip_frames=frames, num_clips=number // crops, num_crops=crops, short_side_px=crop, crop_px=crop
        )
        with_none: dict[str, Engine] = {**engines, ALONE: _NoEngine()}
        for label, engine in with_none.items():
            predictor = Predictor(engine, [], views=settings)
            turns[label, number] = partial(_timed, predictor, video, clock, done)
    predictor.scores(video)  # without an engine: the decoder's library is loaded
    names = {f"{label} {number}": (label, number) for label, number in turns}
    found: dict[Way, list[float]] = {way: [] for way in turns}
    for measured in rounds_of({name: turns[way] for name, way in names.items()}, rounds=rounds, warm_up=0):
        for name, value in measured.items():
            found[names[name]].append(value)
    return found


def _timed(predictor: Predictor, video: str | Path, clock: Callable[[], float], done: Callable[[], None]) -> float:
    start = clock()
    predictor.scores(video)
    taken = clock() - start
    done()
    return taken


def table(found: dict[Way, list[float]], names: Sequence[str], views: Sequence[int]) -> str:
    """Markdown: a row for each arm, a column for each number of views, in clips a second."""
    rows = [[label, *(f"{1 / statistics.median(found[label, n]):.3g}" for n in views)] for label in names]
    return markdown(["", *(f"{n} view{'s' * (n > 1)}" for n in views)], rows)
