"""Makes a trained network octave without training: `octvideo convert RUN|FILE|LIBRARY:NAME --data VIDEOS -o FOLDER`.

On some 200 clips, which need no labels, it measures what each channel loses at half resolution and what that does to
the scores; stores those channels low that matter least; and fits weights and statistics, layer by layer, to the
ordinary network's values. FOLDER becomes a run: octvideo test, infer, export and fit take it.

  octvideo convert my_i3d --alpha .25 --data videos/ -o runs/my_i3d_oct
  octvideo convert pytorchvideo:i3d_r50 --time .8 --data @list.txt -o runs/i3d_oct
  octvideo convert timm:efficientnet_lite0 --weights lite0.pth --alpha .25 --data videos/ -o runs/lite0_oct
"""

from __future__ import annotations

import argparse
import functools
import json
import math
import shlex
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
import yaml
from lightning import __version__ as lightning_version
from rich.console import Console
from torch import Tensor

from octvideo.cli import lightning
from octvideo.cli.arguments import Parser, above_zero, positive, share
from octvideo.cli.convert_state import Kept
from octvideo.cli.video_arguments import find_videos
from octvideo.errors import UserError
from octvideo.evaluation.spectrum_picture import draw_spectrum
from octvideo.files import json_text, markdown, whole_file, whole_text
from octvideo.inference.checkpoint import find_checkpoint
from octvideo.inference.conversion import (
    CHOICES,
    Clips,
    Trained,
    alpha_for,
    channels_of,
    convert,
    cpu_seconds,
    logits_of,
    read_clips,
    report_of,
    share_of_multiply_adds,
    trained_by_name,
    trained_checkpoint,
    untouched,
    with_weights,
)
from octvideo.models.weights import PixelScale
from octvideo.progress import track
from octvideo.stores import is_remote
from octvideo.training.checkpoint_block import make_block

STOPPED = "what is done is kept: the same command goes on"
_FEW = 50  # clips


def add_arguments(parser: Parser) -> None:
    parser.add_argument("network", metavar="RUN|FILE|LIBRARY:NAME", help="a run, a checkpoint, or a library's network")
    parser.add_argument(
        "--data", nargs="+", required=True, metavar="VIDEO|FOLDER|@FILE", help="videos like those it will see"
    )
    parser.shared("output", required=True, metavar="FOLDER", help="the run to make")
    goal = parser.add_mutually_exclusive_group()
    of_layers = 'low share of the channels (.25), or shares by module path: {"blocks.1": 0.5}'
    goal.add_argument("--alpha", type=_alpha_of, default=0.25, metavar="A", help=of_layers)
    goal.add_argument("--cost", type=share, metavar="C", help="the least alpha with this share of the multiply-adds")
    goal.add_argument("--time", type=share, metavar="T", help="the least alpha with this share of the time, here")
    parser.add_argument(
        "--num_clips", type=positive, default=200, metavar="N", help="to work on: a fifth is for comparison (200)"
    )
    parser.add_argument("--choose", choices=CHOICES["choose"], default="output", help="which channels are low (output)")
    parser.add_argument("--spread", choices=CHOICES["spread"], default="even", help="alpha of each layer (even)")
    parser.add_argument("--refit", choices=CHOICES["refit"], default="weights", help="what is fitted (weights)")
    parser.add_argument("--octave", type=_options, default={}, metavar="JSON", help="options of octave layers")
    parser.add_argument("--weights", metavar="FILE|URL", help="of LIBRARY:NAME, in place of the library's")
    parser.add_argument("--num_classes", type=positive, metavar="K", help="of these weights")
    parser.add_argument("--memory_gb", type=positive, default=2, metavar="GB", help="for maps while fitting (2)")
    parser.add_argument(
        "--epochs", type=positive, metavar="N", help="then train on: the ordinary network teaches (none)"
    )
    parser.add_argument("--lr", type=above_zero, default=2e-4, help="of this training, by AdamW (.0002)")
    parser.add_argument("--compare", action="store_true", help="say what each step brings; takes some times as long")
    parser.shared("seed", "runs_dir", "overwrite")


def _alpha_of(text: str) -> float | dict[str, float]:
    if not text.lstrip().startswith("{"):
        return share(text)
    return {path: share(str(value)) for path, value in _options(text).items()}


def _options(text: str) -> dict[str, Any]:
    try:
        options = json.loads(text)
    except ValueError:
        options = None
    if not isinstance(options, dict):
        raise argparse.ArgumentTypeError(f"got {text}, expected JSON: names and values in braces")
    return options


def run(args: argparse.Namespace) -> int:
    """Converts what the command line names, and says what it is worth; returns 0."""
    console = Console(stderr=True)
    say = functools.partial(console.print, highlight=False, markup=False, soft_wrap=True)
    _check_folder(args)
    ordinary = _trained(args)
    if args.epochs is not None and ordinary.scoring.has_several:
        raise UserError(
            "--epochs lets the ordinary network teach scores of one label a video, and this one gives several: leave "
            "it out, and train on with octvideo fit -c FOLDER/config.yaml"
        )
    videos = list(dict.fromkeys(find_videos(args.data)))
    say(f"weights: {ordinary.source}; pixels with {PixelScale(tuple(ordinary.mean), tuple(ordinary.std))}")
    clips, unreadable = read_clips(videos, ordinary, args.num_clips, watch=functools.partial(track, text="reading"))
    for path, reason in unreadable:
        say(f"left out, can't be read: {path}: {reason}")
    measured, held_out = clips.shared_out()
    one_video = len(set(clips.videos)) == 1
    if one_video:
        say("one video alone: what is compared are clips of it, too, which are alike; give more videos")
    if len(measured) < _FEW:
        say(
            f"warning: {len(measured)} clips to measure on. Expect less agreement on other videos than with some 200: "
            "give more videos, or a larger --num_clips"
        )
    asked = {key: value for key, value in vars(args).items() if key not in ("debug", "overwrite", "compare")}
    with Kept(args.output, asked, args.octave, ordinary, measured, args.seed) as kept:
        options: dict[str, Any] = {
            "choose": args.choose,
            "spread": args.spread,
            "memory_bytes": args.memory_gb * 10**9,
            "seed": args.seed,
            "watch": lambda step, parts: track(parts, text=step),
        }
        alpha = _alpha(args, ordinary, measured, options, kept)
        wanted = logits_of(ordinary.network, held_out)
        steps = []
        for name, changed in _ways(args).items():
            made = convert(ordinary, measured, alpha, args.octave, **kept.options(options | changed))
            steps.append(_step(name, made, held_out, wanted))
        if args.epochs is not None:
            teaching = taught_on(videos, measured, held_out, unreadable)
            made = _distilled(args, ordinary, _best(steps).network, teaching, kept.key)
            steps.append(_step(f"octave, taught for {args.epochs} epochs", made, held_out, wanted))
        best = _best(steps)
        if best is not steps[-1]:
            say(f"kept: {best.name}. {_why(best, steps[-1])}")
        with console.status("measuring times"):
            seconds = cpu_seconds([ordinary.network, best.network.network], clips[0])
        compared = f"compared on {len(held_out)} " + (
            "clips of the one video" if one_video else f"clips of {len(set(held_out.videos))} other videos"
        )
        _write(args, ordinary, steps, alpha, seconds, f"{len(measured)} clips without labels, {compared}")
    print((args.output / "report.md").read_text(encoding="utf-8"))
    return 0


def _check_folder(args: argparse.Namespace) -> None:
    folder: Path = args.output
    if folder.exists() and not folder.is_dir():
        raise UserError(f"-o {folder} is a file, expected a folder to make")
    if not (folder / "checkpoints").exists():
        return
    if not args.overwrite:
        raise UserError(f"{folder} holds checkpoints already: give another -o, or --overwrite")
    if not _library(args) and folder.resolve() in find_checkpoint(args.network, args.runs_dir).resolve().parents:
        raise UserError(f"{folder} holds the network to convert, which would be lost: give another -o")


def _library(args: argparse.Namespace) -> bool:
    """Whether a library's network is named."""
    return args.network.partition(":")[0] in ("pytorchvideo", "torchvision", "timm")


def _trained(args: argparse.Namespace) -> Trained:
    if _library(args):
        return trained_by_name(args.network, weights=args.weights, num_classes=args.num_classes)
    for name in ("weights", "num_classes"):
        if getattr(args, name) is not None:
            raise UserError(f"--{name} is for networks of libraries, such as timm:resnet50; {args.network} is none")
    return trained_checkpoint(find_checkpoint(args.network, args.runs_dir))


def _alpha(
    args: argparse.Namespace, ordinary: Trained, clips: Sequence[Tensor], options: dict[str, Any], kept: Kept
) -> float | dict[str, float]:
    """The alpha that is asked for, or that has the cost or time that is."""
    if args.cost is None and args.time is None:
        return args.alpha

    def measure(alpha: float) -> float:
        # With one share for all layers, cost and time are known without any clip; a budget is that of even shares.
        if args.cost is not None or args.spread == "even":
            octave = untouched(ordinary, alpha, args.octave)
        else:
            octave = convert(ordinary, clips, alpha, args.octave, **kept.options(options | {"refit": "none"}))
        if args.cost is not None:
            return share_of_multiply_adds(octave, ordinary)
        own, octaves = cpu_seconds([ordinary.network, octave.network], clips[0])
        return octaves / own

    name, wanted = ("cost", args.cost) if args.cost is not None else ("time", args.time)
    try:
        return kept.once("alpha", lambda: alpha_for(wanted, measure))
    except UserError as error:
        kept.drop()
        raise UserError(f"--{name}: {error}") from error


# -- steps, compared -----------------------------------------------------------------------------------------


def _ways(args: argparse.Namespace) -> dict[str, dict[str, str]]:
    """The networks to make without training, by their names in the report: options of each, the last one as asked."""
    ways = {}
    if args.choose != "last":
        ways["octave, last channels low"] = {"choose": "last", "spread": "even", "refit": "none"}
    ways["octave, before fitting"] = {"refit": "none"}
    if args.compare and args.refit == "weights":
        ways["octave, norms fitted"] = {"refit": "norms"}
    if args.refit != "none":
        ways[f"octave, {args.refit} fitted"] = {"refit": args.refit}
    return ways


class _Step(NamedTuple):
    """A network on the way.

    Args:
        name: of the step.
        network: what it gave.
        same: clips with the ordinary network's best class, in words.
        error: squared error of the ordinary network's logits, over their spread.
    """

    name: str
    network: Trained
    same: str
    error: float


def _step(name: str, network: Trained, clips: Sequence[Tensor], wanted: Tensor) -> _Step:
    """A step, compared with the ordinary network's logits (M, K)."""
    logits = logits_of(network.network, clips)
    same = int((logits.argmax(1) == wanted.argmax(1)).sum())
    spread = (wanted - wanted.mean(0)).square().sum() if len(wanted) > 1 else wanted.var() * wanted.numel()
    error = float((logits - wanted).square().sum() / spread.clamp_min(1e-30))
    return _Step(name, network, f"{same} of {len(clips)} ({100 * same / len(clips):.0f} %)", error)


def _best(steps: Sequence[_Step]) -> _Step:
    """The nearest to the ordinary network by logits: less of them is chance than of best classes. If equal the last."""
    return min(reversed(steps), key=lambda step: step.error if math.isfinite(step.error) else math.inf)


def _why(best: _Step, last: _Step) -> str:
    """Why a step is not the last one."""
    return (
        f'After the step "{last.name}" the network agrees less with the ordinary one: squared error {last.error:.3g} '
        f"in place of {best.error:.3g}. More clips, of more videos, may help"
    )


# -- training on ---------------------------------------------------------------------------------------------


def taught_on(
    videos: Sequence[str], measured: Clips, held_out: Clips, unreadable: Sequence[tuple[str, str]]
) -> list[str]:
    """All videos that can be read but those that scores are compared on."""
    left_out = {path for path, _ in unreadable} | (set(held_out.videos) - set(measured.videos))
    return [video for video in videos if video not in left_out]


def _distilled(
    args: argparse.Namespace, ordinary: Trained, octave: Trained, videos: Sequence[str], key: str
) -> Trained:
    """The octave network after some epochs in which the ordinary one teaches, without labels.

    Norms keep their statistics: on clips unlike the training set, new estimates destroy any network.
    """
    folder: Path = args.output / "taught"
    whose = folder / "command.txt"
    if folder.exists() and not (whose.exists() and whose.read_text(encoding="utf-8") == key):
        shutil.rmtree(folder)  # of another command: its network is not to be trained on
    folder.mkdir(parents=True, exist_ok=True)
    with whole_text(whose) as file:
        file.write(key)
    _save(ordinary, folder / "teacher.ckpt")
    _save(octave, folder / "start.ckpt")
    with whole_text(folder / "videos.txt") as file:
        file.writelines(f"{video if is_remote(video) else Path(video).absolute()}\n" for video in videos)
    views = octave.views
    config = _config(octave, folder / "start.ckpt")
    config["model"] |= {
        "teacher": str(folder / "teacher.ckpt"), "distill_logits": 1.0, "distill_features": 1.0, "freeze": "norms",
        "optimizer": "adamw", "lr": args.lr, "warmup_epochs": 0.5, "channels_last": True, "seed": args.seed,
    }  # fmt: skip
    short_sides = [views.short_side_px, round(1.15 * views.short_side_px)]
    config["data"] |= {
        "root": str(folder.absolute()), "train": "videos.txt", "val": None, "batch_size": 8,
        "augment": {"crop_px": views.crop_px, "short_side_px": short_sides, "flip": 0.5},
    }  # fmt: skip
    with whole_text(folder / "config.yaml") as file:
        yaml.safe_dump(config, file, sort_keys=False)
    name = str((folder / "run").absolute())
    begun = [*(folder / "run" / "checkpoints").glob("*.ckpt")]
    words = ["--name", name, "--trainer.max_epochs", str(args.epochs), *(["--resume"] if begun else [])]
    if lightning.run(["fit", "-c", str(folder / "config.yaml"), *words]):
        raise UserError(f"training on ended early: {name} has its log")
    return with_weights(octave, find_checkpoint(name))


# -- what is written -----------------------------------------------------------------------------------------


def _write(
    args: argparse.Namespace,
    ordinary: Trained,
    steps: Sequence[_Step],
    alpha: float | dict[str, float],
    seconds: Sequence[float],
    measured_on: str,
) -> None:
    folder: Path = args.output
    best = _best(steps)
    octave = best.network
    report = report_of(octave)
    calibration = report.calibration
    assert calibration is not None
    folder.mkdir(parents=True, exist_ok=True)
    checkpoint = folder.absolute() / "checkpoints" / "converted.ckpt"
    picture = folder / "spectrum.png"
    details, low = channels_of(octave)
    draw_spectrum(picture, details, low, title=f"{ordinary.source.split(' with ')[0]}: detail of channels by layer")
    cost = share_of_multiply_adds(octave, ordinary)
    rows = [(step.name, step.same, f"{step.error:.3f}") for step in steps]
    table = markdown(("network", "same best class", "squared error of logits"), rows)
    kept = [] if best is steps[-1] else [f"Kept: {best.name}. {_why(best, steps[-1])}.", ""]
    times = f"{1000 * seconds[1]:.1f} ms a clip, the ordinary network {1000 * seconds[0]:.1f}"
    fitted = f"Layers were fitted on {calibration.num_fitted_on} of the former." if calibration.fitted else ""
    shares = f"{alpha:.3g}" if isinstance(alpha, float) else json_text(alpha)
    lines = [
        f"# {folder.name}",
        "",
        f"{ordinary.source}, at alpha {shares} ({len(report.layers)} octave convolutions).",
        f"Measured on {measured_on}. {fitted}",
        "",
        table,
        "",
        *kept,
        f"- multiply-adds: {100 * cost:.1f} % of the ordinary network's",
        f"- CPU time here, float32, prepared, one thread: {100 * seconds[1] / seconds[0]:.0f} % ({times})",
        f"- channels chosen in {len(calibration.orders)} of {len(calibration.shares)} groups of layers",
        f"- use it: octvideo infer VIDEO --ckpt {shlex.quote(str(folder))}",
        f"- train it on: octvideo fit -c CONFIG --config {shlex.quote(str(folder / 'config.yaml'))}",
        "",
        f"![detail of channels by layer]({picture.name})",
        "",
    ]
    with whole_text(folder / "report.md") as file:
        file.write("\n".join(lines))
    with whole_text(folder / "layers.json") as file:
        layers = {name: {"share": share, "low": low.get(name, [])} for name, share in calibration.shares.items()}
        file.write(json_text({"alpha": alpha, "cost": cost, "layers": layers}, indent=1))
    with whole_text(folder / "config.yaml") as file:
        yaml.safe_dump(_config(octave, checkpoint), file, sort_keys=False, allow_unicode=True)
    # Last, so that a folder with a checkpoint is whole.
    if checkpoint.parent.exists():
        shutil.rmtree(checkpoint.parent)
    checkpoint.parent.mkdir()
    _save(octave, checkpoint)


def _save(trained: Trained, file: Path) -> None:
    """As a checkpoint of a run."""
    how: dict[str, Any] = {"views": trained.views, "mean": trained.mean, "std": trained.std, "scoring": trained.scoring}
    block = make_block(trained.network, trained.class_names, **how)
    state = {f"network.{key}": value for key, value in trained.network.state_dict().items()}
    with whole_file(file) as part:
        torch.save({"state_dict": state, "octvideo": block, "pytorch-lightning_version": lightning_version}, part)


def _config(octave: Trained, checkpoint: Path) -> dict[str, Any]:
    """For `octvideo fit`: trains the converted network on."""
    built = octave.built_from
    return {
        "model": {
            "network": {"class_path": built["class_path"], "init_args": dict(built["init_args"])},
            "init_weights": str(checkpoint),
            "mean": list(octave.mean),
            "std": list(octave.std),
            **({"loss": "bce"} if octave.scoring.has_several else {}),
        },
        "data": {"clip_frames": octave.views.clip_frames, "frame_stride": octave.views.frame_stride},
    }
