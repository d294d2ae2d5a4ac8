#!/usr/bin/env python
"""What reading all views of a video costs: `python tools/benchmark_reading.py VIDEO ... [--rounds N] [--json]`.

Process CPU time on one thread for 10 clips of 8 frames x 3 crops, read by octvideo, and beside it: the least that
decord can do (each distinct frame decoded and resized once), one opened reader per view (as in PySlowFast, VideoMAE
and GluonCV), and pytorchvideo's LabeledVideoDataset. All take turns in each round, so that a busy machine slows all.
"""

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from rich import box
from rich.console import Console
from rich.table import Table
from torch import Tensor
from torch.utils.data import SequentialSampler

import decord  # isort: skip  (before torch, both crash)

# So that it runs from a checkout that is not installed.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from octvideo.errors import UserError
from octvideo.video import ViewSettings, clip_span, evaluation_crops, read_frames, read_views, uniform_clips
from octvideo.video.transforms import resize, resize_short_side, short_side_size

# I3D 8x8 on Kinetics: 10 clips of 8 frames, 3 crops of 256 pixels.
SETTINGS = ViewSettings()
FLOOR = "decord, each frame once"


@dataclass(frozen=True)
class Measured:
    """CPU milliseconds of one way to read, a number per round, and their ratios to the floor of the same round."""

    arm: str
    cpu_ms: list[float]
    to_floor: list[float]


def clips_of(num_frames: int) -> Tensor:
    """Frame numbers of all clips, (num_clips, T)."""
    span = {"clip_frames": SETTINGS.clip_frames, "frame_stride": SETTINGS.frame_stride}
    return uniform_clips(num_frames, num_clips=SETTINGS.num_clips, **span)  # type: ignore[arg-type]


def opened(path: str) -> decord.VideoReader:
    return decord.VideoReader(path, ctx=decord.cpu(0), num_threads=1)


def decord_frames(reader: decord.VideoReader, numbers: Tensor) -> Tensor:
    """Frames (T, H, W, C); pytorchvideo switches decord's output to torch for the whole process."""
    batch = reader.get_batch(numbers.tolist())
    return batch if isinstance(batch, Tensor) else torch.from_numpy(batch.asnumpy())


def cut(frames: Tensor, crop: int) -> Tensor:
    """One crop of resized frames (T, C, h, w), (C, T, S, S)."""
    boxes = evaluation_crops(*frames.shape[-2:], num_crops=SETTINGS.num_crops, crop_px=SETTINGS.crop_px)
    return boxes[crop].of(frames).transpose(0, 1).contiguous()


def floor(path: str) -> None:
    """Decodes the distinct frames in their order and resizes each; no views are cut."""
    reader = opened(path)
    frames = decord_frames(reader, clips_of(len(reader)).unique())  # (D,H,W,C)
    del reader  # it would go on decoding
    resize_short_side(frames, SETTINGS.short_side_px)


def one_open_per_view(path: str) -> None:
    """Opens the video for each view, and decodes, resizes and crops its frames."""
    for view in range(SETTINGS.num_views):
        clip, crop = divmod(view, SETTINGS.num_crops)
        reader = opened(path)
        frames = decord_frames(reader, clips_of(len(reader))[clip])  # (T,H,W,C)
        del reader
        cut(resize_short_side(frames, SETTINGS.short_side_px), crop)


def pytorchvideo(path: str, decoder: str) -> None:
    """pytorchvideo's data set, with transforms of torchvision: its own do not import beside torchvision >= 0.17."""
    from pytorchvideo.data import LabeledVideoDataset
    from pytorchvideo.data.clip_sampling import ConstantClipsPerVideoSampler

    def transform(sample: dict[str, Any]) -> Tensor:
        frames = sample["video"]  # (C,T,H,W) float32, every frame of the clip's duration
        places = torch.linspace(0, frames.shape[1] - 1, SETTINGS.clip_frames).long()  # as UniformTemporalSubsample
        frames = frames[:, places].permute(1, 2, 3, 0)  # (T,H,W,C)
        _, height, width, _ = frames.shape
        return cut(resize(frames, short_side_size(height, width, SETTINGS.short_side_px)), sample["aug_index"])

    duration_sec = clip_span(SETTINGS.clip_frames, SETTINGS.frame_stride) / opened(path).get_avg_fps()
    sampler = ConstantClipsPerVideoSampler(duration_sec, SETTINGS.num_clips, SETTINGS.num_crops)
    files = [(path, {"label": 0})]
    dataset = LabeledVideoDataset(files, sampler, SequentialSampler, transform, decode_audio=False, decoder=decoder)
    num_views = sum(1 for _ in dataset)
    if num_views != SETTINGS.num_views:
        raise RuntimeError(f"it gave {num_views} of {SETTINGS.num_views} views")


def measure(path: str, rounds: int) -> list[Measured]:
    """Runs all ways in turn, `rounds` times after one round that warms up."""
    ways: dict[str, Callable[[], object]] = {
        "octvideo": partial(read_views, path, SETTINGS),
        FLOOR: partial(floor, path),
        "decord, an open per view": partial(one_open_per_view, path),
        "pytorchvideo (decord)": partial(pytorchvideo, path, "decord"),
        "pytorchvideo (pyav)": partial(pytorchvideo, path, "pyav"),
    }
    cpu_ms: dict[str, list[float]] = {name: [] for name in ways}
    for number in range(rounds + 1):
        names = list(ways)
        for name in names[number % len(names) :] + names[: number % len(names)]:
            started = time.process_time()
            try:
                ways[name]()
            except Exception as error:
                if number or "pytorchvideo" not in name:
                    raise
                print(f"left out: {name}: {type(error).__name__}: {error}", file=sys.stderr)
                del ways[name]
            else:
                cpu_ms[name].append(1000 * (time.process_time() - started))
    kept = {name: cpu_ms[name][1:] for name in ways}
    return [
        Measured(name, times, [a / b for a, b in zip(times, kept[FLOOR], strict=True)]) for name, times in kept.items()
    ]


def spread(values: list[float], digits: int) -> str:
    """Median, and the smallest and largest."""
    low, middle, high = (f"{value:.{digits}f}" for value in (min(values), statistics.median(values), max(values)))
    return f"{middle} ({low} to {high})"


def main() -> int:
    """Returns 0, or 2 for a mistake of the user's."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("videos", nargs="*", metavar="VIDEO", help="files that decord can read")
    parser.add_argument("--rounds", type=int, default=5, metavar="N", help="(5)")
    parser.add_argument("--json", action="store_true", help="print every number as JSON")
    args = parser.parse_args()
    torch.set_num_threads(1)
    try:
        if not args.videos or args.rounds < 1:
            raise UserError(
                f"got {len(args.videos)} videos and {args.rounds} rounds: give video files, such as clips of Kinetics "
                "(the figures hold for their length, size and codec), and 1 round or more"
            )
        results = []
        for video in args.videos:
            read = read_frames(video, lambda num_frames: torch.zeros(1, dtype=torch.int64), decoder="decord")
            height, width = read.frames.shape[1:3]
            facts = {"video": video, "width": width, "height": height, "num_frames": read.num_frames}
            results.append(facts | {"arms": measure(str(Path(video).absolute()), args.rounds)})
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    if args.json:
        print(json.dumps(results, default=vars, indent=2))
    for result in results if not args.json else []:
        size = f"{result['width']}x{result['height']}, {result['num_frames']} frames"
        title = f"{Path(result['video']).name} ({size}): {SETTINGS.num_views} views, {args.rounds} rounds"
        drawn = Table("", box=box.SIMPLE_HEAD, title=title, title_justify="left")
        drawn.add_column("CPU ms, median (range)", justify="right")
        drawn.add_column(f"to '{FLOOR}'", justify="right")
        for row in result["arms"]:
            drawn.add_row(row.arm, spread(row.cpu_ms, 0), spread(row.to_floor, 2))
        Console(width=120).print(drawn)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
