"""The command line of tools/explain_evidence.py."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from lab.explain.clips import Demo, demo_clips
from lab.explain.pointing import game_table, play
from lab.explain.shuffled import compare, correlation_table
from lab.explain.spectra import draw_evidence
from lab.probes.networks import NETWORKS
from octvideo.cli.arguments import Parser, positive
from octvideo.cli.ending import command
from octvideo.errors import UserError
from octvideo.files import whole_text
from octvideo.progress import track

_DESCRIPTION = """Whether saliency says anything, and what channels of networks hold.

  tools/explain_evidence.py --demo data/demo --runs demo demo_i3d -o runs/explained
  tools/explain_evidence.py --videos FOLDER --weights efficientnet_lite0=FILE mobilenet_v2=FILE -o runs/explained

With --demo: the pointing game on the demo's test videos, and rank correlations as weights are shuffled (saliency.md).
The first run is the octave network, whose layer the others are looked at, too. With --videos: what channels lose at
half resolution against depth, of video networks with random weights, and of image networks with the weights that are
given (spectra.png, spectra.md). docs/conversion-evidence.md says where weights are."""


@command(stopped="stopped")
def main(argv: Sequence[str]) -> int:
    """Returns 0; 2 for a mistake of the user's, 130 after Ctrl-C."""
    parser = Parser(description=_DESCRIPTION)
    parser.add_argument("--demo", type=Path, metavar="DIR", help="what octvideo demo-data wrote")
    parser.add_argument("--runs", nargs="+", default=["demo", "demo_i3d"], metavar="RUN", help="(demo demo_i3d)")
    parser.add_argument("--videos", nargs="+", metavar="FOLDER", help="real clips, for spectra")
    parser.add_argument("--weights", nargs="+", default=[], metavar="NETWORK=FILE", help=f"of {', '.join(NETWORKS)}")
    parser.add_argument("--num_clips", type=positive, default=24, metavar="N", help="for spectra (24)")
    parser.add_argument(
        "--num_shuffled", type=positive, default=20, metavar="N", help="clips to shuffle weights by (20)"
    )
    parser.shared("output", required=True, metavar="DIR", help="of tables and pictures")
    parser.shared("runs_dir")
    args = parser.parse_args(argv)
    if args.demo is None and args.videos is None:
        raise UserError("nothing to do: give --demo DIR, --videos FOLDER, or both")
    args.output.mkdir(parents=True, exist_ok=True)
    if args.videos is not None:
        draw_evidence(args.videos, args.weights, args.num_clips, args.output, watch=_watch)
    if args.demo is not None:
        _saliency(Demo.read(args.demo, args.runs, args.runs_dir), args.num_shuffled, args.output)
    return 0


def _saliency(demo: Demo, num_shuffled: int, output: Path) -> None:
    clips = list(demo_clips(demo))
    games = play(demo, clips, watch=lambda items: _watch(items, "pointing"))
    step = max(1, len(clips) // num_shuffled)
    found = compare(demo, clips[::step][:num_shuffled], ("gradcam", "gradients"))
    with whole_text(output / "saliency.md") as file:
        print(game_table(games), correlation_table(found), sep="\n\n", file=file)
    print((output / "saliency.md").read_text(encoding="utf-8"))


def _watch(items: Sequence[Any], text: str) -> Iterable[Any]:
    return track(items, text, len(items))
