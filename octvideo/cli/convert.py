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
import hashlib
import json
import shlex
import shutil
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
import yaml
from lightning import __version__ as lightning_version
from rich.console import Console
from torch import Tensor

from octvideo.cli import lightning
from octvideo.cli.arguments import Parser, above_zero, positive, share
from octvideo.cli.infer import find_videos
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
    with_weights,
)
from octvideo.models.weights import PixelScale
from octvideo.progress import track
from octvideo.training.checkpoint_block import make_block

STOPPED = "what is done is kept: the same command goes on"
_STATE = "unfinished.pt"
_KEEP_EVERY_S = 20.0
_HELD_OUT = 5  # of so many clips one is left for the comparison of scores


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
    videos = list(find_videos(args.data))
    say(f"weights: {ordinary.source}; pixels with {PixelScale(tuple(ordinary.mean), tuple(ordinary.std))}")
    clips, unreadable = read_clips(videos, ordinary, args.num_clips, watch=functools.partial(track, text="reading"))
    for path, reason in unreadable:
        say(f"left out, can't be read: {path}: {reason}")
    measured, held_out = _shared_out(clips)
    with _Kept(args, videos, ordinary) as kept:
        options: dict[str, Any] = {
            "choose": args.choose,
            "spread": args.spread,
            "memory_bytes": args.memory_gb * 10**9,
            "seed": args.seed,
            "watch": lambda step, parts: track(parts, text=step),
        }
        alpha = _alpha(args, ordinary, measured, options, kept)
        steps = {"octave, before fitting": {"refit": "none"}}
        if args.refit != "none":
            steps[f"octave, {args.refit} fitted"] = {"refit": args.refit}
        if args.choose != "last":
            steps = {"octave, last channels low": {"choose": "last", "spread": "even", "refit": "none"}, **steps}
        if args.compare and args.refit == "weights":
            *first, last = steps.items()
            steps = {**dict(first), "octave, norms fitted": {"refit": "norms"}, **dict([last])}
        made = {}
        for name, changed in steps.items():
            made[name] = convert(ordinary, measured, alpha, args.octave, **kept.options(options | changed))
        octave = list(made.values())[-1]
        if args.epochs is not None:
            octave = _distilled(args, ordinary, octave, videos, kept.key)
            made[f"octave, taught for {args.epochs} epochs"] = octave
        with console.status("comparing scores and times"):
            rows = _rows(ordinary, made, held_out)
            seconds = cpu_seconds([ordinary.network, octave.network], clips[0])
        _write(args, ordinary, octave, alpha, rows, seconds, num_clips=len(measured), num_held_out=len(held_out))
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


def _shared_out(clips: Clips) -> tuple[Sequence[Tensor], Sequence[Tensor]]:
    """Clips to measure on, and clips to compare scores on."""
    if len(clips) < 2 * _HELD_OUT:
        return clips, clips
    return clips.take(n for n in range(len(clips)) if n % _HELD_OUT), clips[::_HELD_OUT]


def _alpha(
    args: argparse.Namespace, ordinary: Trained, clips: Sequence[Tensor], options: dict[str, Any], kept: _Kept
) -> float | dict[str, float]:
    """The alpha that is asked for, or that has the cost or time that is."""
    if args.cost is None and args.time is None:
        return args.alpha

    def measure(alpha: float) -> float:
        octave = convert(ordinary, clips, alpha, args.octave, **kept.options(options | {"refit": "none"}))
        if args.cost is not None:
            return share_of_multiply_adds(octave, ordinary)
        own, octaves = cpu_seconds([ordinary.network, octave.network], clips[0])
        return octaves / own

    name, wanted = ("cost", args.cost) if args.cost is not None else ("time", args.time)
    try:
        return kept.once("alpha", lambda: alpha_for(wanted, measure))
    except UserError as error:
        raise UserError(f"--{name}: {error}") from error


class _Kept:
    """What is done of a conversion, in a file of the folder until it is whole."""

    def __init__(self, args: argparse.Namespace, videos: Sequence[str], ordinary: Trained) -> None:
        asked = {key: value for key, value in vars(args).items() if key not in ("debug", "overwrite", "compare")}
        key = hashlib.sha256(repr((sorted(asked.items(), key=str), videos)).encode())
        for value in ordinary.network.state_dict().values():
            key.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
        self.key = key.hexdigest()
        self._file = args.output / _STATE
        self._states: dict[str, Any] = {}
        self._written = time.monotonic()

    def __enter__(self) -> _Kept:
        self._file.parent.mkdir(parents=True, exist_ok=True)
        if self._file.exists():
            held = torch.load(self._file, weights_only=True)
            self._states = held["states"] if held["key"] == self.key else {}
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            self._file.unlink(missing_ok=True)
        else:
            self._write()

    def options(self, options: dict[str, Any]) -> dict[str, Any]:
        """Options of a `Calibration` that goes on where an earlier one was."""
        name = options.get("refit", "")
        begun = {"spectrum": self._states.get("spectrum"), **self._states.get(name, {})}

        def keep(state: dict[str, Any]) -> None:
            self._states["spectrum"] = state.get("spectrum")
            if "fitted" in state:
                self._states[name] = {key: value for key, value in state.items() if key != "spectrum"}
            if time.monotonic() - self._written > _KEEP_EVERY_S:
                self._write()

        return {**options, "keep": keep, "begun": {key: value for key, value in begun.items() if value is not None}}

    def once(self, name: str, find: Callable[[], Any]) -> Any:
        """What `find` gives, or gave before: times that are measured again differ."""
        if name not in self._states:
            self._states[name] = find()
            self._write()
        return self._states[name]

    def _write(self) -> None:
        with whole_file(self._file) as part:
            torch.save({"key": self.key, "states": self._states}, part)
        self._written = time.monotonic()


# -- training on ---------------------------------------------------------------------------------------------


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
        file.writelines(f"{Path(video).absolute()}\n" for video in videos)
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


def _rows(ordinary: Trained, made: dict[str, Trained], clips: Sequence[Tensor]) -> list[tuple[str, str, str]]:
    """Of each step: clips with the ordinary network's best class, and how far logits are."""
    wanted = logits_of(ordinary.network, clips)
    spread = (wanted - wanted.mean(0)).square().sum() if len(wanted) > 1 else wanted.var() * wanted.numel()
    rows = []
    for name, trained in made.items():
        logits = logits_of(trained.network, clips)
        same = int((logits.argmax(1) == wanted.argmax(1)).sum())
        error = float((logits - wanted).square().sum() / spread.clamp_min(1e-30))
        rows.append((name, f"{same} of {len(clips)} ({100 * same / len(clips):.0f} %)", f"{error:.3f}"))
    return rows


def _write(
    args: argparse.Namespace,
    ordinary: Trained,
    octave: Trained,
    alpha: float | dict[str, float],
    rows: Iterable[Sequence[str]],
    seconds: Sequence[float],
    *,
    num_clips: int,
    num_held_out: int,
) -> None:
    folder: Path = args.output
    report = report_of(octave)
    calibration = report.calibration
    assert calibration is not None
    folder.mkdir(parents=True, exist_ok=True)
    checkpoint = folder.absolute() / "checkpoints" / "converted.ckpt"
    picture = folder / "spectrum.png"
    details, low = channels_of(octave)
    draw_spectrum(picture, details, low, title=f"{ordinary.source.split(' with ')[0]}: detail of channels by layer")
    cost = share_of_multiply_adds(octave, ordinary)
    table = markdown(("network", "same best class", "squared error of logits"), rows)
    times = f"{1000 * seconds[1]:.1f} ms a clip, the ordinary network {1000 * seconds[0]:.1f}"
    fitted = f"Layers were fitted on {calibration.num_fitted_on} of them." if calibration.fitted else ""
    compared = f"compared on {num_held_out} others" if num_held_out < num_clips else "compared on the same"
    shares = f"{alpha:.3g}" if isinstance(alpha, float) else json_text(alpha)
    lines = [
        f"# {folder.name}",
        "",
        f"{ordinary.source}, at alpha {shares} ({len(report.layers)} octave convolutions).",
        f"Measured on {num_clips} clips without labels, {compared}. {fitted}",
        "",
        table,
        "",
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
    block = make_block(trained.network, trained.class_names, views=trained.views, mean=trained.mean, std=trained.std)
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
        },
        "data": {"clip_frames": octave.views.clip_frames, "frame_stride": octave.views.frame_stride},
    }
