"""What a timeline of a long video costs over its parts, on one core.

Arms take turns on the same video: it decoded once by plain PyAV; the engine alone, on as many clips as the timeline
has; the timeline; and, where the network sees frames one by one, the timeline with each window computed by itself.
Times are of the processor, all threads together, so that other programs matter little. Weights are random.
"""

from __future__ import annotations

import argparse
import resource
import sys
import time
from collections.abc import Callable, Sequence
from statistics import median

import torch

import octvideo.models
from octvideo.cli.arguments import Parser, above_zero, positive
from octvideo.cli.ending import command
from octvideo.errors import UserError
from octvideo.inference import Predictor, Timeline
from octvideo.video import ViewSettings
from octvideo.video.pyav_file import main_stream, open_video, set_threads


@command()
def main(argv: Sequence[str]) -> int:
    """Runs the command line; see `ending.command`."""
    parser = Parser(prog="benchmark_timeline.py", description=__doc__)
    parser.add_argument("video")
    parser.add_argument("--builder", default="i3d_small", help="of octvideo.models (i3d_small)")
    parser.add_argument("--num_clips", type=positive, default=1, metavar="N", help="clips of a window (1)")
    parser.add_argument("--num_crops", type=positive, default=1, metavar="1|3", help="crops of a clip (1)")
    parser.add_argument("--stride", type=above_zero, metavar="S", help="from window to window, seconds (half a window)")
    parser.add_argument("--rounds", type=positive, default=3, metavar="N", help="turns of each arm (3)")
    parser.add_argument("--crop_px", type=positive, default=224, help="side of the clips (224)")
    parser.shared("threads", default=1)
    args = parser.parse_args(argv)
    if args.builder not in octvideo.models.__all__:
        raise UserError(f"--builder: got {args.builder}, expected {', '.join(octvideo.models.__all__)}")
    report(args)
    return 0


def report(args: argparse.Namespace) -> None:
    """Measures, and prints a table."""
    torch.set_num_threads(args.threads)
    views = ViewSettings(
        num_clips=args.num_clips, num_crops=args.num_crops, short_side_px=args.crop_px * 8 // 7, crop_px=args.crop_px
    )
    network = getattr(octvideo.models, args.builder)(num_classes=400)
    names = [str(n) for n in range(400)]
    predictor = Predictor(network.eval(), names, views=views, device="cpu", num_threads=args.threads)
    shared = Timeline(predictor, None, args.stride)
    apart = Timeline(predictor, None, args.stride, share_frames=False)
    windows = frames = 0

    def decode() -> None:
        nonlocal frames
        with open_video(args.video) as container:
            stream = main_stream(args.video, container)
            set_threads(stream, 1)
            frames = sum(1 for _ in container.decode(stream))

    def score(timeline: Timeline) -> None:
        nonlocal windows
        windows = sum(1 for _ in timeline.of_video(args.video))

    def engine_alone() -> None:
        clips = torch.randn(predictor.views_per_chunk, 3, views.clip_frames, views.crop_px, views.crop_px)
        for _ in range(-(-windows * views.num_views // len(clips))):
            predictor.engine(clips)

    arms: dict[str, Callable[[], None]] = {
        "timeline": lambda: score(shared),
        "decoding once": decode,
        "engine alone": engine_alone,
    }
    if shared.units is not None:
        arms["windows apart"] = lambda: score(apart)
    took: dict[str, list[float]] = {name: [] for name in arms}
    for _ in range(args.rounds):
        for name, run in arms.items():
            start = time.process_time()
            run()
            took[name].append(time.process_time() - start)
    best = {name: median(times) for name, times in took.items()}
    print(f"{args.builder}, {views.num_clips} x {views.num_crops} views: {frames} frames, {windows} windows")
    for name, seconds in best.items():
        print(f"  {name:<14} {seconds:8.2f} s of CPU")
    over = "windows apart" if shared.units is not None else "timeline"
    parts = best["decoding once"] + best["engine alone"]
    print(f"  {over} / (decoding once + engine alone): {best[over] / parts:.3f}")
    if shared.units is not None:
        print(f"  timeline / windows apart: {best['timeline'] / best['windows apart']:.3f}")
    unit = 1024 if sys.platform == "darwin" else 1
    print(f"  peak memory {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit / 2**20:.2f} GiB")
