"""Writes what a network is, how it was trained and tested, and what it is not good for: `octvideo card RUN|FOLDER`.

A page (index.html) and Markdown (README.md), which the Hugging Face hub shows. With --hub, the weights beside them:
a folder to upload (hf upload USER/NAME DIR), which octvideo.from_pretrained and --ckpt take, here and as hf:USER/NAME.
RUN is a run or a checkpoint; FOLDER is an exported model, whose card has less.
"""

from __future__ import annotations

import sys
from argparse import Namespace
from collections.abc import Mapping
from datetime import date
from pathlib import Path

from rich.console import Console
from torch import nn

from octvideo.cli.arguments import Parser
from octvideo.cli.card_facts import Facts, read_facts
from octvideo.cli.card_sections import is_octave, make_card
from octvideo.errors import UserError
from octvideo.files import one_line, whole_text
from octvideo.inference.device import pick_device
from octvideo.inference.engine_times import engine_times, machine_in_words
from octvideo.inference.predictor import choose_views_per_call, clip_shape
from octvideo.models.checkpoint import build_network
from octvideo.models.costs import Cost, count_cost
from octvideo.models.pretrained import write_pretrained
from octvideo.models.shared_files import SHARED_FILES
from octvideo.pages.card import card_page
from octvideo.pages.card_markdown import card_markdown

PAGE, MARKDOWN = "index.html", "README.md"


def add_arguments(parser: Parser) -> None:
    parser.add_argument("run", metavar="RUN|FOLDER", help="a run's name or folder, a checkpoint, or an exported model")
    parser.shared("output", metavar="DIR", help="folder to write (card/ of the run)")
    parser.add_argument("--hub", action="store_true", help="write the weights too: a folder to upload")
    parser.add_argument("--license", metavar="ID", help="of the weights, such as apache-2.0 (not stated)")
    parser.add_argument("--dataset", metavar="NAME", help="what it was tested on (the name of the data's folder)")
    parser.add_argument("--no_time", action="store_true", help="measure no times")
    parser.shared("device", "threads", "runs_dir")
    parser.shared("overwrite", help="replace a card or weights that are in DIR")


def run(args: Namespace) -> int:
    """Writes the card; returns 0.

    Raises:
        UserError: there is no such run, or DIR is in use.
    """
    console = Console(stderr=True)
    with console.status("reading"):
        facts, place = read_facts(args.run, args.runs_dir)
    if args.hub and facts.network is None:
        raise UserError(
            f"{args.run} is an exported model, and --hub shares a network: give the run that it was made of"
        )
    if args.hub and not facts.block.get("network"):
        raise UserError(
            f"{args.run}: its network is by no builder of octvideo.models, so that nobody could build it again"
        )
    folder: Path = args.output or place / "card"
    _make_folder(folder, overwrite=args.overwrite)
    networks = _networks(facts)
    views = facts.views
    shape = clip_shape(views, 1)
    costs: dict[str, Cost] | None = {name: count_cost(network, shape) for name, network in networks.items()} or None
    times = []
    if networks and not args.no_time:
        shape = clip_shape(views, choose_views_per_call(views, pick_device(args.device), args.threads or 1))
        with console.status("measuring times") as status:
            how = {"device": args.device, "num_threads": args.threads}
            times = engine_times(networks, shape, **how, watch=lambda way: status.update(f"measuring times: {way}"))
    card = make_card(
        facts,
        costs=costs,
        times=times,
        machine=f"{date.today()}, {machine_in_words(args.device)}",
        license=args.license,
        dataset=args.dataset,
        has_weights=args.hub,
    )
    texts = {MARKDOWN: card_markdown(card), PAGE: card_page(card)}
    if args.hub:
        assert facts.network is not None
        write_pretrained(facts.network, dict(facts.block), folder)
    for name, text in texts.items():
        with whole_text(folder / name) as file:
            file.write(text)
    _say(facts, folder, args)
    return 0


def _make_folder(folder: Path, *, overwrite: bool) -> None:
    """Raises UserError where the folder can't be made, or holds what would be lost."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"-o {folder}: can't make the folder ({one_line(error)})") from error
    there = [name for name in (MARKDOWN, PAGE, *SHARED_FILES) if (folder / name).exists()]
    if there and not overwrite:
        raise UserError(f"{folder} holds {', '.join(there)} already: add --overwrite, or give another -o")


def _networks(facts: Facts) -> Mapping[str, nn.Module]:
    """The network, and beside an octave one the ordinary network of the same structure."""
    if facts.network is None:
        return {}
    networks = {"this network": facts.network}
    if is_octave(facts):
        built = facts.block["network"]
        plain = {**built["init_args"], "alpha": 0.0, "downsample": "stride", "octave": None}
        block = {"network": {"class_path": built["class_path"], "init_args": plain}}
        networks["ordinary"] = build_network(block, facts.name).eval()
    return networks


def _say(facts: Facts, folder: Path, args: Namespace) -> None:
    print(f"card: {folder / MARKDOWN}, {PAGE}")
    if facts.export:
        print("an exported model has no results of a test: the card of its run has them", file=sys.stderr)
    elif facts.scores is None:
        print("no results of a test: octvideo test writes them", file=sys.stderr)
    for doubt in facts.doubts:
        print(f"warning: {doubt}", file=sys.stderr)
    if args.license is None:
        print("license: not stated; --license ID states one", file=sys.stderr)
    if args.hub:
        size = sum((folder / name).stat().st_size for name in SHARED_FILES)
        print(f"weights: {size / 1e6:.1f} MB; upload: hf upload USER/NAME {folder}; use: --ckpt {folder}")
