"""The command line of tools/benchmark.py."""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from lab.benchmark.arms import PRESETS, Arm, engines, labels, parse_arms
from lab.benchmark.calls import Call
from lab.benchmark.machine import describe
from lab.benchmark.measure import agreements, build_calls, run_pass, write_profile
from lab.benchmark.networks import WeightStore, count
from lab.benchmark.picture import draw
from lab.benchmark.processes import add_process, peak_memory
from lab.benchmark.report import remarks, sheets
from lab.benchmark.results import ArmResult, Clock, Pass, Run
from lab.timing import torch_threads
from octvideo.cli.arguments import Parser
from octvideo.cli.ending import command
from octvideo.errors import UserError
from octvideo.inference.device import pick_device
from octvideo.progress import Progress

_DESCRIPTION = """How fast networks are beside each other, in turns, in one run:

  tools/benchmark.py i3d_r50 i3d_r50:alpha=.25 i3d_r50:alpha=.25,engine=openvino,precision=bf16 --rounds 10
  tools/benchmark.py i3d_r50:alpha=0/.1/.25/.5,engine=eager/compile --png ratios.png     (eight arms)
  tools/benchmark.py --preset resnet50-table2 --json table2.json
  tools/benchmark.py --from eager.json engines.json --png both.png

An arm is NETWORK:KEY=VALUE,...; A/B are as many arms. Networks: builders of octvideo.models, pytorchvideo:NAME,
torchvision:NAME, timm:NAME (images: --frames 1). Keys: alpha, downsample, engine (ENGINES),
precision (f32, bf16, int8), layout (auto, contiguous, channels_last), batch, frames, crop, classes, mode
(inference, training), optimizer (none, sgd), width, and octave options (octave_downsample, exchange, factor).
pytorchvideo:NAME by itself is that library's own network as its users run it (engine=plain)."""
# Of the command line -> of an arm, where the arm does not say.
_ARM_OPTIONS = {
    "mode": "inference", "engine": "eager", "precision": "f32", "layout": "auto", "optimizer": "none", "batch": 1,
    "frames": 8, "crop": 224, "classes": 400,
}  # fmt: skip

_ROUNDS_AS_BUILT = 3  # until all arms are there


@command(stopped="stopped before anything was measured")
def main(argv: Sequence[str]) -> int:
    """Runs the tool.

    Returns:
        0; 130 after Ctrl-C, what was measured being kept.
    """
    args = _parser().parse_args(argv)
    runs = [Run.load(path) for path in args.merge] if args.merge else [_measured(args, argv)]
    _show(runs, args)
    return 130 if runs[-1].interrupted and not args.merge else 0


def _parser() -> argparse.ArgumentParser:
    parser = Parser(description=_DESCRIPTION.replace("ENGINES", ", ".join(engines())))
    parser.add_argument("arms", nargs="*", metavar="ARM", help="NETWORK:KEY=VALUE,...")
    presets = "; ".join(f"{name}: {preset.text}" for name, preset in PRESETS.items())
    parser.add_argument("--preset", metavar="NAME", help=f"arms and options by name ({presets})")
    for name, value in _ARM_OPTIONS.items():
        kind = type(value)
        parser.add_argument(f"--{name}", type=kind, metavar=name[0].upper(), help=f"of arms that say none ({value})")
    parser.add_argument("--rounds", type=int, metavar="R", help="of each pass, after one that warms up (10)")
    parser.add_argument("--processes", type=int, metavar="N", help="which measure so many rounds each, in turn (1)")
    parser.add_argument("--threads", nargs="+", metavar="T", help="passes: numbers, or all (on a CPU: 1 all)")
    parser.add_argument("--device", metavar="D", help="auto, cpu, cuda, cuda:1 (auto)")
    parser.add_argument("--reference", metavar="ARM", help="that others are compared with (the first)")
    parser.add_argument("--no_memory", action="store_true", help="do not measure memory (on a CPU, a process per arm)")
    parser.add_argument(
        "--as_built",
        action="store_true",
        default=None,
        help="measure after each arm that is built, and write --json each time: for arms that take minutes to compile",
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every number")
    parser.add_argument("--png", type=Path, metavar="FILE", help="draw time against multiply-adds")
    parser.add_argument("--profile", type=Path, metavar="FILE", help="write which operations take the time")
    parser.add_argument("--markdown", action="store_true", help="print Markdown for a README")
    parser.add_argument("--from", nargs="+", dest="merge", metavar="FILE", help="show results of --json, run nothing")
    return parser


def _measured(args: argparse.Namespace, words: Sequence[str]) -> Run:
    """Runs what is asked for.

    Raises:
        UserError: a mistake in it, or fewer than two arms that run here.
        KeyboardInterrupt: before the first round was complete.
    """
    arms, options = _asked(args)
    device = pick_device(options["device"])
    threads = [1] if device.type == "cuda" else _threads(options["threads"])
    names = labels(arms)
    reference = names[0]
    if args.reference is not None:
        [wanted] = parse_arms([args.reference], **_defaults(options))
        if wanted not in arms:
            raise UserError(f"reference: got {args.reference!r}, expected one of the arms")
        reference = names[arms.index(wanted)]
    counted = [ArmResult(name, arm, **vars(count(arm))) for name, arm in zip(names, arms, strict=True)]
    words = ["tools/benchmark.py", *words]
    run = Run(describe(device), shlex.join(words), counted, [], reference, preset=args.preset, interrupted=True)
    with Progress() as progress:
        try:
            for number in threads:
                _add_pass(run, number, options, device, progress, args)
            _add_processes(run, options["processes"] - 1, options["rounds"], device, progress)
            if not args.no_memory and device.type == "cpu":
                _add_memory(run, progress)
            run.interrupted = False
        except KeyboardInterrupt:
            pass
    if not any(found.rounds for found in run.passes):
        raise KeyboardInterrupt
    return run


def _asked(args: argparse.Namespace) -> tuple[list[Arm], dict[str, Any]]:
    """The arms, and all options: the command line's, else the preset's, else the defaults."""
    if args.preset is not None and args.preset not in PRESETS:
        raise UserError(f"preset: got {args.preset!r}, expected one of {', '.join(PRESETS)}")
    preset = PRESETS[args.preset] if args.preset else None
    options: dict[str, Any] = {**_ARM_OPTIONS, "rounds": 10, "processes": 1, "device": "auto", "threads": ["1", "all"]}
    options["as_built"] = False
    options |= preset.options if preset else {}
    options |= {name: getattr(args, name) for name in options if getattr(args, name) is not None}
    for name in ("rounds", "processes"):
        if options[name] < 1:
            raise UserError(f"{name}: got {options[name]}, expected 1 or more")
    # As text, so that a wrong value of an option is told as one of an arm is.
    arms = parse_arms([*(preset.arms if preset else ()), *args.arms], **_defaults(options))
    if len(arms) < 2:
        raise UserError(f"arms: got {len(arms)}, expected two or more, such as i3d_r50 i3d_r50:alpha=.25, or --preset")
    return arms, options


def _defaults(options: dict[str, Any]) -> dict[str, Any]:
    pairs = ",".join(f"{name}={options[name]}" for name in _ARM_OPTIONS)
    [arm] = parse_arms([f"options:{pairs}"])
    return {name: getattr(arm, name) for name in _ARM_OPTIONS}


def _threads(texts: Sequence[str]) -> list[int]:
    for text in texts:
        if text != "all" and not (text.isdecimal() and int(text) > 0):
            raise UserError(f"threads: got {text!r}, expected a number above 0, or all")
    most = torch.get_num_threads()
    return list(dict.fromkeys(most if text == "all" else int(text) for text in texts))


def _add_pass(
    run: Run, threads: int, options: dict[str, Any], device: torch.device, progress: Progress, args: argparse.Namespace
) -> None:
    on_gpu = device.type == "cuda"
    clock: Clock = "wall" if on_gpu or threads > 1 else "cpu"
    arms = {result.label: result.arm for result in run.arms}
    place = len(run.passes)

    def measure(calls: dict[str, Call], rounds: int) -> None:
        """All anew, so that every arm has as many rounds; what there was before stays where no round is complete."""
        found = Pass(device.type, threads, clock)
        complete = run_pass(arms, calls, found, rounds=rounds, device=device, progress=progress)
        if found.rounds or place == len(run.passes):
            run.passes[place:] = [found]
        if on_gpu and not args.no_memory:
            for result in run.arms:
                result.memory = calls[result.label].memory if result.label in calls else None
        if args.json is not None and options["as_built"]:
            run.save(args.json)
        if not complete:
            raise KeyboardInterrupt

    def built(calls: dict[str, Call]) -> None:
        if options["as_built"]:
            measure(calls, min(_ROUNDS_AS_BUILT, options["rounds"]))

    with torch_threads(torch.get_num_threads() if on_gpu else threads):
        calls, left_out = build_calls(
            arms, WeightStore(), threads=threads, device=device, progress=progress, built=built
        )
        _leave_out(run, left_out)
        measure(calls, options["rounds"])
        if place == 0:
            found_agreements = agreements(arms, calls)
            for result in run.arms:
                result.agreement = found_agreements.get(result.label)
            if args.profile is not None:
                write_profile(args.profile, calls, device)


def _add_processes(run: Run, more: int, rounds: int, device: torch.device, progress: Progress) -> None:
    if more:
        progress.begin("measuring in more processes", more * len(run.passes))
    for number in range(more):
        for found in run.passes:
            progress.update(said=f"{number + 2} of {more + 1}")
            arms = {result.label: result.arm for result in run.arms if result.label in found.seconds}
            try:
                add_process(found, arms, rounds=rounds, device=device)
            except UserError as error:  # the rounds before are worth keeping
                print(f"not measured: {error}", file=sys.stderr)
                return
            progress.advance()


def _leave_out(run: Run, left_out: dict[str, str]) -> None:
    run.left_out |= left_out
    run.arms = [result for result in run.arms if result.label not in run.left_out]
    for label, reason in left_out.items():
        print(f"left out: {label}: {reason}", file=sys.stderr)
    if len(run.arms) < 2:
        raise UserError(f"fewer than two arms run here ({'; '.join(run.left_out.values())})")
    if run.reference not in {result.label for result in run.arms}:
        run.reference = run.arms[0].label


def _add_memory(run: Run, progress: Progress) -> None:
    progress.begin("measuring memory", len(run.arms))
    for result in run.arms:
        progress.update(said=result.label)
        try:
            result.memory = peak_memory(result.arm)
        except UserError as error:  # the times are worth keeping
            print(f"not measured: {error}", file=sys.stderr)
        progress.advance()


def _show(runs: Sequence[Run], args: argparse.Namespace) -> None:
    """Tables on stdout, files where they are asked for: first the numbers, which took the time."""
    if args.json is not None:
        if args.merge:
            raise UserError("--json: got it with --from, expected it where something is measured")
        runs[0].save(args.json)
    console = Console(width=max(200, Console().width))  # wide enough in a log file too
    for run in runs:
        for sheet in sheets(run):
            if args.markdown:
                print(sheet.markdown(), *sheet.notes, sep="\n\n", end="\n\n")
            else:
                console.print(sheet.title, highlight=False, markup=False)
                console.print(sheet.drawn())
                console.print(*sheet.notes, "", sep="\n", highlight=False, markup=False)
        print(*remarks(run), sep="\n")
    if args.png is not None:
        draw(args.png, runs)
        print(f"picture: {args.png}")
