"""The command line of tools/benchmark_loading.py, and its tables."""

from __future__ import annotations

import argparse
import math
import re
import statistics
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from lab.benchmark.report import Sheet
from lab.loading.augmentations import augmentation_costs, costs_sheet
from lab.loading.loaders import Rate, loaders, measure, need
from lab.loading.ways import FLOOR, Recipe, Turn, Video, clip_stages, clip_ways, look_at, usable, view_stages, view_ways
from lab.timing import rounds_of, torch_threads
from octvideo.cli.arguments import Parser
from octvideo.cli.ending import command
from octvideo.data.workers import available_cpus, default_num_workers
from octvideo.errors import UserError
from octvideo.files import json_text, walk_videos
from octvideo.progress import track

_DESCRIPTION = """What loading videos costs, and whether a GPU would wait for it:

  tools/benchmark_loading.py data/k400/val/abseiling --most 6 --clips_per_second 400

Reads one training clip and all views (10 clips x 3 crops) of each video in several ways that take turns: octvideo; the
bare decoder (the same frames decoded and resized once, nothing else); an open per view, as PySlowFast has it; and
pytorchvideo. Then the share of each stage, and whole DataLoaders. Figures are CPU time, on one thread but for the
DataLoaders; compare those of one run. They hold for videos like those given: name some of your own."""
_KINDS = {
    "clips": ("training clip", clip_ways, clip_stages),
    "videos": ("video with all its views", view_ways, view_stages),
}


@command()
def main(argv: Sequence[str], *, recipe: Recipe | None = None) -> int:
    """Runs the tool.

    Args:
        argv: without the program's name; None takes the process's own.
        recipe: what is read; the default is I3D 8x8 on Kinetics.

    Returns:
        0; 130 after Ctrl-C.
    """
    return _run(_parser().parse_args(argv), recipe or Recipe())


def _parser() -> argparse.ArgumentParser:
    parser = Parser(description=_DESCRIPTION)
    parser.add_argument("videos", nargs="*", metavar="VIDEO", help="files, or folders of them")
    parser.add_argument("--most", type=int, default=8, metavar="N", help="take so many of a folder, spread evenly (8)")
    parser.add_argument("--rounds", type=int, default=5, metavar="R", help="after one that warms up (5)")
    parser.add_argument("--num_workers", type=int, metavar="N", help="of the DataLoaders (as training takes)")
    parser.add_argument("--repeats", type=int, default=4, metavar="N", help="of each video in a DataLoader (4)")
    parser.add_argument(
        "--clips_per_second", type=float, default=400, metavar="X", help="that a GPU takes: of training, of tests (400)"
    )
    parser.add_argument(
        "--augmentations", action="store_true", help="instead: what each augmentation and data.repeats cost a clip"
    )
    parser.add_argument(
        "--clip", type=_clip, metavar="TxSTRIDExPX", help="training clips to read, such as 16x4x112 (8x8x224)"
    )
    parser.add_argument("--no_peers", action="store_true", help="leave pytorchvideo out")
    parser.add_argument("--no_loaders", action="store_true", help="leave the DataLoaders out")
    parser.add_argument("--json", action="store_true", help="print every number as JSON")
    return parser


def _clip(text: str) -> tuple[int, int, int]:
    found = re.fullmatch(r"([1-9]\d*)x([1-9]\d*)x([1-9]\d*)", text)
    if found is None:
        raise argparse.ArgumentTypeError(f"got {text}, expected frames x stride x pixels, such as 8x8x224")
    return int(found[1]), int(found[2]), int(found[3])


def _of_clips(recipe: Recipe, frames: int, stride: int, size: int) -> Recipe:
    """The recipe with other clips; the short side grows and shrinks with the crop."""
    views = replace(recipe.views, clip_frames=frames, frame_stride=stride)
    low, high = (max(round(side * size / recipe.augment.crop_px), size) for side in recipe.augment.short_side_px)
    return Recipe(views, replace(recipe.augment, crop_px=size, short_side_px=(low, high)))


def _augmentations(videos: list[Video], recipe: Recipe, args: argparse.Namespace) -> int:
    with torch_threads(1):
        costs = augmentation_costs(videos, recipe, rounds=args.rounds)
    if args.json:
        print(json_text({"torch": torch.__version__, "videos": videos, "costs": costs}, default=vars, indent=2))
        return 0
    sheet = costs_sheet(costs, recipe, len(videos))
    console = Console(width=None if sys.stdout.isatty() else 160)
    console.print(sheet.title, sheet.drawn(), *sheet.notes, sep="\n", highlight=False)
    return 0


def _run(args: argparse.Namespace, recipe: Recipe) -> int:
    for name in ("rounds", "repeats", "most"):
        if getattr(args, name) < 1:
            raise UserError(f"--{name}: got {getattr(args, name)}, expected 1 or more")
    if args.clips_per_second <= 0:
        raise UserError(f"--clips_per_second: got {args.clips_per_second:g}, expected more than 0")
    videos = [look_at(path) for path in _files(args.videos, args.most)]
    if args.clip is not None:
        recipe = _of_clips(recipe, *args.clip)
    if args.augmentations:
        return _augmentations(videos, recipe, args)
    workers = default_num_workers(available_cpus(), 1) if args.num_workers is None else args.num_workers
    # Shown if the tool is stopped too: for each video the facts ("video"), milliseconds of each way ("clips", "videos")
    # and of each stage; by kind and name of loader, a rate per round; by kind, what a GPU needs.
    found: dict[str, Any] = {"videos": [], "loaders": {}, "needs": {}, "num_workers": workers}
    stopped = False
    try:
        with torch_threads(1):
            _measure(videos, recipe, args, found)
    except KeyboardInterrupt:
        if not found["videos"]:
            raise
        stopped = True
    if args.json:
        print(json_text({"torch": torch.__version__, **found}, default=vars, indent=2))
    else:
        _show(found, recipe)
    return 130 if stopped else 0


def _measure(videos: list[Video], recipe: Recipe, args: argparse.Namespace, found: dict[str, Any]) -> None:
    say, peers = Console(stderr=True, soft_wrap=True), not args.no_peers
    for video in track(videos, "reading"):
        result: dict[str, Any] = {"video": video}
        for kind, (_, ways, stages) in _KINDS.items():
            kept = usable(ways(video, recipe, peers=peers), partial(_left_out, say, video.path), lambda way: way(0))
            timed = _in_turns(kept | {"": partial(stages, video, recipe)}, args.rounds)
            result[f"{kind}_stages"] = timed.pop("")
            result[kind] = timed
        found["videos"].append(result)
    if args.no_loaders:
        return
    made = loaders(videos, recipe, num_workers=found["num_workers"], repeats=args.repeats, peers=peers)
    wanted = {"clips": args.clips_per_second, "videos": args.clips_per_second / recipe.views.num_views}
    for kind in track(made, "loading"):
        left_out = partial(_left_out, say, f"DataLoader of {kind}")
        rates = measure(made[kind], num_workers=found["num_workers"], rounds=args.rounds, left_out=left_out)
        found["loaders"][kind] = rates
        found["needs"][kind] = need(wanted[kind], rates["octvideo"], available_cpus())


def _files(given: Sequence[str], most: int) -> list[str]:
    """The videos that are named, and some of each folder.

    Raises:
        UserError: there is none.
    """
    files: list[Path] = []
    for path in map(Path, given):
        if not path.is_dir():
            files.append(path)
            continue
        inside = [path / video for video in walk_videos(path)]
        if not inside:
            raise UserError(f"no videos in folder '{path}'")
        count = min(most, len(inside))
        files += [inside[n * len(inside) // count] for n in range(count)]
    if not files:
        raise UserError("no videos given: name files or folders, such as clips of Kinetics")
    return [str(file.absolute()) for file in files]


def _left_out(say: Console, where: str, name: str, error: Exception) -> None:
    say.print(f"left out: {name} ({where}): {type(error).__name__}: {error}", markup=False, highlight=False)


def _in_turns(ways: Mapping[str, Turn], rounds: int) -> dict[str, Any]:
    """CPU milliseconds of each way, a number per round; of "", which measures itself, by stage."""
    counts = {name: iter(range(10**9)) for name in ways}

    def timed(name: str) -> Any:
        number, started = next(counts[name]), time.process_time()
        measured = ways[name](number)
        return measured if name == "" else 1000 * (time.process_time() - started)

    found = list(rounds_of({name: partial(timed, name) for name in ways}, rounds=rounds))
    columns = {name: [measured[name] for measured in found] for name in ways}
    stages = {stage: [measured[stage] for measured in columns[""]] for stage in columns[""][0]}
    return columns | {"": stages}


def _show(found: dict[str, Any], recipe: Recipe) -> None:
    titles, videos = {kind: title for kind, (title, _, _) in _KINDS.items()}, found["videos"]
    sheets = [times_sheet(f"One {title}", videos, kind) for kind, title in titles.items()]
    sheets += [stages_sheet(f"Stages of one {title}", videos, f"{kind}_stages") for kind, title in titles.items()]
    sheets += [loaders_sheet(kind, rates, found["num_workers"]) for kind, rates in found["loaders"].items()]
    console = Console(width=None if sys.stdout.isatty() else 160)
    for sheet in sheets:
        console.print(sheet.title, highlight=False)
        console.print(sheet.drawn())
        for note in sheet.notes:
            console.print(f"  {note}\n", highlight=False)
    for kind, what in found["needs"].items():
        console.print(need_line(kind, what, recipe.views.num_views), highlight=False, soft_wrap=True)


# ── tables ──────────────────────────────────────────────────────────────────────────────────────────────

# By way (or stage), a number per round.
Rounds = Mapping[str, Sequence[float]]


def times_sheet(title: str, results: Sequence[Mapping[str, Any]], kind: str) -> Sheet:
    """A line per video: CPU milliseconds of each way, and its ratio to the bare decoder in the same round."""
    names = list(dict.fromkeys(name for result in results for name in result[kind]))
    lines: list[tuple[str, ...]] = []
    for result in results:
        times: Rounds = result[kind]
        cells = [_cell(times[name], times[FLOOR], name) if name in times else "" for name in names]
        lines.append((_video_name(result), *cells))
    return Sheet(title, ("video", *names), lines, ("median CPU ms of one thread (times the bare decoder, paired)",))


def stages_sheet(title: str, results: Sequence[Mapping[str, Any]], kind: str) -> Sheet:
    """A line per video: the milliseconds of each stage and its share."""
    stages = list(results[0][kind])
    lines: list[tuple[str, ...]] = []
    for result in results:
        medians = {stage: statistics.median(result[kind][stage]) for stage in stages}
        total = sum(medians.values())
        cells = [f"{ms:.1f} ({100 * ms / total:.0f} %)" for ms in medians.values()]
        lines.append((_video_name(result), *cells, f"{total:.1f}"))
    return Sheet(title, ("video", *stages, "all"), lines, ("median CPU ms of one thread (share)",))


def loaders_sheet(kind: str, rates: Mapping[str, Sequence[Rate]], num_workers: int) -> Sheet:
    """A line per loader: rates by the clock and by CPU time."""
    ours = [_per_cpu(rate) for rate in rates["octvideo"]]
    lines: list[tuple[str, ...]] = []
    for name, found in rates.items():
        per_cpu = [_per_cpu(rate) for rate in found]
        clock = statistics.median(rate.items / rate.seconds for rate in found)
        ratio = statistics.median(mine / other for mine, other in zip(ours, per_cpu, strict=True))
        lines.append((name, f"{clock:.1f}", f"{statistics.median(per_cpu):.1f}", f"{ratio:.2f}"))
    header = ("loader", f"{kind}/s by the clock", f"{kind}/s per CPU", "octvideo is faster")
    return Sheet(f"DataLoader with {num_workers} workers, {kind}", header, lines)


def _per_cpu(rate: Rate) -> float:
    return rate.items / rate.cpu_seconds


def need_line(kind: str, need: Mapping[str, float], num_views: int) -> str:
    """Whether a GPU would wait, in words, for training clips ("clips") or for whole videos ("videos")."""
    wanted, cpus, available = need["wanted"], need["cpus"], need["available"]
    asked = f"loading keeps {cpus:.1f} CPUs busy (data.num_workers {max(math.ceil(cpus), 1)})"
    if cpus > available:
        verdict = f"STARVES: {asked}, this process has {available}, enough for {100 * available / cpus:.0f} %"
    else:
        verdict = f"is fed: {asked}, this process has {available}"
    if kind == "clips":
        return f"Training at {wanted:g} clips/s: the GPU {verdict}"
    return f"Tests at {wanted * num_views:g} views/s ({wanted:.1f} videos/s): the GPU {verdict}"


def _cell(times: Sequence[float], floor: Sequence[float], name: str) -> str:
    middle = f"{statistics.median(times):.0f}"
    if name == FLOOR:
        return middle
    ratio = statistics.median(a / b for a, b in zip(times, floor, strict=True))
    return f"{middle} ({ratio:.2f})"


def _video_name(result: Mapping[str, Any]) -> str:
    name, video = Path(result["video"].path).name, result["video"]
    name = name if len(name) <= 28 else f"{name[:27]}…"
    return f"{name} {video.width}x{video.height}"
