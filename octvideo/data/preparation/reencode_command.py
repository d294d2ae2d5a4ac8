"""`prepare_dataset.py reencode`."""

from __future__ import annotations

import argparse
from pathlib import Path

from octvideo.data.preparation.encoding import EncodingSettings
from octvideo.data.preparation.list_command import next_command
from octvideo.data.preparation.reencode import DAMAGED_FILE, FAILED_FILE, Summary, reencode
from octvideo.data.workers import available_cpus
from octvideo.errors import UserError
from octvideo.progress import Progress


def add_arguments(parser: argparse.ArgumentParser) -> None:
    default = EncodingSettings()
    parser.add_argument("source", type=Path, metavar="SOURCE", help="folder of videos; nothing in it is touched")
    parser.add_argument("out", type=Path, metavar="OUT", help="folder to write: the same names, as .mp4")
    parser.add_argument(
        "--short-side", type=int, default=default.short_side_px, metavar="PX", help="(256); 320 is usual too"
    )
    parser.add_argument("--gop", type=int, default=default.gop_frames, metavar="FRAMES", help="between keyframes (12)")
    parser.add_argument("--crf", type=int, default=default.crf, help="quality of x264, 0 (best) to 51 (23)")
    parser.add_argument("--preset", default=default.preset, help="speed of x264 against size (fast)")
    parser.add_argument("--workers", type=int, help="videos at once (one per CPU)")
    parser.add_argument("--timeout", type=float, default=60, metavar="S", help="without a new frame of a video (60)")


def run(args: argparse.Namespace) -> int:
    """Returns 0, or 1 where a video failed.

    Raises:
        UserError: see `reencode`.
    """
    _check(args)
    settings = EncodingSettings(args.short_side, args.gop, args.crf, args.preset)
    with Progress("re-encoding") as shown:
        summary = reencode(
            args.source,
            args.out,
            settings,
            workers=args.workers or available_cpus(),
            timeout_sec=args.timeout,
            progress=lambda done, total, summary: shown.update(done, total=total, said=f"{summary.failed} failed"),
        )
    _print(args, summary)
    return 1 if summary.failed else 0


def _check(args: argparse.Namespace) -> None:
    if args.short_side < 16 or args.gop < 1 or not 0 <= args.crf <= 51 or args.timeout <= 0 or (args.workers or 1) < 1:
        raise UserError(
            f"got --short-side {args.short_side} --gop {args.gop} --crf {args.crf} --timeout {args.timeout:g} "
            f"--workers {args.workers}: expected 16 or more, 1 or more, 0 to 51, more than 0, 1 or more"
        )
    presets = ("ultrafast", "superfast", "veryfast", "faster", "fast", "medium", "slow", "slower", "veryslow")
    if args.preset not in presets:
        raise UserError(f"--preset: got {args.preset}, expected one of {', '.join(presets)}")


def _print(args: argparse.Namespace, summary: Summary) -> None:
    print(f"{args.out}: {summary.done:,} videos encoded, {summary.there:,} were there, {summary.failed:,} failed")
    if summary.bytes:
        ratio = summary.bytes / max(summary.source_bytes, 1)
        print(f"{summary.source_bytes / 1e6:,.1f} MB are now {summary.bytes / 1e6:,.1f} MB ({ratio:.0%})")
        if ratio > 1:
            print(f"keyframes every {args.gop} frames cost bytes; --crf {args.crf + 5} in another folder takes fewer")
    if summary.same:
        print(f"{summary.same:,} were all that is asked for, and smaller: copied as they are")
    if summary.damaged:
        print(f"{summary.damaged:,} were damaged, what could be decoded is kept: {args.out / DAMAGED_FILE}")
    if summary.failed:
        print(f"failed (run again, these are tried again): {args.out / FAILED_FILE}")
    print(f"\nNext:\n  {next_command(args.source, args.out)}")
