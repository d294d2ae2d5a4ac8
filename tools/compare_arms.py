#!/usr/bin/env python
"""What octave does to networks trained alike: `python tools/compare_arms.py --cfg jhmdb --networks
octvideo.models.i3d_small timm:mobilenetv2_050 --seeds 0 1 2 --epochs 12 --num_clips 3`.

Trains and tests every network three times for each seed (ordinary, ordinary with pooling, octave), by
tools/train.py and tools/test.py, into runs/arms_NETWORK_ARM_sSEED, and prints a table: multiply-adds, time of a
training step, top-1 and top-5 with intervals, and the differences between twins, video by video. Given again, it
keeps finished runs and goes on with interrupted ones. --only_table trains nothing. Words after -- go to train.py.
"""

import argparse
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from lab.arms.runs import ArmSettings, plan_runs, run_in_process, train_runs
from lab.arms.table import check_networks, compare, drawn_table, markdown_table
from octvideo.cli.arguments import Parser
from octvideo.cli.ending import command, end_with
from octvideo.errors import UserError
from octvideo.progress import Progress


@command(stopped="stopped; given again, the command goes on from here")
def main(argv: Sequence[str]) -> int:
    """Returns 0; 1 where a run has failed, 2 for a mistake of the user's, 130 after Ctrl-C."""
    parser = Parser(description=__doc__)
    parser.add_argument("--cfg", metavar="CONFIG", help="what all runs share, by path or name")
    parser.add_argument("--networks", nargs="+", required=True, metavar="NAME", help="builders, or timm:NAME")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0], metavar="S", help="(0)")
    parser.add_argument("--alpha", type=float, default=0.25, metavar="A", help="of the octave arm (0.25)")
    parser.add_argument("--epochs", type=int, metavar="E", help="of each training (the config's)")
    parser.add_argument("--num_clips", type=int, metavar="C", help="of each test video (the config's)")
    parser.shared("runs_dir", type=Path)
    parser.add_argument("--rounds", type=int, default=7, metavar="R", help="of timed steps, 0 for none (7)")
    parser.add_argument("--only_table", action="store_true", help="train nothing")
    parser.shared("markdown")
    parser.add_argument("options", nargs="*", metavar="-- --KEY VALUE", help="for train.py, the same in all runs")
    args = parser.parse_args(argv)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # or a training in progress would be left alone
    return run(args)


def run(args: argparse.Namespace) -> int:
    """Trains what is missing, unless told not to, and prints the table of what there is."""
    settings = ArmSettings(
        args.cfg, args.runs_dir, Path(__file__).resolve().parent, args.epochs, args.num_clips, tuple(args.options)
    )
    runs = plan_runs(args.networks, args.seeds, alpha=args.alpha)
    check_networks(runs)
    if not args.cfg and not args.only_table:
        raise UserError("--cfg not given: trainings start from a config, such as --cfg jhmdb")
    with Progress("comparing arms") as progress:

        def tell(message: str) -> None:
            progress.print(message)
            progress.begin(message.splitlines()[0])

        good = args.only_table or train_runs(runs, settings, runner=run_in_process, say=tell)
        progress.begin("timing training steps")
        rows, notes = compare(runs, settings, rounds=args.rounds)
    if args.markdown:
        print(markdown_table(rows, notes))
    else:
        # Wide enough in a log file too, which is no terminal.
        console = Console(width=220)
        console.print(drawn_table(rows))
        console.print(*notes, sep="\n", highlight=False, markup=False)
    return 0 if good else 1


if __name__ == "__main__":
    end_with(main)
