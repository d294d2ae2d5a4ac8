"""Finds what is most like a video: `octvideo similar DIR QUERY`, in a folder that octvideo features has written.

QUERY is a video, or one whose features are in DIR; NAME@12.5s is the window around 12.5 s. By cosine similarity with
the nearest window of the query. The query's own video is left out.
"""

from __future__ import annotations

import argparse
import re
import sys
from pathlib import Path
from typing import Any

import numpy as np

from octvideo.cli.arguments import Parser, positive
from octvideo.cli.features import features_of, loaded_network, make_extractor
from octvideo.cli.tables import print_table
from octvideo.errors import UserError
from octvideo.files import digest, json_text
from octvideo.inference.checkpoint import find_checkpoint
from octvideo.inference.feature_files import FeatureFolder
from octvideo.inference.similar import Match, nearest
from octvideo.stores import is_remote, shown
from octvideo.video import VideoReadError, ViewSettings

_AT = re.compile(r"(?P<video>.+)@(?P<sec>\d+(\.\d+)?)s?")


def add_arguments(parser: Parser) -> None:
    add = parser.add_argument
    add("folder", type=Path, metavar="DIR", help="of features")
    add("query", metavar="QUERY", help="a video, or VIDEO@12.5s for the window around 12.5 s")
    add("-k", "--nearest", type=positive, default=10, metavar="K", help="how many to find (10)")
    add("--per_video", action="store_true", help="of each video its best window alone")
    add("--json", action="store_true", help="print a line of JSON for each")
    parser.shared("ckpt", help="where the network of the query is now, if not where it was")
    parser.shared("device", "threads", "runs_dir")


def run(args: argparse.Namespace) -> int:
    """Prints the nearest; returns 0, or 1 where the query can't be read."""
    folder = FeatureFolder(args.folder)
    video, at_sec, stored = args.query, None, folder.find(shown(args.query))
    match = _AT.fullmatch(args.query)
    if stored is None and match and not Path(args.query).exists():
        video, at_sec = match["video"], float(match["sec"])
        stored = folder.find(shown(video))
    if stored is not None:
        vectors, starts, ends = (np.asarray(stored.array(name)) for name in ("features", "start_sec", "end_sec"))
    elif is_remote(video) or Path(video).exists():
        (made,) = features_of(_extractor(folder, args), [video])
        if isinstance(made, VideoReadError):
            print(f"error: {made}", file=sys.stderr)
            return 1
        vectors, starts, ends = made.features, made.start_sec, made.end_sec
    else:
        raise UserError(
            f"{shown(video)} is neither a video nor one whose features are in {args.folder} (see its index)"
        )
    if at_sec is not None:
        vectors, starts, ends = _around(at_sec, vectors, starts, ends, video)
    found = nearest(folder, vectors, k=args.nearest, per_video=args.per_video, leave_out=shown(video))
    if not found:
        print(f"there is no other video in {args.folder}", file=sys.stderr)
    if args.json:
        for one in found:
            print(json_text(_record(one, starts, ends)))
    elif found:
        seconds = [(one.start_sec, one.end_sec, starts[one.query]) for one in found]
        rows = [
            (one.video, f"{start:.2f}", f"{end:.2f}", f"{one.similarity:.4f}", f"{of_query:.2f}")
            for one, (start, end, of_query) in zip(found, seconds, strict=True)
        ]
        print_table(("video", "from s", "to s", "similarity", "like the query at s"), rows)
    return 0


def _around(at_sec: float, vectors: Any, starts: Any, ends: Any, video: str) -> tuple[Any, Any, Any]:
    """The window whose middle is nearest to a time.

    Raises:
        UserError: the video has none there.
    """
    if not starts.min(initial=np.inf) <= at_sec <= ends.max(initial=-np.inf):
        raise UserError(f"{video} has no window at {at_sec:g} s: its features go from {starts[0]:g} to {ends[-1]:g} s")
    n = int(np.abs((starts + ends) / 2 - at_sec).argmin())
    return vectors[n : n + 1], starts[n : n + 1], ends[n : n + 1]


def _record(one: Match, starts: Any, ends: Any) -> dict[str, Any]:
    times = {"start": one.start_sec, "end": one.end_sec, "similarity": round(one.similarity, 6)}
    return {"video": one.video, **times, "query_start": starts[one.query], "query_end": ends[one.query]}


def _extractor(folder: FeatureFolder, args: argparse.Namespace) -> Any:
    """That which wrote the folder.

    Raises:
        UserError: its network is not there any more, or is another one.
    """
    settings = folder.settings
    checkpoint = None
    if settings["sha256"]:
        checkpoint = Path(settings["weights"]) if args.ckpt is None else find_checkpoint(args.ckpt, args.runs_dir)
        if not checkpoint.is_file():
            raise UserError(f"the network of these features is not at {checkpoint} any more: give --ckpt")
        if digest(checkpoint) != settings["sha256"]:
            raise UserError(f"{checkpoint} is not the network that wrote {folder.folder}: give that one by --ckpt")
    network, own = loaded_network(checkpoint)
    own["views"] = ViewSettings.from_dict(settings["views"])
    asked = {name: settings[name] for name in ("layer", "pooled", "whole", "window_sec", "stride_sec")}
    how = {"engine": settings["engine"], "precision": settings["precision"]}
    return make_extractor(network, own, **asked, **how, device=args.device, num_threads=args.threads)
