"""What a whole video of ten seconds takes on one core, beside the accuracy that is published for it.

A user's whole work is timed: the video is opened, decoded once, cut into views and computed, and scores are averaged.
Networks have random weights, which changes no time. So accuracy is what others have published for the network with as
many views, and is left out where nobody has: octave rows have none until one is trained.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import av
import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

import octvideo.models as models
from lab.benchmark.machine import describe, machine_line
from lab.timing import rounds_of, torch_threads
from octvideo._version import __version__
from octvideo.cli.arguments import Parser, positive
from octvideo.cli.ending import command
from octvideo.errors import UserError
from octvideo.files import digest, markdown, one_line
from octvideo.inference.budget import measured_video
from octvideo.inference.engine import Engine
from octvideo.inference.engines import ENGINES, build_engine
from octvideo.inference.predictor import clip_shape
from octvideo.inference.preparation import Normaliser, Timing
from octvideo.json_lines import JsonLines, Words, first_line
from octvideo.octave.kernel.library import load_library
from octvideo.octave.kernel.variants import sources_key
from octvideo.progress import Progress
from octvideo.video import ViewSettings

_DESCRIPTION = """What a whole video of ten seconds takes on one core, beside published accuracy on Kinetics-400.

  tools/benchmark_views.py --rows rows.jsonl --table table.md --png views.png
  tools/benchmark_views.py --rows rows.jsonl --networks x3d_s i3d_r50 --views 1 10 --video clip.mp4

Rows that are in the file are not measured again: stop it, and give the same command. Without --video one of 340 x 256
is made beside the rows. Times are CPU time of the process with one thread; arms of a network take turns."""

# ── what is compared ────────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True)
class Recipe:
    """A network and the views that it is tested with.

    Args:
        title: for people.
        network: of octvideo.models; frame_network where `images` names one.
        frames, stride: of a clip.
        short_side: that frames are resized to.
        crop: side of a view where there is one crop.
        crop_of_three: where there are three.
        images: the image network that sees every frame, with temporal shift.
        published: number of views -> top-1 on Kinetics-400, in percent.
        source: of these figures.
    """

    title: str
    network: str
    frames: int
    stride: int
    short_side: int
    crop: int
    crop_of_three: int
    images: str = ""
    published: Mapping[int, float] = field(default_factory=dict)
    source: str = ""

    def build(self, alpha: float) -> nn.Module:
        """The network with random weights, in evaluation mode."""
        if self.images:
            return models.frame_network(self.images, 400, alpha, shift=0.125).eval()
        return getattr(models, self.network)(400, alpha).eval()

    def views(self, number: int) -> ViewSettings:
        """So many views of a video."""
        clips, crops = VIEWS[number]
        crop = self.crop_of_three if crops == 3 else self.crop
        return ViewSettings(self.frames, self.stride, clips, crops, short_side_px=self.short_side, crop_px=crop)


VIEWS = {1: (1, 1), 3: (3, 1), 10: (10, 1), 30: (10, 3)}  # clips, crops
_ZOO = "PySlowFast's MODEL_ZOO.md"
RECIPES = {
    "i3d_r50": Recipe(
        "I3D-50 8x8", "i3d_r50", 8, 8, 256, 256, 256,
        published={30: 73.27}, source="pytorchvideo's model zoo",
    ),
    "slowfast_4x16_r50": Recipe(
        "SlowFast-50 4x16", "slowfast_4x16_r50", 32, 2, 256, 256, 256, published={30: 75.6}, source=_ZOO,
    ),
    "x3d_s": Recipe("X3D-S", "x3d_s", 13, 6, 182, 160, 182, published={10: 73.1, 30: 73.5}, source=_ZOO),
    "x3d_m": Recipe("X3D-M", "x3d_m", 16, 5, 256, 224, 256, published={10: 75.1, 30: 76.2}, source=_ZOO),
    "tsm_mobilenet_v2": Recipe(
        "TSM-MobileNetV2", "frame_network", 8, 8, 256, 224, 256, images="torchvision:mobilenet_v2",
        published={30: 69.5}, source="README of mit-han-lab/temporal-shift-module",
    ),
}  # fmt: skip


@dataclass(frozen=True)
class Elsewhere:
    """A figure that others have published, on their machine.

    Args:
        title: of the network.
        top1: on Kinetics-400, in percent.
        seconds: of a whole video.
        machine: and what is in the time.
        source: of the figure.
    """

    title: str
    top1: float
    seconds: float
    machine: str
    source: str


_PADDLE = ("Xeon Gold 6148, number of threads not said, decoding included", "PaddleVideo, docs/zh-CN/benchmark.md")
_STREAM = "one core of a Xeon W-2135, 50 frames at {} ms, no decoding"
_MOVINET = "MoViNet's papers and models in TensorFlow's Model Garden; top-1 is the base network's, time the stream's"
ELSEWHERE = (
    Elsewhere("PP-TSM MobileNetV2", 68.1, 0.190, *_PADDLE),
    Elsewhere("PP-TSMv2, 8 frames", 72.45, 0.243, *_PADDLE),
    Elsewhere("PP-TSMv2, 16 frames", 74.38, 0.457, *_PADDLE),
    Elsewhere("SlowFast 4x16", 74.35, 1.311, *_PADDLE),
    Elsewhere("MoViNet-A0 by PaddleVideo", 66.62, 1.439, *_PADDLE),
    Elsewhere("MoViNet-A0", 69.4, 0.8, _STREAM.format(16), _MOVINET),
    Elsewhere("MoViNet-A1", 74.6, 1.65, _STREAM.format(33), _MOVINET),
    Elsewhere("MoViNet-A2", 75.9, 3.3, _STREAM.format(66), _MOVINET),
)


# ── the program ─────────────────────────────────────────────────────────────────────────────────────────────


@command()
def main(argv: Sequence[str]) -> int:
    """Runs the tool.

    Args:
        argv: without the program's name.

    Returns:
        0; 130 after Ctrl-C.
    """
    args = _parser().parse_args(argv)
    for name, known in (("networks", RECIPES), ("engines", ENGINES), ("views", VIEWS)):
        for given in getattr(args, name):
            if given not in known:
                raise UserError(f"--{name}: got {given}, expected {', '.join(map(str, known))}")
    video = args.video or args.rows.with_suffix(".mp4")
    if args.video is None and not video.exists():
        make_video(video)
    with torch_threads(1):
        machine = machine_line(describe(torch.device("cpu")))
    made_by = {"video": video.name, "sha256": digest(video), "machine": machine, "rounds": args.rounds}
    made_by |= {"octvideo": __version__, "kernel": "none" if load_library() is None else sources_key()}
    words = Words("file of such rows", "another machine, video or version", "name another file")
    rows = JsonLines(args.rows, {"rows": "benchmark_views 1", **made_by}, words)
    try:
        wanted = [
            (recipe, number, Way(alpha, engine, precision))
            for recipe in args.networks
            for number in args.views
            for alpha in args.alphas
            for engine in args.engines
            for precision in args.precisions
        ]
        done = {_key(row) for row in rows.entries()}
        left = [one for one in wanted if one not in done]
        with torch_threads(1), Progress("measuring", len(left)) as progress:
            for group in _groups(left):
                for row in _rows_of(group, video, args.rounds, progress):
                    rows.add(row)
        found = list(rows.entries())
    finally:
        rows.close()
    text = f"{table(found)}\n\n{described(args.rows)}"
    if args.table:
        args.table.write_text(text + "\n", encoding="utf-8")
    else:
        print(text)
    if args.png:
        draw(found, args.png)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = Parser(description=_DESCRIPTION)
    add = parser.add_argument
    add("--rows", type=Path, required=True, metavar="FILE", help="a line of JSON for each row; gone on with")
    add("--video", type=Path, metavar="FILE", help="of ten seconds (made, and kept beside the rows)")
    add("--networks", nargs="+", default=list(RECIPES), metavar="NAME", help=f"({' '.join(RECIPES)})")
    add("--views", nargs="+", type=positive, default=list(VIEWS), metavar="V", help="(1 3 10 30)")
    add("--alphas", nargs="+", type=float, default=[0.0, 0.25], metavar="A", help="shares of low channels (0 .25)")
    add("--engines", nargs="+", default=["eager", "openvino"], metavar="E", help="(eager openvino)")
    add("--precisions", nargs="+", default=["f32"], metavar="P", help="(f32)")
    add("--rounds", type=positive, default=3, metavar="R", help="in turns; of each row the median counts (3)")
    add("--table", type=Path, metavar="FILE", help="write the Markdown there (print it)")
    add("--png", type=Path, metavar="FILE", help="draw accuracy against time")
    return parser


@dataclass(frozen=True)
class Way:
    """How a network is run."""

    alpha: float
    engine: str
    precision: str


Wanted = tuple[str, int, Way]  # the name of a recipe, the number of views


def _key(row: dict[str, Any]) -> Wanted | None:
    try:
        return row["network"], row["views"], Way(row["alpha"], row["engine"], row["precision"])
    except KeyError:
        return None


def _groups(wanted: Sequence[Wanted]) -> list[list[Wanted]]:
    """Those of one network and one shape of clips together: their engines are started once and take turns."""
    groups: dict[tuple[Any, ...], list[Wanted]] = {}
    for one in wanted:
        groups.setdefault((one[0], clip_shape(RECIPES[one[0]].views(one[1]), 1)), []).append(one)
    return list(groups.values())


def _rows_of(group: Sequence[Wanted], video: Path, rounds: int, progress: Progress) -> Iterator[dict[str, Any]]:
    """A row for each that runs here, number of views by number of views."""
    recipe = RECIPES[group[0][0]]
    shape = clip_shape(recipe.views(group[0][1]), 1)
    engines: dict[Way, Engine] = {}
    for way in dict.fromkeys(way for _, _, way in group):
        progress.update(said=f"starting {recipe.title} α {way.alpha:g} {way.engine} {way.precision}")
        try:
            how = {"example_shape": shape, "precision": way.precision, "num_threads": 1}
            engine = build_engine(way.engine, recipe.build(way.alpha), **how)  # type: ignore[arg-type]
            engine(torch.zeros(shape))
            if engine.precision != way.precision:
                raise UserError(f"it computes in {engine.precision} here")
            engines[way] = engine
        except (UserError, RuntimeError) as error:  # torch's, for want of memory
            print(f"left out: {recipe.title}, {way}: {one_line(error)}", file=sys.stderr)
    for number in dict.fromkeys(number for _, number, _ in group):
        asked = [way for _, views, way in group if views == number]
        progress.update(said=f"{recipe.title}, {number} views")
        there = {way: engines[way] for way in asked if way in engines}
        for way, timings in timed(there, video, recipe.views(number), rounds).items():
            median = sorted(timings, key=lambda one: one.total)[len(timings) // 2]
            parts = {"decode": median.decode, "prepare": median.prepare, "network": median.engine}
            yield {
                "network": group[0][0],
                "views": number,
                "alpha": way.alpha,
                "engine": way.engine,
                "precision": way.precision,
                "seconds": statistics.median(one.total for one in timings),
                "rounds": [round(one.total, 4) for one in timings],
                "parts": {name: round(value, 4) for name, value in parts.items()},
            }
        for _ in asked:
            progress.advance()


def timed(
    engines: Mapping[Way, Engine],
    video: Path,
    views: ViewSettings,
    rounds: int,
    *,
    clock: Callable[[], float] = time.process_time,
) -> dict[Way, list[Timing]]:
    """What a video takes by each engine, a measurement for each round; they take turns.

    Args:
        engines: of clips, one in a call.
        video: to classify.
        views: of it.
        rounds: 1 or more.
        clock: gives seconds; of the process by default.

    Raises:
        VideoReadError: the video can't be read.
    """
    cpu = torch.device("cpu")
    normalise = Normaliser((0.45,) * 3, (0.225,) * 3, cpu)
    how: dict[str, Any] = {"views_per_chunk": 1, "device": cpu, "clock": clock, "turns": 1}

    def turn(engine: Engine) -> Callable[[], Timing]:
        return lambda: measured_video(video, views, normalise, engine, **how)

    found: dict[Way, list[Timing]] = {way: [] for way in engines}
    if not engines:
        return found
    names = {str(way): way for way in engines}
    turn(next(iter(engines.values())))()  # the decoder's library is loaded, and the file is in memory
    for measured in rounds_of({name: turn(engines[way]) for name, way in names.items()}, rounds=rounds, warm_up=0):
        for name, timing in measured.items():
            found[names[name]].append(timing)
    return found


# ── the video ───────────────────────────────────────────────────────────────────────────────────────────────


def make_video(path: Path, *, seconds: int = 10, rate: int = 30, width: int = 340, height: int = 256) -> None:
    """A video as Kinetics copies are kept: H.264, 340 x 256, some 650 kbit a second.

    The picture moves under the camera, with a square before it, and has some noise: without these nearly no bits
    would be left to decode.
    """
    draw = torch.Generator().manual_seed(0)
    big = torch.zeros(3, 2 * height, 2 * width)
    for size in (4, 16, 64):
        noise = torch.rand(1, 3, size, size, generator=draw)
        big += F.interpolate(noise, size=big.shape[1:], mode="bicubic")[0] / 3
    big = ((big - big.mean()) * 90 / big.std() * 0.6 + 128).clamp(0, 255)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=rate, options={"crf": "18", "preset": "medium"})
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        for t in range(seconds * rate):
            angle = 2 * np.pi * t / (3 * rate)
            top, left = int(height / 2 * (1 + 0.8 * np.sin(angle))), int(width / 2 * (1 + 0.8 * np.cos(0.7 * angle)))
            image = big[:, top : top + height, left : left + width].clone()
            x = int((width - 60) * abs(np.sin(1.3 * angle)))
            image[:, 80:140, x : x + 60] = 255 - image[:, 80:140, x : x + 60]
            image += 4 * torch.randn(image.shape, generator=draw)
            frame = image.clamp(0, 255).byte().permute(1, 2, 0).contiguous().numpy()
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())


# ── what is shown ───────────────────────────────────────────────────────────────────────────────────────────


def top1(row: dict[str, Any]) -> float | None:
    """What is published for the network with as many views; nothing is for octave."""
    return None if row["alpha"] else RECIPES[row["network"]].published.get(row["views"])


def table(rows: Sequence[dict[str, Any]]) -> str:
    """Markdown: a row for each network and number of views, a column for each way to run it, and others' figures."""
    ways = sorted({(row["engine"], row["precision"], row["alpha"]) for row in rows}, key=lambda way: (way[2], way[:2]))
    cells: dict[tuple[str, int], dict[Any, dict[str, Any]]] = {}
    for row in rows:
        ours = cells.setdefault((row["network"], row["views"]), {})
        ours[row["engine"], row["precision"], row["alpha"]] = row
    order = list(RECIPES)
    lines = []
    for name, number in sorted(cells, key=lambda key: (order.index(key[0]), key[1])):
        found = cells[name, number]
        accuracy = RECIPES[name].published.get(number)
        decode = statistics.median(row["parts"]["decode"] + row["parts"]["prepare"] for row in found.values())
        times = [f"{1000 * found[way]['seconds']:.0f}" if way in found else "" for way in ways]
        views = RECIPES[name].views(number)
        shown = "" if accuracy is None else f"{accuracy:g}"
        lines.append([RECIPES[name].title, views.name, shown, f"{1000 * decode:.0f}", *times])
    names = [f"{engine} {precision}" + (f", octave α {alpha:g}" if alpha else "") for engine, precision, alpha in ways]
    ours_table = markdown(["network", "views", "top-1 %", "decoding and cutting, ms", *names], lines, left=2)
    others = [[one.title, f"{one.top1:g}", f"{1000 * one.seconds:.0f}", one.machine] for one in ELSEWHERE]
    return f"{ours_table}\n\n{markdown(['elsewhere', 'top-1 %', 'ms', 'machine'], others)}"


def described(file: Path) -> str:
    """Where the rows come from, in a paragraph."""
    made_by = first_line(file) or {}
    sources: dict[str, list[str]] = {}
    for recipe in RECIPES.values():
        sources.setdefault(recipe.source, []).append(recipe.title)
    published = "; ".join(f"{', '.join(titles)}: {source}" for source, titles in sources.items())
    others = "; ".join(dict.fromkeys(one.source for one in ELSEWHERE))
    return (
        f"Times are milliseconds of CPU of a whole video, `{made_by['video']}`, on one thread: opened, decoded, cut, "
        f"computed, averaged; medians of {made_by['rounds']} rounds in turns. Measured on {made_by['machine']}. "
        "Weights are random. Top-1 is what is published for the ordinary network with as many views "
        f"({published}), and empty where nothing is. No octave row has an accuracy, since none has been trained. "
        f"Elsewhere: {others}."
    )


def draw(rows: Sequence[dict[str, Any]], path: Path) -> None:
    """Accuracy against the logarithm of time. Octave has no accuracy, so its times are marks on the lower edge."""
    import matplotlib

    matplotlib.use("agg")
    import matplotlib.pyplot as plt
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    colours = dict(zip(RECIPES, plt.rcParams["axes.prop_cycle"].by_key()["color"], strict=False))
    marks = dict(zip(ENGINES, "osD^v", strict=True))
    figure, axes = plt.subplots(figsize=(9, 5.5))
    for row in rows:
        accuracy, colour, milliseconds = top1(row), colours[row["network"]], 1000 * row["seconds"]
        if accuracy is not None:
            axes.plot(milliseconds, accuracy, marks[row["engine"]], color=colour, markersize=7)
        elif row["alpha"] and row["views"] in RECIPES[row["network"]].published:
            axes.plot(milliseconds, 65.8, marks[row["engine"]], color=colour, markersize=6, fillstyle="none")
    place: dict[str, Any] = {"textcoords": "offset points", "ha": "center", "fontsize": 8}
    for name, recipe in RECIPES.items():
        for number, accuracy in recipe.published.items():
            times = [1000 * r["seconds"] for r in rows if top1(r) is not None and _is(r, name, number)]
            if times:
                axes.plot([min(times), max(times)], [accuracy] * 2, color=colours[name], linewidth=1, alpha=0.5)
                label = f"{recipe.title} {recipe.views(number).name}"
                axes.annotate(
                    label, ((min(times) * max(times)) ** 0.5, accuracy), xytext=(0, 7), color=colours[name], **place
                )
    for one in ELSEWHERE:
        axes.plot(1000 * one.seconds, one.top1, "x", color="grey", markersize=7)
        axes.annotate(one.title, (1000 * one.seconds, one.top1), xytext=(0, -12), color="grey", **place)
    for engine, mark in marks.items():
        if any(row["engine"] == engine for row in rows):
            axes.plot([], [], mark, color="black", label=f"here, {engine}")
    if any(row["alpha"] for row in rows):
        axes.plot([], [], "o", color="black", fillstyle="none", label="here, octave: no accuracy yet, time alone")
    axes.plot([], [], "x", color="grey", label="elsewhere, on other machines")
    axes.set(xscale="log", ylim=(65.5, 78), xlabel="a whole video of 10 s, ms; here of CPU on one core")
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.set_ylabel("published top-1 on Kinetics-400, %")
    axes.margins(x=0.1)  # for the labels of the outermost
    axes.grid(which="both", alpha=0.25)
    axes.legend(fontsize=8, loc="upper left")
    figure.tight_layout()
    figure.savefig(path, dpi=120)
    plt.close(figure)


def _is(row: dict[str, Any], network: str, views: int) -> bool:
    return bool(row["network"] == network and row["views"] == views)
