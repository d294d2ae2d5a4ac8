"""The command line of tools/roofline.py."""

from __future__ import annotations

import argparse
import itertools
import math
import shlex
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

import octvideo.models as models
from lab.roofline.device import DEVICES, Device, Precision
from lab.roofline.eager import Mode, eager_kernels
from lab.roofline.fused import fused_kernels
from lab.roofline.report import (
    FORMS,
    HEADER,
    LARGEST_HEADER,
    WAYS,
    WORKS,
    Forms,
    Row,
    Share,
    Way,
    Work,
    draw,
    kinds,
    largest,
    load,
    save,
    summary,
)
from octvideo.cli.arguments import Parser, above_zero, positive
from octvideo.cli.ending import command
from octvideo.cli.tables import print_table
from octvideo.errors import UserError
from octvideo.files import one_line
from octvideo.octave import arrange, fuse_training, prepare_inference
from octvideo.octave.fused.prepare import use_bfloat16
from octvideo.progress import Progress

_DESCRIPTION = """A model of time on a GPU: kernels, bytes and milliseconds of networks, without a GPU.

  tools/roofline.py                                     (I3D-50 at four alphas, training, eager)
  tools/roofline.py i3d_r50 --alphas 0 .1 .1:8 .25 --ways eager fused --forms cuda plain --markdown
  tools/roofline.py slowfast_8x8_r50 --works training inference --device a100 --json slowfast.json --png slowfast.png
  tools/roofline.py --from slowfast.json --device l4 --largest 20

Networks: builders of octvideo.models. An alpha of A:M rounds low channels to multiples of M. Works: a step of training
(forward, cross entropy, backward), inference, inference of the network that prepare_inference makes. Ways: eager, as
torch dispatches it; fused, as torch.compile's inductor schedules it (minutes for each network). Forms: cuda, those of
fuse_training and of prepare_inference for CUDA; plain, without them. A kernel takes the larger of bytes / bandwidth and
FLOPs / rate, and the launch. Nothing is measured."""
_ALPHAS = ["0", ".1", ".25", ".5"]


@command()
def main(argv: Sequence[str]) -> int:
    """Runs the tool.

    Args:
        argv: without the program's name.

    Returns:
        0; 130 after Ctrl-C.
    """
    args = _parser().parse_args(argv)
    device = _device(args)
    for option, file in (("--json", args.json), ("--png", args.png)):
        if file is not None and not file.parent.is_dir():
            raise UserError(f"{option}: {file.parent} is no folder")  # now, not after minutes of counting
    rows = [row for path in args.merge for row in load(path)] if args.merge else _counted(args, device)
    words = f"tools/roofline.py {shlex.join(argv)}".strip()
    if args.json is not None:
        save(args.json, rows, device, words)
    _show(rows, device, args)
    if args.png is not None:
        draw(args.png, rows, device, f"Predicted time on a device of {_told(device)}")
        print(f"picture: {args.png}")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = Parser(description=_DESCRIPTION)
    parser.add_argument("networks", nargs="*", metavar="NETWORK", help="builders of octvideo.models (i3d_r50)")
    parser.add_argument(
        "--alphas",
        nargs="+",
        type=_share,
        metavar="A[:M]",
        default=[_share(a) for a in _ALPHAS],
        help=f"({' '.join(_ALPHAS)})",
    )
    parser.add_argument(
        "--works", nargs="+", choices=WORKS, default=["training"], help=f"{', '.join(WORKS)} (training)"
    )
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=["eager"], help=f"{', '.join(WAYS)} (eager)")
    parser.add_argument("--batch", type=positive, default=32, metavar="N", help="clips of a training step (32)")
    parser.add_argument("--views", type=positive, default=30, metavar="N", help="clips of a forward pass (30)")
    parser.add_argument("--frames", type=positive, metavar="T", help="of a clip (8; SlowFast: 32)")
    parser.add_argument("--crop", type=positive, default=224, metavar="PX", help="(224)")
    parser.add_argument("--classes", type=positive, default=400, metavar="K", help="(400)")
    parser.add_argument(
        "--precision", choices=("bf16", "f16", "f32"), default="bf16", help="bf16, f16: autocast (bf16)"
    )
    parser.add_argument(
        "--layout", choices=("channels_last", "contiguous"), default="channels_last", help="(channels_last)"
    )
    parser.add_argument("--forms", nargs="+", choices=FORMS, default=["cuda"], help="cuda, plain (cuda)")
    parser.add_argument("--optimizer", action="store_true", help="add SGD's step to eager training")
    names = ", ".join(DEVICES)
    parser.add_argument(
        "--device", choices=DEVICES, default="h200", metavar="NAME", help=f"{names} (h200); then by parts:"
    )
    parser.add_argument(
        "--bandwidth", type=above_zero, metavar="TB/S", help="terabytes a second that a copy reads and writes"
    )
    parser.add_argument(
        "--half_rate", type=above_zero, metavar="TFLOP/S", help="of products in 16 bits; a multiply-add is 2"
    )
    parser.add_argument("--float_rate", type=above_zero, metavar="TFLOP/S", help="of products in float32 or TF32")
    parser.add_argument(
        "--launch", type=_zero_or_more, metavar="US", help="microseconds that each kernel takes beside its work"
    )
    parser.add_argument("--tile", type=positive, metavar="C", help="channels that a product's tile is wide")
    parser.add_argument("--largest", type=positive, metavar="N", help="list the N largest kernels of each row")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every kernel")
    parser.add_argument("--png", type=Path, metavar="FILE", help="draw time by kind of operation")
    parser.add_argument(
        "--from", nargs="+", dest="merge", type=Path, metavar="FILE", help="show what --json wrote, count nothing"
    )
    parser.shared("markdown")
    return parser


def _share(text: str) -> Share:
    alpha, colon, multiple = text.partition(":")
    try:
        found = Share(float(alpha), int(multiple) if colon else 1)
    except ValueError:
        found = Share(-1)
    if not (0 <= found.alpha <= 1 and found.multiple >= 1):
        raise argparse.ArgumentTypeError(f"got {text}, expected a share of 0 to 1, as .25 or .1:8")
    return found


def _zero_or_more(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 <= value < math.inf:
        raise argparse.ArgumentTypeError(f"got {text}, expected 0 or more")
    return value


def _device(args: argparse.Namespace) -> Device:
    device = DEVICES[args.device]
    units = {"bandwidth": 1e12, "half_rate": 1e12, "float_rate": 1e12, "launch": 1e-6, "tile": 1}
    given = {name: getattr(args, name) * unit for name, unit in units.items() if getattr(args, name) is not None}
    return replace(device, **given)


def _told(device: Device) -> str:
    rates = f"{device.half_rate / 1e12:g} TFLOP/s in 16 bits, {device.float_rate / 1e12:g} in float32"
    return f"{device.bandwidth / 1e12:g} TB/s, {rates}, {1e6 * device.launch:g} µs a kernel"


def _counted(args: argparse.Namespace, device: Device) -> list[Row]:
    networks = args.networks or ["i3d_r50"]
    for name in networks:
        if name not in models.__all__ or name in ("frame_network", "video_network"):
            raise UserError(f"network: got {name!r}, expected a builder of octvideo.models")
    wanted = list(itertools.product(networks, args.works, args.ways, args.forms, args.alphas))
    rows = []
    with Progress() as progress:
        progress.begin("counting", len(wanted))
        for name, work, way, forms, share in wanted:
            progress.update(said=f"{name} {share} {work} {way} {forms}")
            rows.append(_counted_row(name, work, way, forms, share, args, device))
            progress.advance()
    return rows


def _counted_row(
    name: str, work: Work, way: Way, forms: Forms, share: Share, args: argparse.Namespace, device: Device
) -> Row:
    frames = args.frames or (32 if name.startswith("slowfast") else 8)
    clip_shape = (args.batch if work == "training" else args.views, 3, frames, args.crop, args.crop)
    last = args.layout == "channels_last"
    network = built(name, share, work, args.classes, precision=args.precision, channels_last=last, forms=forms, way=way)
    mode: Mode = "training" if work == "training" else "inference"
    options: dict[str, Any] = {"mode": mode, "precision": args.precision, "channels_last": last}
    try:
        if way == "eager":
            kernels = eager_kernels(network, clip_shape, optimizer=args.optimizer, **options)
        else:
            kernels = fused_kernels(network, clip_shape, device, **options)
    except (RuntimeError, ValueError) as error:
        clip = "x".join(map(str, clip_shape))
        raise UserError(f"{name} at alpha {share} can't be counted with clips of {clip}: {one_line(error)}") from error
    return Row(name, share, work, way, forms, clip_shape, args.precision, Counter(kernels))


def built(
    name: str,
    share: Share,
    work: Work,
    classes: int,
    *,
    precision: Precision,
    channels_last: bool,
    forms: Forms = "cuda",
    way: Way = "eager",
) -> nn.Module:
    """A network as training or inference has it on CUDA.

    Args:
        name: of a builder of octvideo.models.
        share: of low channels.
        work: what it is built for.
        classes: K.
        precision, channels_last: training arranges convolutions of channels-last maps, inference holds weights in bf16.
        forms: for CUDA batch norms do in passing what surrounds them.
        way: a network that is prepared to be compiled is prepared otherwise.

    Raises:
        UserError: the builder refuses.
    """
    octave = {"channel_multiple": share.multiple} if share.multiple > 1 else None
    # Preparing computes with the weights.
    with torch.device("cpu" if work == "prepared" else "meta"):
        network = getattr(models, name)(classes, share.alpha, octave=octave)
    if work == "training":
        if channels_last:
            arrange(network)
        if forms == "cuda":
            fuse_training(network)
    if work == "prepared":
        network = prepare_inference(network.eval(), device="cuda" if forms == "cuda" and way == "eager" else "cpu")
        if precision == "bf16":
            use_bfloat16(network, by_kernel=False)
    return network  # type: ignore[no-any-return]


def _show(rows: Sequence[Row], device: Device, args: argparse.Namespace) -> None:
    sheets: list[tuple[str, Sequence[str], list[tuple[str, ...]]]] = [
        (f"predicted, not measured: {_told(device)}", HEADER, summary(rows, device)),
        *kinds(rows, device),
    ]
    for row in rows if args.largest else ():
        title = f"largest of {row.network} α {row.share}, {row.work}, {row.way}"
        sheets.append((title, LARGEST_HEADER, largest(row, device, args.largest)))
    for title, header, lines in sheets:
        if args.markdown:
            print(f"{title}\n")
        print_table(header, lines, title=title, as_markdown=args.markdown)
        if args.markdown:
            print()
