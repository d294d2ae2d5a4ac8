"""Shows what a network looks at in a video, by high and by low frequency: `octvideo explain VIDEO --ckpt RUN -o FILE`.

A .png is a row of frames of the middle clip, and below them what the channels at full resolution say for a class, what
those at half resolution say, and both together, on one scale. An .mp4, .m4v, .mov or .mkv is the whole video, with the
high path in orange and the low path in blue. --spectrum draws, of any number of videos, what each channel of each layer
loses at half resolution.

  octvideo explain video.mp4 --ckpt demo -o seen.png
  octvideo explain video.mp4 --ckpt demo --class move_left --method gradients -o seen.mp4
  octvideo explain --spectrum videos/ --ckpt my_i3d_oct --beside my_i3d -o spectrum.png
"""

from __future__ import annotations

import argparse
import functools
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import get_args

from octvideo.cli.arguments import Parser, positive
from octvideo.cli.video_arguments import find_videos
from octvideo.errors import UserError
from octvideo.evaluation.spectrum_picture import SpectrumPanel, draw_spectra
from octvideo.explain.picture import PICTURE_SUFFIX, check_picture, draw_clip
from octvideo.explain.saliency import Method
from octvideo.explain.spectra import channel_spectra
from octvideo.explain.video import Explainer, check_no_export
from octvideo.files import whole_file
from octvideo.inference.checkpoint import expanded, find_checkpoint, network_of_checkpoint
from octvideo.inference.device import pick_device
from octvideo.lettering import lacking
from octvideo.progress import Progress, track
from octvideo.stores import by_shown, file_name
from octvideo.video.frames import Source, fetched
from octvideo.video.overlay import OVERLAY_SUFFIXES, check_overlay, write_overlay

_LOST = "share of the variance that half\nof the own resolution cannot hold"


def add_arguments(parser: Parser) -> None:
    parser.add_argument("videos", nargs="+", metavar="VIDEO", help="one; folders and @FILE too for --spectrum")
    parser.shared("ckpt", required=True, help="a run's name or folder, 'last' for the newest, or a checkpoint")
    parser.shared(
        "output", required=True, metavar="FILE", help="a picture (.png), or the whole video (.mp4, .mov, .mkv)"
    )
    parser.add_argument("--class", dest="class_name", metavar="NAME", help="the class to explain (the predicted one)")
    parser.add_argument("--method", choices=get_args(Method), help="Grad-CAM, or smoothed input gradients (gradcam)")
    parser.add_argument(
        "--layer", metavar="PATH", help="the last that holds both frequencies, or the last; octvideo features lists all"
    )
    parser.add_argument("--spectrum", action="store_true", help="draw what channels lose at half resolution, by layer")
    parser.add_argument(
        "--beside", metavar="RUN|FILE", help="with --spectrum: another network above, such as the one before conversion"
    )
    parser.add_argument("--num_clips", type=positive, metavar="N", help="with --spectrum: clips to measure on (48)")
    parser.shared("device", "runs_dir")


def run(args: argparse.Namespace) -> int:
    """Draws what is asked for; returns 0, or 1 where not all of a video could be read."""
    if args.spectrum:
        _refuse(
            args,
            ("class_name", "method", "layer"),
            "says what a class is seen by, and --spectrum has no class: leave one of them out",
        )
        return _spectrum(args)
    _refuse(args, ("beside", "num_clips"), "is for --spectrum: give both, or none")
    videos = list(find_videos(args.videos))
    if len(videos) != 1:
        raise UserError(f"got {len(videos)} videos, expected one (--spectrum takes many)")
    is_picture = args.output.suffix.lower() == PICTURE_SUFFIX
    if not is_picture and args.output.suffix.lower() not in OVERLAY_SUFFIXES:
        known = ", ".join((PICTURE_SUFFIX, *OVERLAY_SUFFIXES))
        raise UserError(f"-o {args.output}: got {args.output.suffix or 'no suffix'}, expected {known}")
    if is_picture:
        check_picture(args.output)
    else:
        check_overlay(args.output, videos[0])
    video = fetched(videos[0])
    checkpoint = _checkpoint(args.ckpt, args.runs_dir)
    how = {"method": args.method or "gradcam", "layer": args.layer, "device": args.device}
    explainer = Explainer.from_checkpoint(checkpoint, **how)
    scores = explainer.scores(video)
    chosen = int(scores.argmax()) if args.class_name is None else explainer.class_index(args.class_name)
    name = explainer.class_names[chosen]
    scored = f"{name} {100 * float(scores[chosen]):.0f} %"
    title = f"{file_name(videos[0])}: {scored}"
    if line := lacking([], title if is_picture else scored):
        print(line, file=sys.stderr)
    print(f"looked at: {explainer.layer}, for {name} ({100 * float(scores[chosen]):.1f} %)", file=sys.stderr)
    if explainer.passes_beside():
        print("what passes beside this layer, by a shortcut or another pathway, is in no map", file=sys.stderr)
    if is_picture:
        draw_clip(args.output, explainer.middle_clip(video, chosen), title=title)
        print(f"the picture is {args.output}", file=sys.stderr)
        return 0
    return _overlay(args.output, explainer, video, chosen, scored)


def _refuse(args: argparse.Namespace, names: Sequence[str], why: str) -> None:
    for name in names:
        if getattr(args, name) is not None:
            raise UserError(f"--{name.removesuffix('_name')} {why}")


def _checkpoint(given: str, runs_dir: str) -> Path:
    check_no_export(expanded(given))
    found = find_checkpoint(given, runs_dir)
    check_no_export(found)
    return found


def _overlay(output: Path, explainer: Explainer, video: Source, chosen: int, title: str) -> int:
    from octvideo.explain.painting import Painter

    painter = Painter(title)
    with Progress("explaining, seconds", None) as progress:
        for clip in explainer.clips(video, chosen, on_clip=lambda end_sec: progress.update(int(end_sec))):
            painter.add(clip)
    with Progress(f"writing {output.name}, seconds", max(int(painter.end_sec), 1)) as progress:
        report = write_overlay(video, output, painter, on_frame=lambda time_sec: progress.update(int(time_sec)))
    for note in report.notes:
        print(f"{output.name}: {note}", file=sys.stderr)
    print(f"the video is {output}, {report.num_frames} frames", file=sys.stderr)
    if report.trouble:
        print(f"error: cannot read all of video '{video}': {report.trouble}", file=sys.stderr)
    return 1 if report.trouble else 0


# ── spectra ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def _spectrum(args: argparse.Namespace) -> int:
    check_picture(args.output)
    names = [name for name in (args.beside, args.ckpt) if name is not None]
    checkpoints = [_checkpoint(name, args.runs_dir) for name in names]
    videos = list(by_shown(find_videos(args.videos)).values())
    if not videos:
        raise UserError(f"no video in {', '.join(args.videos)}")
    panels = [_panel(name, checkpoint, videos, args) for name, checkpoint in zip(names, checkpoints, strict=True)]
    with whole_file(args.output) as part:
        draw_spectra(part, panels)
    print(f"the picture is {args.output}", file=sys.stderr)
    return 0


def _panel(name: str, checkpoint: Path, videos: Sequence[str], args: argparse.Namespace) -> SpectrumPanel:
    network, settings = network_of_checkpoint(checkpoint)
    from octvideo.inference.conversion import Trained, read_clips  # after octvideo.models: else pytorchvideo warns

    device = pick_device(args.device)
    trained = Trained(network.to(device), **settings)
    reading = functools.partial(track, text="reading")
    clips, unreadable = read_clips(videos, trained, args.num_clips or 48, watch=reading)
    for path, reason in unreadable:
        print(f"left out, can't be read: {path}: {reason}", file=sys.stderr)
    numbers = track(range(len(clips)), text=f"measuring {name}")
    found = channel_spectra(trained.network, (clips[n].to(device) for n in numbers))
    details = {layer: spectrum.lost for layer, spectrum in found.items()}
    low = {layer: spectrum.low.nonzero()[0] for layer, spectrum in found.items()}
    is_octave = any(len(channels) for channels in low.values())
    title = f"{name}: {len(clips)} clips of {len(set(clips.videos))} videos"
    if is_octave:
        return SpectrumPanel(title, details, low, medians="path", said=_LOST)
    return SpectrumPanel(title, details, low)
