#!/usr/bin/env python
"""Names the actions in videos with the model beside this file: `python classify.py VIDEO ... [--topk 5] [--json]`.

Needs Python 3.10, numpy, PyAV (`av`), and the library that octvideo.json names, by which engine.py loads the model. It
cuts the same views as octvideo, which wrote it, and gives the same scores but for the rounding of resized pixels.
"""

from __future__ import annotations

import argparse
import json
import runpy
import sys
from bisect import bisect_right
from collections.abc import Callable, Iterator
from fractions import Fraction
from functools import cache
from pathlib import Path
from typing import Any

import av
import numpy as np

HERE = Path(__file__).resolve().parent
Run = Callable[[np.ndarray], Any]  # clips float32 (N,3,T,H,W) to logits (N,K)


def main() -> int:
    """Classifies the videos named on the command line; 1 if some could not be read."""
    parser = argparse.ArgumentParser(description="Names the actions in videos.")
    parser.add_argument("videos", nargs="+", metavar="VIDEO")
    parser.add_argument("--topk", type=int, default=5, help="classes to print per video (5)")
    parser.add_argument("--threads", type=int, default=0, help="of the CPU (all)")
    parser.add_argument("--json", action="store_true", help="print JSON")
    args = parser.parse_args()
    settings = json.loads((HERE / "octvideo.json").read_text(encoding="utf-8"))
    try:
        load = runpy.run_path(str(HERE / "engine.py"))["load"]
        run, _ = load(str(HERE / settings["model"]), settings["precision"], settings["device"], args.threads)
    except ImportError as error:
        library = settings["library"]
        sys.exit(f"error: this model needs {library} ({error}): pip install {library}")
    results, errors = [], []
    for path in args.videos:
        try:
            scores = video_scores(path, settings, run)
        except (OSError, ValueError) as error:  # av.FFmpegError is one of the two
            errors.append({"path": path, "reason": str(error)})
            print(f"error: cannot read video '{path}': {error}", file=sys.stderr)
            continue
        best = np.argsort(-scores, kind="stable")[: args.topk]
        top = [{"name": settings["class_names"][k], "score": float(scores[k])} for k in best]
        found = {"path": path, "top": top}
        lines = [path, *(f"  {100 * t['score']:5.1f} %  {t['name']}" for t in top)]
        if (thresholds := settings.get("scoring", {}).get("thresholds")) is not None:
            order = np.argsort(-scores, kind="stable")
            labels = [settings["class_names"][k] for k in order if scores[k] >= thresholds[k]]
            found["labels"] = labels
            lines.append(f"  labels: {', '.join(labels) or 'none'}")
        results.append(found)
        if not args.json:
            print("\n".join(lines), flush=True)
    if args.json:
        content = {"weights": settings["source"], "videos": results, "errors": errors}
        print(json.dumps(content, indent=2, allow_nan=False))
    return 1 if errors else 0


def video_scores(path: str, settings: dict[str, Any], run: Run) -> np.ndarray:
    """Softmax or sigmoid of each view's logits, averaged over the views: (K,)."""
    scoring = settings.get("scoring", {})  # of older exports: a softmax
    size, total, count = settings["input_shape"][0], 0.0, 0
    views = list(cut_views(path, settings["views"]))
    mean, std = (255 * np.array(settings[key], np.float32).reshape(3, 1, 1, 1) for key in ("mean", "std"))
    for start in range(0, len(views), size):
        chunk = views[start : start + size]
        clips = np.zeros((size, *chunk[0].shape), np.float32)  # the model's batch size, filled up with zeros
        for n, view in enumerate(chunk):
            clips[n] = (view.astype(np.float32) - mean) / std
        result: Any = run(clips)
        result = result.cpu() if hasattr(result, "cpu") else result  # it may lie on a GPU
        logits = np.asarray(result, np.float64)[: len(chunk)]
        if not np.isfinite(logits).all():
            raise ValueError("its scores are not finite")
        if scoring.get("function") == "sigmoid":
            total = total + (np.tanh(logits / 2) / 2 + 0.5).sum(0)
        else:
            total = total + softmax(logits).sum(0)
        count += len(chunk)
    scores, temperature = np.asarray(total / count), scoring.get("temperature", 1.0)
    if temperature == 1:
        return scores
    with np.errstate(divide="ignore"):  # the logarithm of 0
        return softmax(np.log(scores)[None] / temperature)[0]


def softmax(logits: np.ndarray) -> np.ndarray:
    """Over the classes of (N, K)."""
    exp = np.exp(logits - logits.max(1, keepdims=True))
    return np.asarray(exp / exp.sum(1, keepdims=True))


# ── views ───────────────────────────────────────────────────────────────────────────────────────────────────


def cut_views(path: str, views: dict[str, Any]) -> Iterator[np.ndarray]:
    """uint8 (3, T, S, S), clip by clip and, in each, crop by crop."""
    shown = on_clock(path, views.get("target_fps"))
    if len(shown) == 0:
        raise ValueError("it holds no frames")
    clips = shown[clip_frames(len(shown), views)]  # (num_clips,T)
    wanted = set(clips.ravel().tolist())
    frames: dict[int, np.ndarray] = {}  # each once, resized
    shape = None
    for n, frame in enumerate(decoded(path)):
        if n in wanted:
            image = upright(frame, shape)
            shape = image.shape
            frames[n] = resize_short_side(image, views["short_side_px"])
    size = views["crop_px"]
    height, width = frames[min(frames)].shape[:2]
    corners = crop_corners(height, width, views["num_crops"], size)
    for clip in clips.tolist():
        for top, left in corners:
            cut = np.stack([frames[n][top : top + size, left : left + size] for n in clip])  # (T,S,S,3)
            yield cut.transpose(3, 0, 1, 2)


def on_clock(path: str, target_fps: float | None) -> np.ndarray:
    """The index of the frame on display at each tick of a clock of that rate; without one, of each frame."""
    times, end, step = [], 0, Fraction(0)
    for frame in decoded(path):
        times.append(-1 if frame.pts is None else frame.pts)
        end = times[-1] + (frame.duration or (times[-1] - times[0]) // max(len(times) - 1, 1) or 1)
        step = 1 / (Fraction(target_fps or 1).limit_denominator(1001) * (frame.time_base or 1))
    if target_fps is None or not times:
        return np.arange(len(times))
    if sorted(set(times)) != times:
        raise ValueError(f"its frames have no times that target_fps ({target_fps}) could go by")
    ticks = max(-((times[0] - end) // step), 1)
    return np.array([bisect_right(times, times[0] + int(tick * step)) - 1 for tick in range(ticks)])


def clip_frames(num_frames: int, views: dict[str, Any]) -> np.ndarray:
    """Frame indices (or ticks) of clips spread evenly over the video, or of its segments, (num_clips, T)."""
    if views.get("sampling", "dense") != "dense":
        return segment_clips(num_frames, views)
    span = (views["clip_frames"] - 1) * views["frame_stride"] + 1
    last_start, count = max(num_frames - span, 0), views["num_clips"]
    starts = np.array([last_start // 2]) if count == 1 else np.arange(count) * last_start // (count - 1)
    clips = starts[:, None] + views["frame_stride"] * np.arange(views["clip_frames"])
    return clips % num_frames if views["short_video"] == "loop" else np.minimum(clips, num_frames - 1)


def segment_clips(num_frames: int, views: dict[str, Any]) -> np.ndarray:
    """A frame of each of T equal parts of the video, (num_clips, T): the middle one, or several clips in turn."""
    parts, count = views["clip_frames"], views["num_clips"]
    part, clip = np.arange(parts), np.arange(count)[:, None]
    if views["sampling"] == "segments":
        whole, share = (2, np.ones((1, 1), int)) if count == 1 else (count, clip)
        return (part * whole + share) * num_frames // (whole * parts)
    if views["sampling"] != "segments_ssv2":
        raise ValueError(f"its octvideo.json has the sampling {views['sampling']!r}, which this program does not know")
    bounds = np.array([round(Fraction(n * (num_frames - 1), parts)) for n in range(parts + 1)])
    if count == 1:
        return (bounds[None, :-1] + bounds[None, 1:]) // 2
    return bounds[:-1] + (clip + 1) * (num_frames - 1) // (parts * (count + 1))


def crop_corners(height: int, width: int, num_crops: int, size: int) -> list[tuple[int, int]]:
    """Top and left of the crops: the centre, or three along the longer side."""
    spare_y, spare_x = height - size, width - size
    halves = [1] if num_crops == 1 else [0, 1, 2]
    if width >= height:
        return [(spare_y // 2, spare_x * n // 2) for n in halves]
    return [(spare_y * n // 2, spare_x // 2) for n in halves]


def decoded(path: str) -> Iterator[av.VideoFrame]:
    """The frames of the main video stream in the order of display; packets that can't be decoded give none."""
    if not Path(path).is_file():
        raise ValueError("no such file")
    with av.open(str(Path(path).absolute())) as container:  # absolute: FFmpeg takes a:b.mp4 for a protocol
        stream = container.streams.best("video")
        if not isinstance(stream, av.VideoStream) or stream.disposition & av.stream.Disposition.attached_pic:
            raise ValueError("no video stream")
        stream.thread_type = "AUTO"
        packets = container.demux(stream)
        while True:
            try:
                packet = next(packets)
            except (StopIteration, av.FFmpegError):
                return
            try:
                frames = packet.decode()
            except (av.FFmpegError, ValueError):
                continue
            yield from (frame for frame in frames if isinstance(frame, av.VideoFrame) and not frame.is_corrupt)


def upright(frame: av.VideoFrame, shape: tuple[int, ...] | None) -> np.ndarray:
    """RGB (H, W, 3), turned as the file says, in the first frame's size where a video changes it."""
    quarters, rest = divmod(frame.rotation, 90)
    quarters = 0 if rest or abs(quarters) > 4 else quarters
    image = np.rot90(frame.to_ndarray(format="rgb24"), quarters)
    if shape is not None and image.shape != shape:
        height, width = shape[:2] if quarters % 2 == 0 else shape[1::-1]
        image = np.rot90(frame.to_ndarray(format="rgb24", width=width, height=height), quarters)
    return image


# ── resizing ────────────────────────────────────────────────────────────────────────────────────────────────


def resize_short_side(image: np.ndarray, short_side_px: int) -> np.ndarray:
    """uint8 (H, W, 3) to (h, w, 3), the aspect kept and rounded down: bilinear, antialiased, first along rows."""
    height, width = image.shape[:2]
    if height <= width:
        size = short_side_px, short_side_px * width // height
    else:
        size = short_side_px * height // width, short_side_px
    if size == (height, width):
        return image
    x = image.astype(np.float32)
    if size[1] != width:
        x = rounded(np.einsum("hwc,vw->hvc", x, weights(width, size[1]), optimize=True))
    if size[0] != height:
        x = rounded(np.tensordot(weights(height, size[0]), x, axes=(1, 0)))
    return x.astype(np.uint8)


def rounded(x: np.ndarray) -> np.ndarray:
    """To whole grey levels, as after each pass of torch's resize of uint8."""
    return np.floor(np.clip(x, 0, 255) + 0.5)


@cache
def weights(old: int, new: int) -> np.ndarray:
    """Triangle filter, (new, old): each row holds the shares of the old pixels in a new one."""
    scale = old / new
    support = max(scale, 1.0)
    centres = scale * (np.arange(new)[:, None] + 0.5)
    matrix = np.maximum(0.0, 1 - np.abs((np.arange(old)[None] + 0.5 - centres) / support))
    return np.asarray(matrix / matrix.sum(1, keepdims=True), np.float32)


if __name__ == "__main__":
    raise SystemExit(main())
