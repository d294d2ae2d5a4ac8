"""The command line of tools/convert_evidence.py."""

from __future__ import annotations

import signal
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from lab.probes.arms import ARMS, PARTS, Arm
from lab.probes.clips import read_clips
from lab.probes.depth import depth_table, draw_depth
from lab.probes.networks import NETWORKS
from lab.probes.summary import draw, read_outcomes, read_trained, report
from lab.probes.training import LEARNING, TRAINED_ARMS, Recipe, TrainedArm, Trainings
from lab.probes.work import Probe, Settings, plan
from octvideo.cli.arguments import Parser, above_zero, positive
from octvideo.cli.ending import command
from octvideo.errors import UserError
from octvideo.files import whole_text
from octvideo.progress import track

_DESCRIPTION = """What conversion without training keeps of image networks with ImageNet weights, on videos.

  tools/convert_evidence.py --weights efficientnet_lite0=FILE mobilenet_v2=FILE --data jhmdb ucf10 -o runs/evidence

A linear classifier is trained on the ordinary network's features (means over frames), and never again. Converted
networks are calibrated on unlabelled training clips of the fold. Each result is a line of -o as soon as it is there;
given again, the command measures what is missing. --only_table measures nothing. --data: folders with clips.csv,
columns path, label, fold (or fold5), source_video (or source). docs/conversion-evidence.md says where weights are."""


@command(stopped="stopped; given again, the command goes on from here")
def main(argv: Sequence[str]) -> int:
    """Returns 0; 2 for a mistake of the user's, 130 after Ctrl-C."""
    parser = Parser(description=_DESCRIPTION)
    parser.add_argument("--weights", nargs="+", default=[], metavar="NETWORK=FILE", help=f"of {', '.join(NETWORKS)}")
    parser.add_argument("--data", nargs="+", default=[], type=Path, metavar="DIR", help="folders with clips.csv")
    parser.add_argument(
        "--parts", nargs="*", default=list(PARTS), choices=PARTS, help="of the arms without training (all)"
    )
    parser.shared("output", required=True, metavar="DIR", help="of results; gets report.md and kept.png at the end")
    parser.add_argument("--train", nargs="+", default=[], choices=LEARNING, help="networks too, for hours (none)")
    parser.add_argument("--depth", action="store_true", help="draw what channels lose against depth, too: depth.png")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0], metavar="S", help="of trainings (0)")
    parser.add_argument("--folds", nargs="+", type=int, metavar="F", help="of trainings (all)")
    parser.add_argument("--tuned_lr", type=above_zero, default=Recipe.tuned_lr, help="of trainings with labels")
    parser.add_argument("--validate", action="store_true", help="test trainings on a training fold that is left out")
    parser.add_argument("--num_clips", type=positive, default=240, metavar="N", help="to calibrate on (240)")
    parser.add_argument("--num_frames", type=positive, default=8, metavar="T", help="of each clip (8)")
    parser.add_argument("--px", type=positive, default=160, help="side of the frames (160)")
    parser.shared("seed")
    parser.add_argument("--only_table", action="store_true", help="measure nothing")
    args = parser.parse_args(argv)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    if not args.only_table:
        if not (args.weights and args.data):
            raise UserError("--weights and --data not given: nothing to measure (--only_table for what is there)")
        arms = list(dict.fromkeys(arm for part in args.parts for arm in ARMS[part]))
        settings = Settings(args.num_frames, args.px, args.num_clips, args.seed)
        recipe = Recipe(tuned_lr=args.tuned_lr, validates=args.validate)
        trained = [arm for arm in TRAINED_ARMS if arm.learning in args.train]
        weights = [_weights(text) for text in args.weights]
        if args.depth:
            draw_details(weights, args.data, settings, args.output)
        measure(weights, args.data, arms, settings, args.output, trained, args.seeds, recipe, args.folds)
    outcomes = read_outcomes(args.output)
    text = report(outcomes, read_trained(args.output))
    with whole_text(args.output / "report.md") as file:
        print(text, file=file)
    draw(outcomes, args.output / "kept.png")
    print(text)
    return 0


def measure(
    weights: Sequence[tuple[str, Path]],
    data: Sequence[Path],
    arms: Sequence[Arm],
    settings: Settings,
    output: Path,
    trained: Sequence[TrainedArm] = (),
    seeds: Sequence[int] = (0,),
    recipe: Recipe | None = None,
    folds: Sequence[int] | None = None,
) -> None:
    """Measures what is missing, having said how long it will take.

    Args:
        weights: networks of NETWORKS and the files of their weights.
        data: folders.
        arms: in the order to measure them.
        settings: of all.
        output: folder of results.
        trained: arms to train after that, seed by seed and fold by fold.
        seeds: of these trainings.
        recipe: of these trainings.
        folds: of these trainings; None is all.

    Raises:
        UserError: a file or folder is not as expected.
    """
    probes: list[Probe] = []
    trainings: list[Trainings] = []
    try:
        for name, file in weights:
            for folder in data:
                probes.append(Probe(name, file, read_clips(folder), settings, output))
                if trained:
                    trainings.append(Trainings(probes[-1], recipe or Recipe(), output))
        jobs = list(plan(probes, arms))
        runs = [(own, *run) for own in trainings for run in own.missing(trained, seeds, folds)]
        minutes = sum(probe.seconds(arm) for probe, arm, _ in jobs) / 60
        minutes_of_runs = sum(own.seconds(arm) for own, arm, _, _ in runs) / 60
        print(f"{len(jobs)} results to measure, about {minutes:.0f} minutes of one core", flush=True)
        if trained:
            print(f"{len(runs)} networks to train, about {minutes_of_runs / 60:.1f} hours of one core", flush=True)
        for number, (probe, arm, fold) in enumerate(jobs, start=1):
            probe.prepare(_watch)
            print(f"{number}/{len(jobs)}: {probe.name} on {probe.clips.name}, {arm.key}, fold {fold}", flush=True)
            probe.measure(arm, fold)
        for number, (own, run, fold, seed) in enumerate(runs, start=1):
            own.probe.prepare(_watch)
            where = f"{own.probe.name} on {own.probe.clips.name}"
            print(f"{number}/{len(runs)}: {where}, {run.key}, fold {fold}, seed {seed}", flush=True)
            own.measure(run, fold, seed, _watch)
    finally:
        for probe in probes:
            probe.close()
        for own in trainings:
            own.close()


def draw_details(weights: Sequence[tuple[str, Path]], data: Sequence[Path], settings: Settings, output: Path) -> None:
    """Writes depth.png and depth.md: of trained networks, and of one with random weights.

    Args:
        weights, data, settings, output: as `measure` takes them.
    """
    found: dict[tuple[str, str, str], Mapping[str, Tensor]] = {}
    for name, file in weights:
        for folder in data:
            probe = Probe(name, file, read_clips(folder), settings, output)
            try:
                probe.prepare(_watch)
                print(f"{name} on {probe.clips.name}: what channels lose", flush=True)
                found[name, "trained", probe.clips.name] = probe.details(probe.folds[0])
                if folder == data[0]:
                    details = probe.details(probe.folds[0], has_random_weights=True)
                    found[name, "random", probe.clips.name] = details
            finally:
                probe.close()
    draw_depth(found, output / "depth.png")
    with whole_text(output / "depth.md") as file_of_table:
        print(depth_table(found), file=file_of_table)


def _watch(items: Sequence[Any], text: str) -> Iterable[Any]:
    return track(items, text, len(items))


def _weights(text: str) -> tuple[str, Path]:
    name, equals, file = text.partition("=")
    if name not in NETWORKS or not equals:
        raise UserError(f"--weights: got {text!r}, expected NETWORK=FILE with a network of {', '.join(NETWORKS)}")
    return name, Path(file)
